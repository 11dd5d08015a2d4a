"""The best items by an approximate index (usearch): for catalogues of which scoring every item takes too long.

It finds large inner products. A network's scores are inner products of a history's representation with the items' rows;
so are those of a linear prior that is kept in two factors, as it is above `max_items`. Both together are inner products
of what stands side by side. A prior with a weight for each pair of items is none, and is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.core.errors import ConfigError, Problem
from src.core.logging import get_logger
from src.serving.students import ModelStudent, ServedStudent, padded_for
from src.student.architectures.linear import Linear
from src.student.base import ClosedForm, Recommender, SequenceStudent, recent
from src.student.decayed_history import times_matrix

_log = get_logger(__name__)

_FIELD, _EXACT = "index", "use index=none, which scores every item"
#: how many histories are also answered exactly, to tell the recall
COMPARED = 500
#: links of a node, and how many nodes are looked at for each that is added
_LINKS, _EFFORT_OF_BUILDING = 16, 128


@dataclass(frozen=True, eq=False)
class InnerProduct:
    """Scores are ``query(history, length) @ rows.T``: ``rows`` ``[V, R]``, ``query`` gives ``[B, R]``."""

    rows: Tensor
    query: Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def as_inner_product(model: Recommender) -> InnerProduct:
    """A student's scores as inner products.

    Raises:
        ConfigError: they are none.
    """
    if isinstance(model, ClosedForm):
        rows, query = _in_directions(model, "the student")
        return InnerProduct(rows, query)
    if not isinstance(model, SequenceStudent) or not _scores_as_usual(model):
        raise _refused(type(model).__name__.lower(), "scores in a way of its own, which may be no inner product")
    network = torch.cat([model.scorer.weight, model.scorer.bias.unsqueeze(1)], dim=1)
    prior = None if model.prior is None else _in_directions(model.prior, "its prior")

    def encoded(history: Tensor, length: Tensor) -> Tensor:
        representation = model.encode(*model.seen(history, length))
        return torch.cat([representation, torch.ones_like(representation[:, :1])], dim=1)

    if prior is None or model.prior_gain is None:
        return InnerProduct(network, encoded)
    right, directions = prior
    factor = float(model.prior_gain.detach()) * model.prior_scale

    def both(history: Tensor, length: Tensor) -> Tensor:
        return torch.cat([encoded(history, length), factor * directions(history, length)], dim=1)

    return InnerProduct(torch.cat([network, right], dim=1), both)


def _scores_as_usual(model: SequenceStudent) -> bool:
    own, usual = type(model), SequenceStudent
    return all(getattr(own, name) is getattr(usual, name) for name in ("forward", "logits", "add_prior_scores"))


def _in_directions(model: ClosedForm, what: str) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """The rows ``[V, rank]`` of a linear model that is kept in two factors, and what they are multiplied with."""
    name = model.settings.architecture
    if type(model) is not Linear or model.adds_up:
        raise _refused(name, f"{what} has a score for each pair of items and is no inner product")
    linear = model

    def shown(history: Tensor, length: Tensor) -> Tensor:
        return times_matrix(*recent(history, length, linear.window, linear.padding_id), linear.decay, linear.left)

    return model.right.T, shown


def _refused(name: str, rule: str) -> ConfigError:
    return ConfigError([Problem(_FIELD, name, rule, _EXACT)])


def _among(items: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of a row's items ``[B, C]`` are among the same row's others ``[B, L]``: ``[B, C]``."""
    row = np.arange(len(items))[:, None] * (1 + max(int(items.max(initial=0)), int(others.max(initial=0))))
    return np.isin(items + row, np.where(others >= 0, others + row, -1))


def require_index(model: Recommender) -> InnerProduct:
    """As `as_inner_product`; raises ``ConfigError`` where the package is missing, too."""
    if find_spec("usearch") is None:
        rule, step = "needs the package usearch, which is not installed", "ANYO_EXTRAS=index ./env_shell/setup_env.sh"
        raise ConfigError.one(_FIELD, "usearch", rule, step)
    return as_inner_product(model)


