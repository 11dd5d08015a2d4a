"""A dataset, split, as memory-mapped Arrow files: opened in no time, and in memory once however many processes read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass as document

from src.core.documents import PARTIAL, read_mapping
from src.core.errors import ArtefactError
from src.core.paths import write_json
from src.data.examples import Examples, Histories, SealedExamples, SequenceData, Statistics
from src.data.id_map import IdMap

_ID_MAP, _FACTS = "id_map.json", "facts.json"
_SPLITS = ("train", "validation", "test")
_FACTS_KEY = b"facts"
_AGAIN = "remove it and run again"


@document(frozen=True, config=PARTIAL)
class _Facts:
    """What stands beside the columns."""

    name: str
    statistics: Statistics
    dataset_fingerprint: str


@document(frozen=True, config=PARTIAL)
class _SplitFacts:
    """What the schema of a split's columns tells."""

    window: int
    padding_id: int
    fingerprint: str


def save_sequences(folder: Path, data: SequenceData) -> None:
    """Write three splits, the id map and what is told of them into an existing folder."""
    parts: tuple[Examples | SealedExamples, ...] = (data.train, data.validation, data.test)
    for split, examples in zip(_SPLITS, parts, strict=True):
        save_examples(folder, split, examples)
    data.id_map.save(folder / _ID_MAP)
    facts = {"name": data.name, "statistics": asdict(data.statistics), "dataset_fingerprint": data.dataset_fingerprint}
    write_json(folder / _FACTS, facts)


def load_sequences(folder: Path) -> SequenceData:
    """Map what `save_sequences` wrote; raises ``ArtefactError`` for files that are none of its own."""
    facts = read_mapping(folder / _FACTS, _Facts)
    train, validation, test = (load_examples(folder, split) for split in _SPLITS)
    id_map = IdMap.load(folder / _ID_MAP)
    sealed = SealedExamples(test)
    return SequenceData(facts.name, id_map, train, validation, sealed, facts.statistics, facts.dataset_fingerprint)


def save_examples(folder: Path, split: str, examples: Examples | SealedExamples) -> None:
    """``<split>.arrow`` holds a row an example, ``<split>_items.arrow`` the items that its histories are views of.

    A sealed split is written without being shown.

    Args:
        folder: that exists.
        split: train, validation or test.
        examples: its rows.
    """
    columns, items, facts = examples.columns()
    _write(folder / f"{split}.arrow", columns, facts)
    _write(folder / f"{split}_items.arrow", {"item": items}, {})


def load_examples(folder: Path, split: str) -> Examples:
    """What `save_examples` wrote; its columns are views into the files, which nobody may write to."""
    path = folder / f"{split}.arrow"
    columns, told = _mapped(path)
    items, _ = _mapped(folder / f"{split}_items.arrow")
    try:
        facts = _SplitFacts(**told)
        past = Histories(items["item"], columns.pop("end"), columns.pop("earlier"), facts.padding_id)
        return Examples(**columns, past=past, window=facts.window, known_fingerprint=facts.fingerprint)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError.one("split", str(path), f"has other columns ({error})", _AGAIN) from None


def _write(path: Path, columns: dict[str, NDArray[Any]], facts: dict[str, Any]) -> None:
    schema = pa.schema(
        [(name, pa.from_numpy_dtype(column.dtype)) for name, column in columns.items()],
        metadata={_FACTS_KEY: json.dumps(facts).encode()},
    )
    # one batch a file: its columns are then whole arrays in the mapping
    batch = pa.record_batch([pa.array(np.ascontiguousarray(column)) for column in columns.values()], schema=schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch)


def _mapped(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Columns as views into a file, and what its schema tells."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batch = reader.get_batch(0)
        facts = json.loads(reader.schema.metadata[_FACTS_KEY])
        columns = {name: batch.column(name).to_numpy(zero_copy_only=True) for name in reader.schema.names}
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ArtefactError.one("file", str(path), f"cannot be read ({error})", _AGAIN) from None
    return columns, facts
