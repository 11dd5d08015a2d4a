"""`metrics/examples.json`: a few validation examples with the lists of the models that a search set side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from src.core.result_files import EXAMPLES
from src.data.examples import Examples, sample
from src.data.tensor_examples import TensorExamples
from src.evaluation.comparison import ModelRanks, comparison_row
from src.evaluation.example_histories import COUNT, LISTED, ModelLists, Role, choose_examples
from src.pipeline.model_comparison import EvaluatedModel, ModelComparison
from src.pipeline.run_folder import RunFolder
from src.pipeline.split_evaluation import RARELY_REPEATED, evaluate_split
from src.student.models import closed_forms

if TYPE_CHECKING:
    from src.teacher.operations.teacher_check import RankedExamples

#: validation examples that are looked at where there is no sample that a teacher has ranked
_POOL = 1000
_LABELS_ALONE = "this run has the teacher's labels of training examples, and no word of it on these"


def write_examples(
    folder: RunFolder,
    comparison: ModelComparison,
    shown: Mapping[Role, EvaluatedModel],
    teacher: RankedExamples | None,
    taught: bool = False,
) -> None:
    """Choose the examples and write them; with the same seed, data and models the file is the same.

    Args:
        folder: gets the file.
        comparison: of these and other models.
        shown: baseline and winner (of a search over teachers the baseline alone), and maybe the best closed form.
        teacher: how the teacher ranked its sample of validation; None where it ranked none.
        taught: whether the winner may have learned from a teacher.
    """
    stages = comparison.stages
    settings, validation = stages.settings, stages.data.validation
    asked = sample(validation, settings.teacher.validation_rows, settings.seed, "validation")
    few = teacher is None or len(asked) < COUNT
    pool = sample(validation, _POOL, settings.seed, "examples") if few else asked
    columns, evaluation = TensorExamples.of(pool, stages.device), replace(settings.evaluation, ks=(LISTED,))
    lists: dict[Role, ModelLists] = {
        role: ModelLists(model.name, evaluate_split(model.load(), columns, evaluation, comparison.repeated).lists)
        for role, model in shown.items()
    }
    seen_left_out = comparison.repeated < RARELY_REPEATED
    if teacher is not None:
        rows = dict(zip(asked.example_id.tolist(), teacher.top.numpy(), strict=True))
        found = ModelLists("teacher", _teacher_lists(rows, pool, seen_left_out))
        lists = {**lists, "teacher" if "winner" in shown else "winner": found}
    ordered: tuple[Role, ...] = ("baseline", "winner", "teacher", "closed form")
    lists = {role: lists[role] for role in ordered if role in lists}
    reason = _LABELS_ALONE if taught and teacher is None else ""
    chosen = choose_examples(pool, lists, stages.data.id_map, settings.seed, seen_left_out, reason)
    folder.write_metrics(EXAMPLES, asdict(chosen))


def strongest_closed_form(comparison: ModelComparison, ranked: Sequence[ModelRanks]) -> dict[Role, EvaluatedModel]:
    """The model in closed form with the best NDCG at the largest K on validation, as the role that it has; none where
    none was computed.

    Args:
        comparison: of the models.
        ranked: each of them on validation, among others.
    """
    k = max(comparison.stages.settings.evaluation.ks)
    on = {one.model: one for one in ranked if one.split == "validation"}
    models = [model for model in comparison.models if model.name in closed_forms()]
    if not models:
        return {}
    return {"closed form": max(models, key=lambda model: comparison_row(on[model.name], (k,), 1).metrics[f"ndcg_{k}"])}


def _teacher_lists(rows: Mapping[int, NDArray[np.int64]], pool: Examples, seen_left_out: bool) -> NDArray[np.int64]:
    """The teacher's lists ``[N, LISTED]`` over the pool, of what it lists for some examples, by ``example_id``.

    Where others leave out what the user had met before, so does this: a list that is short afterwards ends with −1.
    """
    found = np.full((len(pool), LISTED), -1, np.int64)
    past = pool.past
    for place, (example_id, target) in enumerate(zip(pool.example_id.tolist(), pool.target, strict=True)):
        if example_id not in rows:
            continue
        items = rows[example_id]
        met = past.items[past.end[place] - past.earlier[place] : past.end[place]]
        kept = items[(items >= 0) & ((items == target) | ~np.isin(items, met if seen_left_out else []))][:LISTED]
        found[place, : len(kept)] = kept
    return found
