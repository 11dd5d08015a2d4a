"""Every preset of `conf/dataset/` reads a file of the shape that its source publishes."""

from __future__ import annotations

import datetime
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from src.config.reading import read_settings
from src.core.paths import REPOSITORY
from src.data.dataset import load_dataset
from src.data.settings import DatasetSettings
from src.pipeline.settings import ExperimentSettings
from tests.data.toy_sources import ITEMS, SOURCES, Row, toy_log

MOMENT = 1_500_000_000
NAMES = [f"Film &amp; <i>Co</i> {item}" for item in range(ITEMS + 1)]
CLEAN = [f"Film & Co {item}" for item in range(ITEMS + 1)]


def rows() -> list[Row]:
    """The toy log with times of our days, seven seconds and a day apart."""
    return [(user, item, rating, MOMENT + 7 * time) for user, item, rating, time in toy_log()]


def day(time: int) -> str:
    """A date that keeps the log's order in time: a day for every seven seconds."""
    moment = datetime.datetime(2010, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(days=(time - MOMENT) // 7)
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def write(path: Path, lines: list[str], encoding: str = "utf-8") -> None:
    path.write_text("\n".join(lines) + "\n", encoding=encoding)


def dat(folder: Path) -> None:
    """Half stars, as in 10M."""
    write(folder / "ratings.dat", [f"{u}::{i}::{r - 0.5}::{t}" for u, i, r, t in rows()])
    write(folder / "movies.dat", [f"{i}::Film: {i}, The ({1960 + i})::Drama|Comedy" for i in range(1, ITEMS + 1)])


def csv(folder: Path) -> None:
    """Quoted titles, as in 20M and later."""
    write(folder / "ratings.csv", ["userId,movieId,rating,timestamp"] + [f"{u},{i},{r}.5,{t}" for u, i, r, t in rows()])
    films = [f'{i},"Film: {i}, The ({1960 + i})",Drama|Comedy' for i in range(1, ITEMS + 1)]
    write(folder / "movies.csv", ["movieId,title,genres", *films])


def jsonl(path: Path, content: list[dict[str, object]]) -> None:
    """JSON Lines, compressed where the name says so."""
    text = "".join(json.dumps(row) + "\n" for row in content).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def amazon_2018(folder: Path) -> None:
    reviews: list[dict[str, object]] = [
        {"overall": float(r), "verified": True, "reviewTime": "07 14, 2017", "reviewerID": f"A{u}", "asin": f"B{i}",
         "style": {"Format:": " X"}, "reviewerName": "N", "reviewText": "a\nb", "summary": "s", "unixReviewTime": t}
        for u, i, r, t in rows()
    ]  # fmt: skip
    jsonl(folder / "Video_Games_5.json.gz", reviews)
    items: list[dict[str, object]] = [
        {"category": ["Video Games", "PC"], "description": [], "title": NAMES[i], "also_buy": [], "brand": "X",
         "price": "$9" if i % 2 else "", "asin": f"B{i}"}
        for i in range(1, ITEMS + 1)
    ]  # fmt: skip
    jsonl(folder / "meta_Video_Games.json.gz", items)


def amazon_2023(folder: Path) -> None:
    lines = [f"A{u},B{i},{r}.0,{t}000" for u, i, r, t in rows()]
    write(folder / "Video_Games.csv", ["user_id,parent_asin,rating,timestamp", *lines])
    items: list[dict[str, object]] = [
        {"main_category": "Games", "title": NAMES[i], "average_rating": 4.5, "price": 9.5 if i % 2 else None,
         "features": [], "details": {"a": {"b": 1}}, "images": [{"thumb": "x"}], "parent_asin": f"B{i}"}
        for i in range(1, ITEMS + 1)
    ]  # fmt: skip
    jsonl(folder / "meta_Video_Games.jsonl", items)


def steam(folder: Path) -> None:
    reviews = [
        repr({"username": f"u{u}", "hours": 1.5, "product_id": str(i), "page_order": 0, "date": day(t)[:10],
              "text": "it's \"ok\""})
        for u, i, r, t in rows()
    ]  # fmt: skip
    write(folder / "steam_reviews.json", ["{u" + line[1:] for line in reviews])
    games = [
        repr({"app_name": NAMES[i], "title": None, "genres": ["Action", "Indie"], "id": str(i)})
        for i in range(1, ITEMS + 1)
    ]
    write(folder / "steam_games.json", games)


def lastfm(folder: Path) -> None:
    lines = [f'user_{u:06d}\t{day(t)[:10]}T{day(t)[11:]}Z\t\t{NAMES[i]}\t\t"Track {r}' for u, i, r, t in rows()]
    write(folder / "userid-timestamp-artid-artname-traid-traname.tsv", lines)


def lastfm_hetrec(folder: Path) -> None:
    lines = [f"{u}\t{i}\t{tag}\t{t}000" for u, i, r, t in rows() for tag in (1, 2)]
    write(folder / "user_taggedartists-timestamps.dat", ["userID\tartistID\ttagID\ttimestamp", *lines])
    artists = [f"{i}\t{NAMES[i]}\thttp://x/{i}\thttp://y/{i}" for i in range(1, ITEMS + 1)]
    write(folder / "artists.dat", ["id\tname\turl\tpictureURL", *artists])


def goodreads(folder: Path) -> None:
    def written(time: int) -> str:
        moment = datetime.datetime.fromtimestamp(time, datetime.UTC)
        return moment.strftime("%a %b %d %H:%M:%S +0000 %Y")

    interactions: list[dict[str, object]] = [
        {"user_id": f"{u:032x}", "book_id": str(i), "review_id": "x", "is_read": True, "rating": r,
         "review_text_incomplete": "", "date_added": written(t), "date_updated": written(t + 9)}
        for u, i, r, t in rows()
    ]  # fmt: skip
    jsonl(folder / "goodreads_interactions_poetry.json.gz", interactions)
    books: list[dict[str, object]] = [
        {"isbn": "", "book_id": str(i), "title": NAMES[i], "title_without_series": "x", "publication_year": "1999"}
        for i in range(1, ITEMS + 1)
    ]
    jsonl(folder / "goodreads_books_poetry.json.gz", books)


def yelp(folder: Path) -> None:
    reviews: list[dict[str, object]] = [
        {"review_id": "x", "user_id": f"u{u}", "business_id": f"b{i}", "stars": float(r), "useful": 0,
         "text": "a\n\"b\"", "date": day(t)}
        for u, i, r, t in rows()
    ]  # fmt: skip
    jsonl(folder / "yelp_academic_dataset_review.json", reviews)
    places: list[dict[str, object]] = [
        {"business_id": f"b{i}", "name": NAMES[i], "city": "X", "attributes": None,
         "categories": "Bars, Food", "hours": None}
        for i in range(1, ITEMS + 1)
    ]  # fmt: skip
    jsonl(folder / "yelp_academic_dataset_business.json", places)


WRITERS: dict[str, Callable[[Path], None]] = {
    "movielens_1m": dat, "movielens_10m": dat, "movielens_20m": csv, "movielens_25m": csv, "movielens_32m": csv,
    "movielens_latest_small": csv, "amazon_2018": amazon_2018, "amazon_2023": amazon_2023, "steam": steam,
    "lastfm": lastfm, "lastfm_hetrec": lastfm_hetrec, "goodreads": goodreads, "yelp": yelp,
}  # fmt: skip
#: Options that are an adapter and not a preset: the contract suite reads these.
ADAPTERS = {"dllm2rec", "llara", "movielens", "recbole", "sample", "table"}


def composed(option: str, root: Path, *more: str) -> DatasetSettings:
    """The option as the command line composes it."""
    return read_settings("config", [f"dataset={option}", f"dataset.root={root}", *more], ExperimentSettings)[0].dataset


def test_every_preset_has_a_file_of_its_shape_here() -> None:
    options = {path.stem for path in (REPOSITORY / "conf" / "dataset").glob("*.yaml")} - {"base"}
    options -= {"table_on_ray"}  # the same reader: tests/tuning/test_ray_log.py
    assert options == set(WRITERS) | ADAPTERS
    assert {name.partition("-")[0] for name in SOURCES} == ADAPTERS


@pytest.mark.parametrize("option", WRITERS)
def test_a_preset_reads_its_source(option: str, tmp_path: Path) -> None:
    WRITERS[option](tmp_path)
    data = load_dataset(composed(option, tmp_path))
    assert data.statistics.interactions == len(toy_log())
    assert data.statistics.users == 12
    assert data.num_items == ITEMS
    films = [f"The Film: {item}" for item in range(1, ITEMS + 1)]
    expected = films if option.startswith("movielens") else CLEAN[1:]
    assert sorted(data.id_map.titles) == sorted(expected)
    # the same order in time as the toy log's, whatever the clock
    order = sorted(range(len(toy_log())), key=lambda row: (toy_log()[row][3], row))
    assert len(data.train) + len(data.validation) + len(data.test) == len(order) - 12 * 3
    last = [toy_log()[row] for row in order][data.train.example_id[-1]]
    assert data.id_map.titles[data.train.target[-1]] == expected[last[1] - 1]


def test_a_title_that_holds_the_separator(tmp_path: Path) -> None:
    dat(tmp_path)
    path = tmp_path / "movies.dat"
    path.write_text(path.read_text().replace("::Film: 5, The", "::Star Quest:: The Return"))
    data = load_dataset(composed("movielens_10m", tmp_path))
    assert data.id_map.titles[4] == "Star Quest:: The Return"


def test_texts_of_presets(tmp_path: Path) -> None:
    csv(tmp_path)
    template = 'dataset.item_text="{title} ({year}), {genres}"'
    data = load_dataset(composed("movielens_20m", tmp_path, template))
    assert data.id_map.texts[0] == "The Film: 1 (1961), Drama, Comedy"
    amazon_2018(tmp_path)
    data = load_dataset(composed("amazon_2018", tmp_path, 'dataset.item_text="{title} by {brand}"'))
    assert data.id_map.texts[0] == "Film & Co 1 by X"


def test_ratings_only_files_of_amazon_2018(tmp_path: Path) -> None:
    write(tmp_path / "Video_Games.csv", [f"B{i},A{u},{r}.0,{t}" for u, i, r, t in rows()])
    amazon_2018(tmp_path)
    header = "dataset.header=[asin,reviewerID,overall,unixReviewTime]"
    ratings = load_dataset(composed("amazon_2018", tmp_path, "dataset.interactions_file=Video_Games.csv", header))
    assert ratings.fingerprints() == load_dataset(composed("amazon_2018", tmp_path)).fingerprints()
