"""The answer of the fair protocol: every arm's final models beside the models in closed form, on the test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.core.data_utils import fingerprint
from src.core.logging import console
from src.core.metrics import summarise
from src.data.examples import sample
from src.evaluation.comparison import ModelRanks
from src.evaluation.example_histories import Role
from src.pipeline.example_lists import strongest_closed_form, write_examples
from src.pipeline.model_comparison import (
    EvaluatedModel,
    MissingModel,
    ModelComparison,
    closed_form_models,
    write_segments,
    write_tables,
)
from src.pipeline.run_folder import RunFolder
from src.pipeline.stages import Stages
from src.student.models import student_settings
from src.tuning.arms import STUDENT
from src.tuning.fair import ARM, SEED, FairSearch, ScoredModel, best_final, compare_arms, mean_validation
from src.tuning.fair_document import arms_table, save_answer
from src.tuning.finalists import STUDENT_SEED
from src.tuning.publish import STUDY_NOTE, attach_card
from src.tuning.study import FINALS

#: of the answer: every arm against the student alone, and against the best model without a language model
_FAMILIES = ("comparisons", "comparisons_with_best")


def publish_answer(
    stages: Stages,
    fair: FairSearch,
    models: Mapping[str, Sequence[Path]],
    folder: RunFolder,
    resamples: int,
    reopen_test: bool,
) -> None:
    """Every final model on validation and on the test split, opened once; the verdicts in plain sentences.

    Args:
        stages: data, and the models in closed form.
        fair: the searches and final trainings.
        models: the folders of each arm's final models, in the order of its seeds.
        folder: gets `fair.json` and the tables.
        resamples: of the bootstrap.
        reopen_test: whether a test split that was opened already may be opened again.
    """
    listed, owners = _models(stages, fair, models)
    comparison = ModelComparison(stages, listed, with_teacher=False)
    # first of all, so that a model that cannot be read is found while the test split is closed
    on_validation = comparison.validation()
    judged = fingerprint(*(trial.user_attrs.get("weights", "") for trial in fair.finals.record.trials()))
    reason = f"the arms' {sum(map(len, models.values()))} final models and the models in closed form"
    test = stages.data.test.open(reason, folder.test_record, judged, reopen_test)
    on_test = comparison.rank("test", test, 0)
    scored = _scored(fair, comparison, owners, on_validation, on_test)
    missing = {model.name: model.reason for model in listed if isinstance(model, MissingModel)}
    answer = {**compare_arms(fair, scored, test.user, resamples), "missing": {**fair.missing, **missing}}
    save_answer(folder.path, answer)
    everything = [*on_validation, *on_test]
    write_tables(folder, comparison.rows(everything), everything)
    write_segments(folder, comparison, everything, STUDENT.name, owners)
    _write_examples(fair, comparison, owners, folder, on_validation)
    console.print(arms_table(answer))
    for family in _FAMILIES:
        for line in answer[family]:
            console.print(line["sentence"], markup=False)
    _tell_dashboard(fair, answer, folder)


def _models(
    stages: Stages, fair: FairSearch, models: Mapping[str, Sequence[Path]]
) -> tuple[list[EvaluatedModel | MissingModel], dict[str, str]]:
    """The models in closed form and the arms' final ones, and by each model's name whose seed it is: there may be
    dozens, so each is read where it is ranked."""
    listed = closed_form_models(stages)
    owners = {model.name: model.name for model in listed if isinstance(model, EvaluatedModel)}
    for arm in fair.judged:
        for trial, model in zip(fair.finals_of(arm.name), models[arm.name], strict=True):
            name = f"{arm.name} (seed {trial.params[SEED]})"
            listed.append(EvaluatedModel(name, partial(stages.read_student, model), fair.arms[arm.name].trials))
            owners[name] = arm.name
    return listed, owners


def _scored(
    fair: FairSearch,
    comparison: ModelComparison,
    owners: Mapping[str, str],
    on_validation: Sequence[ModelRanks],
    on_test: Sequence[ModelRanks],
) -> list[ScoredModel]:
    """The arms in their order, then the models in closed form, each with its ranks of the test targets by seed.

    Args:
        fair: the searches and final trainings.
        comparison: of all models.
        owners: whose seed a model is, by model.
        on_validation: every model there.
        on_test: every model there.
    """
    by_owner: dict[str, list[NDArray[np.int64]]] = {}
    for ranked in on_test:
        by_owner.setdefault(owners[ranked.model], []).append(ranked.ranks.numpy())
    ranks = {owner: np.stack(found) for owner, found in by_owner.items()}
    scored = []
    for arm in fair.judged:
        mean, trials = mean_validation(fair, arm.name), fair.arms[arm.name].trials
        scored.append(ScoredModel(arm.name, arm.title, ranks[arm.name], mean, trials, arm.uses_llm))
    metric, ks = fair.finals.record.space.metric, comparison.stages.settings.evaluation.ks
    trials_of = {model.name: model.trials for model in comparison.models}
    for shown in on_validation:
        if (name := shown.model) == owners[name]:  # a model in closed form: it has no seeds
            value, reads_text = summarise(shown.ranks, ks)[metric], student_settings(name).reads_text
            scored.append(ScoredModel(name, name, ranks[name], value, trials_of[name], reads_text))
    return scored


def _tell_dashboard(fair: FairSearch, answer: Mapping[str, Any], folder: RunFolder) -> None:
    """Tell optuna-dashboard what was found, as the note of each study, and the published student's card."""
    lines = [line for family in _FAMILIES for line in answer[family]]
    said = {
        arm.name: list(dict.fromkeys(line["sentence"] for line in lines if line["name"] == arm.name))
        for arm in fair.described
    }
    for arm in fair.described:
        reason = fair.missing.get(arm.title)
        again = f"Trained again on other seeds in the study `{FINALS}`."
        what = f"Left out of the comparison: {reason}" if reason else again
        fair.arms[arm.name].record.describe("\n\n".join([f"**{arm.title}**", *said[arm.name], what]))
    sentences, means = list(dict.fromkeys(line["sentence"] for line in lines)), "Means over seeds, on the test split."
    fair.finals.record.describe("\n\n".join([*sentences, means, STUDY_NOTE]))
    best = best_final(fair)
    winner, seed = str(best.params[ARM]), best.params[SEED]
    values = {**fair.chosen(winner).params, STUDENT_SEED: seed}
    title = f"The student of arm {winner}, trained with seed {seed}"
    attach_card(fair.finals.record, title, best, values, folder, said[winner])


