"""The stages that the tests of this folder give to a pretended GPU: small, and each as the program itself calls it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from src.core.population import Member, Population
from src.core.training import LoopSettings
from src.data.examples import Examples, Histories
from src.distill.data_bridge import TeachingRows, align
from src.distill.settings import ActiveSettings, DistillSettings
from src.distill.trainer_distill import finish_distilled, prepare_distilled, train_distilled
from src.student.base import SequenceStudent
from src.student.datamodule import StudentData
from src.student.models import require_network
from src.student.models import student_settings as settings_for
from src.student.prior import fit_prior
from src.student.settings import EvaluationSettings, NetworkSettings
from src.student.trainer_baseline import prepare_student, train_student
from tests.fixtures import NUM_ITEMS, WINDOW, cycle_data, outputs_for
from tests.gpu.pretended import GPU, PretendedGPU

LABELLED = np.array([14, 2, 9, 5, 8, 11])
EVALUATION = EvaluationSettings(ks=(1, 5), batch_size=5)
BATCH = 16
#: every term of the loss
EVERYTHING = DistillSettings(candidate_topk=4, embedding_loss_weight=0.5)


_NONE = DistillSettings(candidate_topk=4, lam=0.0, alpha=0.0, ed_weight=0.0)
#: terms that the published method has not, each alone
TERMS = {
    "soft": replace(_NONE, soft_weight=0.5),
    "rce": replace(_NONE, rce_weight=0.5, rce_pool=6),
    "text": replace(_NONE, text_weight=0.5),
}
#: what the default student has and the published ones have not
OWN: dict[str, dict[str, Any]] = {
    "prior, ce": {"prior": "linear"},
    "prior, sampled": {"prior": "linear", "loss": "sampled", "shared_negatives": 6},
    "gbce": {"loss": "gbce", "shared_negatives": 6, "gradient_clip": 1.0},
    "all positions": {"positions": "all"},
    "mean of the weights": {"ema": 0.9},
}


def default_student(form: str) -> tuple[NetworkSettings, dict[str, Any]]:
    """The settings of one of `OWN`, and what `data_on` is asked for."""
    settings = student_settings("transformer", **OWN[form])
    return settings, {"prior": settings.prior, "users": 4 if settings.positions == "all" else 0}


def student_settings(
    architecture: str = "sasrec", loss: str = "ce", epochs: int = 1, **changes: Any
) -> NetworkSettings:
    """A small student; keys of its loop are among the changes too."""
    names = set(LoopSettings.__dataclass_fields__)
    loop = {name: changes.pop(name) for name in list(changes) if name in names}
    own: dict[str, dict[str, Any]] = {
        "transformer": {"prior": "none", "heads": 2},
        "sasrec": {"heads": 2},
        "caser": {"filter_sizes": (2, 3), "num_filters": 3},
    }
    fields = {"width": 8, "dropout": 0.3, "negatives": 2, "loss": loss, **own.get(architecture, {}), **changes}
    found = LoopSettings(epochs=epochs, batch_size=BATCH, monitor="ndcg_5", **loop)
    return require_network(settings_for(architecture, loop=found, **fields))


def data_on(
    device: torch.device, train: int = 40, prior: str = "none", users: int = 0
) -> tuple[StudentData, TeachingRows]:
    """Examples and what a teacher said about some of them, as a trial has them: all on the device.

    Args:
        device: where.
        train: training rows.
        prior: a model in closed form that the student adds to its own scores.
        users: whose whole sequences the training rows are; 0: each row is somebody's own.
    """
    made = cycle_data(train=train)
    if users:
        made = replace(made, train=whole_sequences(train, users))
    teaching = align(outputs_for(made.train, LABELLED), made.train, 4, device)
    embedding = teaching.sequence_embedding.to(device)
    data = StudentData.of(made, device)
    if prior != "none":
        found = fit_prior(settings_for(prior), data.train, data.validation, data.num_items, 2, 0)
        on_device = {"train": found.train.to(device), "validation": found.validation.to(device)}  # as it is loaded
        data = replace(data, prior=replace(found, **on_device))
    return data, replace(teaching, sequence_embedding=embedding)


def whole_sequences(rows: int, users: int) -> Examples:
    """Training rows of users who walk through the catalogue: each of a user's items but the first is a target."""
    length = rows // users + 1
    sequences = [[(5 * user + step) % NUM_ITEMS for step in range(length)] for user in range(users)]
    items = np.array(sequences, dtype=np.int32).reshape(-1)
    place = np.arange(1, length)
    end = (np.arange(users)[:, None] * length + place).reshape(-1)
    past = Histories(items, end, np.tile(place, users), NUM_ITEMS)
    ids, owner = np.arange(len(end)) + 100, np.repeat(np.arange(users), length - 1)
    return Examples(ids, owner, past, WINDOW, items[end].astype(np.int64), ids.astype(np.float64))


