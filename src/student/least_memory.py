"""The least memory that training a student takes, by arithmetic: a size beyond it is told before anything is trained.

Counted is only what is certainly there at once, so that nothing is refused which could have been trained: of a network
its numbers with their gradients, Adam's moments and the best epoch's values, a batch's embedded histories, and its
scores where a loss reads the whole catalogue; of a model in closed form its matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch

from src.core.errors import ConfigError
from src.core.memory import gigabytes
from src.data.settings import DatasetSettings
from src.student.base import Recommender, SequenceStudent
from src.student.models import OwnStudentSettings, architecture, student_settings
from src.student.objectives import FULL_CATALOGUE, SAMPLED
from src.student.settings import NetworkSettings, StudentSettings

_FLOAT = 4
#: of a trained number: itself, Adam's two moments, its value in the best epoch
_HELD = 4
#: of a score of the whole catalogue: itself, its gradient
_SCORE = 2
#: of a weight for each pair of items: itself in float32, and in float64 the sum that it is computed from
_OF_A_PAIR = 12


@dataclass(frozen=True)
class Task:
    """What a student is trained on: a catalogue of V items, N training rows, ``dataset.window``."""

    num_items: int
    rows: int
    window: int


def least_memory(settings: StudentSettings, task: Task) -> float:
    """Bytes that training takes at least; infinite where a tensor would have more numbers than torch can count."""
    if isinstance(settings, OwnStudentSettings):  # whose factory may need real numbers: its item table is certain
        return _trained(settings, task, (task.num_items + 1) * settings.width)
    model = _shape_of(settings, task)
    if model is None:
        usual = student_settings(settings.architecture)
        if _shape_of(usual, Task(2, 1, task.window)) is not None:
            return math.inf
        # one that reads real numbers while it is built: of a network the item table is certain
        if not isinstance(settings, NetworkSettings):
            return 0.0
        return _trained(settings, task, (task.num_items + 1) * settings.width)
    if not isinstance(settings, NetworkSettings):
        return _fitted(model, task.num_items)
    assert isinstance(model, SequenceStudent)
    sparse = sum(table.numel() for table in model.sparse_gradients()) if _samples(settings, task) else 0
    return _trained(settings, task, sum(value.numel() for value in model.parameters()), sparse)


def _shape_of(settings: StudentSettings, task: Task) -> Recommender | None:
    """A student without numbers; None where it cannot be built so: a size is beyond 2**63, or real ones are read."""
    kind = architecture(settings.architecture)
    try:
        with torch.device("meta"):
            return kind.build(settings, task.num_items, settings.window or task.window)
    except (RuntimeError, TypeError, OverflowError):  # torch's
        return None


def _trained(settings: NetworkSettings, task: Task, numbers: int, sparse: int = 0) -> float:
    """The least memory of a network with so many numbers, of which so many have gradients of a few rows alone."""
    loop = settings.loop
    rows = min(loop.micro_batch_size or loop.batch_size, loop.batch_size, task.rows)
    width = settings.window or task.window
    embedded = (rows if settings.positions == "last" else 1) * width * settings.width
    scores = 0 if settings.loss == "bce" or _samples(settings, task) else _SCORE * rows * task.num_items
    averaged = numbers if loop.ema else 0
    return float(_FLOAT * ((_HELD + 1) * numbers - sparse + averaged + embedded + scores))


def _fitted(model: Recommender, num_items: int) -> float:
    """The least memory of a model in closed form."""
    pair = torch.Size([num_items, num_items])
    return float(
        sum((_OF_A_PAIR if held.shape == pair else held.element_size()) * held.numel() for held in model.buffers())
    )


def _samples(settings: NetworkSettings, task: Task) -> bool:
    """Whether the loss looks at sampled items, as `resolve_loss` decides."""
    return settings.loss in SAMPLED or (settings.loss == "auto" and task.num_items > FULL_CATALOGUE)


def require_fits(settings: StudentSettings, task: Task, memory: float, group: str = "student") -> None:
    """Look at whether a student's training can fit into memory at all.

    Args:
        settings: the student's.
        task: what it is trained on.
        memory: bytes that there are (see `src.core.memory.memory_of`).
        group: where the settings stand, for the message.

    Raises:
        ConfigError: it cannot; named is the size whose default would help most.
    """
    need = least_memory(settings, task)
    if need <= memory:
        return
    takes = "more numbers than can be counted" if math.isinf(need) else f"at least {gigabytes(need)} of memory"
    rule = f"training takes {takes} over {task.num_items:,} items, and there are {gigabytes(memory)} in all"
    name, value, step = _to_blame(settings, task, group)
    raise ConfigError.one(name, value, rule, step)


def _to_blame(settings: StudentSettings, task: Task, group: str) -> tuple[str, object, str]:
    """The size, by name and value, that would save most memory at its default, and what to do about it; the
    architecture where none is above its default."""
    needs: list[tuple[float, str, object]] = []
    for name, value, other, own in _smaller(settings, task):
        try:
            needs.append((least_memory(other, own), name, value))
        except ConfigError:  # the default does not go with the other sizes: filters higher than the window
            continue
    if not needs:
        return f"{group}.architecture", settings.architecture, "use another one, or a smaller catalogue"
    _, name, value = min(needs, key=lambda one: one[0])
    return name if name.startswith("dataset.") else f"{group}.{name}", value, "lower it"


def _smaller(settings: StudentSettings, task: Task) -> Iterator[tuple[str, object, StudentSettings, Task]]:
    """Each size that is above its default: its name and value, and what is trained with the default in its place."""
    usual = student_settings(settings.architecture)
    for field in fields(settings):
        value, default = getattr(settings, field.name), getattr(usual, field.name)
        if type(value) is int and value > default:
            try:
                yield field.name, value, replace(settings, **{field.name: default}), task
            except ValueError:  # the default does not go with the other sizes: heads that do not divide the width
                continue
    if isinstance(settings, NetworkSettings) and isinstance(usual, NetworkSettings):
        loop, batch = settings.loop, usual.loop.batch_size
        if loop.batch_size > batch:
            other = replace(settings, loop=replace(loop, batch_size=batch))
            yield "loop.batch_size", loop.batch_size, other, task
    if settings.window == 0 and task.window > (window := DatasetSettings().window):
        yield "dataset.window", task.window, settings, replace(task, window=window)
