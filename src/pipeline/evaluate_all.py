"""Students and teachers of finished result folders, side by side on the splits that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass as document

from src.core.documents import PARTIAL, conform, read_yaml_mapping
from src.core.errors import ArtefactError, ConfigError, Problem, ProblemsFound
from src.core.hardware import resolve_device
from src.core.memory import give_back
from src.core.paths import MANIFEST, require_finished
from src.core.result_files import BEST_STUDENT, CANDIDATES, SETTINGS_FILE, TEACHER
from src.data.candidates import save_candidates
from src.data.examples import Examples, sample
from src.evaluation.comparison import ModelRanks, comparison_row
from src.pipeline.cache import StageCache
from src.pipeline.model_comparison import (
    EvaluatedModel,
    closed_form_models,
    missing_rows,
    rank_models,
    write_comparison,
)
from src.pipeline.run_folder import RunFolder
from src.pipeline.settings import EvaluateSettings, ExperimentSettings
from src.pipeline.split_evaluation import repeated_share
from src.pipeline.stages import Stages
from src.student.settings import EvaluationSettings
from src.teacher.operations.inference import load_trained

_NAME_A_RUN = "name a result of run_student_baseline, run_teacher, run_distill or tune_distill"


@document(frozen=True, config=PARTIAL)
class _Search:
    """What a manifest says about a search: trials by their state, or by their arm."""

    trials: dict[str, int] = Field(default_factory=dict)


@document(frozen=True, config=PARTIAL)
class _Manifest:
    """What is read of a result folder's manifest."""

    fingerprints: dict[str, str]
    search: _Search = Field(default_factory=_Search)


@dataclass(frozen=True, eq=False)
class FinishedResult:
    """A finished result folder and the experiment behind it."""

    folder: Path
    experiment: ExperimentSettings
    manifest: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> FinishedResult:
        """Raises ``ArtefactError`` for a folder that is missing, unfinished, or without an experiment's settings."""
        manifest = require_finished(folder)
        conform(manifest, _Manifest, folder / MANIFEST, _NAME_A_RUN)
        try:
            content = read_yaml_mapping(folder / SETTINGS_FILE)
        except ArtefactError as error:
            rule = f"its {SETTINGS_FILE} is missing or damaged ({error.problems[0].rule})"
            raise ArtefactError.one("folder", str(folder), rule, _NAME_A_RUN) from None
        # a search's or a teacher's settings hold more than the experiment
        known = {field.name for field in fields(ExperimentSettings)}
        experiment = {name: value for name, value in content.items() if name in known}
        try:
            settings = conform(experiment, ExperimentSettings, folder / SETTINGS_FILE)
        except ArtefactError as error:
            rule = f"its {SETTINGS_FILE} holds no experiment of this version ({error.problems[0].rule})"
            raise ArtefactError.one("folder", str(folder), rule, _NAME_A_RUN) from None
        return cls(folder, settings, manifest)

    def has_student(self) -> bool:
        """Whether the result holds a student."""
        return (self.folder / BEST_STUDENT).is_dir()

    def trials(self) -> int:
        """How many configurations were tried to find its student."""
        return sum(self.manifest.get("search", {}).get("trials", {}).values()) or 1

    def has_teacher(self) -> bool:
        """Whether the result holds a teacher (those of run_teacher do)."""
        return (self.folder / TEACHER).is_dir()


@dataclass(frozen=True, eq=False)
class ComparedResults:
    """The results that are set side by side, over one dataset."""

    results: Sequence[FinishedResult]
    stages: Stages


