"""Trials' files: on this machine, and through a file system that is reached by URL."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from src.core.errors import ConfigError
from src.tuning.store import Store, below, folder_bytes


@pytest.fixture(params=["path", "url"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The same folder, named as a path and as a URL."""
    folder = tmp_path / "trials"
    return Store.open(str(folder) if request.param == "path" else folder.as_uri())


def test_files_are_written_read_and_removed(store: Store) -> None:
    assert store.read("3/checkpoint.pt") is None
    store.write("3/checkpoint.pt", b"one")
    store.write("3/checkpoint.pt", b"two")
    assert store.read("3/checkpoint.pt") == b"two"
    assert store.exists("3/checkpoint.pt")
    assert store.exists("3")
    store.remove("3/checkpoint.pt")
    store.remove("3/checkpoint.pt")
    assert not store.exists("3/checkpoint.pt")


def test_folders_are_replaced_whole(store: Store, tmp_path: Path) -> None:
    for content in ("one", "two"):
        source = tmp_path / content
        (source / "deep").mkdir(parents=True)
        (source / f"{content}.txt").write_text(content)
        (source / "deep" / "a.txt").write_text(content)
        store.upload(source, "7/model")
    folder = store.download("7/model", tmp_path / "copy")
    assert sorted(path.name for path in folder.rglob("*.txt")) == ["a.txt", "two.txt"]
    store.remove("7/model")
    assert not store.exists("7/model")
    assert store.exists("7")


def test_a_worker_gets_it_by_pickle(store: Store) -> None:
    store.write("token", b"abc")
    assert pickle.loads(pickle.dumps(store)).read("token") == b"abc"


@pytest.mark.parametrize("root", ["/proc/nowhere/trials", "nonsense://bucket/folder"])
def test_a_place_that_cannot_be_written_is_refused(root: str) -> None:
    with pytest.raises(ConfigError, match="storage"):
        Store.open(root)


class Bucket(Store):
    """A store that is not on this machine: the branch that a bucket takes, over a folder."""

    @property
    def local(self) -> Path | None:
        """None, as for a bucket."""
        return None


def test_the_way_of_a_bucket(tmp_path: Path) -> None:
    store = Bucket(str(tmp_path / "bucket"))
    (tmp_path / "bucket" / "7" / "model" / "deep").mkdir(parents=True)
    store.write("7/model/a.txt", b"a")
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "b.txt").write_text("b")
    store.upload(source, "7/model")
    folder = store.download("7/model", tmp_path / "copy")
    assert {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.txt")} == {
        "a.txt": "a",
        "deep/b.txt": "b",
    }
    store.remove("7/model")
    assert not store.exists("7/model")


def test_the_size_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b").write_bytes(b"4567")
    os.symlink("/nowhere", tmp_path / "dangling")
    assert folder_bytes(tmp_path) == 3 + 4 + len("/nowhere")


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("/mnt/shared/", "/mnt/shared/result_1"),
        ("/odd?name", "/odd?name/result_1"),
        ("s3://bucket/search", "s3://bucket/search/result_1"),
        ("s3://bucket/a?scheme=http&endpoint_override=h:9", "s3://bucket/a/result_1?scheme=http&endpoint_override=h:9"),
    ],
)
def test_a_searchs_own_place_below_a_storage(root: str, expected: str) -> None:
    assert below(root, "result_1") == expected
