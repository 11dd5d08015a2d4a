"""Ranks that are counted a part of the catalogue at a time, and evaluation on a sample of the rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from src.core.errors import TrainingFailed
from src.core.metrics import summarise, target_ranks
from src.data.tensor_examples import TensorExamples
from src.student.base import SequenceStudent
from src.student.datamodule import StudentData
from src.student.evaluator import InParts, evaluate_model, mask_seen, rank_examples, rank_rows, sampled_rows, scores_of
from src.student.settings import EvaluationSettings
from src.student.trainer_baseline import new_student
from tests.fixtures import cycle_data, student_of

ITEMS, ROWS, WINDOW = 37, 23, 8


def random_examples() -> TensorExamples:
    """Histories with repeated items, some of which hold the target."""
    draw = torch.Generator().manual_seed(0)
    length = torch.randint(1, WINDOW + 1, (ROWS,), generator=draw)
    end, target = length.cumsum(0), torch.randint(ITEMS, (ROWS,), generator=draw)
    items = torch.randint(ITEMS // 3, (int(end[-1]),), generator=draw, dtype=torch.int32)
    items[end[:5] - 1] = target[:5].int()
    ids = torch.arange(ROWS)
    return TensorExamples(items, end, length, target, ids, ids.double(), WINDOW, ITEMS)


def student(architecture: str = "transformer") -> SequenceStudent:
    """With scores of many ties: rows of the catalogue that are equal."""
    data = StudentData.of(cycle_data(num_items=ITEMS), "cpu")
    built = new_student(student_of(architecture, prior="none", width=8, window=WINDOW), data, 0).eval()
    with torch.no_grad():
        built.scorer.weight[5:12] = built.scorer.weight[5]
        built.scorer.weight[20] = built.scorer.weight[30]
    return built


@pytest.mark.parametrize("architecture", ["sasrec", "transformer"])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("largest", [1, 23, 50, 200, 23 * 36, 10_000])
def test_ranks_do_not_depend_on_how_many_scores_are_held(
    monkeypatch: pytest.MonkeyPatch, architecture: str, mask: bool, largest: int
) -> None:
    examples, model = random_examples(), student(architecture)
    rows = torch.arange(ROWS)
    with torch.no_grad():
        scores = scores_of(model, examples, rows)
        # as they were computed before there were parts
        want = target_ranks(
            mask_seen(scores, examples.read_all(rows), examples.target) if mask else scores, examples.target
        )
    settings = EvaluationSettings(mask_history=mask, batch_size=10)
    monkeypatch.setattr("src.student.evaluator.MAX_SCORES", largest)
    assert rank_examples(model, examples, settings).tolist() == want.tolist()
    # a model that has no parts is asked about fewer rows at once
    assert rank_examples(lambda h, n: model(h, n), examples, settings).tolist() == want.tolist()


def test_never_more_scores_are_held_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    examples, model = random_examples(), student()
    monkeypatch.setattr("src.student.evaluator.MAX_SCORES", 60)
    held: list[int] = []

    def watched(history: Tensor, length: Tensor) -> object:
        score = SequenceStudent.score_parts(model, history, length)

        def part(first: int, last: int) -> Tensor:
            scores = score(first, last)
            held.append(scores.numel())
            return scores

        return part

    model.score_parts = watched  # type: ignore[method-assign, assignment]
    rank_examples(model, examples, EvaluationSettings(batch_size=10))
    assert max(held) <= 60
    seen: list[int] = []
    rank_rows(lambda rows: seen.append(len(rows)) or scores_of(model, examples, rows), examples, EvaluationSettings())  # type: ignore[func-returns-value]
    assert max(seen) == 60 // ITEMS


def test_a_score_in_any_part_that_is_not_finite_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = student()
    monkeypatch.setattr("src.student.evaluator.MAX_SCORES", 50)
    with torch.no_grad():
        model.scorer.bias[ITEMS - 1] = float("nan")
    with pytest.raises(TrainingFailed, match="not finite"):
        rank_examples(model, random_examples(), EvaluationSettings())


class OwnWay(type(student())):  # type: ignore[misc]
    """A student that scores in a way of its own."""

    def logits(self, representation: Tensor, prior_scores: Tensor | None) -> Tensor:
        """Logits ``[B, V]``."""
        return -super().logits(representation, prior_scores)


def test_a_student_that_scores_in_a_way_of_its_own_is_asked_for_all_scores() -> None:
    model = student()
    assert InParts.of(model, random_examples()) is not None
    model.__class__ = OwnWay
    assert InParts.of(model, random_examples()) is None


# ------------------------------------------------------------------------------------------------- a sample of the rows


def test_a_sample_is_the_same_in_every_training_and_all_rows_where_there_are_not_more() -> None:
    settings = EvaluationSettings(sample_rows=5)
    first, again = (sampled_rows(100, settings, torch.device("cpu")) for _ in range(2))
    assert first is not None
    assert again is not None
    assert first.tolist() == again.tolist() == sorted(set(first.tolist()))
    assert len(first) == 5
    assert sampled_rows(5, settings, torch.device("cpu")) is None
    assert sampled_rows(100, EvaluationSettings(), torch.device("cpu")) is None


@pytest.mark.parametrize("known", [False, True])
def test_training_looks_at_the_sample_alone(known: bool) -> None:
    examples, model, settings = random_examples(), student(), EvaluationSettings(ks=(1, 5), sample_rows=7)
    rows = sampled_rows(ROWS, settings, torch.device("cpu"))
    assert rows is not None
    want = summarise(rank_examples(model, examples, replace(settings, sample_rows=0))[rows], settings.ks)
    score = (lambda rows: scores_of(model, examples, rows)) if known else None
    assert evaluate_model(model, examples, settings, score) == want
