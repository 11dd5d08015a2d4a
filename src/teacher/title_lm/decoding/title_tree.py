"""All titles of a catalogue as one prefix tree, in flat tensors.

Nodes are numbered level by level, the children of one node one after the other, so a node's children are a range of
numbers and the allowed next tokens of many beams are found by indexing alone. Node 0 is the root. A title ends with an
end token; the node behind it is a *leaf*, and only leaves hold items (several where titles are the same).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.core.errors import DataError

_SHOWN = 5
_NOTHING = -1


class ChildNodes(NamedTuple):
    """The children of P nodes as flat rows, C in all, in ascending order within each parent.

    ``parent`` ``[C]``: the place (0..P-1) of each child's parent in the question; ``node`` ``[C]``: the child. int64.
    """

    parent: Tensor
    node: Tensor


@dataclass(frozen=True, eq=False)
class TitleTree:
    """A prefix tree with Q nodes (root and leaves among them) over the titles of V items. All tensors int64.

    ``token`` ``[Q]``: the token that leads to a node (-1 for the root); ``parent`` ``[Q]`` (-1 for the root);
    ``children`` ``[Q + 1]``: node n's children are the nodes ``children[n]``..``children[n + 1] - 1``, a leaf among
    them first, then in the order of the smallest item id below them; ``item_start`` ``[Q + 1]`` and ``items`` ``[V]``:
    leaf n holds ``items[item_start[n]:item_start[n + 1]]``, ascending; ``below`` ``[Q]``: leaves at or
    below a node; ``levels``: how many nodes lie at each depth, root first.
    """

    token: Tensor
    parent: Tensor
    children: Tensor
    item_start: Tensor
    items: Tensor
    below: Tensor
    levels: tuple[int, ...]
    end_id: int

    @classmethod
    def of(cls, titles: Sequence[Sequence[int]], end_id: int) -> TitleTree:
        """The tree of V titles as token ids; ``end_id`` closes each of them.

        Raises ``DataError`` when there is no title, a title has no token, or the end token stands inside a title.
        """
        _check(titles, end_id)
        table = _table(titles, end_id)
        parts = _Levels.of(table, end_id)
        counts = np.bincount(parts.leaf_of_item, minlength=len(parts.token))
        return cls(
            token=torch.from_numpy(parts.token),
            parent=torch.from_numpy(parts.parent),
            children=torch.from_numpy(1 + _starts(np.bincount(parts.parent[1:], minlength=len(parts.token)))),
            item_start=torch.from_numpy(_starts(counts)),
            items=torch.from_numpy(np.argsort(parts.leaf_of_item, kind="stable")),
            below=torch.from_numpy(parts.below),
            levels=parts.levels,
            end_id=end_id,
        )

    @property
    def num_items(self) -> int:
        """Number of items, V."""
        return len(self.items)

    @property
    def num_nodes(self) -> int:
        """Number of nodes, Q."""
        return len(self.token)

    @property
    def depth(self) -> int:
        """Tokens of the longest title, its end token among them."""
        return len(self.levels) - 1

    def to(self, device: torch.device | str) -> TitleTree:
        """The same tree on another device."""
        names = ("token", "parent", "children", "item_start", "items", "below")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def item_count(self, nodes: Tensor) -> Tensor:
        """How many items the nodes hold; 0 for all but leaves. Same shape as ``nodes``."""
        return self.item_start[nodes + 1] - self.item_start[nodes]

    def first_item(self, leaves: Tensor) -> Tensor:
        """The smallest item id of each leaf. Same shape as ``leaves``."""
        return self.items[self.item_start[leaves]]

    def is_leaf(self, nodes: Tensor) -> Tensor:
        """Whether a title ends here. Same shape as ``nodes``."""
        return self.item_count(nodes) > 0

    def children_of(self, nodes: Tensor) -> ChildNodes:
        """The children of the nodes ``[P]``, nodes in the given order."""
        return ChildNodes(*_ranges(self.children[nodes], self.children[nodes + 1]))

    def items_of(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The items of the leaves ``[P]`` as flat rows: the place of each item's leaf in ``nodes``, and the item."""
        place, row = _ranges(self.item_start[nodes], self.item_start[nodes + 1])
        return place, self.items[row]

    def duplicates(self) -> list[tuple[int, ...]]:
        """Groups of item ids whose titles are the same tokens, ascending; empty when all titles differ."""
        shared = (self.item_start.diff() > 1).nonzero().flatten().tolist()
        groups = [tuple(self.items[self.item_start[leaf] : self.item_start[leaf + 1]].tolist()) for leaf in shared]
        return sorted(groups)


def _ranges(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Ranges ``start..stop - 1`` laid end to end: which range each number comes from, and the number."""
    count = stop - start
    owner = torch.repeat_interleave(count)
    before = count.cumsum(0) - count
    return owner, start[owner] + torch.arange(len(owner), device=start.device) - before[owner]


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _check(titles: Sequence[Sequence[int]], end_id: int) -> None:
    step = "check the items' titles and the tokenizer"
    if not titles:
        raise DataError.one("item titles", 0, "a catalogue needs at least one title", step)
    empty = [item for item, title in enumerate(titles) if not len(title)]
    if empty:
        rule = f"{len(empty)} of {len(titles)} titles have no token; a tree cannot answer with them"
        raise DataError.one("item titles", empty[:_SHOWN], rule, step)
    ended = [item for item, title in enumerate(titles) if end_id in title]
    if ended:
        rule = f"the end token {end_id} stands inside {len(ended)} titles"
        raise DataError.one("item titles", ended[:_SHOWN], rule, step)


def _table(titles: Sequence[Sequence[int]], end_id: int) -> NDArray[np.int64]:
    """``[V, T]``: each title and its end token, then -1."""
    table = np.full((len(titles), 1 + max(map(len, titles))), _NOTHING, dtype=np.int64)
    for row, title in zip(table, titles, strict=True):
        row[: len(title)] = title
        row[len(title)] = end_id
    return table


@dataclass(frozen=True, eq=False)
class _Levels:
    token: NDArray[np.int64]
    parent: NDArray[np.int64]
    leaf_of_item: NDArray[np.int64]
    below: NDArray[np.int64]
    levels: tuple[int, ...]

    @classmethod
    def of(cls, table: NDArray[np.int64], end_id: int) -> _Levels:
        """Number the nodes level by level; ``path[item, depth]`` is the node an item passes."""
        tokens, parents, sizes = [np.array([_NOTHING])], [np.array([_NOTHING])], [1]
        path = np.full((len(table), table.shape[1] + 1), _NOTHING, dtype=np.int64)
        path[:, 0] = 0
        for depth in range(table.shape[1]):
            items = np.flatnonzero(table[:, depth] != _NOTHING)
            pairs = np.stack([path[items, depth], table[items, depth]], axis=1)
            unique, first, inverse = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
            order = np.lexsort((first, unique[:, 1] != end_id, unique[:, 0]))
            rank = np.empty_like(order)
            rank[order] = np.arange(len(order))
            path[items, depth + 1] = sum(sizes) + rank[inverse.reshape(-1)]
            parents.append(unique[order, 0])
            tokens.append(unique[order, 1])
            sizes.append(len(order))
        leaf_of_item = path.max(axis=1)
        one_each = path[np.unique(leaf_of_item, return_index=True)[1]]
        below = np.bincount(one_each[one_each != _NOTHING], minlength=sum(sizes))
        return cls(np.concatenate(tokens), np.concatenate(parents), leaf_of_item, below, tuple(sizes))
