"""Which training examples are worth a label. The interface is open: ``teacher.export.select=package.module:factory``
names a selector of your own, where ``factory(settings: ExportSettings)`` returns a `RowSelector`.

A selector puts *all* training rows in one order, best first, and the budget takes the first of them: a larger budget
contains every smaller one, so that with a `LabelCache` it pays for the difference only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from src.core.data_utils import ordered_batches
from src.core.errors import ConfigError, TrainingFailed
from src.core.metrics import target_ranks
from src.core.plugins import build_plugin
from src.core.seed import numpy_generator
from src.data.examples import Examples
from src.data.tensor_examples import TensorExamples
from src.student.base import SequenceStudent
from src.teacher.settings import ExportSettings

Order = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class StudentPredictions:
    """What a trained student says about N examples.

    ``entropy`` ``[N]`` float32, nats, of its softmax over the catalogue: 0 (sure) to log V; ``target_rank`` ``[N]``
    int64, 1..V, ties against the target; ``representation`` ``[N, R]`` float32, on the student's device.
    """

    entropy: Tensor
    target_rank: Tensor
    representation: Tensor


@torch.inference_mode()
def predict_with_student(student: SequenceStudent, examples: Examples, batch_size: int) -> StudentPredictions:
    """Pass examples through a student in eval mode; its mode is left as it was.

    On the rows that it was trained on a student is surer and ranks better than on others: the order of the rows is
    what counts here, not the values.

    Args:
        student: trained.
        examples: which ones.
        batch_size: rows at once.

    Raises:
        TrainingFailed: a score is not finite.
    """
    device = student.scorer.weight.device
    columns, training = TensorExamples.of(examples, device), student.training
    student.eval()
    entropies, ranks, representations = [], [], []
    for rows in ordered_batches(len(columns), batch_size, device):
        representation = student.encode(columns.history[rows], columns.length[rows])
        logits = student.scorer(representation)
        if not torch.isfinite(logits).all():
            raise TrainingFailed("the student's scores are not finite; lower its learning rate")
        entropies.append(softmax_entropy(logits).cpu())
        ranks.append(target_ranks(logits, columns.target[rows]).cpu())
        representations.append(representation)
    student.train(training)
    return StudentPredictions(torch.cat(entropies), torch.cat(ranks), torch.cat(representations))


def softmax_entropy(logits: Tensor) -> Tensor:
    """−Σ p log p in nats, p = softmax over the last axis: ``[B, V]`` → ``[B]``."""
    log_p = logits.log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1)


@dataclass(frozen=True, eq=False)
class RowSelectionContext:
    """What a selector may look at: the training examples, a seed, and a student's answers where it asked for them."""

    examples: Examples
    seed: int
    answers: StudentPredictions | None = None

    @property
    def student(self) -> StudentPredictions:
        """The student's answers; raises ``ConfigError`` where the selector did not say that it needs them."""
        if self.answers is None:
            raise ConfigError.one(
                "teacher.export.select", "needs_student = False", "reads the student's answers", "set it to True"
            )
        return self.answers

    def generator(self, purpose: str) -> np.random.Generator:
        """A stream of its own for a named purpose."""
        return numpy_generator(self.seed, "label_budget", purpose)


class RowSelector(Protocol):
    """Orders training rows. The same context gives the same order; the budget is none of its business."""

    @property
    def needs_student(self) -> bool:
        """Whether `order` reads ``context.student``: one pass of a trained student over the training rows."""

    def order(self, context: RowSelectionContext) -> Order:
        """``[N]`` int64: every row number 0..N-1 once, the row most worth a label first."""


class AtRandom:
    """A seeded shuffle."""

    needs_student = False

    def order(self, context: RowSelectionContext) -> Order:
        """Order all rows at random, ``[N]``."""
        return numpy_generator(context.seed, "label_budget").permutation(len(context.examples))


class MostRecent:
    """The latest targets first; of two at the same time, the one that stands first in the split."""

    needs_student = False

    def order(self, context: RowSelectionContext) -> Order:
        """Order all rows by time, ``[N]``."""
        return recent_order(context.examples)


class StudentUncertain:
    """Rows where the student's softmax over the catalogue has the highest entropy come first.

    This is uncertainty sampling (Lewis and Gale 1994). A student trained with BCE has a softmax too, but
    nothing calibrated it: its order is rougher.
    """

    needs_student = True

    def order(self, context: RowSelectionContext) -> Order:
        """Order all rows by entropy, ``[N]``; equal ones in a seeded order."""
        return descending(context.student.entropy.numpy(), context.generator("ties"))


class StudentWrong:
    """Rows whose target the student ranks worst come first.

    The risk: a target that nothing in the history speaks for (an accident, a shared account) is ranked worst of all,
    by any model. A small budget spent here buys labels for noise: the teacher cannot know these targets either.
    """

    needs_student = True

    def order(self, context: RowSelectionContext) -> Order:
        """Order all rows by the rank of their target, ``[N]``; equal ones in a seeded order."""
        return descending(context.student.target_rank.numpy(), context.generator("ties"))


