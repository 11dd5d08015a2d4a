"""Where things lie, and how they are written: every write is whole or absent."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from src.core.documents import read_mapping
from src.core.errors import ArtefactError, ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]

#: The last file written into an artefact folder; a folder without it is unfinished.
MANIFEST = "manifest.json"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically and durably: readers see the old content or the new one, never a part, whatever ends.

    A symbolic link is replaced by the file, not followed: what it points to may be somebody else's.

    Raises:
        OSError: it cannot be written; ``filename`` says what.
    """
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path))
        try:
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync(path.parent)


def disk_is_full(error: BaseException) -> bool:
    """Whether nothing more can be written: no space is left, or none of this user's share."""
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, shutil.Error):  # of a copied folder: what befell each file stands in its text alone
        return any(f"[Errno {number}]" in str(error) for number in full)
    return isinstance(error, OSError) and error.errno in full


#: a file or folder that is somebody else's, read-only, on a disk that fails or is gone, or of the other kind
_AT_FAULT = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ENOTCONN,
        errno.ETIMEDOUT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP, errno.EMFILE,
        errno.ENFILE,
    }
)  # fmt: skip


def place_is_at_fault(error: BaseException) -> bool:
    """Whether a named file or folder cannot be used as things are on this machine: no defect of the program."""
    return isinstance(error, OSError) and error.errno in _AT_FAULT and error.filename is not None


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An ``OSError`` says which file was meant: a full disk's names none, and a temporary name means nothing."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def _prefix(path: Path) -> str:
    """Hidden, and short enough for a name that is as long as names can be."""
    return f".{path.name[:50]}."


def _sync(place: Path) -> None:
    """Make a folder's entries, or a file's content, outlive a power cut, where the file system can."""
    try:
        descriptor = os.open(place, os.O_RDONLY)
    except OSError:
        return
    try:
        with suppress(OSError):  # some file systems cannot for a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, indented, with keys in the given order; NaN and infinity raise ``ValueError``."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(target: Path, replace: bool = True) -> Iterator[Path]:
    """Fill a folder beside ``target`` and move it into place when the block ends without an error.

    ``target`` may appear, or change, while the block runs: another process has built it. With ``replace`` the later
    one wins. Without, a folder that is there already wins and what the block filled is removed: right where the name is
    made of what decides the content, so that both are as good, and somebody may be reading the first. A symbolic link
    is replaced, not followed; without ``replace`` where it leads nowhere.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=_prefix(target)))
    os.chmod(temporary, 0o755)
    try:
        yield temporary
        for place in (*temporary.rglob("*"), temporary):
            _show(place)
            _sync(place)
        while not _moved(temporary, target):
            if not replace and target.is_dir():
                break
            _retire(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _show(place: Path) -> None:
    """Let everybody read what is published: some libraries write files that their owner alone can."""
    if not place.is_symlink():
        with suppress(OSError):  # some file systems have no such modes
            place.chmod(0o755 if place.is_dir() else 0o644)


def _moved(folder: Path, target: Path) -> bool:
    """Whether the folder could take a place that nobody has."""
    try:
        # a rename takes the place of an empty folder, and of nothing else
        if not os.path.lexists(target):
            os.rename(folder, target)
            return True
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
    return False


def _retire(target: Path) -> None:
    """Take a folder from its place, unless another process has just done so, and remove it."""
    retired = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{_prefix(target)}old."))
    with suppress(FileNotFoundError):
        os.rename(target, retired / "folder")
    shutil.rmtree(retired, ignore_errors=True)


def reserve_folder(wanted: Path) -> Path:
    """Create a folder that no other run has: ``wanted``, or ``wanted_2``, ``wanted_3``, … when it exists.

    Raises ``ConfigError`` when the parent folder cannot be written.
    """
    candidate, attempt = wanted, 1
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                candidate.mkdir()
                return candidate
            except FileExistsError:
                attempt += 1
                candidate = wanted.with_name(f"{wanted.name}_{attempt}")
    except OSError as error:
        raise ConfigError.one(
            "result folder", str(wanted), f"cannot be created ({error.strerror})", "choose a writable folder"
        ) from None


def remove_entry(path: Path) -> None:
    """Remove what stands under a name, if anything does: a folder with all that is in it, a file, or a link, of which
    nothing but the link.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def strange_entries(folder: Path, skipped: Collection[str] = ()) -> Iterator[Path]:
    """Links, pipes and devices in a folder, at any depth, or the folder itself: what is written to one lands elsewhere,
    or waits for ever. No link is followed.

    Args:
        folder: which need not exist.
        skipped: names of entries at its top that are not looked at.
    """
    if folder.is_symlink():
        yield folder
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:  # there is no such folder, or nobody here can read it
        return
    for entry in entries:
        if entry.name in skipped:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from strange_entries(Path(entry.path))
        elif not entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


def require_writable(path: Path, field: str) -> None:
    """Raises ``ConfigError`` where nothing can be written under this name; leaves nothing behind, missing folders too.

    Args:
        path: a file or folder that shall be made.
        field: what an error calls it.
    """
    there = next(place for place in (*path.absolute().parents, Path("/")) if os.path.lexists(place))
    rule = f"cannot be written: {there} is no folder"
    if there.is_dir():
        try:
            with tempfile.TemporaryFile(dir=there):
                return
        except OSError as error:
            rule = f"cannot be written: {there} takes no file ({error.strerror})"
    raise ConfigError.one(field, str(path), rule, "choose a writable folder")


def require_finished(folder: Path) -> dict[str, Any]:
    """The manifest of a finished artefact or result folder.

    Raises ``ArtefactError`` when the folder is missing or has no manifest, which means that its run never ended.
    """
    if not folder.is_dir():
        raise ArtefactError.one("folder", str(folder), "does not exist", "name a folder that a finished run has left")
    if not (folder / MANIFEST).is_file():
        raise ArtefactError.one(
            "folder", str(folder), f"has no {MANIFEST}: its run did not finish", "run that command again"
        )
    return read_mapping(folder / MANIFEST, dict[str, Any], "run that command again")
