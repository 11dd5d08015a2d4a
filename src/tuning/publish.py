"""What a search leaves beside its trials: winner and baselines, verdict, report, and what the manifest says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from src.core.data_utils import fingerprint
from src.core.logging import console, get_logger
from src.core.result_files import BEST_STUDENT, DASHBOARD_FILES, REPORT, VERDICT
from src.evaluation.comparison import ModelRanks, as_short_table, comparison_row
from src.evaluation.example_histories import Role
from src.evaluation.verdict import ONE_TRAINING, judge_search
from src.pipeline.example_lists import strongest_closed_form, write_examples
from src.pipeline.model_comparison import EvaluatedModel, ModelComparison, write_segments, write_tables
from src.pipeline.run_folder import RunFolder
from src.pipeline.runs import BASELINE, finish_run, fit_summary, tracker_of
from src.pipeline.stages import Stages
from src.pipeline.student_stages import fit_of
from src.serving.metrics_table import metrics_table
from src.serving.results import comparison_rows
from src.student.models import closed_forms, student_settings
from src.tuning.dispatch import states
from src.tuning.finalists import finalist_lines
from src.tuning.html_report import write_report
from src.tuning.report import write_outcomes
from src.tuning.search import SearchOutcome
from src.tuning.search_space import Value
from src.tuning.study import Record
from src.tuning.trial_values import is_distilled

_log = get_logger(__name__)

_CARD = "student_card.md"

#: where the note of a study leads
STUDY_NOTE = "The student's card is among the artifacts. `report.html` and `comparison.csv` lie beside this journal."


def best_student(outcome: SearchOutcome, stages: Stages, folder: RunFolder, name: str) -> EvaluatedModel:
    """The published student of a search, with the number of configurations that were tried to find it.

    Args:
        outcome: of the search.
        stages: the data that it was trained on.
        folder: the result folder, which holds the student.
        name: what the comparison calls it.
    """
    read = partial(stages.read_student, folder.path / BEST_STUDENT)
    return EvaluatedModel(name, read, len(outcome.search.record.trials()))


def compare_winner(
    comparison: ModelComparison, outcome: SearchOutcome, folder: RunFolder, what: str, reopen_test: bool
) -> None:
    """The winner beside its baselines on validation and on the test split, which this opens once.

    Args:
        comparison: the models; the last one is the winner, unless that is the comparison's teacher.
        outcome: the search.
        folder: gets the tables.
        what: what the winner is, as titles call it.
        reopen_test: whether a test split that was opened already may be opened again.
    """
    stages = comparison.stages
    judged = fingerprint(outcome.best.user_attrs["weights"], stages.baseline.key)
    reason = f"the winner ({what}, trial {outcome.best.number}) and its baselines"
    on_validation = comparison.validation()
    ranked = [*on_validation, *comparison.test(folder, reason, judged, reopen_test)]
    rows = comparison.rows(ranked)
    write_tables(folder, rows, ranked)
    title = (
        f"{_named(what, outcome)} beside its baselines; {comparison.repeated:.1%} of validation targets were met before"
    )
    own = "teacher" if outcome.search.record.space.stage == "teacher" else comparison.models[-1].name
    console.print(as_short_table(rows, max(stages.settings.evaluation.ks), title, own))
    write_segments(folder, comparison, ranked, BASELINE)
    _write_examples(comparison, outcome, folder, on_validation)
    own = comparison.models[-1].name
    opened = next((one for one in ranked if (one.model, one.split) == (own, "test")), None)
    if opened is not None and outcome.search.record.space.stage != "teacher":
        metrics = comparison_row(opened, stages.settings.evaluation.ks, 1).metrics
        write_outcomes(tracker_of(stages, folder), outcome.search.record, {outcome.best.number: metrics})
    if outcome.search.record.space.stage != "teacher":
        _write_verdict(comparison, outcome, folder, ranked)


def _named(what: str, outcome: SearchOutcome) -> str:
    """What the winner is, and in whose place it stands."""
    if not outcome.gone:
        return what
    return f"{what} (trial {outcome.best.number}: the model of trial {outcome.gone[0]} is gone)"


def _write_examples(
    comparison: ModelComparison, outcome: SearchOutcome, folder: RunFolder, ranked: Sequence[ModelRanks]
) -> None:
    """A few histories with the lists of baseline, winner, teacher and the best model in closed form."""
    stage = outcome.search.record.space.stage
    by_name = {model.name: model for model in comparison.models}
    shown: dict[Role, EvaluatedModel] = {"baseline": by_name[BASELINE], **strongest_closed_form(comparison, ranked)}
    if stage != "teacher":
        shown["winner"] = comparison.models[-1]
    write_examples(folder, comparison, shown, comparison.teacher_rankings.get("validation"), stage == "distill")


def _write_verdict(
    comparison: ModelComparison, outcome: SearchOutcome, folder: RunFolder, ranked: Sequence[ModelRanks]
) -> None:
    """Whether what was searched helped on the test split: against the baseline, and against the best model without it.

    Args:
        comparison: the models, of which the last is the winner.
        outcome: the search.
        folder: gets `metrics/verdict.json`.
        ranked: every model on validation and test.
    """
    stages = comparison.stages
    k, seed = max(stages.settings.evaluation.ks), stages.settings.seed
    on = {(one.model, one.split): one for one in ranked}
    own, *others = [model.name for model in reversed(comparison.models)]
    # drawn towards texts, a model in closed form has something of the language model, too
    others = [name for name in others if name not in closed_forms() or not student_settings(name).reads_text]
    strongest = max(others, key=lambda name: comparison_row(on[name, "validation"], (k,), 1).metrics[f"ndcg_{k}"])
    winner, distils = on[own, "test"], outcome.search.record.space.stage == "distill"
    changed = not distils or is_distilled(outcome.settings, stages.settings)
    found = {}
    for against in dict.fromkeys((BASELINE, strongest)):
        other = on[against, "test"].ranks.numpy()
        what = "distillation" if distils else "tuning"
        verdict = judge_search(winner.ranks.numpy(), other, winner.user, k, seed, changed, what, f"the {against}")
        found[against] = asdict(verdict)
    sentences = list(dict.fromkeys(str(verdict["sentence"]) for verdict in found.values()))  # alike where nothing won
    for sentence in sentences:
        console.print(sentence, markup=False, style="bold")
    outcome.search.record.describe("\n\n".join([*sentences, f"Each on the test split; {ONE_TRAINING}.", STUDY_NOTE]))
    folder.write_metrics(VERDICT, {"against": found, "strongest_without": strongest, "caveat": ONE_TRAINING})
    title = f"The student of trial {outcome.best.number}"
    attach_card(outcome.search.record, title, outcome.best, outcome.best.params, folder, sentences)


def attach_card(
    record: Record,
    title: str,
    best: FrozenTrial,
    values: Mapping[str, Value],
    folder: RunFolder,
    sentences: Sequence[str],
) -> None:
    """The published student among a study's artifacts in optuna-dashboard: what it is, what was measured, how it is
    used.

    Args:
        record: of the study that holds its training.
        title: what the card calls it.
        best: its training.
        values: the configuration keys that were chosen for it.
        folder: holds `comparison.csv`, and gets the card.
        sentences: what was found.
    """
    told = {**values, "parameters": best.user_attrs.get("parameters")}
    parts = [
        f"# {title}",
        " ".join(sentences),
        "\n".join(f"- `{key}`: {value}" for key, value in told.items() if value is not None),
        metrics_table(comparison_rows(folder.path)),
        f"`python -m src.exp.export result={folder.path}` makes it a folder that anybody can run.",
    ]
    record.attach(_CARD, "\n\n".join(parts) + "\n", folder.path / DASHBOARD_FILES)


def search_facts(outcome: SearchOutcome, stages: Stages, resumed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the manifest says about the search.

    Args:
        outcome: of the search.
        stages: know the baseline.
        resumed: when the search went on, and with what changes.
    """
    record = outcome.search.record
    return {
        "trials": {state.name: count for state, count in states([outcome.search]).items() if count},
        "baseline_trials": 1,
        "best_trial": outcome.best.number,
        **({"models_gone": list(outcome.gone)} if outcome.gone else {}),
        "best_values": dict(zip(record.space.objectives, outcome.best.values, strict=True)),
        "best_value": outcome.best.values[0],
        "metric": record.space.metric,
        "best_params": outcome.best.params,
        "finalists": finalist_lines(outcome.finalists),
        "pareto_front": record.front() if len(record.space.objectives) > 1 else [],
        "baseline": fit_summary(fit_of(stages.baseline)),
        "resumed": list(resumed),
    }


def finish_search(stages: Stages, folder: RunFolder, kind: str, found: Mapping[str, Any]) -> None:
    """Write times, `report.html`, and the manifest last; then say where to read all of it.

    Args:
        stages: say which artefacts were used.
        folder: the result folder.
        kind: the command, as the manifest names it.
        found: what else the manifest says.
    """

    def last(manifest: Mapping[str, Any]) -> None:
        write_report(folder.path, manifest)

    finish_run(stages, folder, kind, found, last)
    console.print(f"report: {folder.path / REPORT}", markup=False, soft_wrap=True)


def reproduces_baseline(stages: Stages, record: Record) -> bool | None:
    """Whether the first trial, without distillation, gave the baseline's metrics to the last digit; None for a grid."""
    if record.settings.sampler == "grid":
        return None
    first = record.trials()[0]
    baseline: dict[str, Any] = fit_of(stages.baseline).best_metrics
    if first.state != TrialState.COMPLETE:
        _log.warning("the no-distillation trial did not complete: %s", first.user_attrs.get("failure"))
        return False
    found = first.user_attrs["metrics"]
    same = all(found[name] == value for name, value in baseline.items())
    if not same:
        _log.warning("the no-distillation trial differs from the baseline: %s against %s", found, baseline)
    return same
