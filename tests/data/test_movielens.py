"""MovieLens' raw files, and fetching them: nothing unchecked reaches the disk, nothing that is there is lost."""

from __future__ import annotations

import hashlib
import io
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.core.errors import ConfigError, DataError
from src.data.adapters import movielens, movielens_download
from src.data.dataset import load_dataset
from src.data.settings import DatasetSettings
from tests.data.toy_sources import write_movielens_1m, write_movielens_100k


def _archive(*names: str, content: bytes = b"x") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return buffer.getvalue()


def _serve(monkeypatch: pytest.MonkeyPatch, content: bytes | Exception, known: bool = True) -> list[str]:
    """Answer downloads with these bytes (whose checksum is the expected one if ``known``), or with this exception."""
    asked = []

    def urlopen(request: urllib.request.Request, timeout: float) -> Any:
        asked.append(request.full_url)
        if isinstance(content, Exception):
            raise content
        answer = io.BytesIO(content)
        answer.headers = {"Content-Length": str(len(content))}  # type: ignore[attr-defined]
        return answer

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    if isinstance(content, bytes) and known:
        layout = replace(movielens.LAYOUTS["ml-100k"], md5=hashlib.md5(content).hexdigest())
        monkeypatch.setattr(movielens, "LAYOUTS", {"ml-100k": layout})
    return asked


def _settings(root: Path, download: bool = True) -> DatasetSettings:
    return DatasetSettings(adapter="movielens", root=root, name="ml-100k", download=download)


def test_published_checksums() -> None:
    assert {name: layout.md5 for name, layout in movielens.LAYOUTS.items()} == {
        "ml-100k": "0e33842e24a9c977be4e0107933c0723",
        "ml-1m": "c4d9eecfca2ab87c1945afe126590906",
        "ml-10m": "ce571fd55effeba0271552578f2648bd",
        "ml-20m": "cd245b17a1ae2cc31bb14903e1204af3",
        "ml-25m": "6b51fb2759a8657d3bfcbfc42b592ada",
        "ml-32m": "d472be332d4daa821edc399621853b57",
        "ml-latest": "",
        "ml-latest-small": "",
    }


def test_ratings_and_titles(tmp_path: Path) -> None:
    settings = write_movielens_100k(tmp_path)
    (tmp_path / "u.item").write_bytes((tmp_path / "u.item").read_bytes().replace(b"Film 2,", b"Caf\xe9 2,"))
    log = movielens.load(settings)
    assert log.ratings is not None
    assert log.ratings[:5].tolist() == [2, 3, 4, 5, 1]
    assert log.id_map.titles[1] == "The Café 2"
    years = movielens.load(replace(settings, title_year=True))
    assert years.id_map.titles[0] == "The Film 1 (1961)"


def test_a_rating_threshold_drops_interactions_from_histories_too(tmp_path: Path) -> None:
    settings = replace(write_movielens_1m(tmp_path), min_rating=3.0, min_history=1, min_items=2)
    data = load_dataset(settings)
    log = movielens.load(settings)
    assert log.ratings is not None
    assert data.statistics.interactions == (log.ratings >= 3).sum() < len(log.ratings)
    assert data.statistics.train + data.statistics.validation + data.statistics.test == (
        data.statistics.interactions - data.statistics.users
    )


def test_broken_lines_and_unknown_items(tmp_path: Path) -> None:
    settings = write_movielens_1m(tmp_path)
    with (tmp_path / "ratings.dat").open("a") as handle:
        handle.write("1::77::5::9\n1::2::five::9\n")
    log = movielens.load(settings)
    assert (log.id_map.raw_ids[-1], log.id_map.titles[-1]) == ("77", "")
    assert log.ratings is not None
    assert np.isnan(log.ratings).tolist() == [False] * 109 + [True]
    with pytest.raises(
        DataError, match=r"ratings.dat line 110 = 'five': rating must be a finite number, for dataset.min"
    ):
        load_dataset(replace(settings, min_rating=2.0))


