"""The answer of the fair protocol: every arm's final models beside the models in closed form, on the test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.core.data_utils import fingerprint
from src.core.logging import console
from src.core.metrics import summarise
from src.pipeline.final import Comparison, Contestant, closed_form_contestants, write_segments, write_tables
from src.pipeline.run_folder import RunFolder
from src.pipeline.stages import Stages
from src.student.artefact import load_student
from src.student.models import student_settings
from src.tuning.arms import STUDENT
from src.tuning.fair import FairSearch, Scored, arms_table, judge, mean_validation, save_answer


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
    contestants = closed_form_contestants(stages)
    closed_forms = {contestant.name: contestant for contestant in contestants}
    owners = list(closed_forms)
    for arm in fair.described:
        for trial, model in zip(fair.finals_of(arm.name), models[arm.name], strict=True):
            student = load_student(model, stages.data)[0].to(stages.device)
            name = f"{arm.name} (seed {trial.params['seed']})"
            contestants.append(Contestant(name, student, fair.arms[arm.name].trials))
            owners.append(arm.name)
    comparison = Comparison(stages, contestants, with_teacher=False)
    judged = fingerprint(*(trial.user_attrs["weights"] for trial in fair.finals.record.trials()))
    reason = f"the arms' {len(contestants) - 1} final models and popularity"
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
    answer = judge(fair, judged_models, test.user, resamples)
    save_answer(folder.path, answer)
    everything = [*on_validation, *on_test]
    write_tables(folder, comparison.rows(everything), everything)
    owner_of = {contestant.name: owner for contestant, owner in zip(contestants, owners, strict=True)}
    write_segments(folder, comparison, everything, STUDENT.name, owner_of)
    console.print(arms_table(answer))
    for family in ("comparisons", "comparisons_with_best"):
        for line in answer[family]:
            console.print(line["sentence"], markup=False)


def fair_facts(fair: FairSearch, arm: str, seed: object) -> dict[str, Any]:
    """What the manifest says about the search; ``arm`` and ``seed`` are those of the published student."""
    return {
        "protocol": "fair",
        "metric": fair.finals.record.space.metric,
        "trials": {name: len(search.record.trials()) for name, search in fair.arms.items()},
        "published": {"arm": arm, "seed": seed},
    }
