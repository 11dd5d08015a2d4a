"""Where trials leave their files: a folder, a folder that several machines share, or a bucket (`s3://…`).

Every file is whole or absent, wherever it goes; a folder is complete when its upload has returned.
"""

from __future__ import annotations

import fcntl
import filecmp
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem
from pydantic.dataclasses import dataclass as document

from src.core.checksums import checksum_files
from src.core.documents import PARTIAL, conform, parse_json, read_mapping
from src.core.errors import ArtefactError, ConfigError
from src.core.paths import strange_entries, write_bytes, write_json

_SCRATCH = "scratch-"
#: the folder of the contents that several uploads have, by their checksum
ALIKE = "alike"
#: files without their final name lie in a trial's folder, or in that of an arm's trial
_DEEPEST = 2
#: in a storage: whose it is; in the result folder: the word that stands there
_OWNER, KEPT = ".search.json", "storage.json"


@document(frozen=True, config=PARTIAL)
class _Owner:
    """Which search a storage belongs to."""

    search: str


@dataclass(frozen=True)
class Store:
    """Files under a root, by relative names with `/`. Picklable; ``root`` is an absolute path or a URL."""

    root: str

    @classmethod
    def open(cls, root: str) -> Store:
        """Raises ``ConfigError`` when nothing can be written there."""
        store = cls(root if "://" in root else str(Path(root).expanduser().resolve()))
        try:
            probe = f".probe-{secrets.token_hex(8)}"
            store.write(probe, b"")
            store.remove(probe)
        except (OSError, pyarrow.ArrowException, ValueError) as error:
            step = "name a folder that every node can write, or a URL such as s3://bucket/folder"
            raise ConfigError.one("storage", root, f"cannot be written ({str(error)[:200]})", step) from None
        return store

    @cached_property
    def _place(self) -> tuple[FileSystem, str]:
        if "://" not in self.root:
            return LocalFileSystem(), self.root
        system, path = FileSystem.from_uri(self.root)
        return system, path.rstrip("/")

    @property
    def local(self) -> Path | None:
        """The root as a folder of this machine, None for a bucket."""
        system, path = self._place
        return Path(path) if isinstance(system, LocalFileSystem) else None

    def write(self, name: str, content: bytes) -> None:
        """Write a file in place of the one before."""
        if self.local is not None:
            write_bytes(self.local / name, content)
            return
        system, root = self._place
        with system.open_output_stream(f"{root}/{name}") as stream:  # an object appears when its stream is closed
            stream.write(content)

    def read(self, name: str) -> bytes | None:
        """A file's content, None where there is none."""
        system, root = self._place
        try:
            with system.open_input_file(f"{root}/{name}") as stream:
                content: bytes = stream.readall()
        except FileNotFoundError:
            return None
        return content

    def exists(self, name: str) -> bool:
        """Whether there is a file or a folder of that name."""
        system, root = self._place
        return bool(system.get_file_info(f"{root}/{name}").type != FileType.NotFound)

    def is_empty(self) -> bool:
        """Whether nothing lies under the root, or there is no such folder yet."""
        system, root = self._place
        return not system.get_file_info(FileSelector(root, allow_not_found=True))

    def remove(self, name: str) -> None:
        """Remove a file or a folder, if it is there."""
        system, root = self._place
        path = f"{root}/{name}"
        if self.local is not None and Path(path).is_symlink():
            Path(path).unlink()
            return
        match system.get_file_info(path).type:
            case FileType.File:
                system.delete_file(path)
            case FileType.Directory if self.local is not None:
                shutil.rmtree(path, ignore_errors=True)
            case FileType.Directory:
                system.delete_dir(path)

    def scratch(self) -> TemporaryDirectory[str]:
        """A folder for work in progress; here under the root, where `sweep` finds what a killed worker left."""
        return TemporaryDirectory(prefix=_SCRATCH, dir=self.local)

    def sweep(self) -> None:
        """Remove what killed workers had not finished: scratch folders, and files without their final name.

        The caller knows that the store is the search's own (`own_store`). Links are not followed.
        """
        if self.local is None or not self.local.is_dir():
            return
        for left in list(_unfinished(self.local, 0)):
            if left.is_dir(follow_symlinks=False):
                shutil.rmtree(left.path, ignore_errors=True)
            else:
                Path(left.path).unlink(missing_ok=True)

    def upload(self, folder: Path, name: str, alike: str = "") -> None:
        """Copy a local folder's files; on this machine they appear together.

        Args:
            folder: the local folder.
            name: what it is called here.
            alike: a folder in it whose files other uploads bring, too. On this machine each content of such files is
                kept once, and what the uploads have are links to it.
        """
        if self.local is not None:
            target = self.local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{target.name}.{os.getpid()}")
            shutil.rmtree(beside, ignore_errors=True)
            try:
                shutil.copytree(folder, beside)
                if alike and (beside / alike).is_dir():
                    self._keep_once(self.local / ALIKE, beside / alike)
                shutil.rmtree(target, ignore_errors=True)
                os.replace(beside, target)
            finally:
                shutil.rmtree(beside, ignore_errors=True)  # on a disk that is full, above all
            return
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.write(f"{name}/{file.relative_to(folder).as_posix()}", file.read_bytes())

    @staticmethod
    def _keep_once(kept: Path, folder: Path) -> None:
        kept.mkdir(exist_ok=True)
        for name, checksum in checksum_files(folder).items():
            file, beside = folder / name, folder / f"{name}.{os.getpid()}"
            with suppress(OSError):  # a file system without links: each upload has a file of its own
                same = kept / checksum
                try:
                    os.link(file, same)
                except FileExistsError:
                    # what was kept may have been damaged since: then the new file takes its place
                    source, target = (same, file) if filecmp.cmp(same, file, shallow=False) else (file, same)
                    os.link(source, beside)
                    os.replace(beside, target)

    def download(self, name: str, folder: Path) -> Path:
        """A folder's files on this machine: where they are, or copied to ``folder``."""
        if self.local is not None:
            return self.local / name
        system, root = self._place
        for info in system.get_file_info(FileSelector(f"{root}/{name}", recursive=True)):
            if info.type == FileType.File:
                # some file systems tell paths with the leading slash, some without
                target = folder / Path(info.path.lstrip("/")).relative_to(f"{root}/{name}".lstrip("/"))
                target.parent.mkdir(parents=True, exist_ok=True)
                with system.open_input_file(info.path) as stream:
                    write_bytes(target, stream.readall())
        return folder


