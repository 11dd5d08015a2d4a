"""Everything that is left below some beams, laid out so that a language model can read it in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from src.teacher.title_lm.decoding.title_tree import TitleTree


class NodesBelow(NamedTuple):
    """The beams of b prompts and all nodes below them but leaves, n at most, ascending, unused places at the end.

    ``node`` ``[b, n]`` int64 and ``used`` ``[b, n]`` bool; ``origin`` ``[b, n]``: the beam a node is below of (or is);
    ``depth`` ``[b, n]``: how far below, 0 for a beam; ``above`` ``[b, n, n]`` bool: ``above[:, i, j]`` where node j is
    node i or lies between it and its beam, the beam among them.
    """

    node: Tensor
    used: Tensor
    origin: Tensor
    depth: Tensor
    above: Tensor


def read_order(tree: TitleTree, beams: Tensor, used: Tensor) -> NodesBelow:
    """Lay out what is below some beams, so that it can be read in one pass.

    Args:
        tree: all titles.
        beams: ``[b, K]`` nodes; those of a prompt lie at one depth, in ascending order, and none of them is a leaf.
        used: ``[b, K]`` bool, which of these places hold a beam.
    """
    row, origin, node, depth = _collect(tree, beams, used)
    # a deeper node has a higher number than every node above it, so beams come first
    key = row * tree.num_nodes + node
    order = key.argsort()
    row, origin, node, depth, key = row[order], origin[order], node[order], depth[order], key[order]
    sizes = torch.bincount(row, minlength=len(beams))
    first = sizes.cumsum(0) - sizes
    column = torch.arange(len(row), device=row.device) - first[row]
    parent = torch.searchsorted(key, row * tree.num_nodes + tree.parent[node]) - first[row]
    shape = (len(beams), int(sizes.max()))

    def packed(values: Tensor) -> Tensor:
        whole = torch.zeros(shape, dtype=values.dtype, device=values.device)
        whole[row, column] = values
        return whole

    places = torch.arange(shape[1], device=row.device).expand(shape)
    there = places < sizes.unsqueeze(1)
    # beams and unused places are their own parents
    up = torch.where(there & (packed(depth) > 0), packed(torch.where(depth > 0, parent, 0)), places)
    return NodesBelow(packed(node), there, packed(origin), packed(depth), _closure(up, int(depth.max())))


def _collect(tree: TitleTree, beams: Tensor, used: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row, origin, node and depth of the beams and of all nodes below them but leaves, in flat rows."""
    row, origin = used.nonzero(as_tuple=True)
    node = beams[row, origin]
    levels: list[tuple[Tensor, ...]] = []
    while len(node):
        levels.append((row, origin, node, torch.full_like(node, len(levels))))
        owner, child = tree.children_of(node)
        inner = ~tree.is_leaf(child)
        row, origin, node = row[owner][inner], origin[owner][inner], child[inner]
    row, origin, node, depth = (torch.cat(parts) for parts in zip(*levels, strict=True))
    return row, origin, node, depth


def _closure(up: Tensor, depth: int) -> Tensor:
    """``[b, n]`` parents (a root is its own) → ``[b, n, n]`` bool: each node with all that are above it."""
    count, width = up.shape
    above = torch.eye(width, dtype=torch.bool, device=up.device).repeat(count, 1, 1)
    step = up
    for _ in range(depth):
        above.scatter_(2, step.unsqueeze(2), True)
        step = up.gather(1, step)
    return above