@dataclass(frozen=True)
class Diverse:
    """Rows that lie far from each other in the student's representation space (directions: vectors of length one).

    The first ``centres`` rows are a farthest-point traversal (Gonzalez 1985; k-centre greedy of Sener and Savarese
    2018): each is the row farthest from all before it, which covers the space within twice the best possible radius at
    every budget. The rest is ordered by buckets: every row belongs to its nearest centre, and round after round each
    centre gives the farthest row that it has left. Cost: ``centres`` passes over ``[N, R]``, memory one copy of it
    (a million rows of 64 floats: 0.25 GB and 1.3e11 multiplications at the default), not the N²·R of a full traversal.
    """

    centres: int = 2048
    needs_student: bool = True

    def order(self, context: RowSelectionContext) -> Order:
        """Order all rows, ``[N]``; the first one is drawn."""
        points = F.normalize(context.student.representation.float(), dim=1)
        first = int(context.generator("first").integers(len(points)))
        found = farthest_first(points, min(self.centres, len(points)), first)
        chosen = np.zeros(len(points), dtype=bool)
        chosen[found.order] = True
        rest = np.flatnonzero(~chosen)
        return np.concatenate([found.order, rest[in_rounds(found.nearest[rest], found.distance[rest])]])


class Traversal(NamedTuple):
    """``order`` ``[C]`` int64: rows in the order of their choice; for all rows ``nearest`` ``[N]`` int64: which of the
    C they are nearest to, and ``distance`` ``[N]`` float32: how far that is (squared, 0..4; −1 for the C themselves).
    """

    order: Order
    nearest: NDArray[np.int64]
    distance: NDArray[np.float32]


@torch.inference_mode()
def farthest_first(points: Tensor, count: int, first: int) -> Traversal:
    """Choose unit vectors, each as far as possible from those before it; of equally far rows the first is taken.

    Nothing waits for the device until the end.

    Args:
        points: ``[N, R]``, of length one each.
        count: how many, N at most.
        first: the row that the traversal begins with.
    """
    distance = points.new_full((len(points),), float("inf"))
    nearest = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    order = torch.zeros(count, dtype=torch.int64, device=points.device)
    row = torch.tensor([first], device=points.device)
    for place in range(count):
        order[place : place + 1] = row
        # |a − b|² of unit vectors; rounding may leave a little less than zero
        to_row = (2 - 2 * (points @ points[row[0]])).clamp_(min=0)
        nearest.masked_fill_(to_row < distance, place)
        distance = torch.minimum(distance, to_row).index_fill(0, row, -1.0)
        row = distance.argmax().unsqueeze(0)
    return Traversal(order.cpu().numpy(), nearest.cpu().numpy(), distance.cpu().numpy())


def in_rounds(bucket: NDArray[np.int64], value: NDArray[np.float32]) -> Order:
    """Places ``[n]`` in rounds: each round takes from every bucket that is not empty, in ascending order of buckets,
    the place of its highest value left.
    """
    by_bucket = np.lexsort((-value, bucket))
    starts = np.searchsorted(bucket[by_bucket], bucket[by_bucket])
    round_of = np.arange(len(bucket)) - starts
    return by_bucket[np.lexsort((bucket[by_bucket], round_of))]


def recent_order(examples: Examples) -> Order:
    """Row numbers, latest target first."""
    return np.argsort(-examples.timestamp, kind="stable")


def descending(values: NDArray[np.generic], generator: np.random.Generator) -> Order:
    """Row numbers from the highest value to the lowest; equal values in an order that is drawn, not in file order."""
    shuffled = generator.permutation(len(values))
    return shuffled[np.argsort(-values[shuffled].astype(np.float64), kind="stable")]


_SELECTORS: dict[str, Callable[[ExportSettings], RowSelector]] = {
    "random": lambda settings: AtRandom(),
    "most_recent": lambda settings: MostRecent(),
    "student_uncertain": lambda settings: StudentUncertain(),
    "student_wrong": lambda settings: StudentWrong(),
    "diverse": lambda settings: Diverse(),
}


def build_selector(settings: ExportSettings) -> RowSelector:
    """The selector that the settings name; raises ``ConfigError`` for one that does not exist or cannot be imported."""
    return build_plugin("teacher.export.select", settings.select, _SELECTORS, settings)


def budget_rows(settings: ExportSettings, rows: int) -> int:
    """How many of ``rows`` training examples the budget pays for.

    Raises ``ConfigError`` when it is larger than the split, or a share of it below one example.
    """
    count = round(settings.budget * rows) if settings.budget <= 1 else int(settings.budget)
    if not 1 <= count <= rows:
        raise ConfigError.one(
            "teacher.export.budget", settings.budget, f"means {count} of {rows} training examples", "change it"
        )
    return count


def choose_rows(
    examples: Examples, settings: ExportSettings, seed: int, answers: Callable[[], StudentPredictions] | None = None
) -> NDArray[np.int64]:
    """Choose the examples to label. A larger budget keeps what a smaller one chose.

    Args:
        examples: the training split.
        settings: budget and selector.
        seed: the run's.
        answers: called only for a selector that needs a student: ``lambda: ask_student(student, examples, 2048)``.

    Returns:
        Row numbers, ascending.

    Raises:
        ConfigError: as `budget_rows` and `build_selector`, when there is no student to ask, and when a selector's
            order is not one of all rows.
    """
    count, selector = budget_rows(settings, len(examples)), build_selector(settings)
    asked = None
    if selector.needs_student:
        if answers is None:
            raise ConfigError.one("teacher.export.select", settings.select, "needs a trained student", "use random")
        asked = answers()
    order = selector.order(RowSelectionContext(examples, seed, asked))
    if not np.array_equal(np.sort(order), np.arange(len(examples))):
        raise ConfigError.one(
            "teacher.export.select", settings.select, f"must order each of {len(examples)} rows once", "correct it"
        )
    return np.sort(order[:count]).astype(np.int64)
