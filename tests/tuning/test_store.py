"""Trials' files: on this machine, and through a file system that is reached by URL."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from pathlib import Path

import pytest

from src.core.errors import ArtefactError, ConfigError
from src.tuning.store import ALIKE, KEPT, Store, below, folder_bytes, own_store


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


def test_what_uploads_have_alike_is_kept_once(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "trials"))
    for number, prior in enumerate((b"p" * 1000, b"p" * 1000, b"q" * 1000)):
        source = tmp_path / f"model {number}"
        (source / "prior").mkdir(parents=True)
        (source / "prior" / "weights").write_bytes(prior)
        (source / "weights").write_bytes(b"w" * 10)
        for _ in range(2):  # also where a trial is trained again
            store.upload(source, f"{number}/model", alike="prior")
    places = [tmp_path / "trials" / f"{number}" / "model" for number in range(3)]
    first, second, third = ((place / "prior" / "weights").stat().st_ino for place in places)
    assert first == second != third
    assert len({(place / "weights").stat().st_ino for place in places}) == 3
    assert folder_bytes(tmp_path / "trials") == 2 * 1000 + 3 * 10
    assert sorted(path.name for path in (places[0] / "prior").iterdir()) == ["weights"]
    # a damage is everybody's, and what is trained again does not take it over
    (places[0] / "prior" / "weights").write_bytes(b"d" * 1000)
    store.upload(tmp_path / "model 0", "0/model", alike="prior")
    store.upload(tmp_path / "model 1", "1/model", alike="prior")
    assert [(place / "prior" / "weights").read_bytes()[:1] for place in places] == [b"p", b"p", b"q"]
    # a trial whose model goes takes nothing from the others, and neither does the end of the search
    store.remove("0/model")
    store.remove(ALIKE)
    assert [(place / "prior" / "weights").read_bytes()[:1] for place in places[1:]] == [b"p", b"q"]
    store.upload(tmp_path / "model 0", "0/model", alike="no such folder")
    assert (places[0] / "prior" / "weights").stat().st_nlink == 1


def test_an_upload_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(str(tmp_path / "trials"))
    (tmp_path / "model").mkdir()

    def fill(folder: Path, target: Path) -> None:
        target.mkdir()
        (target / "half").write_bytes(b"w")
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")])

    monkeypatch.setattr(shutil, "copytree", fill)
    with pytest.raises(shutil.Error):
        store.upload(tmp_path / "model", "7/model")
    assert list((tmp_path / "trials" / "7").iterdir()) == []


def test_without_links_every_upload_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    store = Store.open(str(tmp_path / "trials"))
    (tmp_path / "model" / "prior").mkdir(parents=True)
    (tmp_path / "model" / "prior" / "weights").write_bytes(b"p")
    for number in range(2):
        store.upload(tmp_path / "model", f"{number}", alike="prior")
        assert (tmp_path / "trials" / f"{number}" / "prior" / "weights").read_bytes() == b"p"


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


# ------------------------------------------------------------------------------------------- whose a storage is


def result(tmp_path: Path) -> Path:
    folder = tmp_path / "result_1"
    folder.mkdir(exist_ok=True)
    return folder


def opened(folder: Path, trials: str, storage: str) -> str:
    """The root of the store that a search gets."""
    with own_store(folder, trials, storage) as store:
        return store.root


def test_a_storage_is_the_searchs_own_and_stays_so(tmp_path: Path) -> None:
    storage = str(tmp_path / "shared")
    with own_store(result(tmp_path), "trials", storage) as store:
        assert store.root == str(tmp_path / "shared" / "result_1")
        store.write("3/model", b"weights")
        store.write("3/.model.123", b"half")
        Path(store.root, "scratch-of-a-killed-worker").mkdir()
        store.sweep()
    with own_store(result(tmp_path), "trials", storage) as store:
        assert store.read("3/model") == b"weights"
        assert sorted(path.name for path in Path(store.root).rglob("*")) == [".search.json", "3", "model"]
    assert not (tmp_path / "result_1" / "trials").exists()


def test_a_folder_with_files_of_others_is_refused_and_untouched(tmp_path: Path) -> None:
    theirs = tmp_path / "shared" / "result_1"
    (theirs / "project" / ".git").mkdir(parents=True)
    (theirs / "data").mkdir()
    for name in ("project/.git/HEAD", "data/thesis.csv", ".probe"):
        (theirs / name).write_text(name)
    with pytest.raises(ConfigError, match="holds files that no search has put there"):
        opened(result(tmp_path), "trials", str(tmp_path / "shared"))
    assert {str(path.relative_to(theirs)) for path in theirs.rglob("*") if path.is_file()} == {
        "project/.git/HEAD",
        "data/thesis.csv",
        ".probe",
    }


def test_a_storage_of_another_search_is_refused(tmp_path: Path) -> None:
    opened(result(tmp_path), "trials", str(tmp_path / "shared"))
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ConfigError, match="belongs to another search"):
        opened(result(tmp_path / "elsewhere"), "trials", str(tmp_path / "shared"))


def test_a_storage_is_used_by_one_start_at_a_time(tmp_path: Path) -> None:
    shared = own_store(result(tmp_path), "trials", str(tmp_path / "shared"))
    with shared, pytest.raises(ConfigError, match="is in use by another search"):
        opened(result(tmp_path), "trials", str(tmp_path / "shared"))


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"search": 3}', "nonsense", ""])
def test_a_damaged_owner_is_told(tmp_path: Path, content: str) -> None:
    opened(result(tmp_path), "trials", str(tmp_path / "shared"))
    (tmp_path / "shared" / "result_1" / ".search.json").write_text(content)
    with pytest.raises(ConfigError, match="cannot be used"):
        opened(result(tmp_path), "trials", str(tmp_path / "shared"))
    (tmp_path / "result_1" / KEPT).write_text(content)
    with pytest.raises(ArtefactError, match=KEPT):
        opened(result(tmp_path), "trials", str(tmp_path / "shared"))


@pytest.mark.parametrize("link", ["trials", "trials/3", "trials/arm/3", "trials/arm/3/trial.log"])
def test_links_out_of_the_trials_folder_are_refused(tmp_path: Path, link: str) -> None:
    (tmp_path / "theirs" / "project" / ".git").mkdir(parents=True)
    place = result(tmp_path) / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(tmp_path / "theirs")
    with pytest.raises(ConfigError, match="is a link"):
        opened(result(tmp_path), "trials", "")
    assert (tmp_path / "theirs" / "project" / ".git").is_dir()


def test_sweeping_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "theirs" / ".git").mkdir(parents=True)
    store = Store(str(tmp_path / "trials"))
    store.write("3/.half", b"")
    (tmp_path / "trials" / "link").symlink_to(tmp_path / "theirs")
    store.sweep()
    assert (tmp_path / "theirs" / ".git").is_dir()
    assert not (tmp_path / "trials" / "3" / ".half").exists()
    store.remove("link")
    assert (tmp_path / "theirs").is_dir()
    assert not (tmp_path / "trials" / "link").is_symlink()
