"""What a single search found, in one line: the winner beside its baseline, paired on the same test examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass as document

from src.core.documents import PARTIAL, conform, read_json_document
from src.core.seed import numpy_generator
from src.evaluation.paired import PairedComparison, compare, gain, mean_interval, named_users, resampling_units

SearchAnswer = Literal["helped", "hurt", "cannot be told", "not distilled"]

#: what a single search cannot know, for where its verdict is shown
ONE_TRAINING = (
    "one training of each model: what another seed would change is not in the interval, and neither is the luck of "
    "having been chosen among several settings"
)


@dataclass(frozen=True)
class SearchVerdict:
    """The answer of a single search; plain numbers, ready for JSON.

    ``comparison`` is None where there is nothing to compare: the winner is the baseline's own setting, or there is a
    single example.
    """

    verdict: SearchAnswer
    sentence: str
    comparison: PairedComparison | None


@document(frozen=True, config=PARTIAL)
class _Sentence:
    """A line of `metrics/verdict.json`."""

    sentence: str


@document(frozen=True, config=PARTIAL)
class _Verdicts:
    """What a reader needs of the file."""

    against: dict[str, _Sentence]


def read_sentences(path: Path) -> list[str]:
    """The sentences of `metrics/verdict.json`, each once, the one against the baseline first.

    Raises ``ArtefactError`` when the file is missing or damaged.
    """
    found = conform(read_json_document(path, next_step=""), _Verdicts, path)
    return list(dict.fromkeys(verdict.sentence for verdict in found.against.values()))


def judge_search(
    winner: NDArray[np.int64],
    baseline: NDArray[np.int64],
    user: NDArray[np.int64],
    k: int,
    seed: int,
    distilled: bool,
    what: str = "distillation",
    against: str = "the baseline",
    resamples: int = 10_000,
) -> SearchVerdict:
    """Whether what was searched helped on the test split.

    Args:
        winner: the winner's 1-based ranks of the targets, ``[N]``.
        baseline: the baseline's ranks on the same examples, in the same order.
        user: each example's owner, -1 where the source names none.
        k: the cut-off K of NDCG.
        seed: decides the resamples.
        distilled: whether the winner has any of what was searched; False where its setting is the one without.
        what: what is said to have helped.
        against: what the baseline is called.
        resamples: of the interval.

    Raises:
        ValueError: no examples, ranks of different examples, or what is no rank.
    """
    metric = f"NDCG@{k}"
    scores = {what: gain(winner, k)[None], against: gain(baseline, k)[None]}
    if np.shape(winner) != np.shape(baseline) or np.shape(winner) != np.shape(user) or len(user) == 0:
        raise ValueError(f"ranks {np.shape(winner)}, {np.shape(baseline)}, users {np.shape(user)}: [N], at least one")
    generator = numpy_generator(seed, "verdict")
    if not distilled:
        mean = _with_interval(scores[what], user, resamples, generator)
        sentence = f"not distilled: the setting without {what} won on validation ({metric} {mean}, {_on(user)})."
        return SearchVerdict("not distilled", sentence, None)
    if len(user) == 1:
        values = f"{metric} {scores[what].item():.4f} against {scores[against].item():.4f}"
        sentence = f"it cannot be told whether {what} helped: {values}, on a single test example."
        return SearchVerdict("cannot be told", sentence, None)
    (found,) = compare(scores, user, against, resamples, generator, metric=metric)
    return SearchVerdict(found.verdict, found.sentence(), found)


def _with_interval(
    scores: NDArray[np.float64], user: NDArray[np.int64], resamples: int, generator: np.random.Generator
) -> str:
    if len(user) == 1:
        return f"{scores.item():.4f}"
    mean, low, high = mean_interval(scores, user, resamples, generator)
    return f"{mean:.4f}, 95 % interval {low:.4f} to {high:.4f}"


def _on(user: NDArray[np.int64]) -> str:
    _, resampled = resampling_units(user)
    count, unit = (named_users(user), "user") if resampled == "users" else (len(user), "example")
    return f"{count} test {unit}{'' if count == 1 else 's'}"
