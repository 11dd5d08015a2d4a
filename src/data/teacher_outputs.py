"""The artefact in which teacher and distillation meet: rankings, distances and embeddings, row by `example_id`.

On disk it is a folder of memory-mapped numpy files, the id map, and a manifest that is written last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass as document

from src.core.checksums import checksum_files, verify_files
from src.core.documents import PARTIAL, conform, read_array
from src.core.errors import ArtefactError, Problem
from src.core.git_info import git_info
from src.core.paths import MANIFEST, atomic_folder, require_finished, write_json
from src.data.id_map import IdMap

SCHEMA_VERSION = 1


@document(frozen=True, config=PARTIAL)
class _Manifest:
    """What is read of the manifest."""

    schema_version: int
    fingerprints: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)


_ARRAYS = ("example_id", "candidates", "scores", "distances", "sequence_embedding", "item_embedding")


@dataclass(frozen=True, eq=False)
class TeacherOutputs:
    """What a teacher says about M labelled training examples of a catalogue of V items.

    ``example_id`` ``[M]`` int64; ``candidates`` ``[M, N]`` int64, best first; ``scores`` ``[M, N]`` float32,
    descending; ``distances`` ``[M, N]`` float32 ≥ 0, small where the teacher is sure (item head: −log p(item));
    ``sequence_embedding`` ``[M, D]`` float32 (the LLM's last hidden state, pooled); ``item_embedding`` ``[V, D']``
    float32 (title through the LLM, adapters off). ``manifest`` holds schema version, fingerprints of dataset, split,
    id map, model and prompt, N, and the git revision.
    """

    example_id: NDArray[np.int64]
    candidates: NDArray[np.int64]
    scores: NDArray[np.float32]
    distances: NDArray[np.float32]
    sequence_embedding: NDArray[np.float32]
    item_embedding: NDArray[np.float32]
    manifest: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.example_id)

    def check(self, num_items: int) -> list[Problem]:
        """What breaks the schema, as problems."""
        if problems := self._check_kinds():
            return problems
        rows = len(self.example_id)
        for name in ("candidates", "scores", "distances", "sequence_embedding"):
            if len(getattr(self, name)) != rows:
                problems.append(Problem(name, len(getattr(self, name)), f"must have {rows} rows like example_id"))
        shapes = {self.candidates.shape, self.scores.shape, self.distances.shape}
        if len(shapes) > 1:
            problems.append(Problem("candidates, scores, distances", sorted(shapes), "must have one shape"))
        if len(self.item_embedding) != num_items:
            problems.append(
                Problem("item_embedding", len(self.item_embedding), f"must have {num_items} rows, one an item")
            )
        ranked = np.sort(self.candidates, axis=1)
        if (ranked[:, 1:] == ranked[:, :-1]).any():
            problems.append(Problem("candidates", "an item twice in a row", "a ranking names each item once"))
        if len(np.unique(self.example_id)) != rows:
            problems.append(Problem("example_id", rows, "labels an example twice"))
        if rows and (self.candidates.min() < 0 or self.candidates.max() >= num_items):
            problems.append(
                Problem("candidates", int(self.candidates.max()), f"an id is outside the catalogue 0..{num_items - 1}")
            )
        if rows and not (np.isfinite(self.distances).all() and (self.distances >= 0).all()):
            problems.append(Problem("distances", "negative or not finite", "a distance is a finite number ≥ 0"))
        if not np.isfinite(self.item_embedding).all() or not np.isfinite(self.sequence_embedding).all():
            problems.append(Problem("embeddings", "NaN or infinite", "must be finite"))
        return problems

    def _check_kinds(self) -> list[Problem]:
        """Arrays of other dimensions or of other numbers: nothing else can be asked of them."""
        problems = []
        for name in _ARRAYS:
            array, dimensions = getattr(self, name), 1 if name == "example_id" else 2
            kind = "i" if name in ("example_id", "candidates") else "f"
            if array.ndim != dimensions or array.dtype.kind != kind:
                what = f"must be {'whole numbers' if kind == 'i' else 'floats'} in {dimensions} dimensions"
                problems.append(Problem(name, f"{array.dtype} {array.shape}", what))
        return problems


#: what several sets of teachers say, by name
OutputsByTeachers = Mapping[str, TeacherOutputs]


def save_teacher_outputs(folder: Path, outputs: TeacherOutputs, id_map: IdMap) -> None:
    """Write the folder atomically, manifest last; raises ``ArtefactError`` when the arrays break the schema.

    Args:
        folder: where; replaced when it exists.
        outputs: what the teacher said.
        id_map: which item stands behind which index.
    """
    if problems := outputs.check(id_map.num_items):
        raise ArtefactError(problems)
    with atomic_folder(folder) as target:
        for name in _ARRAYS:
            np.save(target / f"{name}.npy", np.ascontiguousarray(getattr(outputs, name)), allow_pickle=False)
        id_map.save(target / "id_map.json")
        write_json(
            target / MANIFEST,
            {
                **outputs.manifest,
                "schema_version": SCHEMA_VERSION,
                "rows": len(outputs),
                "top_n": int(outputs.candidates.shape[1]),
                "git": git_info(),
                "files": checksum_files(target),
            },
        )


def load_teacher_outputs(folder: Path, expected: Mapping[str, str], num_items: int) -> TeacherOutputs:
    """Read and verify a folder; arrays stay memory-mapped.

    ``expected`` names the fingerprints that must agree (``dataset``, ``split``, ``id_map``, and ``model`` or
    ``prompt`` where the caller knows them). Raises ``ArtefactError`` that lists every mismatch by name.

    Args:
        folder: of the artefact.
        expected: fingerprints by name.
        num_items: V.
    """
    again = "run python -m src.exp.run_teacher with this run's dataset options"
    manifest = require_finished(folder)
    kept = conform(manifest, _Manifest, folder / MANIFEST, again)
    problems = []
    if kept.schema_version != SCHEMA_VERSION:
        rule = f"schema version {SCHEMA_VERSION} is needed"
        problems.append(Problem("schema_version", kept.schema_version, rule, again))
    found = kept.fingerprints
    problems += [
        Problem(f"teacher outputs: {name}", found.get(name), f"belongs to another {name}; this run has {value}", again)
        for name, value in expected.items()
        if found.get(name) != value
    ]
    if problems:
        raise ArtefactError([Problem("folder", str(folder), "does not fit this run"), *problems])
    verify_files(folder, kept.files, again)
    arrays = {name: read_array(folder / f"{name}.npy", again, mmap=True) for name in _ARRAYS}
    outputs = TeacherOutputs(**arrays, manifest=manifest)
    if problems := outputs.check(num_items):
        raise ArtefactError([Problem("folder", str(folder), "is damaged", again), *problems])
    return outputs
