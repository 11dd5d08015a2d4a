"""The log-probability of every title: the reference of the beam search, and for a small catalogue a way to rank it."""

from __future__ import annotations

from itertools import pairwise

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from src.core.errors import TrainingFailed
from src.teacher.ranking.continuation import Beams, Continuation, Gate, asking, no_gate, read_prompts
from src.teacher.ranking.title_tree import TitleTree


def score_all(
    llm: PreTrainedModel | PeftModel,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    tree: TitleTree,
    chunk: int = 128,
    gate: Gate = no_gate,
    hold: Beams = "auto",
) -> Tensor:
    """log P(title, end token | prompt) of every item, normalised over the whole vocabulary: ``[B, V]`` float32.

    Each prompt is read once, and within a chunk of ``chunk`` neighbouring titles each common prefix too: the tree is
    walked level by level. This asks the model about nearly every token of the catalogue for each prompt, so it pays
    where V is not far above the beams that a search would need. Memory grows with B · chunk.

    Raises ``ValueError`` when ``chunk`` is below 1, ``ModelError`` when the model has no language-model head,
    ``TrainingFailed`` when its logits are not finite.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}: must be at least 1")
    with asking(llm):
        start = read_prompts(llm, inputs_embeds, attention_mask, gate, hold, chunk * tree.depth)
        scores = torch.empty(len(attention_mask), tree.num_items, device=start.logits.device)
        following = start.logits.unsqueeze(1)
        for leaves in tree.leaves.split(chunk):
            _walk(scores, following, start.continuation.fork(), tree, leaves)
    if not torch.isfinite(scores).all():
        raise TrainingFailed("the language model's logits are not finite; nothing can be ranked by them")
    return scores


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
