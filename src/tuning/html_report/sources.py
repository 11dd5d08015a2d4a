"""What the report is made from: the studies and files of a result folder, read and never written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import yaml
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from src.core.paths import read_json

JOURNAL, FINALS, SEARCH = "study.journal", "finals", "search"


@dataclass(frozen=True)
class Searched:
    """One study with its trials by number; ``metrics`` are its objectives' names, in the order of a trial's values."""

    name: str
    title: str
    study: optuna.Study
    metrics: Sequence[str]
    trials: Sequence[FrozenTrial]

    @property
    def maximised(self) -> bool:
        """Whether more of the first objective is better."""
        return bool(self.study.directions[0] == StudyDirection.MAXIMIZE)

    @property
    def distinct(self) -> bool:
        """Whether this is a search of its own rather than the final trainings of several searches."""
        return self.name != FINALS

    def having(self, state: TrialState) -> list[FrozenTrial]:
        """Trials in a state, by number."""
        return [trial for trial in self.trials if trial.state == state]

    def completed(self) -> list[FrozenTrial]:
        """Trials that reached their end, by number."""
        return self.having(TrialState.COMPLETE)

    def best(self) -> FrozenTrial | None:
        """The completed trial that is best by the first objective; the earlier one where two are equal."""
        sign = -1.0 if self.maximised else 1.0
        return min(self.completed(), key=lambda trial: (sign * trial.values[0], trial.number), default=None)

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
    searches: Sequence[Searched]
    finals: Searched | None
    comparison: pd.DataFrame | None
    settings: Mapping[str, Any]
    settings_text: str | None
    times: Mapping[str, float]
    openings: Sequence[Mapping[str, Any]]
    replay: str | None
    fair: Mapping[str, Any] | None

    @property
    def studies(self) -> list[Searched]:
        """All studies, final trainings last."""
        return [*self.searches, *([self.finals] if self.finals else [])]


def read_result(folder: Path, manifest: Mapping[str, Any]) -> Result:
    """Read a folder; raises ``ArtefactError`` for a JSON file that is damaged."""
    fair = read_json(folder / "fair.json") if (folder / "fair.json").exists() else None
    studies = read_studies(folder, manifest, fair)
    text = _text(folder / "settings.yaml")
    comparison = folder / "comparison.csv"
    time = folder / "metrics" / "time.json"
    return Result(
        folder=folder,
        manifest=manifest,
        searches=[searched for searched in studies if searched.distinct],
        finals=next((searched for searched in studies if not searched.distinct), None),
        comparison=pd.read_csv(comparison) if comparison.exists() else None,
        settings=yaml.safe_load(text) or {} if text else {},
        settings_text=text,
        times=read_json(time) if time.exists() else {},
        openings=_records(folder / "test_openings.jsonl"),
        replay=_replay(_text(folder / "best_params.yaml") or ""),
        fair=fair,
    )


def read_studies(folder: Path, manifest: Mapping[str, Any], fair: Mapping[str, Any] | None) -> list[Searched]:
    """The studies of a folder's journal, in the order they were begun; none when there is no journal."""
    if not (folder / JOURNAL).exists():
        return []
    storage = JournalStorage(_Reading(folder / JOURNAL))
    metric = (fair or manifest.get("search") or {}).get("metric", "objective")
    titles = {arm["arm"]: arm.get("title", arm["arm"]) for arm in (fair or {}).get("arms", [])}
    found = []
    for name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        names = study.user_attrs.get("metrics") or [metric]
        metrics = [*names, *(f"objective {i}" for i in range(len(names), len(study.directions)))]
        found.append(Searched(name, titles.get(name, name), study, metrics, study.get_trials(deepcopy=False)))
    return found


class _Reading(BaseJournalBackend):
    """A journal that refuses new records."""

    def __init__(self, path: Path) -> None:
        self._records = _records(path)

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Records from a number on."""
        return self._records[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Refused: a report changes nothing. Raises ``PermissionError``."""
        raise PermissionError(f"a report only reads the journal; {len(logs)} record(s) refused")


def _records(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines; an unfinished last one, which somebody may be writing, is not read."""
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [json.loads(line) for line in whole.splitlines() if line.strip()]


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _replay(text: str) -> str | None:
    """The command that `best_params.yaml` names in its heading."""
    lines = (line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    return next((line for line in lines if line.startswith("python ")), None)
