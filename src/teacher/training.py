"""Training the teacher: a sample, a start, one fit on its objective, and what the gate learned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from src.core.checkpoints import Checkpoint
from src.core.data_utils import grouped_batches, shuffled_batches
from src.core.errors import ConfigError
from src.core.logging import get_logger, progress_bar
from src.core.metrics import summarise
from src.core.seed import numpy_generator, seed_everything, torch_generator
from src.core.training import NO_CHECKPOINT, FitResult, Report, fit, silent
from src.data.examples import Examples, SequenceData, sample
from src.data.tensor_examples import TensorExamples
from src.student.architectures.sasrec import SASRec
from src.student.settings import EvaluationSettings
from src.teacher.backbone.gates import normalised_entropy
from src.teacher.backbone.llm import load_llm
from src.teacher.backbone.projector import TokenMoments
from src.teacher.ilora_model import GatedTeacher, ILoRATeacher
from src.teacher.interfaces import Course, TeacherForward
from src.teacher.item_head.start import LinearStart, recommender_start, title_start
from src.teacher.labelling.labels import ask, rank, select_rows
from src.teacher.objective import objective_of
from src.teacher.operations.dry_run import rehearse
from src.teacher.operations.estimate_report import announce
from src.teacher.operations.throughput import Pace
from src.teacher.schedule import rate
from src.teacher.settings import TeacherSettings, TeacherTrainSettings

_log = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class TeacherRun:
    """A trained teacher in its best epoch's state, and how it got there.

    ``train_rows`` different examples were learned from; ``start_rows`` were read for the head's start.
    ``gate_entropy`` is the mean over the validation sample, 1 for uniform gates and 0 for one expert a sequence;
    ``gate_weights`` the experts' mean weights there. ``validation`` holds the metrics on that sample.
    """

    teacher: GatedTeacher
    fit: FitResult
    start_rows: int
    train_rows: int
    validation_rows: int
    gate_entropy: float
    gate_weights: list[float]
    parameters: dict[str, int]

    def summary(self) -> dict[str, Any]:
        """What the manifest and the result say."""
        return {
            "rows_trained": self.fit.rows_trained,
            "different_rows": self.train_rows,
            "start_rows": self.start_rows,
            "epochs": self.fit.epochs,
            "best_epoch": self.fit.best_epoch,
            "steps": self.fit.steps,
            "gate_entropy": self.gate_entropy,
            "gate_weights": self.gate_weights,
            "validation_rows": self.validation_rows,
            "validation": self.fit.best_metrics,
            "parameters": self.parameters,
            "seconds": self.fit.seconds,
            "fit": asdict(self.fit),
        }


def train_teacher(
    settings: TeacherSettings,
    data: SequenceData,
    encoder: SASRec,
    llm: str,
    device: torch.device,
    seed: int,
    evaluation: EvaluationSettings,
    report: Report = silent,
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> TeacherRun:
    """Train iLoRA on a sample of the training split; the epoch is chosen on a sample of the validation split.

    Goes on from ``checkpoint`` where it holds a state.

    ``llm`` is the folder or hub id of the language model. Raises ``ModelError``, ``DataError`` or ``ConfigError``
    before any step, ``TrainingFailed`` when the loss is not finite or memory runs out.
    """
    check_monitor(settings, evaluation)
    samples = {
        "train": _sample(data.train, settings, seed),
        "validation": sample(data.validation, settings.validation_rows, seed, "validation"),
    }
    objective = objective_of(settings.objective)
    lists = objective.draw_lists(settings, samples, data.num_items, seed)
    cost = announce(settings, llm, data.id_map, samples["train"], lists.get("train"), device)
    seed_everything(seed, "teacher")
    language = load_llm(llm, settings.dtype, device, settings.quantise)
    teacher = objective.build(settings, data.id_map, encoder, language, device)
    _rehearse(teacher, samples["train"])
    course = objective.course(teacher, data, samples, lists, seed, evaluation, cost)
    return _run(teacher, course, samples, seed, report, checkpoint)


def _rehearse(teacher: GatedTeacher, train: Examples) -> None:
    """Two rows through the loaded model, on its device; a compiled one would be compiled for them alone."""
    if not teacher.settings.compile:
        rows = TensorExamples.of(train.take(np.arange(min(2, len(train)))), teacher.device)
        rehearse(teacher, rows.history, rows.length, rows.target)


def item_course(
    teacher: ILoRATeacher,
    data: SequenceData,
    samples: Mapping[str, Examples],
    seed: int,
    evaluation: EvaluationSettings,
    cost: Tensor,
) -> Course:
    """The training of `item_ce`: the head's start, cross-entropy over the catalogue, full ranking on validation.

    ``cost`` ``[N]`` int64: prompt tokens of each training row.
    """
    settings = teacher.settings
    train, validation = (TensorExamples.of(samples[split], teacher.device) for split in ("train", "validation"))
    batch_size, steps = settings.export.batch_size, _steps(settings, len(train))
    return Course(
        objective=ItemObjective(teacher, train),
        cost=cost.to(teacher.device),
        evaluate=lambda: judge(teacher, validation, evaluation, batch_size),
        rate=lambda step: rate(step, steps, settings.train.warmup_share),
        start_rows=start(teacher, data, seed),
    )


def _run(
    teacher: GatedTeacher,
    course: Course,
    samples: Mapping[str, Examples],
    seed: int,
    report: Report,
    checkpoint: Checkpoint,
) -> TeacherRun:
    """Fit, and look at what the gate has become."""
    result = _fit(teacher, course, len(samples["train"]), seed, report, checkpoint)
    gate_weights = gate_weights_of(teacher, TensorExamples.of(samples["validation"], teacher.device))
    return TeacherRun(
        teacher=teacher,
        fit=result,
        start_rows=course.start_rows,
        train_rows=len(samples["train"]),
        validation_rows=len(samples["validation"]),
        gate_entropy=float(normalised_entropy(gate_weights).mean()),
        gate_weights=[round(weight, 4) for weight in gate_weights.mean(dim=0).tolist()],
        parameters={name: sum(p.numel() for p in group) for name, group in teacher.parameter_groups().items()},
    )


def check_monitor(settings: TeacherSettings, evaluation: EvaluationSettings) -> None:
    """Raises ``ConfigError`` when the metric that chooses the epoch is not evaluated."""
    names = settings.epoch_metrics(evaluation.ks)
    monitor = settings.train.loop.monitor
    if monitor not in names:
        raise ConfigError.one("teacher.train.loop.monitor", monitor, f"must be one of {', '.join(names)}")


def _sample(examples: Examples, settings: TeacherSettings, seed: int) -> Examples:
    """The training examples of every epoch."""
    count = settings.train_rows or len(examples)
    return examples.take(
        select_rows(examples, min(count, len(examples)), settings.train_select, numpy_generator(seed, "teacher_rows"))
    )


@torch.no_grad()
def start(teacher: ILoRATeacher, data: SequenceData, seed: int) -> int:
    """Give projector and head a start that is worth training from (`Projector.calibrate`, `HeadSettings.init`).

    Returns the number of training examples that were read for it, without their targets.
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

    ask(teacher, shown, teacher.settings.export.batch_size, keep, "teacher: starting the head")
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


