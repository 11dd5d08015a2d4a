"""The teacher check: before labels are paid for, is there anything in this teacher that the student does not know?

Teacher and tuned student rank the same small sample of held-out (validation) examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.core.data_utils import ordered_batches
from src.core.metrics import ndcg, target_ranks
from src.data.candidates import CandidateLists
from src.data.examples import Examples
from src.data.tensor_examples import TensorExamples
from src.student.base import Recommender
from src.student.evaluator import ranking_scores, scores_of
from src.teacher.interfaces import Teacher, TeacherForward
from src.teacher.labelling.labels import infer

if TYPE_CHECKING:  # which imports transformers
    from src.teacher.operations.memory_probe import Interval, MemoryProbe

#: K of every figure of the check
TOP = 20
#: a teacher that ranks clearly worse is still worth a try when the better of the two, example by example, would lift
#: the student's NDCG by this share. Any second opinion lifts it, by luck: on MovieLens-100K a list of popular items by
#: less than this, the same student with another seed by more.
WORTH_A_TRY = 1 / 3
#: above this overlap of the two top lists the teacher repeats what the student says
SAME_LISTS = 0.95

Verdict = Literal["likely", "open", "unlikely"]


@dataclass(frozen=True, eq=False)
class RankedExamples:
    """What a model says about n examples.

    ``ranks`` ``[n]`` int64: the target's 1-based rank, ties against it (where only a list is known: any number above
    its length when the target is not in it). ``top`` ``[n, K]`` int64: the best items, best first; −1 where an answer
    was not an item. ``valid`` ``[n]`` bool: whether the first answer was an item of the catalogue (None: all were).
    ``correct`` ``[n]`` bool: whether it was the target, of a model that writes (see `src.teacher.title_lm.generation`),
    and ``candidates``: the lists over which its answers were judged.
    """

    ranks: Tensor
    top: Tensor
    valid: Tensor | None = None
    correct: Tensor | None = None
    candidates: CandidateLists | None = None

    def answer_metrics(self) -> dict[str, float]:
        """HitRatio@1 and ValidRatio of a model that writes titles, both over all rows; nothing for another one."""
        if self.valid is None or self.correct is None:
            return {}
        return {"answer_hit_ratio_1": _share(self.correct), "valid_ratio": _share(self.valid)}


Ranker = Callable[[Examples], RankedExamples]


@dataclass(frozen=True)
class TeacherCheck:
    """What the check found on ``examples`` examples. All shares 0..1; NDCG at K = ``top``.

    ``interval``: 95 % bootstrap interval, over users, of mean NDCG(teacher) − NDCG(student). ``oracle_ndcg``: mean
    of each example's better NDCG, the most that a perfect choice between the two could reach. ``overlap``: mean
    |A ∩ B| / K of the two top lists. ``teacher_better``, ``ties``, ``student_better``: whose rank of the target is
    smaller. ``only_teacher``, ``only_student``: the target is in one's top K and not in the other's.
    ``valid_ratio``: first answers of the teacher that are items (1 for an item head; of a teacher that writes titles,
    free answers that name one of their candidates, whichever way it ranks the catalogue). ``memory``: whether its
    language model has read the catalogue, where that was asked. Coverage: different items in
    all top lists together, over V; it grows with the sample.
    """

    examples: int
    top: int
    teacher_ndcg: float
    student_ndcg: float
    interval: tuple[float, float]
    oracle_ndcg: float
    overlap: float
    teacher_better: float
    ties: float
    student_better: float
    only_teacher: float
    only_student: float
    valid_ratio: float
    teacher_coverage: float
    student_coverage: float
    memory: MemoryProbe | None = None

    @property
    def oracle_gain(self) -> float:
        """The share of the student's NDCG by which the oracle lies above it; infinite above a student at zero."""
        gain = self.oracle_ndcg - self.student_ndcg
        if self.student_ndcg > 0:
            return gain / self.student_ndcg
        return float("inf") if gain > 0 else 0.0

    @property
    def verdict(self) -> Verdict:
        """``likely``: the interval lies above 0. ``unlikely``: the lists agree (`SAME_LISTS`), or the interval lies
        below 0 and the oracle's gain is under `WORTH_A_TRY`. ``open``: everything else, a small sample above all.
        """
        low, high = self.interval
        if low > 0:
            return "likely"
        if self.overlap > SAME_LISTS or (high < 0 and self.oracle_gain < WORTH_A_TRY):
            return "unlikely"
        return "open"

    def sentence(self) -> str:
        """Verdict and reason in one plain sentence, and what is known of the language model's memory in another."""
        beginning = {
            "likely": "Distilling from this teacher is likely to help",
            "open": "Whether distilling from this teacher helps is open",
            "unlikely": "Distilling from this teacher is unlikely to help",
        }[self.verdict]
        low, high = self.interval
        compared = (
            f"on {self.examples:,} held-out examples its NDCG@{self.top} is {self.teacher_ndcg:.4f} and the student's "
            f"{self.student_ndcg:.4f} (95 % interval of the difference {low:+.4f} to {high:+.4f})"
        )
        verdict = f"{beginning}: {compared}, and {self._reason()}."
        return verdict if self.memory is None else f"{verdict} {self.memory.sentence()}"

    def _reason(self) -> str:
        if self.verdict == "unlikely" and self.overlap > SAME_LISTS:
            return f"{self.overlap:.0%} of their top {self.top} are the same items, so it has little new to say"
        better = f"it ranks the target better than the student in {self.teacher_better:.0%} of them"
        return f"{better}, while a perfect choice between the two would reach {self.oracle_ndcg:.4f}"

    def as_dict(self) -> dict[str, Any]:
        """Every figure, the verdict and the sentence, for JSON (an infinite gain is None)."""
        gain = None if self.oracle_gain == float("inf") else self.oracle_gain
        memory = None if self.memory is None else self.memory.as_dict()
        found = {**asdict(self), "interval": list(self.interval), "memory": memory}
        return {**found, "oracle_gain": gain, "verdict": self.verdict, "sentence": self.sentence()}


