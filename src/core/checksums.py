"""What a folder's files held when they were written, and whether they still do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from src.core.errors import DamagedArtefact
from src.core.logging import get_logger

_log = get_logger(__name__)

#: bytes whose reading takes seconds: it is said why
_LONG = 1 << 30


def checksum_files(folder: Path, pattern: str = "*") -> dict[str, str]:
    """SHA-256 of each file below ``folder`` whose name fits the pattern, by its relative name with `/`, sorted."""
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def verify_files(folder: Path, checksums: Mapping[str, str], next_step: str = "") -> None:
    """Read the files of a folder and compare them with what `checksum_files` said; other files do not matter.

    It costs what reading costs, and about a second a gigabyte.

    Args:
        folder: where the files lie.
        checksums: by their relative names.
        next_step: what whoever reads the error may do.

    Raises:
        DamagedArtefact: a file is missing, cannot be read, or holds something else.
    """
    for name in checksums:  # a manifest may name anything: a pipe or a device would be read for ever
        if not (folder / name).is_file():
            raise DamagedArtefact.one("file", str(folder / name), "is missing", next_step)
    try:
        total = sum((folder / name).stat().st_size for name in checksums)
        if total >= _LONG:
            _log.info("%s: verifying %.1f GB", folder, total / 1e9)
        changed = [name for name, wanted in checksums.items() if _sha256(folder / name) != wanted]
    except OSError as error:
        found = str(error.filename or folder)
        raise DamagedArtefact.one("file", found, f"cannot be read ({error.strerror})", next_step) from None
    if changed:
        raise DamagedArtefact.one("file", str(folder / changed[0]), "is damaged: its checksum is another", next_step)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
