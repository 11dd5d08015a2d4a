"""Evaluation: every row, eval mode, finite scores, and never the test split."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from src.core.errors import TrainingFailed
from src.data.examples import SealedExamples
from src.data.tensor_examples import TensorExamples
from src.student.architectures.popularity import Popularity, PopularitySettings
from src.student.datamodule import StudentData
from src.student.evaluator import evaluate_model, mask_seen, rank_examples
from src.student.settings import EvaluationSettings
from src.student.trainer_baseline import new_student
from tests.fixtures import NUM_ITEMS, WINDOW, cycle_data, cycle_examples, examples_of, student_of


def next_item(history: Tensor, length: Tensor) -> Tensor:
    """The perfect scorer of `cycle_examples`."""
    last = history.gather(1, (length - 1).unsqueeze(1)).squeeze(1)
    return torch.nn.functional.one_hot((last + 1) % NUM_ITEMS, NUM_ITEMS).float()


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_no_row_is_dropped_whatever_the_batch_size(batch_size: int) -> None:
    examples = TensorExamples.of(cycle_examples(7, 0), "cpu")
    ranks = rank_examples(next_item, examples, EvaluationSettings(batch_size=batch_size))
    assert ranks.tolist() == [1] * 7


class Wobbly(nn.Module):
    """Perfect in eval mode, useless in training mode."""

    def forward(self, history: Tensor, length: Tensor) -> Tensor:
        """Scores ``[B, V]``."""
        scores = next_item(history, length)
        return -scores if self.training else scores


def test_evaluation_runs_in_eval_mode_and_gives_the_mode_back() -> None:
    model = Wobbly().train()
    examples = TensorExamples.of(cycle_examples(5, 0), "cpu")
    assert evaluate_model(model, examples, EvaluationSettings(ks=(1,)))["hit_ratio_1"] == 1.0
    assert model.training
    evaluate_model(model.eval(), examples, EvaluationSettings(ks=(1,)))
    assert not model.training


def test_dropout_cannot_change_a_metric() -> None:
    data = StudentData.of(cycle_data(), "cpu")
    student = new_student(student_of(width=8, dropout=0.9), data, 0).train()
    results = [evaluate_model(student, data.validation, EvaluationSettings()) for _ in range(3)]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_fails_instead_of_ranking(bad: float) -> None:
    def score(history: Tensor, length: Tensor) -> Tensor:
        scores = next_item(history, length)
        scores[-1, 3] = bad
        return scores

    with pytest.raises(TrainingFailed, match="not finite"):
        rank_examples(score, TensorExamples.of(cycle_examples(5, 0), "cpu"), EvaluationSettings(batch_size=2))


def test_masking_takes_the_history_out_but_not_the_target() -> None:
    scores = torch.tensor([[5.0, 4.0, 3.0, 2.0]])
    history, target = torch.tensor([[0, 2, 4]]), torch.tensor([2])  # 4 is padding; the target was seen before
    masked = mask_seen(scores, history, target)
    assert masked.tolist() == [[-math.inf, 4.0, 3.0, 2.0]]
    assert scores[0, 0] == 5.0


def test_the_history_is_masked_only_where_it_is_asked_for() -> None:
    examples = TensorExamples.of(examples_of([[0, 1]], [2], 0), "cpu")

    def score(history: Tensor, length: Tensor) -> Tensor:
        return -torch.arange(NUM_ITEMS).float().expand(len(history), -1)  # item 0 is best

    assert rank_examples(score, examples, EvaluationSettings()).tolist() == [3]
    assert rank_examples(score, examples, EvaluationSettings(mask_history=True)).tolist() == [1]


def test_popularity_ranks_by_training_targets_and_tells_equals_apart() -> None:
    model = Popularity(PopularitySettings(), 4, 1)
    targets = [0] * 3 + [1] * 7 + [2] * 3
    examples = examples_of([[0]] * len(targets), targets, 0, 4)
    model.fit(TensorExamples.of(examples, "cpu"), torch.arange(len(targets)))
    history = torch.zeros(2, WINDOW, dtype=torch.int64)
    scores = model(history, torch.ones(2, dtype=torch.int64))
    assert scores.shape == (2, 4)
    assert scores[0].argsort(descending=True).tolist() == [1, 0, 2, 3]


def test_training_data_holds_no_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: SealedExamples, reason: str, record: Path) -> None:
        raise AssertionError("the test split was opened")

    monkeypatch.setattr(SealedExamples, "open", refuse)
    data = cycle_data()
    tensors = StudentData.of(data, "cpu")
    held = torch.cat([tensors.train.example_id, tensors.validation.example_id]).tolist()
    assert not set(held) & set(data.test._examples.example_id.tolist())
    assert not hasattr(tensors, "test")


def test_propensities_count_training_targets_only() -> None:
    data = cycle_data()
    p = StudentData.of(data, "cpu").propensity
    counts = [data.train.target.tolist().count(item) + 1 for item in range(NUM_ITEMS)]
    assert p.tolist() == pytest.approx([(count / sum(counts)) ** 0.05 for count in counts], rel=1e-6)
    assert p.dtype == torch.float32


def test_tensors_are_copies_so_that_a_trial_cannot_change_anothers_data() -> None:
    data = cycle_data()
    tensors = StudentData.of(data, "cpu")
    before = data.train.history.copy(), data.train.target.copy()
    tensors.train.history.add_(1)
    tensors.train.target.add_(1)
    assert (data.train.history == before[0]).all()
    assert (data.train.target == before[1]).all()
