"""Labels that were paid for, kept in shards: whoever asks for more rows pays for the missing ones only.

A cache folder belongs to everything that determines a row's label; which rows were asked is no part of that. Each shard
is one safetensors file that appears whole or not at all, named by the fingerprint of its content, so that damage is
seen and two processes can share a folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from src.core.data_utils import fingerprint
from src.core.locks import alone
from src.core.logging import get_logger
from src.core.paths import write_bytes
from src.data.examples import Examples, SequenceData
from src.data.teacher_outputs import TeacherOutputs
from src.teacher.labelling.labels import CatalogueOutputs, Labeller, Labels, teacher_outputs
from src.teacher.objective import objective_of
from src.teacher.settings import ExportSettings, TeacherSettings

_log = get_logger(__name__)

_LABELS, _CATALOGUE = "labels", "catalogue"
_COLUMNS = tuple(column.name for column in fields(Labels))
#: export settings that say which rows are asked, and how many at once; all others say what is asked of a row
_NOT_OF_A_LABEL = ("budget", "select", "batch_size")
#: export settings that not every way of ranking reads
_OF_SOME_RANKINGS = ("beams",)


def export_that_is_read(settings: TeacherSettings) -> dict[str, Any]:
    """The export settings that this teacher reads; the way of ranking by its own name, whether named or meant."""
    export = {**asdict(settings.export), "ranking": settings.ranking}
    read = objective_of(settings.objective).own_export(settings)
    return {name: value for name, value in export.items() if name not in _OF_SOME_RANKINGS or name in read}


def asked_of_a_row(settings: TeacherSettings) -> dict[str, Any]:
    """The export settings that determine a row's label; they belong into the cache's key."""
    read = export_that_is_read(settings)
    return {name: value for name, value in read.items() if name not in _NOT_OF_A_LABEL}


@dataclass(frozen=True, eq=False)
class LabelCache:
    """Labelled rows in a folder, at most ``shard_rows`` a file; that many can be lost when a process is killed.

    A row's label is the same from whichever call, up to the rounding of a batch of other rows. Every process must use
    a folder with one teacher only (see `at`).
    """

    folder: Path
    shard_rows: int = 4096
    _known: dict[Path, NDArray[np.int64]] = field(default_factory=dict)

    @classmethod
    def at(cls, root: Path, determined_by: Mapping[str, Any], shard_rows: int = 4096) -> LabelCache:
        """Open the cache below a folder for labels that are determined by the same things.

        Args:
            root: where caches lie.
            determined_by: the teacher with its prompt and data, and `asked_of_a_row`; neither budget nor selector
                belongs here.
            shard_rows: labels in a file, at most.
        """
        return cls(root / fingerprint("labels", determined_by), shard_rows)

    def outputs(
        self, data: SequenceData, rows: NDArray[np.int64], settings: ExportSettings, build: Callable[[], Labeller]
    ) -> TeacherOutputs:
        """Give the teacher outputs of some rows of the training split, in their order; only missing ones are labelled.

        Each shard is on disk before the next one begins. A damaged file is told, removed and labelled again.

        Args:
            data: the dataset, split.
            rows: row numbers, one at least.
            settings: how the rows were chosen, for the manifest.
            build: makes the labeller, at most once, and only where something is missing.

        Raises:
            ValueError: the labeller answers for other rows than it was asked.
        """
        examples, source = data.train.take(rows), _Once(build)
        labels = None
        while labels is None:
            self._label_missing(examples, source)
            labels = self._assemble(examples)
        return teacher_outputs(labels, self._catalogue(source), data, settings)

    def missing(self, examples: Examples) -> NDArray[np.int64]:
        """Row numbers of the examples that have no label yet: what a budget would cost."""
        for path in sorted(self.folder.glob(f"{_LABELS}-*.safetensors")):
            if path not in self._known and (ids := _example_ids(path)) is not None:
                self._known[path] = ids
        held = np.concatenate([np.zeros(0, dtype=np.int64), *self._known.values()])
        return np.flatnonzero(~np.isin(examples.example_id, held))

    def _label_missing(self, examples: Examples, source: _Once) -> None:
        total = len(examples)
        while len(self.missing(examples)):
            # another process may have labelled them while this one waited
            with self._alone():
                if len(rows := self.missing(examples)):
                    if len(rows) < total:
                        _log.info("labels: %s of %s rows are there", f"{total - len(rows):,}", f"{total:,}")
                    self._add(examples.take(rows[: self.shard_rows]), source.labeller)

    def _add(self, examples: Examples, labeller: Labeller) -> None:
        labels = labeller.label(examples)
        if not np.array_equal(labels.example_id, examples.example_id):
            raise ValueError("the labeller must answer for the examples that it was given, in their order")
        arrays = {name: np.ascontiguousarray(getattr(labels, name)) for name in _COLUMNS}
        self._known[_write(self.folder, _LABELS, arrays)] = arrays["example_id"]

    def _assemble(self, examples: Examples) -> Labels | None:
        """The labels of these examples, in their order, from as many shards as it takes; None when one is damaged."""
        order = np.argsort(examples.example_id, kind="stable")
        ids, found = examples.example_id[order], dict[str, NDArray[Any]](example_id=examples.example_id)
        for path, held in list(self._known.items()):
            places = np.searchsorted(ids, held).clip(max=len(ids) - 1)
            wanted = ids[places] == held
            if not wanted.any():
                continue
            arrays = _read(path)
            if arrays is None:
                del self._known[path]
                return None
            for name in _COLUMNS[1:]:
                if name not in found:
                    found[name] = np.zeros((len(ids), arrays[name].shape[1]), dtype=arrays[name].dtype)
                found[name][order[places[wanted]]] = arrays[name][wanted]
        return Labels(**found)

    def _catalogue(self, source: _Once) -> CatalogueOutputs:
        """Item embeddings and facts: asked for once, then read."""
        with self._alone():
            for path in sorted(self.folder.glob(f"{_CATALOGUE}-*.safetensors")):
                if (arrays := _read(path)) is not None:
                    return CatalogueOutputs(arrays["item_embedding"], json.loads(arrays["facts"].tobytes()))
            catalogue = source.labeller.catalogue_outputs()
            facts = np.frombuffer(json.dumps(dict(catalogue.facts)).encode(), dtype=np.uint8)
            embedding = np.ascontiguousarray(catalogue.item_embedding)
            _write(self.folder, _CATALOGUE, {"item_embedding": embedding, "facts": facts})
            return catalogue

    def _alone(self) -> AbstractContextManager[bool]:
        """One process at a time asks the teacher. Without locks files stay whole; at worst rows are labelled twice."""

        def waiting(holder: str) -> None:
            _log.info("labels: %s is labelling for %s; waiting for its shard", holder, self.folder)

        return alone(self.folder / ".lock", waiting)


@dataclass(frozen=True, eq=False)
class _Once:
    """A labeller that is built when it is first needed: loading a language model takes minutes."""

    build: Callable[[], Labeller]

    @cached_property
    def labeller(self) -> Labeller:
        return self.build()


def _identity(arrays: Mapping[str, NDArray[Any]]) -> str:
    return fingerprint(*(part for name in sorted(arrays) for part in (name, arrays[name])))


def _write(folder: Path, kind: str, arrays: dict[str, NDArray[Any]]) -> Path:
    path = folder / f"{kind}-{_identity(arrays)}.safetensors"
    write_bytes(path, save(arrays))
    return path


def _read(path: Path) -> dict[str, NDArray[Any]] | None:
    """The arrays of a file, or None where its content is not what its name says; then it is removed."""
    try:
        arrays: dict[str, NDArray[Any]] = load(path.read_bytes())
        if path.stem.rpartition("-")[2] == _identity(arrays):
            return arrays
    except (SafetensorError, FileNotFoundError):
        pass
    _discard(path)
    return None


def _example_ids(path: Path) -> NDArray[np.int64] | None:
    """The examples whose labels a shard holds, the labels unread; None where it is damaged in a way that shows."""
    try:
        with safe_open(path, framework="numpy") as shard:
            ids: NDArray[np.int64] = shard.get_tensor("example_id")
            return ids
    except (SafetensorError, FileNotFoundError):
        _discard(path)
        return None


def _discard(path: Path) -> None:
    _log.warning("%s is damaged: it is removed, and what it held is asked for again", path)
    path.unlink(missing_ok=True)
