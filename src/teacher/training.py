"""Training a teacher: a sample, a plan, one fit on its objective, and what the gate learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.core.checkpoints import Checkpoint
from src.core.data_utils import grouped_batches, shuffled_batches
from src.core.errors import ConfigError
from src.core.logging import get_logger, progress_bar
from src.core.seed import numpy_generator, seed_everything, torch_generator
from src.core.training import NO_CHECKPOINT, FitResult, Report, fit, silent
from src.data.examples import Examples, SequenceData, sample
from src.data.tensor_examples import TensorExamples
from src.student.architectures.sasrec import SASRec
from src.student.settings import EvaluationSettings
from src.teacher.backbone.gates import normalised_entropy
from src.teacher.backbone.llm import load_llm
from src.teacher.factory import build_teacher
from src.teacher.ilora_model import GatedTeacher
from src.teacher.interfaces import TrainingPlan
from src.teacher.labelling.labels import select_rows
from src.teacher.objective import objective_of
from src.teacher.operations.dry_run import dry_run_loaded
from src.teacher.operations.estimate_report import report_estimate
from src.teacher.operations.throughput import ThroughputMeter
from src.teacher.schedule import planned_steps
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

    Args:
        settings: the teacher's.
        data: the dataset, split.
        encoder: the pretrained recommender that feeds gate and prompts; it is frozen.
        llm: folder or hub id of the language model.
        device: where it computes.
        seed: the run's, from which every stream of random numbers is derived.
        evaluation: how a ranking is judged.
        report: gets each epoch's metrics.
        checkpoint: where the state is kept; training goes on from the state that it holds.

    Raises:
        ModelError: before any step, a language model that cannot be read, adapted or run.
        DataError: before any step, titles or candidates that cannot be had.
        ConfigError: before any step, settings that do not fit together.
        TrainingFailed: the loss is not finite, or memory runs out.
    """
    check_monitor(settings, evaluation)
    samples = {
        "train": _sample(data.train, settings, seed),
        "validation": sample(data.validation, settings.validation_rows, seed, "validation"),
    }
    objective = objective_of(settings.objective)
    lists = objective.draw_lists(settings, samples, data.num_items, seed)
    cost = report_estimate(settings, llm, data.id_map, samples["train"], lists.get("train"), device)
    seed_everything(seed, "teacher")
    language = load_llm(llm, settings.dtype, device, settings.quantise)
    teacher = build_teacher(settings, data.id_map, encoder, language, device)
    _dry_run(teacher, samples["train"])
    plan = objective.plan(teacher, data, samples, lists, seed, evaluation, cost)
    return _run(teacher, plan, samples, seed, report, checkpoint)


def _dry_run(teacher: GatedTeacher, train: Examples) -> None:
    """Two rows through the loaded model, on its device; a compiled one would be compiled for them alone."""
    if not teacher.settings.compile:
        rows = TensorExamples.of(train.take(np.arange(min(2, len(train)))), teacher.device)
        dry_run_loaded(teacher, rows.history, rows.length, rows.target)


def _run(
    teacher: GatedTeacher,
    plan: TrainingPlan,
    samples: Mapping[str, Examples],
    seed: int,
    report: Report,
    checkpoint: Checkpoint,
) -> TeacherRun:
    """Fit, and look at what the gate has become."""
    result = _fit(teacher, plan, len(samples["train"]), seed, report, checkpoint)
    gate_weights = gate_weights_of(teacher, TensorExamples.of(samples["validation"], teacher.device))
    return TeacherRun(
        teacher=teacher,
        fit=result,
        start_rows=plan.start_rows,
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


def _fit(
    teacher: GatedTeacher, plan: TrainingPlan, rows: int, seed: int, report: Report, checkpoint: Checkpoint
) -> FitResult:
    settings, steps = teacher.settings.train, planned_steps(teacher.settings.train.loop, rows)
    optimiser = build_optimiser(teacher, settings)
    tokens = settings.loop.epochs * int(plan.cost.sum())
    meter = ThroughputMeter(plan.objective, plan.cost, steps, tokens, lambda said: _log.info("teacher: %s", said))
    with progress_bar("teacher: training", steps) as bar:

        def show(epoch: int, metrics: Mapping[str, float]) -> None:
            monitored = settings.loop.monitor
            bar.update(bar.task_ids[0], note=f"epoch {epoch}: {monitored} {metrics[monitored]:.4f}")
            report(epoch, metrics)

        def step_done() -> None:
            plan.on_step()
            meter.step_done()
            bar.advance(bar.task_ids[0])

        return fit(
            teacher,
            meter,
            optimiser,
            settings.loop,
            rows,
            plan.evaluate,
            torch_generator(seed, "teacher_order"),
            show,
            step_done,
            torch.optim.lr_scheduler.LambdaLR(optimiser, plan.rate),
            checkpoint,
            batches=partial(grouped_batches, cost=plan.cost) if settings.group_by_length else shuffled_batches,
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


@torch.no_grad()
def gate_weights_of(teacher: GatedTeacher, examples: TensorExamples) -> Tensor:
    """``[n, E]``: the gate's weights for examples, in eval mode, without a pass through the language model."""
    teacher.eval()
    return teacher.gate_weights(examples.history, examples.length).float().cpu()
