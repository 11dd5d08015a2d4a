"""Where things lie, and how they are written: every write is whole or absent."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.core.documents import read_json_document, read_mapping
from src.core.errors import ArtefactError, ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]

#: The last file written into an artefact folder; a folder without it is unfinished.
MANIFEST = "manifest.json"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: readers see the old content or the new one, never a part.

    Raises ``OSError`` when the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
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


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, indented, with keys in the given order; NaN and infinity raise ``ValueError``."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; raises ``ArtefactError`` when it is missing or damaged."""
    return read_json_document(path)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Fill a folder beside ``target`` and move it into place when the block ends without an error.

    An existing ``target`` is replaced only then; when two processes build the same folder, the later one wins.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    os.chmod(temporary, 0o755)
    try:
        yield temporary
        if target.exists():
            retired = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
            os.replace(target, retired / "folder")
            os.replace(temporary, target)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


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


def require_finished(folder: Path) -> dict[str, Any]:
    """The manifest of a finished artefact or result folder.

    Raises ``ArtefactError`` when the folder is missing or has no manifest, which means that its run never ended.
    """
    if not folder.is_dir():
        raise ArtefactError.one("folder", str(folder), "does not exist")
    if not (folder / MANIFEST).is_file():
        raise ArtefactError.one(
            "folder", str(folder), f"has no {MANIFEST}: its run did not finish", "run that command again"
        )
    return read_mapping(folder / MANIFEST, dict[str, Any], "run that command again")
