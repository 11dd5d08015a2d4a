"""Free answers brought back to the catalogue: the items whose titles lie nearest to the answer.

That is BIGRec (Bao et al., 2023), whose distances DLLM2Rec (Cui et al., 2024) takes as its confidences: small is sure.

Answer and titles are embedded in the same way: the text alone, without a prompt and with the adapters switched off, so
that an answer that is a title has distance 0 to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.core.data_utils import ordered_batches
from src.core.errors import DataError, TrainingFailed
from src.teacher.ilora_model import mean_state
from src.teacher.prompts import encode_words, surrounding
from src.teacher.title_lm.decoding.continuation import GateContext, asking, causal_model, no_gate, read_prompts

_SHOWN = 5


def ground(
    llm: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    item_embeddings: Tensor,
    max_tokens: int,
    end_id: int,
    gate: GateContext = no_gate,
    batch_size: int = 64,
    longest_text: int | None = None,
) -> Tensor:
    """Answer prompts freely, and measure how far each answer lies from every title.

    An empty answer says nothing: it gets the mean of the item embeddings.

    Args:
        llm: a causal language model, with its adapters or without.
        tokenizer: its tokenizer.
        inputs_embeds: ``[B, S, D]``.
        attention_mask: ``[B, S]``, padded on the left.
        item_embeddings: ``[V, D]``, the titles through `embed_texts` with the same ``longest_text`` (or
            `GatedTeacher.embed_items`, with its ``title_tokens``), computed once for a catalogue.
        max_tokens: of an answer, at most.
        end_id: the token that ends one.
        gate: the context of the model's passes.
        batch_size: answers that are embedded at once.
        longest_text: tokens of an answer that are embedded, at most; None: all.

    Returns:
        Euclidean distances, ``[B, V]`` float32 ≥ 0.
    """
    tokens = generate(llm, inputs_embeds, attention_mask, max_tokens, end_id, gate)
    answers = [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in tokens]
    said = [row for row, answer in enumerate(answers) if answer]
    embedding = item_embeddings.mean(dim=0, keepdim=True).repeat(len(answers), 1)
    if said:
        spoken = [answers[row] for row in said]
        embedding[said] = embed_texts(llm, tokenizer, spoken, batch_size, longest_text)
    return distances(embedding, item_embeddings)


def distances(embedding: Tensor, item_embeddings: Tensor) -> Tensor:
    """Euclidean distances of embeddings ``[B, D]`` and ``[V, D]``, ``[B, V]``."""
    # the faster way, over a matrix product, loses the digits of small distances between long vectors
    return torch.cdist(embedding, item_embeddings, compute_mode="donot_use_mm_for_euclid_dist")


def generate(
    llm: PreTrainedModel | PeftModel,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    max_tokens: int,
    end_id: int,
    gate: GateContext = no_gate,
) -> list[list[int]]:
    """Write the most probable token, again and again. A prompt that has ended leaves the batch.

    Args:
        llm: a causal language model, with its adapters or without.
        inputs_embeds: ``[B, S, D]``.
        attention_mask: ``[B, S]``, padded on the left.
        max_tokens: of an answer, at most.
        end_id: the token that ends one, which is left out.
        gate: the context of the model's passes.

    Returns:
        B lists of token ids.

    Raises:
        ValueError: ``max_tokens`` is below 1.
        TrainingFailed: a logit is not a number.
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
    longest: int | None = None,
) -> Tensor:
    """Pass each text alone through the LLM, adapters off.

    Its embedding is the mean of the last layer's states over all tokens, those that the tokenizer puts around a text
    among them, as the item embeddings of the teacher outputs (BIGRec takes the last token's). Each different text is
    asked once, in batches of like length: equal texts have equal rows.

    Args:
        llm: a causal language model, with its adapters or without.
        tokenizer: its tokenizer.
        texts: n of them.
        batch_size: texts at once.
        longest: tokens of a text that are read, its special tokens not counted; None: all.

    Returns:
        ``[n, D]`` float32, on the model's device.

    Raises:
        DataError: there is no text, or a text is empty.
    """
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    ids = _tokens(tokenizer, list(places), longest)
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    model, parts = causal_model(llm), []
    with asking(llm), _without_adapters(llm):
        for rows in ordered_batches(len(ids), batch_size):
            parts.append(_embed(model, [ids[order[row]] for row in rows.tolist()]))
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


def _embed(model: PreTrainedModel, ids: Sequence[Sequence[int]]) -> Tensor:
    """One batch of token ids → ``[n, D]`` float32. Padding is on the right, where no token can see it."""
    device = model.get_input_embeddings().weight.device
    tokens = pad_sequence([torch.tensor(row) for row in ids], batch_first=True).to(device)
    sizes = torch.tensor([len(row) for row in ids], device=device)
    mask = (torch.arange(tokens.shape[1], device=device) < sizes.unsqueeze(1)).long()
    # the body without the head: logits over the vocabulary would be most of the memory; a decoder needs no mask here
    states = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    return mean_state(states, mask)


def _without_adapters(llm: PreTrainedModel | PeftModel) -> AbstractContextManager[Any]:
    return llm.disable_adapter() if isinstance(llm, PeftModel) else nullcontext()
