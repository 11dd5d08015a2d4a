"""Who is shown beside a finished student: the baseline that it was compared with, and its teacher's labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass as document

from src.core.documents import PARTIAL, conform, read_yaml_mapping
from src.core.errors import ConfigError, ProblemsFound
from src.core.logging import get_logger
from src.core.paths import MANIFEST, require_finished
from src.core.result_files import SETTINGS_FILE
from src.data.examples import SequenceData
from src.data.teacher_outputs import TeacherOutputs, load_teacher_outputs
from src.serving.catalogue import Catalogue
from src.serving.results import StudentResult
from src.serving.students import ServedStudent, model_student

_log = get_logger(__name__)

#: kinds of stages in the cache, by the name under which a result's manifest lists them
_BASELINE, _LABELS = ("student_baseline", "student"), ("teacher_outputs", "teacher_outputs")


class LabelledTeacher(ServedStudent):
    """A teacher, as far as it was asked: it has an answer for the histories of the training examples it labelled."""

    def __init__(self, outputs: TeacherOutputs, data: SequenceData) -> None:
        self.name, self.fingerprints = "teacher", data.fingerprints()
        self.catalogue = Catalogue(data.id_map)
        place = {int(example): row for row, example in enumerate(data.train.example_id.tolist())}
        rows = np.array([place[int(example)] for example in outputs.example_id], dtype=np.int64)
        #: of two examples with one history the later one counts
        self._row = dict(_histories(data, rows))
        self._labelled = tuple(self._row)
        self._window, self._outputs = data.history_length, outputs

    #: as `ServedStudent.scores_all`
    scores_all = False

    def ranked(
        self, history: NDArray[np.int64], length: NDArray[np.int64], k: int, exclude_seen: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As `ServedStudent.ranked`; −∞ for histories without a label and places beyond it."""
        items = np.zeros((len(history), k), dtype=np.int64)
        scores = np.full((len(history), k), -np.inf, dtype=np.float32)
        for place, (seen, count) in enumerate(zip(history.tolist(), length.tolist(), strict=True)):
            row = self._row.get(tuple(seen[max(0, count - self._window) : count]))
            if row is None:
                continue
            named = self._outputs.candidates[row]
            allowed = ~np.isin(named, seen[:count]) if exclude_seen else np.ones(len(named), bool)
            kept = np.flatnonzero(allowed)[:k]
            items[place, : len(kept)] = named[kept]
            scores[place, : len(kept)] = self._outputs.scores[row][kept]
        return items, scores

    def labelled(self, number: int) -> list[int]:
        """The items of one of the histories that it labelled, oldest first; numbers beyond the last begin anew."""
        return list(self._labelled[number % len(self._labelled)]) if self._labelled else []


def _histories(data: SequenceData, rows: NDArray[np.int64]) -> Iterator[tuple[tuple[int, ...], int]]:
    """What the model sees of each labelled example's history, and its row in the outputs."""
    history, length = data.train.past.take(rows).dense(data.history_length)
    for row, (items, count) in enumerate(zip(history.tolist(), length.tolist(), strict=True)):
        yield tuple(items[:count]), row


@document(frozen=True, config=PARTIAL)
class _Runtime:
    """Where the run kept its finished stages."""

    cache: str


@document(frozen=True, config=PARTIAL)
class _Settings:
    """What is read of a run's settings."""

    runtime: _Runtime


@dataclass(frozen=True, eq=False)
class _Result:
    """A finished result, and the stages that its manifest lists."""

    folder: Path
    manifest: dict[str, Any]

    def stage(self, name: str, kind: str) -> Path | None:
        """The folder of a stage: beside the result's manifest, or in the cache; None where it is in neither."""
        if (self.folder / name / MANIFEST).is_file():
            return self.folder / name
        listed = self.manifest.get("fingerprints")
        key = listed.get(name) if isinstance(listed, dict) else None
        cache = self._cache()
        # a key is a fingerprint: nothing else leads out of the cache
        found = cache / kind / key if cache and isinstance(key, str) and key.isalnum() else None
        return found if found is not None and (found / MANIFEST).is_file() else None

    def _cache(self) -> Path | None:
        path = self.folder / SETTINGS_FILE
        try:
            return Path(conform(read_yaml_mapping(path), _Settings, path).runtime.cache)
        except ProblemsFound as error:
            _log.debug("no cache to look into: %s", error)
            return None


def stand_beside(folder: Path) -> list[ServedStudent]:
    """The baseline of a finished result and, where labels were made and its data can still be read, its teacher.

    Raises:
        ArtefactError: the result is unfinished.
        ConfigError: neither is there any more.
    """
    result = _Result(folder, require_finished(folder))
    found: list[ServedStudent] = []
    baseline = result.stage(*_BASELINE)
    if baseline is not None:
        found.append(model_student(baseline, "baseline"))
    labels = result.stage(*_LABELS)
    if labels is not None:
        try:
            data = StudentResult(folder, result.manifest, []).load_data()
            outputs = load_teacher_outputs(labels, data.fingerprints(), data.num_items)
            found.append(LabelledTeacher(outputs, data))
        except ProblemsFound as error:
            _log.warning("its teacher's labels are not shown: %s", error)
    if not found:
        rule = "neither its baseline nor its teacher's labels are in the cache any more"
        raise ConfigError.one("beside", str(folder), rule, "run the command again, or leave beside out")
    return found
