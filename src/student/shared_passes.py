"""Training at all positions: neighbouring targets of one user share a forward pass.

A run is training rows of one owner whose histories end one item apart. One pass over the items before the
last of them gives the representation of each: a causal student's place p is what its history up to p would give.
What is minimised stays a mean over training rows, each with its own target, labels and negatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from src.core.errors import ConfigError
from src.core.logging import get_logger
from src.core.training import Batches
from src.data.tensor_examples import TensorExamples
from src.student.base import SequenceStudent
from src.student.settings import NetworkSettings

_log = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class SharedPasses:
    """Training rows in runs: ``order`` ``[N]``, all row numbers run by run; ``start`` and ``size`` ``[S]``, where each
    run begins in it and how long it is; ``of_row`` ``[N]``, the run of each row."""

    order: Tensor
    start: Tensor
    size: Tensor
    of_row: Tensor

    @classmethod
    def of(cls, train: TensorExamples, longest: int) -> SharedPasses:
        """Cut the training rows into runs of at most ``longest``."""
        owner, end = train.end - train.earlier, train.end
        # by owner, then by where the history ends; a stable sort keeps rows of equal ends in their order
        order = torch.argsort(end, stable=True)
        order = order[torch.argsort(owner[order], stable=True)]
        follows = torch.zeros(len(order), dtype=torch.bool, device=train.device)
        follows[1:] = (owner[order][1:] == owner[order][:-1]) & (end[order][1:] == end[order][:-1] + 1)
        run = (~follows).cumsum(0) - 1
        place = torch.arange(len(order), device=train.device)
        first = place[~follows]
        cut = (place - first[run]) % longest == 0
        run = (cut | ~follows).cumsum(0) - 1
        start = place[cut | ~follows]
        size = torch.diff(torch.cat([start, start.new_tensor([len(order)])]))
        of_row = torch.empty_like(run)
        of_row[order] = run
        return cls(order, start, size, of_row)

    @property
    def shares_anything(self) -> bool:
        """Whether some run has more than one row."""
        return bool((self.size > 1).any())

    def batches(self) -> Batches:
        """As `shuffled_batches`, with the rows of a run beside each other: runs come in a random order."""

        def draw(rows: int, size: int, generator: torch.Generator, device: torch.device) -> Iterator[Tensor]:
            runs = torch.randperm(len(self.start), generator=generator, device=generator.device).to(device)
            sizes = self.size[runs]
            begun = torch.repeat_interleave(self.start[runs] - (sizes.cumsum(0) - sizes), sizes)
            yield from self.order[begun + torch.arange(rows, device=device)].split(size)

        return draw


def represent_rows(
    student: SequenceStudent,
    passes: SharedPasses,
    train: TensorExamples,
    rows: Tensor,
    extra: Callable[[Tensor], Tensor | None] = lambda history: None,
) -> Tensor:
    """Representations ``[B, R]`` of some training rows, one forward pass a run.

    Args:
        student: one with ``encode_all``.
        passes: of the training rows.
        train: the training rows.
        rows: row numbers ``[B]``.
        extra: what is added to the item embeddings of histories ``[S, L]``.
    """
    runs, run = torch.unique(passes.of_row[rows], return_inverse=True)
    # the last of the asked rows of each run decides how far it is read
    newest = rows.new_zeros(len(runs)).scatter_reduce(0, run, train.end[rows], "amax", include_self=False)
    oldest = newest.scatter_reduce(0, run, train.end[rows], "amin", include_self=False)
    # one row of each run is its reader, found without a mask as an index: a GPU would be waited for
    reads = torch.where(train.end[rows] == newest[run], rows, 0)
    reader = rows.new_zeros(len(runs)).scatter_reduce(0, run, reads, "amax")
    width = student.window + int((newest - oldest).max())
    history, length = train.read(reader, width)
    encode_all: Callable[[Tensor, Tensor | None], Tensor] = getattr(student, "encode_all")  # noqa: B009
    states = encode_all(history, extra(history))
    place = length[run] - 1 - (newest[run] - train.end[rows])
    return states[run, place.clamp(min=0)]


def shared_passes_for(
    settings: NetworkSettings, student: SequenceStudent, train: TensorExamples
) -> SharedPasses | None:
    """How training rows share passes under these settings; None where each has its own.

    Raises ``ConfigError`` for a student that represents the last place only.

    Args:
        settings: how the student is trained.
        student: what represents a history.
        train: the training rows.
    """
    if settings.positions == "last":
        return None
    require_all_positions(student, settings.architecture)
    passes = SharedPasses.of(train, student.window)
    if passes.shares_anything:
        return passes
    _log.warning("student.positions=all: this source has no whole user sequences, so each row has a pass of its own")
    return None


def require_all_positions(student: SequenceStudent, architecture: str) -> None:
    """Raises ``ConfigError`` for a student that cannot give the representations of all places at once."""
    if not hasattr(student, "encode_all"):
        rule = f"student.architecture = {architecture} represents the last place only"
        raise ConfigError.one("student.positions", "all", rule, "use student=transformer, or student.positions=last")
