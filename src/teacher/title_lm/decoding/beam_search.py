"""Beam search along the tree of all titles: every answer is an item, and the best N come with log-probabilities."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple, TypeVar

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from src.core.errors import ConfigError, TrainingFailed
from src.core.logging import get_logger
from src.teacher.title_lm.decoding.continuation import (
    CacheMode,
    Continuation,
    GateContext,
    ReadPrompts,
    SharedCache,
    asking,
    causal_model,
    no_gate,
    read_prompts,
    sharing,
)
from src.teacher.title_lm.decoding.subtrees import NodesBelow, read_order
from src.teacher.title_lm.decoding.title_tree import TitleTree

_log = get_logger(__name__)

_NEVER = float("-inf")
_LOGITS = 1 << 27  # logits that are computed, or copied into float32, at once


class BeamResult(NamedTuple):
    """The N best items of each prompt, best first, equal ones by ascending id.

    ``items`` ``[B, N]`` int64, no item twice in a row; ``log_probability`` ``[B, N]`` float32 ≤ 0, natural logarithm.
    """

    items: Tensor
    log_probability: Tensor


class _Beams(NamedTuple):
    """Beams of b prompts, in ascending order of their nodes; ``score`` is -inf for a place that is not used.

    ``node`` ``[b, K]``, ``score`` ``[b, K]`` float32, ``parent`` ``[b, K]``: the beam of the step before.
    """

    node: Tensor
    score: Tensor
    parent: Tensor


class _Found(NamedTuple):
    """The best leaves found so far for b prompts, best first: ``leaf`` ``[b, n]``, ``score`` ``[b, n]``, -inf: none."""

    leaf: Tensor
    score: Tensor


_T = TypeVar("_T", _Beams, _Found, NodesBelow)


def beam_search(
    llm: PreTrainedModel | PeftModel,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    tree: TitleTree,
    top_n: int,
    beams: int,
    gate: GateContext = no_gate,
    cache_mode: CacheMode = "auto",
    at_once: int = 0,
) -> BeamResult:
    """Rank a catalogue for prompts by beam search along the tree of all titles.

    A title's score is log P(title, end token | prompt): the sum of its tokens' log-probabilities, each normalised over
    the whole vocabulary: what the model believes, comparable between prompts. At each depth the best ``beams``
    unfinished titles go on; finished ones are kept beside them and take no place. Since every beam leads to at least
    one item, ``top_n`` ≤ ``beams`` items are always found, and with as many beams as items the ranking is exact. A
    prompt leaves the batch when no beam can overtake its N-th item any more, or (where beams share it) when no more
    than ``beams`` titles are left below its beams: they are then all read at once, which is what the search would have
    done token by token. Items of one title share its score, in the order of their ids.

    Args:
        llm: a causal language model, with its adapters or without.
        inputs_embeds: ``[B, S, D]``.
        attention_mask: ``[B, S]``, padded on the left.
        tree: all titles.
        top_n: N, items that are listed for each prompt.
        beams: unfinished titles that are followed at once.
        gate: the context of the model's passes.
        cache_mode: how beams are held; that is told once a process.
        at_once: where each beam holds a copy of its prompt's cache, as many prompts are searched at a time as have so
            many beams together, one at least; 0: all of them. All are read at once.

    Raises:
        ConfigError: ``top_n`` is not within 1..V, or ``beams`` is below it.
        ModelError: the model has no language-model head.
        TrainingFailed: its logits are not finite.
    """
    _check(tree, top_n, beams)
    with asking(llm), sharing(llm):
        room = beams * tree.depth
        start = read_prompts(llm, inputs_embeds, attention_mask, gate, cache_mode, room)
        copies = not isinstance(start.continuation, SharedCache)
        prompts = max(1, at_once // beams) if copies and at_once else len(attention_mask)
        _tell_once(causal_model(llm).config.model_type, prompts if copies else 0)
        rows = torch.arange(len(attention_mask), device=start.logits.device)
        found = [_search(*_part(start, part), tree, top_n, beams) for part in rows.split(prompts)]
        return _items(_Found(*(torch.cat(parts) for parts in zip(*found, strict=True))), tree, top_n)


@cache
def _tell_once(family: str, prompts: int) -> None:
    """``prompts``: how many are searched at a time where each beam has a copy; 0 where beams share their prompt."""
    if prompts:
        _log.info("constrained: each beam holds a copy of its %s prompt, %d prompts at a time", family, prompts)
    else:
        _log.info("constrained: beams share their %s prompt", family)


def _part(start: ReadPrompts, rows: Tensor) -> tuple[Tensor, Continuation]:
    """Logits and continuation of some of the prompts; those of all are left as they are."""
    if len(rows) == len(start.logits):
        return start.logits, start.continuation
    continuation = start.continuation.fork()
    continuation.keep(rows)
    return start.logits[rows], continuation


def _check(tree: TitleTree, top_n: int, beams: int) -> None:
    if not 1 <= top_n <= tree.num_items:
        raise ConfigError.one("top_n", top_n, f"must be within 1..{tree.num_items}, the catalogue's size")
    if beams < top_n:
        raise ConfigError.one("beams", beams, f"must be at least top_n = {top_n}", "raise it")


def _search(logits: Tensor, continuation: Continuation, tree: TitleTree, top_n: int, beams: int) -> _Found:
    """The best leaves of each of B prompts. b of them are still searched; ``rows`` says which."""
    count, device = len(logits), logits.device
    rows = torch.arange(count, device=device)
    root = torch.zeros(count, 1, dtype=torch.int64, device=device)
    live = _Beams(root, torch.zeros(count, 1, device=device), root)
    found = _Found(root.repeat(1, top_n), torch.full((count, top_n), _NEVER, device=device))
    best = _Found(*(part.clone() for part in found))
    following = logits.unsqueeze(1)
    while True:
        grown = _grow(live, following, tree)
        found = _collect(found, grown, tree)
        live = _narrow(_select(grown, _bar(found, tree), tree, beams))
        used = live.score > _NEVER
        going = used.any(dim=1)
        if isinstance(continuation, SharedCache):
            few = going & ((tree.below[live.node] * used).sum(dim=1) <= beams)
            going = going & ~few
            if few.any():
                last = few.nonzero().flatten()
                ended = _finish(_rows(live, last), _rows(found, last), continuation, last, tree)
                _put(found, last, ended)
        _put(best, rows[~going], _rows(found, ~going))
        if not going.any():
            return best
        if not going.all():
            kept = going.nonzero().flatten()
            continuation.keep(kept)
            rows, live, found = rows[kept], _narrow(_rows(live, kept)), _rows(found, kept)
        # an unused place may hold the root, whose token is none: any token will do there
        following = continuation.step(live.parent, tree.token[live.node].clamp(min=0))


def _finish(live: _Beams, found: _Found, continuation: SharedCache, rows: Tensor, tree: TitleTree) -> _Found:
    """Read all that is below the beams, which belong to these rows of the continuation, and collect the leaves."""
    below = read_order(tree, live.node, live.score > _NEVER)
    numbers = below.node.shape[1] * continuation.model.config.get_text_config().vocab_size
    done = []
    for part in torch.arange(len(rows), device=rows.device).split(max(1, _LOGITS // numbers)):
        ending = continuation.fork()
        ending.keep(rows[part])
        leaves = _read_leaves(_rows(live, part), _rows(below, part), ending, tree)
        done.append(_collect(_rows(found, part), leaves, tree))
    return _Found(*(torch.cat(parts) for parts in zip(*done, strict=True)))


def _read_leaves(live: _Beams, below: NodesBelow, ending: SharedCache, tree: TitleTree) -> _Beams:
    """The children of all nodes below the beams, with their scores, from one pass."""
    origin = below.origin
    logits = ending.read_below(live.parent.gather(1, origin), tree.token[below.node].clamp(min=0), below.above)
    score = live.score.gather(1, origin).masked_fill(~below.used, _NEVER)
    unscored = torch.zeros_like(score).masked_fill(~below.used, _NEVER)
    steps = _grow(_Beams(below.node, unscored, origin), logits, tree)
    # the children that are not leaves are, in the same order, the nodes below the beams themselves
    deeper = below.used & (below.depth > 0)
    again = (steps.node > 0) & ~tree.is_leaf(steps.node)
    total = score.gather(1, steps.parent) + steps.score
    for _ in range(int(below.depth.max())):
        score[deeper] = total[again]
        total = score.gather(1, steps.parent) + steps.score
    return _Beams(steps.node, total, steps.parent)


def _rows(parts: _T, rows: Tensor) -> _T:
    """The same rows of every tensor."""
    return type(parts)(*(part[rows] for part in parts))


def _put(whole: _Found, rows: Tensor, parts: _Found) -> None:
    for into, part in zip(whole, parts, strict=True):
        into[rows] = part


def _grow(beams: _Beams, logits: Tensor, tree: TitleTree) -> _Beams:
    """All children of all beams, in ascending order of their nodes; ``logits`` ``[b, K, vocabulary]`` follow the beams.

    Leaves among them are finished titles.
    """
    count, width = beams.node.shape
    used = (beams.score > _NEVER).flatten().nonzero().flatten()
    owner, node = tree.children_of(beams.node.flatten()[used])
    place = used[owner]
    chosen = logits.flatten(0, 1)[place, tree.token[node]].float()
    score = beams.score.flatten()[place] + chosen - _log_totals(logits).flatten()[place]
    return _pack(_Beams(node, score, place % width), place // width, count)


def _log_totals(logits: Tensor) -> Tensor:
    """log Σ exp over the vocabulary in float32, ``[b, K]``; no copy of all logits ``[b, K, vocabulary]`` is made."""
    parts = logits.split(max(1, _LOGITS // logits[0].numel()))
    return torch.cat([part.float().logsumexp(dim=2) for part in parts])


def _pack(flat: _Beams, row: Tensor, count: int) -> _Beams:
    """Flat entries ``[C]`` of rows ``[C]`` (ascending) as ``[count, widest row]``, in order, the rest unused."""
    sizes = torch.bincount(row, minlength=count)
    column = torch.arange(len(row), device=row.device) - (sizes.cumsum(0) - sizes)[row]
    shape = (count, int(sizes.max()))
    packed = _Beams(*(torch.zeros(shape, dtype=part.dtype, device=part.device) for part in flat))
    packed.score.fill_(_NEVER)
    for whole, part in zip(packed, flat, strict=True):
        whole[row, column] = part
    return packed


def _collect(found: _Found, grown: _Beams, tree: TitleTree) -> _Found:
    """The best leaves of those found before and those among the children; equal ones by smallest item id."""
    row, column = (tree.is_leaf(grown.node) & (grown.score > _NEVER)).nonzero(as_tuple=True)
    if not len(row):
        return found
    new = _pack(_Beams(grown.node[row, column], grown.score[row, column], column), row, len(grown.node))
    leaf, score = torch.cat([found.leaf, new.node], dim=1), torch.cat([found.score, new.score], dim=1)
    # an unused place holds the root and so gets the id of an item that is not its own: its score is -inf
    kept = _best_first(score, tree.first_item(leaf), found.leaf.shape[1])
    return _Found(leaf.gather(1, kept), score.gather(1, kept))


def _best_first(score: Tensor, item: Tensor, top_n: int) -> Tensor:
    """Columns of the ``top_n`` highest scores, equal ones by ascending item id: ``[b, n]`` twice → ``[b, top_n]``."""
    by_item = item.argsort(dim=1, stable=True)
    order = score.gather(1, by_item).argsort(dim=1, descending=True, stable=True)
    return by_item.gather(1, order[:, :top_n])


def _bar(found: _Found, tree: TitleTree) -> Tensor:
    """What a beam must reach to matter: the score of the N-th item, -inf while there are fewer than N. ``[b]``."""
    enough = (tree.item_count(found.leaf) * (found.score > _NEVER)).cumsum(dim=1) >= found.leaf.shape[1]
    return found.score.masked_fill(~enough, _NEVER).amax(dim=1)


def _select(grown: _Beams, bar: Tensor, tree: TitleTree, beams: int) -> _Beams:
    """The best ``beams`` unfinished children that can still matter, back in ascending order of their nodes."""
    hopeless = tree.is_leaf(grown.node) | (grown.score < bar.unsqueeze(1))
    score = grown.score.masked_fill(hopeless, _NEVER)
    best = score.argsort(dim=1, descending=True, stable=True)[:, :beams].sort(dim=1).values
    return _Beams(grown.node.gather(1, best), score.gather(1, best), grown.parent.gather(1, best))


def _narrow(live: _Beams) -> _Beams:
    """Used places first, in order, and no more columns than the fullest prompt needs."""
    used = live.score > _NEVER
    front = (~used).int().argsort(dim=1, stable=True)[:, : int(used.sum(dim=1).max())]
    return _Beams(*(part.gather(1, front) for part in live))


def _items(found: _Found, tree: TitleTree, top_n: int) -> BeamResult:
    """Leaves → the ``top_n`` best of their items."""
    used = (found.score > _NEVER).flatten().nonzero().flatten()
    place, item = tree.items_of(found.leaf.flatten()[used])
    row = used[place] // top_n
    every = _pack(_Beams(item, found.score.flatten()[used][place], place), row, len(found.leaf))
    if every.node.shape[1] < top_n or not torch.isfinite(every.score[:, :top_n]).all():
        raise TrainingFailed("the language model's logits are not finite; nothing can be ranked by them")
    order = _best_first(every.score, every.node, top_n)
    return BeamResult(every.node.gather(1, order), every.score.gather(1, order))
