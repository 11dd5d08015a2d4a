"""This project's side of `against_peers.py`: a student in the one loop, on the same splits as its peers.

The fit of its prior is on the clock, with everything else that a training needs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from benchmarks.peer_trial import Rows, Score, Task, Trial
from src.core.seed import torch_generator
from src.core.training import fit
from src.data.tensor_examples import TensorExamples
from src.student.base import Recommender
from src.student.datamodule import StudentData
from src.student.losses import propensity
from src.student.models import student_settings
from src.student.objectives import StudentObjective, negative_sampler, resolve_loss
from src.student.prior import fit_prior
from src.student.settings import NetworkSettings
from src.student.trainer_baseline import new_student, optimiser_for, sampler_and_streams

_WINDOW = 10  # dataset.window, which a student without a window of its own would see


def examples(rows: Rows, num_items: int) -> TensorExamples:
    """A split as this project's trainings read it."""
    columns = [torch.from_numpy(column) for column in (rows.items, rows.end, rows.earlier, rows.target)]
    ids = torch.arange(len(rows))
    return TensorExamples(*columns, ids, ids.double(), _WINDOW, num_items)


def scoring(model: Recommender, num_items: int) -> Score:
    """Scores of histories, each as long as the model reads it."""

    def score(histories: list[np.ndarray]) -> torch.Tensor:
        length = torch.tensor([len(history) for history in histories])
        rows = Rows(np.concatenate(histories), length.cumsum(0).numpy(), length.numpy(), np.zeros(len(length), int))
        return model(*examples(rows, num_items).read(torch.arange(len(rows)), model.history_length))

    return score


def main() -> None:
    """Train as asked, write curve and scores."""
    task, out = Task.of_arguments()
    asked = dict(task.settings)
    settings = student_settings(asked.pop("architecture", "transformer"), **asked)
    assert isinstance(settings, NetworkSettings)
    loop = replace(settings.loop, epochs=task.epochs, patience=task.patience)
    settings = resolve_loss(replace(settings, loop=loop), task.num_items)
    train, validation = examples(task.train, task.num_items), examples(task.validation, task.num_items)
    counts = torch.bincount(train.target, minlength=task.num_items)
    data = StudentData(train, validation, task.num_items, _WINDOW, propensity(counts).float(), counts)
    since = time.process_time()
    if settings.prior != "none":
        kind = student_settings(settings.prior)
        data = replace(data, prior=fit_prior(kind, train, validation, task.num_items, settings.prior_folds, task.seed))
    student = new_student(settings, data, task.seed)
    trial = Trial(task, student, scoring(student, task.num_items), since)
    negatives = torch_generator(task.seed, "negatives")
    draw = negative_sampler(data, settings.negatives, negatives)
    shared, streams = sampler_and_streams(data, settings, task.seed)

    def evaluate() -> Mapping[str, float]:
        trial.epoch_ended()
        return {loop.monitor: trial.curve[-1]["ndcg"]}

    fit(
        student, StudentObjective(student, data, settings, draw, shared), optimiser_for(student, settings, student),
        settings.loop, len(train), evaluate, torch_generator(task.seed, "order"), streams=(negatives, *streams),
    )  # fmt: skip
    trial.write(out)


if __name__ == "__main__":
    main()
