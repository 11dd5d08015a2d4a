"""iLoRA: a frozen language model whose LoRA experts are mixed per sequence (Kong et al., 2024).

The frozen SASRec turns a history into a user vector; the gate turns that into expert weights; under these weights the
language model reads the prompt, in which projected SASRec item embeddings stand at the placeholders. With an item head
the pooled state gives logits over the catalogue (here); without one the model writes a title (`src.teacher.title_lm`).
Trained: experts, gate, projector, head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from src.core.data_utils import fingerprint
from src.core.memory import in_parts
from src.student.architectures.sasrec import SASRec
from src.teacher.backbone.gated_lora import GatedAdapters
from src.teacher.backbone.llm import LanguageModel
from src.teacher.backbone.model_config import table_shape
from src.teacher.backbone.projector import Projector
from src.teacher.interfaces import TeacherForward
from src.teacher.labelling.labels import BATCH_SIZE_KEY, OUT_OF_MEMORY_ADVICE
from src.teacher.prompts import PromptBatch, Prompts, TitlePieces
from src.teacher.settings import TeacherSettings


class GatedTeacher(nn.Module):
    """What every teacher has. B histories of length L, S prompt tokens, D the LLM's width, V items, E experts."""

    prompts: TitlePieces

    def __init__(
        self,
        settings: TeacherSettings,
        language: LanguageModel,
        adapters: GatedAdapters,
        encoder: SASRec,
        gate: nn.Module,
        prompts: TitlePieces,
    ) -> None:
        """Put the parts together; the encoder is frozen here, the language model was by `inject`."""
        super().__init__()
        self.settings, self.language, self.scope = settings, language, adapters.scope
        self.llm = adapters.model
        self.encoder = encoder.eval().requires_grad_(False)
        self.gate = gate
        self.projector = Projector(encoder.item_embeddings.embedding_dim, language.embedding_size)
        self.prompts = prompts.require_rows(table_shape(language.model)[0])

    @property
    def num_items(self) -> int:
        """Number of items, V."""
        return self.encoder.num_items

    @property
    def device(self) -> torch.device:
        """The device that the teacher computes on."""
        return self.projector.inner.weight.device

    @property
    def small_parts(self) -> tuple[str, ...]:
        """Names of the trained modules beside the adapter, each saved in a file of its own."""
        return ("projector", "gate")

    def train(self, mode: bool = True) -> Self:
        """As usual, but the frozen encoder stays in eval mode (the published one leaks its dropout into the gate)."""
        super().train(mode)
        self.encoder.eval()
        return self

    def gate_weights(self, history: Tensor, length: Tensor) -> Tensor:
        """``[B, E]``: the experts' weights for each history."""
        with torch.no_grad():
            user = self.encoder.encode(history, length)
        weights: Tensor = self.gate(user)
        return weights

    def embed_tokens(self, prompts: PromptBatch) -> Tensor:
        """``[B, S, D]``: the LLM's token embeddings, with projected item embeddings at the placeholders."""
        placeholders = prompts.items != self.num_items
        # a placeholder's id may lie beyond the table: look up any other token there, it is overwritten
        table = self.llm.get_base_model().get_input_embeddings()
        embedded: Tensor = table(prompts.token_ids.masked_fill(placeholders, self.prompts.pad_id))
        projected = self.projector(self.encoder.item_embeddings(prompts.items[placeholders]))
        return embedded.masked_scatter(placeholders.unsqueeze(2), projected.to(embedded.dtype))

    def _states(self, embedded: Tensor, attention_mask: Tensor) -> Tensor:
        """``[B, S, D]`` of rows that are padded on the right."""
        mask = self._needed(attention_mask)
        states: Tensor = self.llm(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
        return states

    def _needed(self, attention_mask: Tensor) -> Tensor | None:
        """The mask, or None where no real token could see padding anyway: a decoder looks back, padding stands behind.

        Without a mask attention takes its fastest kernels, and nothing has to wait for the mask's content.
        """
        return None if self.language.is_decoder else attention_mask

    @torch.no_grad()
    def embed_items(self, batch_size: int) -> Tensor:
        """``[V, D]`` float32: each item's title through the LLM, adapters off; the mode is left as it was.

        The mean over the title's tokens, for decoders too: a decoder's last state speaks of what may follow a title.
        Out of memory halves the titles that are read at once; raises ``OutOfMemory`` when not even one fits.
        """
        training = self.training
        self.eval()
        order = self.prompts.sizes[: self.num_items].argsort(stable=True)
        rows = torch.empty(self.num_items, self.language.hidden_size, device=self.device)

        def embed(items: Tensor) -> None:
            rows[items] = self.embed_titles(items)

        in_parts(order, batch_size, embed, BATCH_SIZE_KEY, OUT_OF_MEMORY_ADVICE)
        self.train(training)
        return rows

    @torch.no_grad()
    def embed_titles(self, items: Tensor) -> Tensor:
        """``[B, D]`` float32: the titles of these items ``[B]`` alone, in one pass, adapters off."""
        batch = self.prompts.titles(items)
        with self.llm.disable_adapter():
            states = self._states(self.embed_tokens(batch), batch.attention_mask)
        return mean_state(states, batch.attention_mask)

    def fingerprints(self) -> Mapping[str, str]:
        """``model``: the LLM and all weights that were trained; ``prompt``: the questions it is asked.

        With the buffers of the trained parts (a gate's statistics); those of the LLM belong to its own fingerprint.
        """
        state = {name: value for name, value in self.named_parameters() if value.requires_grad}
        for part in self.small_parts:
            state |= {f"{part}.{name}": value for name, value in getattr(self, part).state_dict().items()}
        weights = [fingerprint(name, state[name]) for name in sorted(state)]
        return {"model": fingerprint(self.language.fingerprint, weights), "prompt": self.prompts.fingerprint}

    def parameter_groups(self) -> Mapping[str, list[nn.Parameter]]:
        """Exactly the parameters that are trained: ``experts``, ``projector``, ``gate``, and ``head`` where one is."""
        parts = {"experts": self.llm, **{name: getattr(self, name) for name in self.small_parts}}
        return {name: list(_trained(part)) for name, part in parts.items()}


class ILoRATeacher(GatedTeacher):
    """The teacher with an item head: logits over the catalogue."""

    prompts: Prompts

    def __init__(
        self,
        settings: TeacherSettings,
        language: LanguageModel,
        adapters: GatedAdapters,
        encoder: SASRec,
        gate: nn.Module,
        prompts: Prompts,
    ) -> None:
        """As `GatedTeacher`, and a freshly initialised head."""
        super().__init__(settings, language, adapters, encoder, gate, prompts)
        self.head = nn.Linear(language.hidden_size, encoder.num_items)

    @property
    def small_parts(self) -> tuple[str, ...]:
        """Projector, gate and head."""
        return (*super().small_parts, "head")

    def forward(self, history: Tensor, length: Tensor) -> TeacherForward:
        """Logits, sequence embeddings and gate weights for histories ``[B, L]`` of lengths ``[B]``."""
        gate_weights = self.gate_weights(history, length)
        prompts = self.prompts(history, length)
        with self.scope(gate_weights):
            states = self._states(self.embed_tokens(prompts), prompts.attention_mask)
        pooled = self._pool(states, prompts.attention_mask)
        return TeacherForward(self.head(pooled), pooled, gate_weights)

    def _pool(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """One float32 vector a sequence: the last real token's state (decoder), or the mean of all (encoder)."""
        if not self.language.is_decoder:
            return mean_state(states, attention_mask)
        last = attention_mask.sum(dim=1) - 1
        return states[torch.arange(len(states), device=states.device), last].float()

    def cost(self, history: Tensor, length: Tensor) -> Tensor:
        """``[B]`` int64: prompt tokens."""
        return self.prompts.token_counts(history, length)


def mean_state(states: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean over real tokens: ``[B, S, D]`` and ``[B, S]`` → ``[B, D]`` float32."""
    mask = attention_mask.unsqueeze(2)
    return (states.float() * mask).sum(dim=1) / mask.sum(dim=1)


def _trained(module: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in module.parameters() if parameter.requires_grad)
