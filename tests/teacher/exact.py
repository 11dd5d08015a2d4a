"""The log-probability of every title, from as many passes as that takes: what the beam search is compared with."""

from __future__ import annotations

from itertools import pairwise

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from src.core.errors import TrainingFailed
from src.teacher.title_lm.decoding.beam_search import BeamResult
from src.teacher.title_lm.decoding.continuation import (
    CacheMode,
    Continuation,
    GateContext,
    asking,
    no_gate,
    read_prompts,
    sharing,
)
from src.teacher.title_lm.decoding.title_tree import TitleTree


def score_all(
    llm: PreTrainedModel | PeftModel,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    tree: TitleTree,
    chunk: int = 128,
    gate: GateContext = no_gate,
    cache_mode: CacheMode = "auto",
) -> Tensor:
    """log P(title, end token | prompt) of every item, normalised over the whole vocabulary: ``[B, V]`` float32.

    Each prompt is read once, and within a chunk of ``chunk`` titles each common prefix too: the tree is walked level by
    level. Raises ``ModelError`` and ``TrainingFailed`` as the search does.
    """
    with asking(llm), sharing(llm):
        start = read_prompts(llm, inputs_embeds, attention_mask, gate, cache_mode, chunk * tree.depth)
        scores = torch.empty(len(attention_mask), tree.num_items, device=start.logits.device)
        following = start.logits.unsqueeze(1)
        for leaves in leaves_of(tree).split(chunk):
            _walk(scores, following, start.continuation.fork(), tree, leaves)
    if not torch.isfinite(scores).all():
        raise TrainingFailed("the language model's logits are not finite; nothing can be ranked by them")
    return scores


def leaves_of(tree: TitleTree) -> Tensor:
    """All leaves, ascending."""
    return tree.is_leaf(torch.arange(tree.num_nodes, device=tree.token.device)).nonzero().flatten()


def rank_all(scores: Tensor, top_n: int) -> BeamResult:
    """The ``top_n`` best of scores ``[B, V]`` (from `score_all`), equal ones by ascending id."""
    order = scores.sort(dim=1, descending=True, stable=True)
    return BeamResult(order.indices[:, :top_n], order.values[:, :top_n])


def _walk(scores: Tensor, following: Tensor, continuation: Continuation, tree: TitleTree, leaves: Tensor) -> None:
    """Write the scores of the items below ``leaves`` into ``scores`` ``[B, V]``."""
    count = len(scores)
    asked = torch.zeros(1, dtype=torch.int64, device=leaves.device)
    total = torch.zeros(count, 1, device=leaves.device)
    for nodes in _levels(tree, leaves):
        parent = torch.searchsorted(asked, tree.parent[nodes])
        logits = following.float()
        chosen = logits[:, parent, tree.token[nodes]] - logits.logsumexp(dim=2)[:, parent]
        total = total[:, parent] + chosen
        ends = tree.is_leaf(nodes)
        place, items = tree.items_of(nodes[ends])
        scores[:, items] = total[:, ends][:, place]
        if ends.all():
            return
        asked, total, parent = nodes[~ends], total[:, ~ends], parent[~ends]
        following = continuation.step(parent.expand(count, -1), tree.token[asked].expand(count, -1))


def _levels(tree: TitleTree, leaves: Tensor) -> list[Tensor]:
    """The leaves and all nodes above them, ascending, level by level below the root."""
    first = torch.tensor(tree.levels).cumsum(0)
    nodes, ahead = leaves, [leaves]
    while len(nodes):
        above = tree.parent[nodes]
        nodes = above[above > 0].unique()
        ahead.append(nodes)
    every = torch.cat(ahead).unique()
    bounds = torch.searchsorted(every, first.to(every.device)).tolist()
    return [every[low:high] for low, high in pairwise(bounds) if high > low]
