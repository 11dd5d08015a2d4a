"""The teacher that writes: gated experts inside a causal language model, whose own head is the only one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from src.data.candidates import CandidateLists
from src.student.architectures.sasrec import SASRec
from src.teacher.backbone.gated_lora import GatedAdapters
from src.teacher.backbone.llm import LanguageModel
from src.teacher.backbone.projector import TokenMoments
from src.teacher.ilora_model import GatedTeacher
from src.teacher.prompts import PromptBatch
from src.teacher.settings import TeacherSettings
from src.teacher.title_lm.decoding.continuation import GateContext
from src.teacher.title_lm.prompts import IGNORED, Question, TitlePrompts


class AnswerForward(NamedTuple):
    """What the model expects where answers stand, over T tokens.

    ``logits`` ``[B, A, T]`` float32, ``labels`` ``[B, A]`` int64: a column is one place of the batch, and a label is
    -100 where that place is no part of a row's answer.
    """

    logits: Tensor
    labels: Tensor


class TitleTeacher(GatedTeacher):
    """iLoRA as published. Its trained parts are experts, projector and gate.

    ``candidates`` are the lists that training and its evaluation used, by split; they travel with the saved teacher.
    """

    prompts: TitlePrompts
    plain: Tensor

    def __init__(
        self,
        settings: TeacherSettings,
        language: LanguageModel,
        adapters: GatedAdapters,
        encoder: SASRec,
        gate: nn.Module,
        prompts: TitlePrompts,
    ) -> None:
        """As `GatedTeacher`; ``language`` has its language-model head (`with_language_head`)."""
        super().__init__(settings, language, adapters, encoder, gate, prompts)
        self.candidates: Mapping[str, CandidateLists] = {}
        table = self.causal_lm.get_input_embeddings()
        # the placeholder of a text-only prompt says nothing: it is the average token
        self.register_buffer("plain", TokenMoments.of(table).mean.to(table.weight.dtype), persistent=False)
        # the others have relative positions, which they find in the mask
        self._takes_positions = "position_ids" in inspect.signature(self.causal_lm.forward).parameters

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The language model with its head; it runs inside of `gated`, or with adapters off."""
        model: PreTrainedModel = self.llm.get_base_model()
        return model

    @contextmanager
    def gated(self, history: Tensor, length: Tensor, repeat: int = 1) -> Iterator[None]:
        """Mix the experts for some histories, for the block.

        Args:
            history: ``[B, L]``.
            length: ``[B]``.
            repeat: each one so often in a row, as beam search lays its beams out.
        """
        with self.scope(self.gate_weights(history, length).repeat_interleave(repeat, dim=0)):
            yield

    def gate_for(self, history: Tensor, length: Tensor) -> GateContext:
        """The context of a search's passes over the prompts of these histories, see `GateContext`."""
        gate_weights = self.gate_weights(history, length)
        return lambda sequences: self.scope(gate_weights[sequences])

    def embed_tokens(self, prompts: PromptBatch) -> Tensor:
        """``[B, S, D]``, as for every teacher; a text-only prompt's placeholders are the average token."""
        plain = prompts.token_ids == self.prompts.plain_id
        if not plain.any():
            return super().embed_tokens(prompts)
        # the projector has no part in it, not even a zero gradient: its optimiser must leave it alone (as published)
        words: Tensor = self.causal_lm.get_input_embeddings()(prompts.token_ids.masked_fill(plain, self.prompts.pad_id))
        return torch.where(plain.unsqueeze(2), self.plain, words)

    def forward(self, question: Question, target: Tensor, hybrid: bool = True) -> AnswerForward:
        """Compute logits where the answers stand behind their prompts, each from the tokens before it.

        Args:
            question: B prompts.
            target: ``[B]``, the items that are the answers.
            hybrid: whether prompts hold item embeddings.
        """
        # padded on the left all answers end in the last column: as many columns of logits as the longest answer has
        # tokens, and not the union of wherever answers stand
        batch = self.prompts.answered(question, target, hybrid, left=True)
        mask, labels = batch.prompts.attention_mask, batch.labels[:, 1:]
        places = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)
        inputs = {"inputs_embeds": self.embed_tokens(batch.prompts), "attention_mask": mask}
        if self._takes_positions:
            inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        with self.gated(question.history, question.length):
            # without the rest of the prompt's logits, which nobody needs and which would be the largest tensor of all
            logits = self.llm(**inputs, logits_to_keep=places).logits
        return AnswerForward(logits.float(), labels[:, places])

    def _states(self, embedded: Tensor, attention_mask: Tensor) -> Tensor:
        inner = self.causal_lm.base_model
        states: Tensor = inner(inputs_embeds=embedded, attention_mask=self._needed(attention_mask)).last_hidden_state
        return states

    def question(self, history: Tensor, length: Tensor, candidates: Tensor | None = None) -> Question:
        """Say what to ask about histories.

        Args:
            history: ``[B, L]``.
            length: ``[B]``.
            candidates: ``[B, n]``; None: those of `propose`, where prompts list any.
        """
        if candidates is None and self.settings.title.show_candidates:
            candidates = self.propose(history, length)
        return Question(history, length, candidates)

    @torch.no_grad()
    def propose(self, history: Tensor, length: Tensor) -> Tensor:
        """``[B, n]``: the frozen recommender's best items outside the history, best first.

        For rows whose target must stay unknown: a drawn list holds the target. Rows with fewer than n other items are
        filled up with V.
        """
        scores = self.encoder(history, length)
        seen = torch.zeros(len(scores), self.num_items + 1, dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(seen.scatter(1, history, value=True)[:, : self.num_items], float("-inf"))
        best = scores.topk(min(self.settings.title.candidates, self.num_items), dim=1)
        return best.indices.masked_fill(best.values == float("-inf"), self.num_items)

    def prompt_embeddings(
        self, history: Tensor, length: Tensor, candidates: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embed hybrid prompts to generate from; the model that reads them must run inside of `gated` (same histories).

        Args:
            history: ``[B, L]``.
            length: ``[B]``.
            candidates: see `question`.

        Returns:
            ``inputs_embeds`` ``[B, S, D]`` and ``attention_mask`` ``[B, S]``, padded on the left.
        """
        batch = self.prompts.ask(self.question(history, length, candidates))
        return self.embed_tokens(batch), batch.attention_mask

    def title_token_ids(self) -> list[list[int]]:
        """Each item's answer as token ids without the last, ``prompts.end_id``: V lists, equal for equal titles."""
        return [ids[:-1] for ids in self.prompts.answer_ids()]

    def cost(self, history: Tensor, length: Tensor) -> Tensor:
        """``[B]`` int64: prompt tokens beside the candidates, of which every row has as many."""
        return self.prompts.token_counts(Question(history, length, None))
