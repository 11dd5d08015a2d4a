"""What the report is made from: the studies and files of a result folder, read and never written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from src.core.documents import conform, read_document, read_json_lines, read_mapping, read_yaml_mapping
from src.core.paths import MANIFEST
from src.core.result_files import (
    BEST_PARAMS,
    COMPARISON,
    EXAMPLES,
    FAIR,
    SEGMENTS,
    SETTINGS_FILE,
    SPACE_FILE,
    TEST_OPENINGS,
    TIME,
    VERDICT,
    metrics_file,
)
from src.evaluation.example_histories import ExampleHistories, read_examples
from src.evaluation.result_tables import read_comparison, read_segments
from src.evaluation.verdict import read_sentences
from src.pipeline.run_folder import replay_command
from src.tuning.fair_document import load_answer
from src.tuning.study import SEARCH
from src.tuning.study_view import StudyView, read_studies

T = TypeVar("T")

#: what the page reads parts of
_PARTS = dict[str, dict[str, Any] | None]


@dataclass(frozen=True)
class ReportedResult:
    """A result folder. An optional file that is missing is ``None`` or empty here."""

    manifest: Mapping[str, Any]
    #: in the order they were begun
    studies: Sequence[StudyView]
    comparison: pd.DataFrame | None
    settings: Mapping[str, Any]
    #: the texts of `search_space.yaml`, `settings.yaml` and the manifest, by name
    documents: Mapping[str, str]
    times: Mapping[str, float]
    openings: Sequence[Mapping[str, Any]]
    replay: str | None
    fair: Mapping[str, Any] | None
    #: the sentences of `metrics/verdict.json`, the one against the baseline first
    verdicts: Sequence[str]
    segments: pd.DataFrame | None
    examples: ExampleHistories | None

    @property
    def searches(self) -> list[StudyView]:
        """The studies without final trainings."""
        return [view for view in self.studies if view.distinct]

    @property
    def completed(self) -> list[StudyView]:
        """The searches in which a trial reached its end."""
        return [view for view in self.searches if view.completed()]

    @property
    def undistilled(self) -> float | None:
        """The first objective of trial 0 of a single search over distillation, which is the student alone."""
        if self.manifest.get("kind") != "tune_distill" or [view.name for view in self.searches] != [SEARCH]:
            return None
        first = self.searches[0].first()
        return None if first is None else first.values[0]


def read_result(folder: Path, manifest: Mapping[str, Any]) -> ReportedResult:
    """Read a folder; raises ``ArtefactError`` for a file that is damaged or that another version wrote."""
    fair = _if_there(folder / FAIR, load_answer)
    documents = {name: read_document(folder / name) for name in (SPACE_FILE, SETTINGS_FILE) if (folder / name).exists()}
    if manifest:
        documents[MANIFEST] = json.dumps(manifest, indent=2, ensure_ascii=False, default=str)
    settings = _if_there(folder / SETTINGS_FILE, read_yaml_mapping) or {}
    conform({"dataset": settings.get("dataset")}, _PARTS, folder / SETTINGS_FILE)
    conform({name: manifest.get(name) for name in ("git", "search")}, _PARTS, folder / MANIFEST)
    return ReportedResult(
        manifest=manifest,
        studies=read_studies(folder, manifest, fair),
        comparison=_if_there(folder / COMPARISON, read_comparison),
        settings=settings,
        documents=documents,
        times=_if_there(metrics_file(folder, TIME), lambda path: read_mapping(path, dict[str, float])) or {},
        openings=read_json_lines(folder / TEST_OPENINGS, dict[str, Any]),
        replay=_if_there(folder / BEST_PARAMS, replay_command),
        fair=fair,
        verdicts=_if_there(metrics_file(folder, VERDICT), read_sentences) or [],
        segments=_if_there(folder / SEGMENTS, read_segments),
        examples=_if_there(metrics_file(folder, EXAMPLES), read_examples),
    )


def _if_there(path: Path, read: Callable[[Path], T]) -> T | None:
    return read(path) if path.exists() else None