def _unfinished(folder: Path | str, depth: int) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(_SCRATCH if depth == 0 else "."):
                yield entry
            elif depth < _DEEPEST and entry.is_dir(follow_symlinks=False):
                yield from _unfinished(entry.path, depth + 1)


@contextmanager
def own_store(folder: Path, trials: str, storage: str) -> Iterator[Store]:
    """A search's own store, held for the block: what lies in it may be replaced and removed.

    Args:
        folder: The search's result folder.
        trials: The store's name in it, where no storage is given.
        storage: A shared folder or a bucket in which the search gets a folder of its own, or "".

    Raises:
        ConfigError: Nothing can be written there, it holds files that no search has put there, it belongs to another
            search or is in use, or it leads elsewhere by links.
    """
    if not storage:
        _refuse_links(folder / trials)
        yield Store.open(str(folder / trials))
        return
    root = below(storage, folder.name)
    store = Store(root if "://" in root else str(Path(root).expanduser().resolve()))
    if store.local is not None:
        _refuse_links(store.local)
    _claim(store, _search_of(folder, root))
    if store.local is None:
        yield Store.open(root)
        return
    with (store.local / _OWNER).open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            rule = "is in use by another search"
            raise ConfigError.one("storage", store.root, rule, "wait for it to end, or name another folder") from None
        yield Store.open(root)


def _search_of(folder: Path, root: str) -> str:
    """The word by which a search knows its storage; made and kept at its first start."""
    path = folder / KEPT
    if path.exists():
        return read_mapping(path, _Owner).search
    word = secrets.token_hex(16)
    write_json(path, {"search": word, "storage": root})
    return word


def _claim(store: Store, search: str) -> None:
    step = "name another folder: what lies there may be somebody's"
    try:
        content = store.read(_OWNER)
        if content is None:
            if not store.is_empty():
                raise ConfigError.one("storage", store.root, "holds files that no search has put there", step)
            content = _mark(store, json.dumps({"search": search}).encode())
        owner = conform(parse_json(content or b""), _Owner, Path(_OWNER)).search
    except (OSError, pyarrow.ArrowException, ValueError, ArtefactError) as error:
        raise ConfigError.one("storage", store.root, f"cannot be used ({str(error)[:200]})", step) from None
    if owner != search:
        raise ConfigError.one("storage", store.root, "belongs to another search", step)


def _mark(store: Store, content: bytes) -> bytes | None:
    """Write the owner of a storage that has none, and return what stands there then: another search may be faster."""
    if store.local is None:
        store.write(_OWNER, content)
        return store.read(_OWNER)
    store.local.mkdir(parents=True, exist_ok=True)
    try:
        with (store.local / _OWNER).open("xb") as handle:
            handle.write(content)
    except FileExistsError:
        pass
    return store.read(_OWNER)


def _refuse_links(root: Path) -> None:
    """Raises ``ConfigError`` where something in the store leads out of it: what lies there is somebody else's."""
    if (link := next(iter(strange_entries(root)), None)) is not None:
        rule = "is a link, or else no plain file: trials' files are kept in plain folders"
        raise ConfigError.one("storage", str(link), rule, "remove it, or put the folder itself in its place")


def below(root: str, name: str) -> str:
    """The root of a sub-folder; a URL keeps its query (``?endpoint_override=…`` of a bucket that is not Amazon's)."""
    address, mark, query = root.partition("?") if "://" in root else (root, "", "")
    return f"{address.rstrip('/')}/{name}{mark}{query}"


def folder_bytes(folder: Path) -> int:
    """What the files under a folder take of the disk: one that has several names counts once, and files that vanish
    meanwhile count nothing."""
    sizes = dict[tuple[int, int], int]()
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                found = os.lstat(os.path.join(parent, name))
                sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())
