"""Where trials leave their files: a folder, a folder that several machines share, or a bucket (`s3://…`).

Every file is whole or absent, wherever it goes; a folder is complete when its upload has returned.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from src.core.errors import ConfigError
from src.core.paths import write_bytes

_SCRATCH = "scratch-"
#: in the root, in a trial's folder, in that of an arm's trial
_UNFINISHED = (f"{_SCRATCH}*", "*/.*", "*/*/.*")


@dataclass(frozen=True)
class Store:
    """Files under a root, by relative names with `/`. Picklable; ``root`` is an absolute path or a URL."""

    root: str

    @classmethod
    def open(cls, root: str) -> Store:
        """Raises ``ConfigError`` when nothing can be written there."""
        store = cls(root if "://" in root else str(Path(root).expanduser().resolve()))
        try:
            store.write(".probe", b"")
            store.remove(".probe")
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

    def remove(self, name: str) -> None:
        """Remove a file or a folder, if it is there."""
        system, root = self._place
        path = f"{root}/{name}"
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
        """Remove what killed workers had not finished: scratch folders, and files without their final name."""
        if self.local is None:
            return
        for left in [path for pattern in _UNFINISHED for path in self.local.glob(pattern)]:
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)

    def upload(self, folder: Path, name: str) -> None:
        """Copy a local folder's files; on this machine they appear together."""
        if self.local is not None:
            target = self.local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{target.name}.{os.getpid()}")
            shutil.rmtree(beside, ignore_errors=True)
            shutil.copytree(folder, beside)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(beside, target)
            return
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.write(f"{name}/{file.relative_to(folder).as_posix()}", file.read_bytes())

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


def below(root: str, name: str) -> str:
    """The root of a sub-folder; a URL keeps its query (``?endpoint_override=…`` of a bucket that is not Amazon's)."""
    address, mark, query = root.partition("?") if "://" in root else (root, "", "")
    return f"{address.rstrip('/')}/{name}{mark}{query}"


def folder_bytes(folder: Path) -> int:
    """Size of the files under a folder; files that vanish meanwhile count nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total
