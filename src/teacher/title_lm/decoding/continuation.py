"""Prompts that were read once, and the many ways in which a search continues them.

Two ways to hold the beams of a prompt. *Expanded*: each beam is a sequence of its own with its own copy of the prompt's
key-value cache; any decoder can do it. *Shared*: the beams' tokens are all appended to the one cache of their prompt,
and a mask shows each of them the prompt and its own ancestors only (tree attention; SpecInfer, Miao et al.,
2024). The prompt then lies in memory once, and nothing is copied when beams are reordered.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple, Protocol

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from src.core.errors import ModelError

CacheMode = Literal["auto", "shared", "expanded"]
# families whose attention takes a mask of our own, with positions of our own (tests/teacher/test_ranking_families.py)
_SHARING = ("gemma", "gpt2", "llama", "mistral", "opt", "qwen2", "qwen3")
_MASKED = ("sdpa", "eager")


class GateContext(Protocol):
    """What a forward pass of the language model is wrapped in; no gate: `no_gate`."""

    def __call__(self, sequences: Tensor) -> AbstractContextManager[Any]:
        """The context of a pass whose row i belongs to prompt ``sequences[i]``; ``[R]`` int64, 0..B-1.

        A prompt may own several rows (its beams, next to each other) or none any more (its search is over). With gated
        adapters: ``lambda sequences: scope(gate_weights[sequences])``.
        """


def no_gate(sequences: Tensor) -> AbstractContextManager[None]:
    """Nothing to gate: a model without gated adapters."""
    return nullcontext()


class Continuation(Protocol):
    """B prompts, each continued by beams. b ≤ B prompts are still there; a step makes K beams of each."""

    def step(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Replace the beams: new beam k of a prompt is old beam ``parents[:, k]`` and the token ``tokens[:, k]``.

        Both ``[b, K]`` int64; before the first step the only old beam, 0, is the prompt itself. Returns the logits of
        what follows, ``[b, K, vocabulary]``, in the model's dtype.
        """

    def keep(self, rows: Tensor) -> None:
        """Go on with these of the b prompts only, ``[b']`` int64 in ascending order."""

    def fork(self) -> Continuation:
        """A second continuation from the same place; steps of one leave the other as it is."""


class ReadPrompts(NamedTuple):
    """``logits`` ``[B, vocabulary]`` of each prompt's next token, in the model's dtype, and how to go on."""

    logits: Tensor
    continuation: Continuation


