"""What the report is made from: the studies and files of a result folder, read and never written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field
from pydantic.dataclasses import dataclass as document

from src.core.documents import (
    PARTIAL,
    conform,
    read_document,
    read_json_document,
    read_json_lines,
    read_mapping,
    read_yaml_mapping,
)
from src.core.errors import ArtefactError
from src.tuning.journal import JOURNAL, read_journal
from src.tuning.study import ranked

FINALS = "finals"
#: how the names of studies begin in which a search's best trials were trained on other seeds
FINALISTS = "finalists"
_DOCUMENTS = ("search_space.yaml", "settings.yaml")
#: what `comparison.csv` names of every row
_COLUMNS = {"model", "split", "trials", "examples"}
_SEGMENT_COLUMNS = {"by", "segment", "examples", "model", "gain", "low", "high", "split"}


@document(frozen=True, config=PARTIAL)
class _Arm:
    """An arm's line of `fair.json`."""

    arm: str
    test: float
    low: float = 0.0
    high: float = 0.0
    title: str = ""
    values_per_seed: list[float] = Field(default_factory=list)
    seeds: list[int] = Field(default_factory=list)
    trials: int = 0
    epochs: int = 0
    params: dict[str, float | int | bool | str | None] = Field(default_factory=dict)


@document(frozen=True, config=PARTIAL)
class _Difference:
    """A comparison's line of `fair.json`."""

    name: str
    against: str
    difference: float
    low: float
    high: float
    sentence: str


@document(frozen=True, config=PARTIAL)
class _Answer:
    """What the report reads of `fair.json`."""

    metric: str
    arms: list[_Arm] = Field(min_length=1)
    comparisons: list[_Difference] = Field(default_factory=list)


@dataclass(frozen=True)
class Searched:
    """One study with its trials by number; ``metrics`` are its objectives' names, in the order of a trial's values."""

    name: str
    title: str
    study: optuna.Study
    metrics: Sequence[str]
    trials: Sequence[FrozenTrial]

    @property
    def distinct(self) -> bool:
        """Whether this is a search of its own rather than the final trainings of several searches."""
        return self.name != FINALS and not self.name.startswith(FINALISTS)

    def best(self) -> FrozenTrial | None:
        """The completed trial that is best by the first objective; the earlier one where two are equal."""
        return next(iter(ranked(self.study)), None)

    def completed(self) -> list[FrozenTrial]:
        """Trials that reached their end, by number."""
        return [trial for trial in self.trials if trial.state == TrialState.COMPLETE]

    def parameters(self) -> dict[str, BaseDistribution]:
        """Everything that was searched, in the order of first appearance; points of a single value are left out."""
        found: dict[str, BaseDistribution] = {}
        for trial in self.trials:
            found |= {key: kind for key, kind in trial.distributions.items() if key not in found}
        return {key: kind for key, kind in found.items() if not kind.single()}


@dataclass(frozen=True)
class Result:
    """A result folder. An optional file that is missing is ``None`` or empty here."""

    folder: Path
    manifest: Mapping[str, Any]
    #: in the order they were begun
    studies: Sequence[Searched]
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

    @property
    def searches(self) -> list[Searched]:
        """The studies without final trainings."""
        return [searched for searched in self.studies if searched.distinct]


def read_result(folder: Path, manifest: Mapping[str, Any]) -> Result:
    """Read a folder; raises ``ArtefactError`` for a file that is damaged or that another version wrote."""
    fair = _fair(folder / "fair.json") if (folder / "fair.json").exists() else None
    settings = folder / "settings.yaml"
    time = folder / "metrics" / "time.json"
    return Result(
        folder=folder,
        manifest=manifest,
        studies=read_studies(folder, manifest, fair),
        comparison=_table(folder / "comparison.csv", _COLUMNS),
        settings=read_yaml_mapping(settings) if settings.exists() else {},
        documents={name: read_document(folder / name) for name in _DOCUMENTS if (folder / name).exists()},
        times=read_mapping(time, dict[str, float]) if time.exists() else {},
        openings=read_json_lines(folder / "test_openings.jsonl", dict[str, Any]),
        replay=_replay(folder / "best_params.yaml"),
        fair=fair,
        verdicts=_verdicts(folder / "metrics" / "verdict.json"),
        segments=_table(folder / "segments.csv", _SEGMENT_COLUMNS),
    )


def read_studies(folder: Path, manifest: Mapping[str, Any], fair: Mapping[str, Any] | None) -> list[Searched]:
    """The studies of a folder's journal, in the order they were begun; none when there is no journal."""
    if not (folder / JOURNAL).exists():
        return []
    storage = read_journal(folder / JOURNAL)
    metric = (fair or manifest.get("search") or {}).get("metric", "objective")
    titles = {arm["arm"]: arm.get("title", arm["arm"]) for arm in (fair or {}).get("arms", [])}
    found = []
    for name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        names = study.user_attrs.get("metrics") or [metric]
        metrics = [*names, *(f"objective {i}" for i in range(len(names), len(study.directions)))]
        found.append(Searched(name, titles.get(name, name), study, metrics, study.get_trials(deepcopy=False)))
    return found


def _fair(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json_document(path)
    conform(content, _Answer, path)
    return content


@document(frozen=True, config=PARTIAL)
class _Verdict:
    """A line of `metrics/verdict.json`."""

    sentence: str


@document(frozen=True, config=PARTIAL)
class _Verdicts:
    """What the report reads of `metrics/verdict.json`."""

    against: dict[str, _Verdict]


def _verdicts(path: Path) -> list[str]:
    if not path.exists():
        return []
    content = read_mapping(path, dict[str, Any])
    found: _Verdicts = conform(content, _Verdicts, path)
    return list(dict.fromkeys(verdict.sentence for verdict in found.against.values()))


def _table(path: Path, columns: set[str]) -> pd.DataFrame | None:
    if not path.exists():
        return None
    try:
        frame = pd.read_csv(path)
    except (ValueError, OSError) as error:  # pandas' own errors and undecodable text are of these
        raise ArtefactError.one("file", str(path), f"is no table ({error})") from None
    if missing := columns - set(frame.columns):
        raise ArtefactError.one("file", str(path), f"lacks the columns {', '.join(sorted(missing))}")
    return frame


def _replay(path: Path) -> str | None:
    """The command that `best_params.yaml` names in its heading."""
    text = read_document(path) if path.exists() else ""
    lines = (line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    return next((line for line in lines if line.startswith("python ")), None)