def student(
    device: torch.device, settings: NetworkSettings, train: int = 40, prior: str = "none", users: int = 0
) -> SequenceStudent:
    """A student trained alone."""
    run = train_student(settings, EVALUATION, data_on(device, train, prior, users)[0], 0)
    assert isinstance(run.student, SequenceStudent)
    return run.student


def distilled(
    device: torch.device,
    settings: NetworkSettings,
    distill: DistillSettings = EVERYTHING,
    policy: str = "all",
    train: int = 40,
    prior: str = "none",
    users: int = 0,
) -> SequenceStudent:
    """A student trained with a teacher."""
    data, teaching = data_on(device, train, prior, users)
    active = ActiveSettings(policy=policy, rank_threshold=2)  # type: ignore[arg-type]
    return train_distilled(settings, distill, active, EVALUATION, data, teaching, 0).student


def members_of(
    device: torch.device,
    settings: NetworkSettings,
    distill: DistillSettings | None = EVERYTHING,
    policy: str = "all",
    train: int = 40,
    prior: str = "none",
    count: int = 3,
) -> list[tuple[Member, Callable[[], SequenceStudent]]]:
    """Fits that differ in numbers and seeds, before their first step, and what makes a student of each in the end;
    without a teacher where ``distill`` is None."""
    data, teaching = data_on(device, train, prior)
    found: list[tuple[Member, Callable[[], SequenceStudent]]] = []
    for place in range(count):
        share = (place + 1) / (count + 1)
        own = replace(settings, dropout=settings.dropout * share, learning_rate=0.01 * share)
        if distill is None:
            model, fit = prepare_student(own, EVALUATION, data, place)
            found.append((Member(fit), partial(_itself, model)))
        else:
            active = ActiveSettings(policy=policy, rank_threshold=2 + place, kl_threshold=0.1 * share)
            terms = replace(distill, **{key: getattr(distill, key) * share for key in ("lam", "alpha", "ed_weight")})
            taught, fit = prepare_distilled(own, terms, active, EVALUATION, data, teaching, place)
            found.append((Member(fit), partial(finish_distilled, taught, data)))
        found[-1][0].advance()
    return found


def _itself(model: SequenceStudent) -> SequenceStudent:
    return model


def together(device: torch.device, settings: NetworkSettings, **asked: Any) -> list[SequenceStudent]:
    """The students of `members_of`, trained as one."""
    found, population = members_of(device, settings, **asked), Population()
    members = [member for member, _ in found]
    while any(member.rows is not None for member in members):
        population.epoch(members)
    assert not population.in_turns, population.in_turns
    return [finish() for _, finish in found]


@dataclass(frozen=True)
class PerStep:
    """What one training step more costs: operations for the GPU, and waits by reason and place."""

    kernels: float
    waits: dict[str, float]


def per_step(
    gpu: PretendedGPU, train: Callable[[int], object], steps: int = 2, batch: int = BATCH, first: int = 1
) -> PerStep:
    """The difference that ``steps`` steps make beside the ``first`` ones.

    ``train(rows)`` trains one epoch of rows / ``batch`` steps.
    """
    counts = list[tuple[int, Counter[str]]]()
    for rows in (first * batch, (first + steps) * batch):
        gpu.kernels.clear()
        gpu.waits.clear()
        train(rows)
        counts.append((gpu.kernels.total(), gpu.waits.copy()))
    (few, fewer_waits), (many, more_waits) = counts
    grown = {place: (count - fewer_waits[place]) / steps for place, count in more_waits.items()}
    return PerStep((many - few) / steps, {place: count for place, count in grown.items() if count > 0})


def population_step(gpu: PretendedGPU, settings: NetworkSettings, **asked: Any) -> PerStep:
    """What the third step of the members of `members_of` costs, all of them together."""
    members, population = [member for member, _ in members_of(GPU, settings, train=4 * BATCH, **asked)], Population()
    for _ in range(3):
        gpu.kernels.clear()
        gpu.waits.clear()
        for member, loss in zip(members, population.step(members), strict=True):
            member.advance(loss)
    assert not population.in_turns, population.in_turns
    return PerStep(gpu.kernels.total(), dict(gpu.waits))