def causal_model(llm: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The Hugging Face model itself; the adapters of a PEFT model are inside of it.

    Raises ``ModelError`` when it has no language-model head.
    """
    model: PreTrainedModel = llm.get_base_model() if isinstance(llm, PeftModel) else llm
    if model.get_output_embeddings() is None:
        raise ModelError.one(
            "teacher.llm", type(model).__name__, "has no language-model head", "load it with AutoModelForCausalLM"
        )
    return model


@contextmanager
def asking(llm: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Eval mode and no gradients for the block; the mode is then as it was."""
    training = llm.training
    llm.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        llm.train(training)


@contextmanager
def sharing(llm: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Inside of the block a model whose family could share prompts has an attention that takes a mask of our own.

    FlashAttention does not: a search is worth torch's scaled dot product for a while. It is then as it was.
    """
    model = causal_model(llm)
    before: str = model.config._attn_implementation
    if model.config.model_type not in _SHARING or before in _MASKED:
        yield
        return
    model.set_attn_implementation(_MASKED[0])
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def read_prompts(
    llm: PreTrainedModel | PeftModel,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    gate: GateContext,
    cache_mode: CacheMode = "auto",
    room: int = 0,
) -> ReadPrompts:
    """Read prompts once each, so that many continuations can follow.

    Args:
        llm: a causal language model, with its adapters or without.
        inputs_embeds: ``[B, S, D]``.
        attention_mask: ``[B, S]``, 1 for real tokens; padded on the left.
        gate: the context of the model's passes.
        cache_mode: how beams are held; *auto* shares the prompt where the model's family is known to allow it.
        room: how many tokens one prompt's beams may append in all; a model with a sliding window shares only if they
            fit into it.

    Raises:
        ModelError: sharing is asked of a model that cannot.
        ValueError: padding is not on the left.
    """
    model = causal_model(llm)
    if not attention_mask[:, -1].all():
        raise ValueError("prompts must be padded on the left: the last column of attention_mask holds zeros")
    # columns that are padding everywhere cost time and say nothing
    first = int(attention_mask.any(dim=0).int().argmax())
    embedded, mask = inputs_embeds[:, first:], attention_mask[:, first:].long()
    shares = can_share(model, mask.shape[1] + room)
    if cache_mode == "shared" and not shares:
        family = model.config.model_type
        raise ModelError.one(
            "cache_mode", cache_mode, f"{family} cannot share a prompt among beams here", "use expanded"
        )
    sequences = torch.arange(len(mask), device=mask.device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with gate(sequences):
        output = model(
            inputs_embeds=embedded,
            attention_mask=mask,
            use_cache=True,
            logits_to_keep=1,
            **_positions(model, positions),
        )
    kind: Callable[..., Continuation] = SharedCache if shares and cache_mode != "expanded" else ExpandedCache
    return ReadPrompts(output.logits[:, -1], kind(model, output.past_key_values, mask, sequences, gate))


def can_share(model: PreTrainedModel, length: int) -> bool:
    """Whether beams of this model can share a prompt, inside of `sharing`; ``length``: tokens that its cache would come
    to hold.
    """
    config = model.config
    if config.model_type not in _SHARING or config._attn_implementation not in _MASKED:
        return False
    layers = DynamicCache(config=config).layers
    return all(not layer.is_sliding or length < layer.get_max_length() for layer in layers)


def _positions(model: PreTrainedModel, positions: Tensor) -> dict[str, Tensor]:
    """Most models are told the positions; those with relative ones find them in the mask."""
    return {"position_ids": positions} if "position_ids" in inspect.signature(model.forward).parameters else {}


class _Prompts:
    """What both ways keep: the cache, the prompts' mask ``[b, S]``, and which prompts these are ``[b]``."""

    def __init__(
        self, model: PreTrainedModel, cache: Cache, mask: Tensor, sequences: Tensor, gate: GateContext
    ) -> None:
        self.model, self.cache, self.mask, self.sequences, self.gate = model, cache, mask, sequences, gate
        # the position of the next token
        self.position = mask.sum(dim=1)

    def _fork(self) -> Any:
        """A copy whose cache has layers of its own; a layer never changes its tensors, it takes new ones."""
        twin = copy.copy(self)
        twin.cache = copy.copy(self.cache)
        twin.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return twin

    def _keep(self, rows: Tensor) -> None:
        self.mask, self.sequences, self.position = self.mask[rows], self.sequences[rows], self.position[rows]


class ExpandedCache(_Prompts):
    """Each beam is a sequence of its own: the cache holds b·K rows, prompt by prompt."""

    def __init__(
        self, model: PreTrainedModel, cache: Cache, mask: Tensor, sequences: Tensor, gate: GateContext
    ) -> None:
        """Prompts as `read_prompts` read them."""
        super().__init__(model, cache, mask, sequences, gate)
        self.width = 1

    def step(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """See `Continuation.step`."""
        count, width = parents.shape
        if not self.width == width == 1:
            rows = torch.arange(count, device=parents.device).unsqueeze(1) * self.width + parents
            self.cache.reorder_cache(rows.flatten())
        self.width = width
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        with self.gate(self.sequences.repeat_interleave(width)):
            output = self.model(
                input_ids=tokens.reshape(-1, 1),
                attention_mask=self.mask.repeat_interleave(width, dim=0),
                past_key_values=self.cache,
                use_cache=True,
                **_positions(self.model, self.position.repeat_interleave(width).unsqueeze(1)),
            )
        self.position = self.position + 1
        logits: Tensor = output.logits
        return logits.view(count, width, -1)

    def keep(self, rows: Tensor) -> None:
        """See `Continuation.keep`."""
        own = torch.arange(self.width, device=rows.device)
        self.cache.reorder_cache((rows.unsqueeze(1) * self.width + own).flatten())
        self._keep(rows)

    def fork(self) -> ExpandedCache:
        """See `Continuation.fork`."""
        return self._fork()


class SharedCache(_Prompts):
    """All beams' tokens follow one another in the cache of their prompt; a mask tells them apart.

    ``seen`` ``[b, K, T]`` bool: which of the T tokens appended so far belong to each of the present beams.
    """

    def __init__(
        self, model: PreTrainedModel, cache: Cache, mask: Tensor, sequences: Tensor, gate: GateContext
    ) -> None:
        """Prompts as `read_prompts` read them."""
        super().__init__(model, cache, mask, sequences, gate)
        self.seen = torch.zeros(len(mask), 1, 0, dtype=torch.bool, device=mask.device)

    def step(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """See `Continuation.step`."""
        count, width = parents.shape
        itself = torch.eye(width, dtype=torch.bool, device=parents.device).expand(count, -1, -1)
        logits = self.read_below(parents, tokens, itself)
        self.position = self.position + 1
        return logits

    def read_below(self, beams: Tensor, tokens: Tensor, above: Tensor) -> Tensor:
        """Append whole trees of tokens below the present beams in one pass: the last thing that is asked of a prompt.

        Args:
            beams: ``[b, n]``, the beam that a token hangs below.
            tokens: ``[b, n]``.
            above: ``[b, n, n]`` bool: ``above[:, i, j]`` where token j is token i or one between it and its beam.

        Returns:
            ``[b, n, vocabulary]``: what follows each token.
        """
        inherited = self.seen.gather(1, beams.unsqueeze(2).expand(-1, -1, self.seen.shape[2]))
        self.seen = torch.cat([inherited, above], dim=2)
        visible = torch.cat([self.mask.bool().unsqueeze(1).expand(-1, beams.shape[1], -1), self.seen], dim=2)
        with self.gate(self.sequences):
            output = self.model(
                input_ids=tokens,
                attention_mask=_additive(visible.unsqueeze(1), self.model.dtype),
                past_key_values=self.cache,
                use_cache=True,
                position_ids=self.position.unsqueeze(1) + above.sum(dim=2) - 1,
            )
        logits: Tensor = output.logits
        return logits

    def keep(self, rows: Tensor) -> None:
        """See `Continuation.keep`."""
        self.cache.reorder_cache(rows)
        self.seen = self.seen[rows]
        self._keep(rows)

    def fork(self) -> SharedCache:
        """See `Continuation.fork`."""
        return self._fork()


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is added to attention scores: 0 where visible, the lowest number elsewhere."""
    hidden = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return hidden.masked_fill_(~visible, torch.finfo(dtype).min)
