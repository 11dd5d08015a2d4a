"""What the cache notes of language models: one that is gone, or cannot be reached, is still the model that it was.

cache/language_models/<path or hub id>.json ─► the key of every stage that reads the model
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass as document

from src.core.data_utils import fingerprint
from src.core.documents import PARTIAL, read_mapping
from src.core.errors import ArtefactError
from src.core.paths import write_json

#: below the cache, beside the stages
_NOTES = "language_models"


@document(frozen=True, config=PARTIAL)
class _Note:
    """What identified the model that a folder, or a hub id, held when it was last read."""

    folder: str
    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    checksum: str


def note_fingerprint(cache: Path, folder: str, found: str) -> None:
    """Keep what identifies the model in a folder, in place of what was noted of an earlier one.

    Args:
        cache: the folder of finished stages.
        folder: the model's, or its hub id.
        found: the model's fingerprint.
    """
    with suppress(ArtefactError):  # what is missing or damaged is written anew
        if noted_fingerprint(cache, folder) == found:
            return
    content = {"folder": folder, "fingerprint": found, "checksum": fingerprint(folder, found)}
    with suppress(OSError):  # a cache that can only be read serves as well; what is not noted is asked for again
        write_json(_place(cache, folder), content)


def noted_fingerprint(cache: Path, folder: str) -> str:
    """What identified the model that a folder, or a hub id, held when it was last read.

    Args:
        cache: the folder of finished stages.
        folder: the model's, which may be gone, or its hub id.

    Raises:
        ArtefactError: nothing is noted of this folder, or the note is damaged.
    """
    path, step = _place(cache, folder), "say with teacher.llm where the model lies now"
    note = read_mapping(path, _Note, step)
    if note.folder != folder or note.checksum != fingerprint(note.folder, note.fingerprint):
        raise ArtefactError.one("file", str(path), "is damaged", step)
    return note.fingerprint


def _place(cache: Path, folder: str) -> Path:
    return cache / _NOTES / f"{fingerprint(folder)}.json"