@dataclass(frozen=True, eq=False)
class ItemObjective:
    """Cross-entropy of the next item over the whole catalogue."""

    teacher: ILoRATeacher
    train: TensorExamples

    def loss(self, rows: Tensor) -> Tensor:
        """Mean loss of these training rows."""
        logits = self.teacher(self.train.history[rows], self.train.length[rows]).logits
        return F.cross_entropy(logits, self.train.target[rows])


def _steps(settings: TeacherSettings, rows: int) -> int:
    """Steps of a run that is not stopped early."""
    return settings.train.loop.epochs * math.ceil(rows / settings.train.loop.batch_size)


def _fit(
    teacher: GatedTeacher, course: Course, rows: int, seed: int, report: Report, checkpoint: Checkpoint
) -> FitResult:
    settings, steps = teacher.settings.train, _steps(teacher.settings, rows)
    optimiser = build_optimiser(teacher, settings)
    tokens = settings.loop.epochs * int(course.cost.sum())
    pace = Pace(course.objective, course.cost, steps, tokens, lambda said: _log.info("teacher: %s", said))
    with progress_bar("teacher: training", steps) as bar:

        def show(epoch: int, metrics: Mapping[str, float]) -> None:
            monitored = settings.loop.monitor
            bar.update(bar.task_ids[0], note=f"epoch {epoch}: {monitored} {metrics[monitored]:.4f}")
            report(epoch, metrics)

        def step_done() -> None:
            course.on_step()
            pace.step_done()
            bar.advance(bar.task_ids[0])

        return fit(
            teacher,
            pace,
            optimiser,
            settings.loop,
            rows,
            course.evaluate,
            torch_generator(seed, "teacher_order"),
            show,
            step_done,
            torch.optim.lr_scheduler.LambdaLR(optimiser, course.rate),
            checkpoint,
            batches=partial(grouped_batches, cost=course.cost) if settings.group_by_length else shuffled_batches,
        )


def build_optimiser(teacher: GatedTeacher, settings: TeacherTrainSettings) -> torch.optim.AdamW:
    """AdamW over exactly the trained parameters; weight decay on projector and gate only (as published)."""
    factor = teacher.settings.gate.learning_rate_factor
    rates = {
        "experts": (settings.learning_rate, 0.0),
        "projector": (settings.projector_learning_rate, settings.weight_decay),
        "gate": (settings.learning_rate * factor, settings.weight_decay),
        "head": (settings.head_learning_rate, 0.0),
    }
    groups = teacher.parameter_groups()
    return torch.optim.AdamW(
        [
            {"params": groups[name], "lr": lr, "weight_decay": decay}
            for name, (lr, decay) in rates.items()
            if name in groups
        ]
    )


def judge(
    teacher: ILoRATeacher, examples: TensorExamples, evaluation: EvaluationSettings, batch_size: int
) -> dict[str, float]:
    """Ranking metrics of the teacher on examples."""
    ranks = rank(teacher, examples, batch_size, evaluation.mask_history)
    return summarise(ranks, evaluation.ks)


@torch.no_grad()
def gate_weights_of(teacher: GatedTeacher, examples: TensorExamples) -> Tensor:
    """``[n, E]``: the gate's weights for examples, in eval mode, without a pass through the language model."""
    teacher.eval()
    return teacher.gate_weights(examples.history, examples.length).float().cpu()