def check_results(settings: EvaluateSettings) -> ComparedResults:
    """Read every result; raises ``ConfigError`` with all that are unfinished or belong to another dataset."""
    names = [folder.name for folder in settings.results]
    repeated = [str(folder) for folder in settings.results if names.count(folder.name) > 1]
    rule = "two results of one name could not be told apart in the table"
    problems = [Problem("results", repeated, rule, "rename one folder, name each once")] if repeated else []
    results: list[FinishedResult] = []
    for folder in settings.results:
        try:
            results.append(FinishedResult.read(folder))
        except ProblemsFound as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    # where it computes is this run's choice, not that of the run which is looked at
    experiment = replace(results[0].experiment, runtime=settings.runtime)
    stages = Stages(experiment, StageCache(settings.runtime.cache))
    resolve_device(settings.runtime.device)
    expected = stages.data.fingerprints()
    for result in results:
        found = result.manifest["fingerprints"]
        problems += [
            Problem(
                f"results: {name}", str(result.folder), f"has another {name} than {results[0].folder}", "compare apart"
            )
            for name, value in expected.items()
            if found.get(name) != value
        ]
    if problems:
        raise ConfigError(problems)
    return ComparedResults(results, stages)


def run_eval_all(settings: EvaluateSettings, compared: ComparedResults, folder: RunFolder) -> None:
    """Rank on validation and test (opened here, once), write the tables and the manifest.

    Args:
        settings: of the command.
        compared: the results, and the stages that their data and closed forms come from.
        folder: where tables, the record of the opened test split and the manifest are written.
    """
    stages, device, results = compared.stages, compared.stages.device, compared.results
    names = ", ".join(str(result.folder) for result in results)
    listed = [*closed_form_models(stages), *(_student(result, stages) for result in results if result.has_student())]
    models = [model for model in listed if isinstance(model, EvaluatedModel)]
    validation, repeated = stages.data.validation, repeated_share(stages.data.validation)
    # first of all, so that a model that cannot be read is found while the test split is closed
    full = {"validation": rank_models(models, "validation", validation, stages, settings.evaluation, repeated)}
    test = stages.data.test.open(f"run_eval_all of {names}", folder.test_record)
    full["test"] = rank_models(models, "test", test, stages, settings.evaluation, repeated)
    splits = {"validation": validation, "test": test}
    ranked = {split: list(rankings) for split, rankings in full.items()}
    for result in results:
        if result.has_teacher():
            for split, own in _teacher(result, splits, stages, settings.evaluation, folder).items():
                ranked[split] += [own, *(other.on(own) for other in full[split])]
            # the next one needs the room
            give_back(device)
    every = [one for split in splits for one in ranked[split]]
    trials = {f"{r.folder.name}/student": r.trials() for r in results}
    rows = [comparison_row(r, settings.evaluation.ks, trials.get(r.model, 1)) for r in every]
    rows += missing_rows(listed, every)
    write_comparison(folder, rows, every, settings.evaluation.ks, "results side by side")
    told = {"results": [str(result.folder) for result in results]}
    folder.finish("evaluate_all", results[0].experiment.seed, stages.data.fingerprints(), told)


def _teacher(
    result: FinishedResult,
    splits: Mapping[str, Examples],
    stages: Stages,
    evaluation: EvaluationSettings,
    folder: RunFolder,
) -> dict[str, ModelRanks]:
    """A result's teacher, loaded once, on its own sample of every split; the lists that it answered over are kept."""
    settings, seed = result.experiment.teacher, result.experiment.seed
    rows = {"validation": settings.validation_rows, "test": settings.test_rows}
    teacher = load_trained(result.folder / TEACHER, settings, stages.data, stages.device, seed)
    found = {}
    for split, examples in splits.items():
        shown = sample(examples, rows[split], seed, split)
        ranking = teacher.ranking(shown, evaluation)
        if ranking.candidates is not None:
            place = folder.path / CANDIDATES / result.folder.name / split
            save_candidates(place, ranking.candidates, stages.data.fingerprints())
        label = f"{split} ({result.folder.name}'s sample)"
        name = f"{result.folder.name}/teacher"
        found[split] = ModelRanks.of(name, label, shown, ranking.ranks, ranking.answer_metrics())
    return found


def _student(result: FinishedResult, stages: Stages) -> EvaluatedModel:
    read = partial(stages.read_student, result.folder / BEST_STUDENT)
    return EvaluatedModel(f"{result.folder.name}/student", read)