def _write_examples(
    fair: FairSearch,
    comparison: ModelComparison,
    owners: Mapping[str, str],
    folder: RunFolder,
    ranked: Sequence[ModelRanks],
) -> None:
    """A few histories with the lists of the student alone and of the arm that distils best, both of the first seed."""
    stages = comparison.stages
    others = [arm for arm in fair.judged if arm.name != STUDENT.name]
    distilled = [arm for arm in others if arm.uses_llm] or others
    best = max(distilled, key=lambda arm: mean_validation(fair, arm.name))

    def first_seed(arm: str) -> EvaluatedModel:
        return next(model for model in comparison.models if owners[model.name] == arm)

    shown: dict[Role, EvaluatedModel] = {"baseline": first_seed(STUDENT.name), "winner": first_seed(best.name)}
    teacher = None
    if stages.uses_own_teacher and not stages.llm_is_gone:  # what the teacher check has asked it is not asked again
        rows, seed = stages.settings.teacher.validation_rows, stages.settings.seed
        teacher = stages.teacher_ranking(sample(stages.data.validation, rows, seed, "validation"))
    write_examples(folder, comparison, {**shown, **strongest_closed_form(comparison, ranked)}, teacher, best.uses_llm)


def fair_facts(fair: FairSearch, arm: str, seed: object) -> dict[str, Any]:
    """What the manifest says about the search.

    Args:
        fair: the searches and final trainings.
        arm: whose student is published.
        seed: of the final training that it comes from.
    """
    return {
        "protocol": "fair",
        "metric": fair.finals.record.space.metric,
        "trials": {name: len(search.record.trials()) for name, search in fair.arms.items()},
        "published": {"arm": arm, "seed": seed},
    }
