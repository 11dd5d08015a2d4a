"""What training a teacher that writes titles consists of: its loss, its curriculum, its rates, its evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from src.data.candidates import CandidateLists, draw_candidate_lists
from src.data.examples import Examples
from src.data.tensor_examples import TensorExamples
from src.teacher.backbone.projector import TokenMoments
from src.teacher.interfaces import TrainingPlan
from src.teacher.schedule import published_rate
from src.teacher.settings import TeacherSettings
from src.teacher.title_lm.curriculum import Curriculum
from src.teacher.title_lm.generation import title_metrics
from src.teacher.title_lm.model import TitleTeacher
from src.teacher.title_lm.prompts import IGNORED, Question, TitlePrompts


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over the tokens of answers: ``[B, A, T]`` and ``[B, A]`` with -100 where none stands."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")


@dataclass(frozen=True, eq=False)
class TitleObjective:
    """Cross-entropy of the answers' tokens.

    ``candidates`` ``[N, n]`` belong to the rows of ``train``. Every token of the training rows weighs the same, so the
    mean is over B times their mean answer length: that way the parts of a batch add up to the whole one.
    """

    teacher: TitleTeacher
    train: TensorExamples
    candidates: Tensor
    curriculum: Curriculum
    mean_tokens: float

    @classmethod
    def of(
        cls, teacher: TitleTeacher, train: TensorExamples, candidates: Tensor, curriculum: Curriculum
    ) -> TitleObjective:
        """Make the objective, with the mean answer length of its rows.

        Args:
            teacher: who is trained.
            train: the training examples.
            candidates: the list of each, ``[N, n]``, its target among them.
            curriculum: which steps are hybrid.
        """
        tokens = teacher.prompts.answer_sizes[train.target].float().mean()
        return cls(teacher, train, candidates, curriculum, float(tokens))

    def loss(self, rows: Tensor) -> Tensor:
        """Mean loss of these training rows, hybrid or text-only as the step's draw says."""
        train = self.train
        question = Question(train.history[rows], train.length[rows], self.candidates[rows])
        forward = self.teacher(question, train.target[rows], self.curriculum.now)
        return answer_loss(forward.logits, forward.labels) / (len(rows) * self.mean_tokens)


def title_rate(settings: TeacherSettings, steps: int, steps_per_epoch: int, step: int) -> float:
    """Factor of the learning rates at a step of a run: `published_rate` with a peak of 1.

    With ``title.curriculum = as_released`` there is a warm-up in the first epoch alone, as published.

    Args:
        settings: the teacher's.
        steps: of the whole run.
        steps_per_epoch: of an epoch.
        step: from 0.
    """
    title, warmup = settings.title, int(settings.train.warmup_share * steps)
    warming = title.curriculum != "as_released" or step < steps_per_epoch
    return published_rate(step, steps, warmup, 1.0, title.minimum_rate, title.start_rate, warming)


def title_plan(
    teacher: TitleTeacher,
    samples: Mapping[str, Examples],
    lists: Mapping[str, CandidateLists],
    seed: int,
    cost: Tensor,
) -> TrainingPlan:
    """Plan the training of `title_lm`: the answers' cross-entropy, judged by generation.

    Args:
        teacher: as it was built; it is given the lists, with which it is saved.
        samples: ``train`` and ``validation``.
        lists: the candidates of both.
        seed: the run's.
        cost: ``[N]`` int64, as `row_tokens` counts.
    """
    settings, device = teacher.settings, teacher.device
    teacher.candidates = lists
    with torch.no_grad():
        items = teacher.encoder.item_embeddings.weight[: teacher.num_items]
        teacher.projector.calibrate(items, TokenMoments.of(teacher.causal_lm.get_input_embeddings()))
    shown = {split: TensorExamples.of(examples, device) for split, examples in samples.items()}
    listed = {split: torch.from_numpy(lists[split].of(examples)).to(device) for split, examples in samples.items()}
    loop = settings.train.loop
    steps_per_epoch = math.ceil(len(samples["train"]) / loop.batch_size)
    steps = loop.epochs * steps_per_epoch
    curriculum = Curriculum.of(settings.title.curriculum, steps, steps_per_epoch, seed)
    batch_size = settings.export.batch_size
    return TrainingPlan(
        objective=TitleObjective.of(teacher, shown["train"], listed["train"], curriculum),
        cost=cost.to(device),
        evaluate=lambda: title_metrics(teacher, shown["validation"], listed["validation"], batch_size),
        rate=lambda step: title_rate(settings, steps, steps_per_epoch, step),
        on_step=curriculum.advance,
    )


def row_tokens(prompts: TitlePrompts, train: TensorExamples, candidates: Tensor | None) -> Tensor:
    """Count the tokens of each training row, prompt and answer.

    Args:
        prompts: what the teacher reads and writes.
        train: the rows.
        candidates: ``[N, n]``, theirs.

    Returns:
        ``[N]`` int64.
    """
    question = Question(train.history, train.length, candidates)
    return prompts.token_counts(question) + prompts.answer_sizes[train.target]


def draw_lists(
    settings: TeacherSettings, samples: Mapping[str, Examples], num_items: int, seed: int
) -> dict[str, CandidateLists]:
    """The candidates of every sample, drawn once. Raises ``DataError`` when the catalogue has too few items.

    Args:
        settings: how many candidates a list has.
        samples: examples by the name of their sample.
        num_items: V.
        seed: the run's.
    """
    n = settings.title.candidates
    return {split: draw_candidate_lists(examples, num_items, n, seed) for split, examples in samples.items()}
