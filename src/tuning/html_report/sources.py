"""What the report is made from: the studies and files of a result folder, read and never written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from src.core.documents import conform, read_document, read_json_lines, read_mapping, read_yaml_mapping
from src.core.paths import MANIFEST
from src.evaluation.example_histories import ExampleHistories, read_examples
from src.evaluation.result_tables import read_comparison, read_segments
from src.evaluation.verdict import read_sentences
from src.pipeline.run_folder import BEST_PARAMS, SETTINGS_FILE, SPACE_FILE, replay_command
from src.tuning.fair_document import load_answer
from src.tuning.study_view import StudyView, read_studies

T = TypeVar("T")

#: what the page reads parts of
_PARTS = dict[str, dict[str, Any] | None]


@dataclass(frozen=True)
class Result:
    """A result folder. An optional file that is missing is ``None`` or empty here."""

    manifest: Mapping[str, Any]
    #: in the order they were begun
    studies: Sequence[StudyView]
    comparison: pd.DataFrame | None
    settings: Mapping[str, Any]
    #: the text of `search_space.yaml` and `settings.yaml`, by name
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


def read_result(folder: Path, manifest: Mapping[str, Any]) -> Result:
    """Read a folder; raises ``ArtefactError`` for a file that is damaged or that another version wrote."""
    fair, documents = _if_there(folder / "fair.json", load_answer), (SPACE_FILE, SETTINGS_FILE)
    settings = _if_there(folder / SETTINGS_FILE, read_yaml_mapping) or {}
    conform({"dataset": settings.get("dataset")}, _PARTS, folder / SETTINGS_FILE)
    conform({"git": manifest.get("git")}, _PARTS, folder / MANIFEST)
    return Result(
        manifest=manifest,
        studies=read_studies(folder, manifest, fair),
        comparison=_if_there(folder / "comparison.csv", read_comparison),
        settings=settings,
        documents={name: read_document(folder / name) for name in documents if (folder / name).exists()},
        times=_if_there(folder / "metrics/time.json", lambda path: read_mapping(path, dict[str, float])) or {},
        openings=read_json_lines(folder / "test_openings.jsonl", dict[str, Any]),
        replay=_if_there(folder / BEST_PARAMS, replay_command),
        fair=fair,
        verdicts=_if_there(folder / "metrics/verdict.json", read_sentences) or [],
        segments=_if_there(folder / "segments.csv", read_segments),
        examples=_if_there(folder / "metrics/examples.json", read_examples),
    )


def _if_there(path: Path, read: Callable[[Path], T]) -> T | None:
    return read(path) if path.exists() else None
