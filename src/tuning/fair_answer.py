"""The answer of the fair protocol: every arm's final models beside the models in closed form, on the test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.core.data_utils import fingerprint
from src.core.logging import console
from src.core.metrics import summarise
from src.data.examples import sample
from src.evaluation.comparison import Ranked
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
from src.student.artefact import load_student
from src.student.models import student_settings
from src.tuning.arms import STUDENT
from src.tuning.fair import FairSearch, Scored, compare_arms, mean_validation
from src.tuning.fair_document import arms_table, save_answer


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
    listed = closed_form_models(stages)
    closed_forms = {model.name: model for model in listed if isinstance(model, EvaluatedModel)}
    owners = list(closed_forms)
    finals: dict[str, list[EvaluatedModel]] = {}
    for arm in fair.described:
        for trial, model in zip(fair.finals_of(arm.name), models[arm.name], strict=True):
            student = load_student(model, stages.data)[0].to(stages.device)
            name = f"{arm.name} (seed {trial.params['seed']})"
            final = EvaluatedModel(name, student, fair.arms[arm.name].trials)
            finals.setdefault(arm.name, []).append(final)
            listed.append(final)
            owners.append(arm.name)
    comparison = ModelComparison(stages, listed, with_teacher=False)
    judged = fingerprint(*(trial.user_attrs["weights"] for trial in fair.finals.record.trials()))
    reason = f"the arms' {sum(map(len, finals.values()))} final models and the models in closed form"
    test = stages.data.test.open(reason, folder.test_record, judged, reopen_test)
    on_test = comparison.rank("test", test, 0)
    ranks = {
        owner: np.stack([ranked.ranks.numpy() for ranked, own in zip(on_test, owners, strict=True) if own == owner])
        for owner in dict.fromkeys(owners)
    }
    on_validation = comparison.validation()
    metric = fair.finals.record.space.metric
    judged_models = [
        Scored(
            arm.name,
            arm.title,
            ranks[arm.name],
            mean_validation(fair, arm.name),
            fair.arms[arm.name].trials,
            arm.uses_llm,
        )
        for arm in fair.described
    ]
    for shown in on_validation:
        if (closed := closed_forms.get(shown.model)) is not None:
            value = summarise(shown.ranks, stages.settings.evaluation.ks)[metric]
            reads_text = student_settings(closed.name).reads_text
            own = Scored(closed.name, closed.name, ranks[closed.name], value, closed.trials, reads_text)
            judged_models.append(own)
    missing = {model.name: model.reason for model in listed if isinstance(model, MissingModel)}
    answer = {**compare_arms(fair, judged_models, test.user, resamples), "missing": missing}
    save_answer(folder.path, answer)
    everything = [*on_validation, *on_test]
    write_tables(folder, comparison.rows(everything), everything)
    owner_of = {model.name: owner for model, owner in zip(comparison.models, owners, strict=True)}
    write_segments(folder, comparison, everything, STUDENT.name, owner_of)
    _write_examples(fair, comparison, finals, folder, on_validation)
    console.print(arms_table(answer))
    for family in ("comparisons", "comparisons_with_best"):
        for line in answer[family]:
            console.print(line["sentence"], markup=False)


def _write_examples(
    fair: FairSearch,
    comparison: ModelComparison,
    finals: Mapping[str, Sequence[EvaluatedModel]],
    folder: RunFolder,
    ranked: Sequence[Ranked],
) -> None:
    """A few histories with the lists of the student alone and of the arm that distils best, both of the first seed."""
    stages = comparison.stages
    others = [arm for arm in fair.described if arm.name != STUDENT.name]
    distilled = [arm for arm in others if arm.uses_llm] or others
    best = max(distilled, key=lambda arm: mean_validation(fair, arm.name))
    shown: dict[Role, EvaluatedModel] = {"baseline": finals[STUDENT.name][0], "winner": finals[best.name][0]}
    teacher = None
    if stages.uses_own_teacher:  # what the teacher check has asked it is not asked again
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
