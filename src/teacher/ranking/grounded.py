"""Free answers brought back to the catalogue: the items whose titles lie nearest to the answer.

That is BIGRec (Bao et al., 2023), whose distances DLLM2Rec (Cui et al., 2024) takes as its confidences: small is sure.

Answer and titles are embedded in the same way: the text alone, without a prompt and with the adapters switched off, so
that an answer that is a title has distance 0 to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.core.data_utils import ordered_batches
from src.core.errors import ConfigError, DataError, TrainingFailed
from src.teacher.ilora_model import mean_state
from src.teacher.prompts import encode_words, surrounding
from src.teacher.ranking.continuation import Gate, asking, causal_model, no_gate, read_prompts

Pooling = Literal["mean", "last"]
_SHOWN = 5


class Grounding(NamedTuple):
    """What B free answers mean in a catalogue of V items.

    ``items`` ``[B, N]`` int64, nearest first, equally near ones by ascending id; ``distances`` ``[B, N]`` float32 ≥ 0,
    Euclidean; ``embedding`` ``[B, D]`` float32: the answers' embeddings; ``answers``: B texts.
    """

    items: Tensor
    distances: Tensor
    embedding: Tensor
    answers: list[str]


def ground(
    llm: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    item_embeddings: Tensor,
    top_n: int,
    max_tokens: int,
    end_id: int,
    gate: Gate = no_gate,
    pooling: Pooling = "mean",
    batch_size: int = 64,
    longest_text: int | None = None,
) -> Grounding:
    """Answer prompts ``[B, S, D]`` with mask ``[B, S]`` (padding on the left) freely, and rank all items by distance.

    ``item_embeddings`` ``[V, D]``: the titles through `embed_texts` with the same ``pooling`` and ``longest_text`` (or
    `GatedTeacher.embed_items`, with its ``title_tokens``), computed once for a catalogue. An empty answer says nothing:
    it gets the mean of the item embeddings.

    Raises ``ConfigError`` when ``top_n`` is not within 1..V.
    """
    if not 1 <= top_n <= len(item_embeddings):
        rule = f"must be within 1..{len(item_embeddings)}, the catalogue's size"
        raise ConfigError.one("top_n", top_n, rule)
    tokens = generate(llm, inputs_embeds, attention_mask, max_tokens, end_id, gate)
    answers = [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in tokens]
    said = [row for row, answer in enumerate(answers) if answer]
    embedding = item_embeddings.mean(dim=0, keepdim=True).repeat(len(answers), 1)
    if said:
        spoken = [answers[row] for row in said]
        embedding[said] = embed_texts(llm, tokenizer, spoken, batch_size, pooling, longest_text)
    return Grounding(*nearest(embedding, item_embeddings, top_n), embedding, answers)


def nearest(embedding: Tensor, item_embeddings: Tensor, top_n: int) -> tuple[Tensor, Tensor]:
    """The ``top_n`` items nearest to embeddings ``[B, D]`` among ``[V, D]``, and their Euclidean distances.

    ``[B, top_n]`` twice, nearest first, equally near ones by ascending id.
    """
    # the faster way, over a matrix product, loses the digits of small distances between long vectors
    distances = torch.cdist(embedding, item_embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    order = distances.sort(dim=1, stable=True)
    return order.indices[:, :top_n], order.values[:, :top_n]


def generate(
    llm: PreTrainedModel | PeftModel,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    max_tokens: int,
    end_id: int,
    gate: Gate = no_gate,
) -> list[list[int]]:
    """The most probable token, again and again, until the end token (left out) or ``max_tokens``: B lists of token ids.

    Prompts ``[B, S, D]``, mask ``[B, S]`` with padding on the left. A prompt that has ended leaves the batch.

    Raises ``ValueError`` when ``max_tokens`` is below 1, ``TrainingFailed`` when a logit is not a number.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}: must be at least 1")
    count, device = len(attention_mask), attention_mask.device
    written = torch.full((count, max_tokens), end_id, device=device)
    rows = torch.arange(count, device=device)
    with asking(llm):
        logits, continuation = read_prompts(llm, inputs_embeds, attention_mask, gate, "expanded")
        for place in range(max_tokens):
            if torch.isnan(logits).any():
                raise TrainingFailed("the language model's logits are not numbers; it cannot answer")
            token = logits.argmax(dim=1)
            written[rows, place] = token
            going = token != end_id
            if not going.any() or place + 1 == max_tokens:
                break
            if not going.all():
                kept = going.nonzero().flatten()
                continuation.keep(kept)
                rows, token = rows[kept], token[kept]
            token = token.unsqueeze(1)
            logits = continuation.step(torch.zeros_like(token), token)[:, 0]
    return [ids[: ids.index(end_id)] if end_id in ids else ids for ids in written.tolist()]


def embed_texts(
    llm: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int,
    pooling: Pooling = "mean",
    longest: int | None = None,
) -> Tensor:
    """Each text alone through the LLM, adapters off: ``[n, D]`` float32, on the model's device.

    Only the first ``longest`` tokens of a text are read, its special tokens not counted; None: all.

    The last layer's states, their *mean* over all tokens, those that the tokenizer puts around a text among them (as
    the item embeddings of the teacher outputs), or that of the *last* token (as BIGRec). Each different text is asked
    once, in batches of like length: equal texts have equal rows.

    Raises ``DataError`` when there is no text or a text is empty.
    """
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    ids = _tokens(tokenizer, list(places), longest)
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    model, parts = causal_model(llm), []
    with asking(llm), _without_adapters(llm):
        for rows in ordered_batches(len(ids), batch_size):
            parts.append(_embed(model, [ids[order[row]] for row in rows.tolist()], pooling))
    embedded = torch.cat(parts)
    back = torch.empty(len(ids), dtype=torch.int64)
    back[torch.tensor(order)] = torch.arange(len(ids))
    return embedded[back[[places[text] for text in texts]].to(embedded.device)]


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], longest: int | None) -> list[list[int]]:
    """Token ids of titles as the teacher reads them: after a blank, between the tokenizer's special tokens."""
    plain = encode_words(tokenizer, texts) if texts else []
    silent = [text for text, ids in zip(texts, plain, strict=True) if not text.strip() or not ids]
    if silent or not plain:
        rule = "there is nothing in it that could be embedded"
        raise DataError.one("texts", silent[:_SHOWN], rule, "leave empty texts out")
    before, after = surrounding(tokenizer)
    return [[*before, *ids[:longest], *after] for ids in plain]


def _embed(model: PreTrainedModel, ids: Sequence[Sequence[int]], pooling: Pooling) -> Tensor:
    """One batch of token ids → ``[n, D]`` float32. Padding is on the right, where no token can see it."""
    device = model.get_input_embeddings().weight.device
    tokens = pad_sequence([torch.tensor(row) for row in ids], batch_first=True).to(device)
    sizes = torch.tensor([len(row) for row in ids], device=device)
    mask = (torch.arange(tokens.shape[1], device=device) < sizes.unsqueeze(1)).long()
    # the body without the head: logits over the vocabulary would be most of the memory
    states = model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
    if pooling == "mean":
        return mean_state(states, mask)
    last: Tensor = states[torch.arange(len(states), device=device), sizes - 1]
    return last.float()


def _without_adapters(llm: PreTrainedModel | PeftModel) -> AbstractContextManager[Any]:
    return llm.disable_adapter() if isinstance(llm, PeftModel) else nullcontext()