def check_teacher(
    teacher: Ranker, student: Ranker, examples: Examples, num_items: int, interval: Interval
) -> TeacherCheck:
    """Let both rank the same examples, and compare.

    Args:
        teacher: ranks examples.
        student: likewise.
        examples: held out from both.
        num_items: V.
        interval: of a mean; a few users own most examples, which must not count as so many independent ones (see
            `src.evaluation.paired.user_interval`).

    Raises:
        ValueError: there are no examples.
    """
    if len(examples) == 0:
        raise ValueError("a teacher check needs at least one example")
    return compare_rankings(teacher(examples), student(examples), examples.user, num_items, interval)


def compare_rankings(
    teacher: RankedExamples, student: RankedExamples, user: NDArray[np.int64], num_items: int, interval: Interval
) -> TeacherCheck:
    """Compute the figures of two rankings of the same examples.

    Args:
        teacher: on the CPU.
        student: likewise.
        user: ``[n]``, whose examples they are.
        num_items: V.
        interval: as for `check_teacher`.
    """
    top = min(TOP, num_items)
    ours, theirs = ndcg(teacher.ranks, top), ndcg(student.ranks, top)
    hit, missed = teacher.ranks <= top, student.ranks > top
    valid = teacher.valid if teacher.valid is not None else torch.ones(len(ours), dtype=torch.bool)
    return TeacherCheck(
        examples=len(ours),
        top=top,
        teacher_ndcg=float(ours.mean()),
        student_ndcg=float(theirs.mean()),
        interval=interval((ours - theirs).numpy(), user),
        oracle_ndcg=float(torch.maximum(ours, theirs).mean()),
        overlap=float(shared(teacher.top[:, :top], student.top[:, :top]).double().mean()) / top,
        teacher_better=_share(teacher.ranks < student.ranks),
        ties=_share(teacher.ranks == student.ranks),
        student_better=_share(teacher.ranks > student.ranks),
        only_teacher=_share(hit & missed),
        only_student=_share(~hit & ~missed),
        valid_ratio=_share(valid),
        teacher_coverage=list_coverage(teacher.top[:, :top], num_items),
        student_coverage=list_coverage(student.top[:, :top], num_items),
    )


def _share(rows: Tensor) -> float:
    return float(rows.double().mean())


def shared(first: Tensor, second: Tensor) -> Tensor:
    """|A ∩ B| of each row's items, ``[n, K]`` and ``[n, K']`` → ``[n]`` int64; items are different within a row, −1 is
    none.
    """
    same = (first.unsqueeze(2) == second.unsqueeze(1)) & (first >= 0).unsqueeze(2)
    return same.sum(dim=(1, 2))


def list_coverage(top: Tensor, num_items: int) -> float:
    """Different items in all lists together (−1 is none), over the catalogue's V."""
    return len(top[top >= 0].unique()) / num_items


def teacher_ranker(teacher: Teacher, batch_size: int, mask_history: bool) -> Ranker:
    """Make the function that ranks examples by a teacher with scores over the catalogue.

    Args:
        teacher: of any objective.
        batch_size: prompts at once.
        mask_history: whether items of the history leave the ranking.
    """

    def ranking(examples: Examples) -> RankedExamples:
        columns = TensorExamples.of(examples, teacher.device)
        found = _Collected.of(len(examples), teacher.num_items)

        def keep(rows: Tensor, forward: TeacherForward) -> None:
            found.put(rows, forward.logits, columns, mask_history)

        infer(teacher, columns, batch_size, keep, "teacher: ranking")
        return RankedExamples(found.ranks, found.top)

    return ranking


def student_ranker(student: Recommender, batch_size: int, mask_history: bool) -> Ranker:
    """Make the function that ranks examples by a student, in eval mode; its mode is left as it was.

    Args:
        student: trained.
        batch_size: rows at once.
        mask_history: whether items of the history leave the ranking.
    """

    @torch.inference_mode()
    def ranking(examples: Examples) -> RankedExamples:
        columns, training = TensorExamples.of(examples, student.device), student.training
        student.eval()
        found = _Collected.of(len(examples), student.num_items)
        for rows in ordered_batches(len(columns), batch_size, columns.target.device):
            found.put(rows, scores_of(student, columns, rows), columns, mask_history)
        student.train(training)
        return RankedExamples(found.ranks, found.top)

    return ranking


@dataclass(frozen=True, eq=False)
class _Collected:
    """Ranks ``[n]`` and top items ``[n, K]`` on the CPU, filled batch by batch."""

    ranks: Tensor
    top: Tensor

    @classmethod
    def of(cls, rows: int, num_items: int) -> _Collected:
        return cls(torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, min(TOP, num_items), dtype=torch.int64))

    def put(self, rows: Tensor, scores: Tensor, columns: TensorExamples, mask_history: bool) -> None:
        target = columns.target[rows]
        scores = ranking_scores(scores, columns.history[rows], target, mask_history)
        self.ranks[rows.cpu()] = target_ranks(scores, target).cpu()
        self.top[rows.cpu()] = scores.topk(self.top.shape[1], dim=1).indices.cpu()
