"""What training a teacher with an item head consists of: the head's start, its loss, its rates, its evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from src.core.metrics import summarise
from src.core.seed import numpy_generator
from src.data.examples import Examples, SequenceData
from src.data.tensor_examples import TensorExamples
from src.student.settings import EvaluationSettings
from src.teacher.backbone.projector import TokenMoments
from src.teacher.ilora_model import ILoRATeacher
from src.teacher.interfaces import TeacherForward, TrainingPlan
from src.teacher.item_head.start import LinearStart, recommender_start, title_start
from src.teacher.labelling.labels import infer, rank, select_rows
from src.teacher.schedule import planned_steps, rate


@dataclass(frozen=True, eq=False)
class ItemObjective:
    """Cross-entropy of the next item over the whole catalogue."""

    teacher: ILoRATeacher
    train: TensorExamples

    def loss(self, rows: Tensor) -> Tensor:
        """Mean loss of these training rows."""
        logits = self.teacher(self.train.history[rows], self.train.length[rows]).logits
        return F.cross_entropy(logits, self.train.target[rows])


def item_plan(
    teacher: ILoRATeacher,
    data: SequenceData,
    samples: Mapping[str, Examples],
    seed: int,
    evaluation: EvaluationSettings,
    cost: Tensor,
) -> TrainingPlan:
    """Plan the training of `item_ce`: the head's start, cross-entropy over the catalogue, full ranking on validation.

    Args:
        teacher: as it was built.
        data: the dataset, split; the head's start reads training examples.
        samples: ``train`` and ``validation``.
        seed: the run's.
        evaluation: how a ranking is judged.
        cost: ``[N]`` int64, prompt tokens of each training row.
    """
    settings = teacher.settings
    train, validation = (TensorExamples.of(samples[split], teacher.device) for split in ("train", "validation"))
    batch_size, steps = settings.export.batch_size, planned_steps(settings.train.loop, len(train))
    return TrainingPlan(
        objective=ItemObjective(teacher, train),
        cost=cost.to(teacher.device),
        evaluate=lambda: validation_metrics(teacher, validation, evaluation, batch_size),
        rate=lambda step: rate(step, steps, settings.train.warmup_share),
        start_rows=start_head(teacher, data, seed),
    )


@torch.no_grad()
def start_head(teacher: ILoRATeacher, data: SequenceData, seed: int) -> int:
    """Give projector and head a start that is worth training from (`Projector.calibrate`, `HeadSettings.init`).

    Args:
        teacher: as it was built.
        data: the dataset, split.
        seed: the run's.

    Returns:
        How many training examples were read for it, without their targets.
    """
    settings, encoder = teacher.settings.head, teacher.encoder
    tokens = TokenMoments.of(teacher.llm.get_base_model().get_input_embeddings())
    teacher.projector.calibrate(encoder.item_embeddings.weight[: teacher.num_items], tokens)
    if settings.init == "random":
        return 0
    count = min(settings.fit_rows, len(data.train))
    rows = select_rows(data.train, count, teacher.settings.train_select, numpy_generator(seed, "teacher_rows"))
    shown = TensorExamples.of(data.train.take(rows), teacher.device)
    states = torch.zeros(len(rows), teacher.language.hidden_size, device=teacher.device)

    def keep(places: Tensor, forward: TeacherForward) -> None:
        states[places] = forward.sequence_embedding

    infer(teacher, shown, teacher.settings.export.batch_size, keep, "teacher: starting the head")
    if settings.init == "recommender":
        users = encoder.encode(shown.history, shown.length)
        scorer = LinearStart(encoder.scorer.weight, encoder.scorer.bias)
        head = recommender_start(states, users, scorer, settings.ridge)
    else:
        item_embedding = teacher.embed_items(teacher.settings.export.batch_size)
        counts = torch.from_numpy(data.item_counts).to(teacher.device)
        head = title_start(states, item_embedding, counts, settings.sharpness)
    teacher.head.weight.copy_(head.weight)
    teacher.head.bias.copy_(head.bias)
    return count


def validation_metrics(
    teacher: ILoRATeacher, examples: TensorExamples, evaluation: EvaluationSettings, batch_size: int
) -> dict[str, float]:
    """Rank the targets of examples over the whole catalogue, and summarise the ranks.

    Args:
        teacher: who ranks.
        examples: a sample of the validation split.
        evaluation: the cut-offs, and whether the history is left out of the ranking.
        batch_size: rows at once.
    """
    ranks = rank(teacher, examples, batch_size, evaluation.mask_history)
    return summarise(ranks, evaluation.ks)