def test_missing_files_say_where_they_are_published(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(_settings(tmp_path, download=False))
    assert len(caught.value.problems) == 2
    assert "dataset.download=true" in str(caught.value)
    assert "files.grouplens.org/datasets/movielens" in str(caught.value)


def test_a_release_without_a_checksum_is_put_there_by_hand(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(replace(_settings(tmp_path), name="ml-latest-small"))
    assert "dataset.download=true does not fetch this release: no checksum of it is published" in str(caught.value)
    assert "unpack https://files.grouplens.org/datasets/movielens/ml-latest-small.zip and put" in str(caught.value)


def test_an_unknown_release(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use ml-100k, ml-1m, .* or ml-latest-small, or dataset=table"):
        load_dataset(replace(_settings(tmp_path, download=False), name="ml-5m"))


def test_download_takes_the_wanted_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "new" / "ml-100k"
    source.mkdir()
    write_movielens_100k(source)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../evil.txt", "x")
        archive.writestr("ml-100k/../../evil.txt", "x")
        for name in ("u.data", "u.item"):
            archive.writestr(f"ml-100k/{name}", (source / name).read_bytes())
    asked = _serve(monkeypatch, buffer.getvalue())
    data = load_dataset(_settings(target))
    assert asked == ["https://files.grouplens.org/datasets/movielens/ml-100k.zip"]
    assert data.statistics.interactions == 108
    assert sorted(path.name for path in target.iterdir()) == ["u.data", "u.item"]
    assert not list(tmp_path.rglob("evil.txt"))
    load_dataset(_settings(target))
    assert len(asked) == 1


def test_a_file_that_is_there_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_movielens_100k(tmp_path)
    mine = (tmp_path / "u.data").read_bytes()
    movies = (tmp_path / "u.item").read_bytes()
    (tmp_path / "u.item").unlink()
    _serve(monkeypatch, _archive("ml-100k/u.data", "ml-100k/u.item", content=movies))
    load_dataset(_settings(tmp_path))
    assert (tmp_path / "u.data").read_bytes() == mine
    assert (tmp_path / "u.item").read_bytes() == movies


@pytest.mark.parametrize(
    ("answer", "known", "message"),
    [
        (urllib.error.URLError("no route"), True, "no route.*cannot be reached; is there a network"),
        (TimeoutError("timed out"), True, "timed out.*cannot be reached"),
        (
            b"something else",
            False,
            hashlib.md5(b"something else").hexdigest() + ".*checksum .MD5. must be 0e33842e24a9c977be4e0107933c0723",
        ),
        (b"no archive", True, "is not the expected archive"),
        (_archive("ml-100k/u.data"), True, "is not the expected archive"),
    ],
)
def test_failed_downloads_leave_nothing(
    answer: bytes | Exception, known: bool, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _serve(monkeypatch, answer, known)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(_settings(tmp_path / "root"))
    assert "put u.item, u.data into" in str(caught.value)
    assert not (tmp_path / "root").exists()


def test_a_refusing_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _serve(monkeypatch, urllib.error.HTTPError("u", 404, "gone", None, io.BytesIO()))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="404: the server refused"):
        load_dataset(_settings(tmp_path))


# ------------------------------------------------------------------------------------------- connections that are cut


@dataclass
class Server:
    """A server that sends at most ``at_once`` bytes of its content and then cuts the connection, ``cuts`` times."""

    content: bytes
    cuts: int
    at_once: int = 1000
    knows_parts: bool = True
    #: the first byte that each request asked for
    asked: list[int] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """On this machine, in place of GroupLens; its archive holds what `write_movielens_100k` writes."""
    serves = Server(b"", 0)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "bytes=0-")
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            serves.asked.append(begin)
            begin = begin if serves.knows_parts else 0
            left = serves.content[begin:]
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(left)))
            self.end_headers()
            if serves.cuts:
                serves.cuts -= 1
                left = left[: serves.at_once]
            self.wfile.write(left)
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        monkeypatch.setattr(movielens_download, "SOURCE", f"http://127.0.0.1:{http.server_port}")
        yield serves
        http.shutdown()
        thread.join()


def _release(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_movielens_100k(source)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("u.data", "u.item"):
            archive.writestr(f"ml-100k/{name}", (source / name).read_bytes())
    server.content = buffer.getvalue()
    layout = replace(movielens.LAYOUTS["ml-100k"], md5=hashlib.md5(server.content).hexdigest())
    monkeypatch.setattr(movielens, "LAYOUTS", {"ml-100k": layout})


def test_a_download_goes_on_where_it_was_cut(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    _release(tmp_path, server, monkeypatch)
    server.cuts = 2
    assert load_dataset(_settings(tmp_path / "root")).statistics.interactions == 108
    assert server.asked == [0, 1000, 2000]
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["u.data", "u.item"]


def test_what_came_before_the_network_failed_is_not_asked_for_again(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    _release(tmp_path, server, monkeypatch)
    (tmp_path / "root").mkdir()
    part = tmp_path / "root" / ".ml-100k.zip.part"
    part.write_bytes(server.content[:1500])
    server.cuts, server.at_once = 3, 0
    with pytest.raises(DataError, match=r"the connection was cut.*→ try again, which goes on where it was cut off"):
        load_dataset(_settings(tmp_path / "root"))
    assert part.read_bytes() == server.content[:1500]
    assert load_dataset(_settings(tmp_path / "root")).statistics.interactions == 108
    assert server.asked == [1500] * 4


def test_two_downloads_at_once_fetch_one_archive(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    _release(tmp_path, server, monkeypatch)
    receive = movielens_download._receive
    second = ThreadPoolExecutor(1)
    others = list[Future[Any]]()
    waits = threading.Event()

    def overtaken(url: str, part: Path, begun: int) -> bool:
        if not others:
            others.append(second.submit(load_dataset, _settings(tmp_path / "new")))
            waits.wait(2.0)
        return receive(url, part, begun)

    monkeypatch.setattr(movielens_download, "_receive", overtaken)
    monkeypatch.setattr(movielens_download._log, "info", lambda line, *_: "waiting" in line and waits.set())
    first = load_dataset(_settings(tmp_path / "new"))
    assert others[0].result().statistics == first.statistics
    assert len(server.asked) == 1
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["u.data", "u.item"]


def test_a_server_that_sends_no_parts_begins_again(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    _release(tmp_path, server, monkeypatch)
    server.cuts, server.knows_parts = 1, False
    assert load_dataset(_settings(tmp_path / "root")).statistics.interactions == 108
    assert server.asked == [0, 1000]


def test_a_part_of_another_archive_is_found_by_its_checksum(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    _release(tmp_path, server, monkeypatch)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / ".ml-100k.zip.part").write_bytes(b"x" * 1500)
    with pytest.raises(DataError, match="the checksum .MD5. must be"):
        load_dataset(_settings(tmp_path / "root"))
    # the next one begins anew
    assert load_dataset(_settings(tmp_path / "root")).statistics.interactions == 108
    assert server.asked == [1500, 0]
