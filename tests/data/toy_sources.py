"""A small log of interactions, written in every format that the adapters read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from src.data.settings import DatasetSettings

USERS, ITEMS, STEPS = 12, 24, 9

Row = tuple[int, int, int, int]  # user, item, rating, timestamp; users and items count from 1


def toy_log(changed: bool = False) -> list[Row]:
    """108 interactions, users interleaved in time, items in a pattern; ``changed`` alters a single item."""
    rows = []
    for step in range(STEPS):
        for user in range(1, USERS + 1):
            item = (user * 5 + step * 7 + step * step) % ITEMS + 1
            rows.append((user, item, 1 + (user + step) % 5, 1000 + step * 100 + user % 4))
    if changed:
        user, item, rating, timestamp = rows[50]
        rows[50] = (user, item % ITEMS + 1, rating, timestamp)
    return rows


def toy_title(item: int) -> str:
    """Title of item 1..V in MovieLens' form."""
    return f"Film {item}, The ({1960 + item})"


def toy_sequences(changed: bool = False) -> list[tuple[list[int], int]]:
    """(history, next) of every interaction, in file order, items from 0."""
    seen: dict[int, list[int]] = {}
    examples = []
    for user, item, _, _ in toy_log(changed):
        history = seen.setdefault(user, [])
        examples.append((list(history), item - 1))
        history.append(item - 1)
    return examples


def toy_tables(changed: bool = False) -> list[pd.DataFrame]:
    """Train, validation and test tables as published: padded to 10, empty histories with length 1."""
    rows = [(h + [ITEMS] * (10 - len(h)), max(len(h), 1), target) for h, target in toy_sequences(changed)]
    frames = []
    for part in (rows[:80], rows[80:94], rows[94:]):
        frame = pd.DataFrame(
            {"seq": [r[0] for r in part], "len_seq": [r[1] for r in part], "next": [r[2] for r in part]}
        )
        frames.append(frame)
    return frames


def _sample(folder: Path, changed: bool) -> DatasetSettings:
    return DatasetSettings(
        sample_users=40, sample_items=60, sample_interactions=800, sample_seed=8 if changed else 7, min_history=2
    )


def write_recbole(folder: Path, changed: bool = False) -> DatasetSettings:
    """toy.inter and toy.item."""
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    lines += ["\t".join(map(str, row)) for row in toy_log(changed)]
    (folder / "toy.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    items = ["item_id:token\tmovie_title:token_seq\trelease_year:token"]
    items += [f"{item}\tFilm {item}, The\t{1960 + item}" for item in range(1, ITEMS + 1)]
    (folder / "toy.item").write_text("\n".join(items) + "\n", encoding="utf-8")
    return DatasetSettings(adapter="recbole", root=folder, name="toy")


def write_movielens_100k(folder: Path, changed: bool = False) -> DatasetSettings:
    """u.data and u.item."""
    (folder / "u.data").write_text("".join("\t".join(map(str, row)) + "\n" for row in toy_log(changed)))
    movies = [f"{item}|{toy_title(item)}|01-Jan-1980||url" + "|0" * 19 for item in range(1, ITEMS + 1)]
    (folder / "u.item").write_text("\n".join(movies) + "\n", encoding="iso-8859-1")
    return DatasetSettings(adapter="movielens", root=folder, name="ml-100k")


def write_movielens_1m(folder: Path, changed: bool = False) -> DatasetSettings:
    """ratings.dat and movies.dat."""
    (folder / "ratings.dat").write_text("".join("::".join(map(str, row)) + "\n" for row in toy_log(changed)))
    movies = [f"{item}::{toy_title(item)}::Drama|Comedy" for item in range(1, ITEMS + 1)]
    (folder / "movies.dat").write_text("\n".join(movies) + "\n", encoding="iso-8859-1")
    return DatasetSettings(adapter="movielens", root=folder, name="ml-1m")


def write_dllm2rec(folder: Path, changed: bool = False) -> DatasetSettings:
    """data/toy/ as CSV, with text lists and ids in float notation, and titles as a JSON list."""
    home = folder / "data" / "toy"
    home.mkdir(parents=True)
    for frame, stem in zip(toy_tables(changed), ("train_data", "val_data", "test_data"), strict=True):
        frame.assign(next=frame["next"].astype(float)).to_csv(home / f"{stem}.csv", index=False)
    (home / "data_statis.csv").write_text(f"seq_size,item_num\n10,{ITEMS}\n")
    (folder / "titles.json").write_text(json.dumps([f"Film {item}" for item in range(ITEMS)]))
    return DatasetSettings(adapter="dllm2rec", root=folder, name="toy", titles_file="titles.json", min_history=0)


def write_llara_names(folder: Path, changed: bool = False) -> DatasetSettings:
    """Pickled tables and id2name.txt."""
    for frame, stem in zip(toy_tables(changed), ("train_data", "Val_data", "Test_data"), strict=True):
        frame.columns = pd.Index(list(frame.columns), dtype=object)
        frame.to_pickle(folder / f"{stem}.df")
    (folder / "id2name.txt").write_text("".join(f"{item}::Film {item}\n" for item in range(ITEMS)), encoding="utf-8")
    return DatasetSettings(adapter="llara", root=folder, name="toy")


def write_llara_movies(folder: Path, changed: bool = False) -> DatasetSettings:
    """Tables of (id, rating) pairs and u.item, whose ids count from 1."""
    for frame, stem in zip(toy_tables(changed), ("train_data", "Val_data", "Test_data"), strict=True):
        pairs = frame.assign(
            seq=[[(item, 0 if item == ITEMS else 4) for item in row] for row in frame["seq"]],
            next=[(item, 5) for item in frame["next"]],
        )
        pairs.to_csv(folder / f"{stem}.csv", index=False)
    movies = [f"{item}|{toy_title(item)}|01-Jan-1980||url" + "|0" * 19 for item in range(1, ITEMS + 1)]
    (folder / "u.item").write_text("\n".join(movies) + "\n", encoding="iso-8859-1")
    return DatasetSettings(adapter="llara", root=folder, name="toy")


def write_table(folder: Path, changed: bool = False) -> DatasetSettings:
    """log.csv with dates and names that are guessed, and items.jsonl."""
    dates = pd.to_datetime([row[3] for row in toy_log(changed)], unit="s").strftime("%Y-%m-%d %H:%M:%S")
    lines = ["customer,sku,stars,purchased_at"]
    lines += [
        f"{user},{item},{rating},{date}" for (user, item, rating, _), date in zip(toy_log(changed), dates, strict=True)
    ]
    (folder / "log.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    items = [
        json.dumps({"sku": item, "title": f"The Film {item}", "year": 1960 + item}) for item in range(1, ITEMS + 1)
    ]
    (folder / "items.jsonl").write_text("\n".join(items) + "\n", encoding="utf-8")
    return DatasetSettings(adapter="table", root=folder, name="toy")


SOURCES: dict[str, Callable[[Path, bool], DatasetSettings]] = {
    "sample": _sample,
    "recbole": write_recbole,
    "movielens-100k": write_movielens_100k,
    "movielens-1m": write_movielens_1m,
    "dllm2rec": write_dllm2rec,
    "llara-names": write_llara_names,
    "llara-movies": write_llara_movies,
    "table": write_table,
}