class IndexedStudent(ServedStudent):
    """A student whose candidates come from an index, and whose scores of these candidates are exact.

    Args:
        exact: the student.
        product: its scores.
        effort: how many candidates a search keeps in view; more find more of the best, and take longer.
        threads: 0: as many as there are cores.
    """

    def __init__(self, exact: ModelStudent, product: InnerProduct, effort: int, threads: int) -> None:
        from usearch.index import Index  # an extra of the environment

        self.name, self.catalogue, self.fingerprints = exact.name, exact.catalogue, exact.fingerprints
        self.exact, self.product, self.threads = exact, product, threads
        self._rows = product.rows
        rows = np.ascontiguousarray(self._rows.numpy(), dtype=np.float32)
        begun = time.perf_counter()
        self.index: Any = Index(
            ndim=rows.shape[1],
            metric="ip",
            dtype="f32",
            connectivity=_LINKS,
            expansion_add=_EFFORT_OF_BUILDING,
            expansion_search=effort,
        )
        self.index.add(np.arange(len(rows)), rows, threads=threads)
        self.build_seconds = time.perf_counter() - begun
        _log.info("an index over %s items of width %d took %.1f s", f"{len(rows):,}", rows.shape[1], self.build_seconds)
        self._wanted = self._found = self.compared = 0

    #: as `ServedStudent.scores_all`
    scores_all = False

    @torch.no_grad()
    def ranked(
        self, history: NDArray[np.int64], length: NDArray[np.int64], k: int, exclude_seen: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As `ServedStudent.ranked`; a row of which fewer were found ends with −∞."""
        seen, many = padded_for(self.exact.model, history, length)
        query = self.product.query(*recent(seen, many, max(1, self.exact.model.history_length), len(self._rows)))
        # those that were seen may be among the best
        count = min(len(self._rows), k + (int(length.max(initial=0)) if exclude_seen else 0))
        found = self.index.search(query.numpy(), count, threads=self.threads)
        keys = np.asarray(found.keys).reshape(len(history), -1).astype(np.int64)
        counts = getattr(found, "counts", [keys.shape[1]])  # the answer to one query alone has none
        there = np.arange(keys.shape[1]) < np.asarray(counts).reshape(-1, 1)
        items = torch.from_numpy(np.where(there, keys, 0))
        scores = torch.einsum("br,bnr->bn", query, self._rows[items])
        scores = scores.masked_fill(~torch.from_numpy(there), float("-inf"))
        if exclude_seen:
            scores = scores.masked_fill(torch.from_numpy(_among(items.numpy(), seen.numpy())), float("-inf"))
        values, at = scores.topk(min(k, scores.shape[1]), dim=1)
        best, shown = items.gather(1, at).numpy(), values.numpy()
        self._compare(history, length, k, exclude_seen, np.where(np.isfinite(shown), best, -1))
        return best, shown

    def _compare(
        self, history: NDArray[np.int64], length: NDArray[np.int64], k: int, exclude_seen: bool, best: NDArray[np.int64]
    ) -> None:
        """How many of the exact best of the first histories are among those that were found."""
        rows = min(len(history), COMPARED - self.compared)
        if rows <= 0:
            return
        items, scores = self.exact.best(history[:rows], length[:rows], k, exclude_seen)
        wanted = np.isfinite(scores)
        self._wanted += int(wanted.sum())
        self._found += int((_among(items, best[:rows]) & wanted).sum())
        self.compared += rows

    def as_dict(self, k: int) -> dict[str, Any]:
        """What the manifest tells of the index."""
        recall = self._found / self._wanted if self._wanted else None
        return {"kind": "usearch", "build_seconds": self.build_seconds, "k": k, "recall": recall, "of": self.compared}
