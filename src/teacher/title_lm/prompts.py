"""Prompts that show history and candidates as titles, and the answers that follow them, as tokens.

A prompt is what `text.fill` writes, without the space before a placeholder; it is put together from pieces that are
tokenised once, see `src.teacher.prompts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AddedToken, PreTrainedTokenizerBase

from src.core.data_utils import fingerprint
from src.core.errors import ConfigError, DataError, ModelError
from src.data.id_map import IdMap
from src.teacher.prompts import (
    COUNTED_AT_ONCE,
    PLACEHOLDER,
    PromptBatch,
    TitlePieces,
    encode,
    encode_words,
    pack_tokens,
    rectangle,
)
from src.teacher.settings import PromptSettings, TitleSettings
from src.teacher.title_lm.text import (
    ANSWER_END,
    CANDIDATES_MARK,
    CANDIDATES_SLOT,
    HISTORY_SLOT,
    HISTORY_TEMPLATE,
    PLAIN_MARK,
    SEPARATOR,
    TEMPLATE,
    split_slots,
)

IGNORED = -100  # transformers' label for tokens without a loss
_SHOWN = 5


class Question(NamedTuple):
    """B prompts to ask: history ``[B, L]`` of lengths ``[B]``; candidates ``[B, n]`` (V: none), or None for no list."""

    history: Tensor
    length: Tensor
    candidates: Tensor | None

    def of(self, rows: Tensor) -> Question:
        """The questions of these rows."""
        listed = None if self.candidates is None else self.candidates[rows]
        return Question(self.history[rows], self.length[rows], listed)


class AnsweredBatch(NamedTuple):
    """Prompts with their answers behind them; ``labels`` ``[B, S]`` hold the answers' tokens, -100 elsewhere."""

    prompts: PromptBatch
    labels: Tensor


class TitlePrompts(TitlePieces):
    """The catalogue as pieces of prompts and as answers. Nothing of it is trained or saved."""

    answers: Tensor
    answer_sizes: Tensor

    def __init__(
        self,
        id_map: IdMap,
        tokenizer: PreTrainedTokenizerBase,
        settings: PromptSettings,
        title: TitleSettings,
        context: int | None = None,
        template: str | None = None,
    ) -> None:
        """Tokenise titles, answers and the words between them; ``context`` is the most tokens that the model reads.

        Titles in a prompt are cut to ``settings.title_tokens``, answers are whole. Raises ``DataError`` for a missing
        title, for one longer than the context and for one of several lines, ``ConfigError`` when candidates, a history
        title and an answer do not fit, ``ModelError`` for a tokenizer that turns a title into nothing.
        """
        tokenizer.add_tokens([AddedToken(mark, special=True) for mark in (PLAIN_MARK, PLACEHOLDER, CANDIDATES_MARK)])
        super().__init__(id_map, tokenizer, settings)
        _require_lines(id_map)
        self.title, self.texts, self.raw_ids = title, id_map.titles, id_map.raw_ids
        self.plain_id, self.candidate_id = map(int, tokenizer.convert_tokens_to_ids([PLAIN_MARK, CANDIDATES_MARK]))
        words = split_slots(template or (TEMPLATE if title.show_candidates else HISTORY_TEMPLATE))
        self.slots = words[1::2]
        spoken = encode(tokenizer, [*(text.rstrip() for text in words[::2]), SEPARATOR])
        spoken[0] = [*self.before, *spoken[0]]
        # rows V+1…: the words between the slots, then the comma
        table = self.hold(spoken)
        self.words, self.comma = self.num_items + 1, len(table) - 1
        answers = self._answers(id_map)
        self.end_id = answers[0][-1]
        self.register_buffer("answer_sizes", torch.tensor([len(ids) for ids in answers]), persistent=False)
        self.register_buffer("answers", rectangle(answers), persistent=False)
        self._require_room(context, id_map, answers)
        self.fingerprint = fingerprint(settings, title.show_candidates, self.slots, table, answers, self.plain_id)

    def _answers(self, id_map: IdMap) -> list[list[int]]:
        """Each item's answer. Its last token ends it, and is no other answer's beginning: no answer starts another."""
        if self.title.answer == "as_released":
            newline = _newline(self.tokenizer)
            return [[*self.before, *ids, *newline] for ids in encode(self.tokenizer, id_map.titles)]
        end = self.tokenizer.eos_token_id
        tail = _newline(self.tokenizer) if end is None else [int(end)]
        return [[*ids, *tail] for ids in encode_words(self.tokenizer, id_map.titles)]

    def _require_room(self, context: int | None, id_map: IdMap, answers: Sequence[Sequence[int]]) -> None:
        sizes = (self.sizes[: self.num_items].sort(descending=True).values + self.sizes[self.comma]).tolist()
        shown = self.title.candidates if CANDIDATES_SLOT in self.slots else 0
        needed = int(self.sizes[self.words : self.comma].sum()) + sum(sizes[:shown]) + sizes[0]
        if needed > self.settings.max_tokens:
            raise ConfigError.one(
                "teacher.prompt.max_tokens",
                self.settings.max_tokens,
                f"a prompt with the {shown} longest titles as candidates and one of the history needs {needed} tokens",
                "raise it, or lower teacher.title.candidates or teacher.prompt.title_tokens",
            )
        longest = max(range(self.num_items), key=lambda item: len(answers[item]))
        most = len(answers[longest])
        if context is not None and most > context:
            raise DataError.one(
                f"title of {id_map.raw_ids[longest]}",
                id_map.titles[longest],
                f"has {most} tokens; the language model reads {context}",
                "shorten it, or use another model",
            )
        if context is not None and self.settings.max_tokens + most > context:
            raise ConfigError.one(
                "teacher.prompt.max_tokens",
                self.settings.max_tokens,
                f"with the longest answer ({most} tokens) exceeds the {context} that the language model reads",
                "lower it",
            )

    def _spoken(self) -> set[int]:
        return super()._spoken().union(*self.answer_ids())

    def _marks(self) -> set[int]:
        return super()._marks() | {self.plain_id, self.candidate_id}

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest answer, its end included."""
        return int(self.answer_sizes.max())

    def answer_ids(self) -> list[list[int]]:
        """Each item's answer as token ids, its end included: V lists."""
        return [row[:size] for row, size in zip(self.answers.tolist(), self.answer_sizes.tolist(), strict=True)]

    def choose(self, question: Question) -> tuple[Tensor, Tensor]:
        """Row numbers of `pieces` for each prompt, ``[B, n]``, and which of these columns are candidates, ``[n]``.

        Only the ``history_titles`` most recent titles enter, and of these the oldest give way until the prompt has at
        most ``max_tokens`` tokens; candidates never give way.
        """
        listed = question.candidates
        if listed is None or CANDIDATES_SLOT not in self.slots:
            listed = question.history[:, :0]
        parts = {
            HISTORY_SLOT: self._listed(question.history, self._kept(question, listed)),
            CANDIDATES_SLOT: self._listed(listed, listed != self.num_items),
        }
        row = question.length.new_full((len(question.length), 1), self.words)
        chosen, candidate = [row], [False]
        for place, slot in enumerate(self.slots, start=1):
            chosen += [parts[slot], row + place]
            candidate += [slot == CANDIDATES_SLOT] * parts[slot].shape[1] + [False]
        return torch.cat(chosen, dim=1), torch.tensor(candidate, device=row.device)

    def _kept(self, question: Question, listed: Tensor) -> Tensor:
        """``[B, L]`` bool: the titles of the history that enter."""
        comma = self.sizes[self.comma]
        taken = self._cost(listed).sum(dim=1) + self.sizes[self.words : self.comma].sum()
        # neither list has a comma before its first title
        room = self.settings.max_tokens - taken + comma * (1 + (listed != self.num_items).any(dim=1).long())
        place = torch.arange(question.history.shape[1], device=listed.device)
        recent = place >= (question.length.unsqueeze(1) - self.settings.history_titles)
        fits = self._cost(question.history).flip(1).cumsum(1).flip(1) <= room.unsqueeze(1)
        return recent & fits & (question.history != self.num_items)

    def _cost(self, items: Tensor) -> Tensor:
        """Tokens of each title with a comma; none where there is no item."""
        return self.sizes[items] + self.sizes[self.comma] * (items != self.num_items)

    def _listed(self, items: Tensor, kept: Tensor) -> Tensor:
        """``[B, 2n]`` row numbers: before each title that is kept, but the first, a comma."""
        later = kept & (kept.cumsum(dim=1) > 1)
        commas = torch.where(later, self.comma, self.num_items)
        return torch.stack([commas, torch.where(kept, items, self.num_items)], dim=2).flatten(1)

    def token_counts(self, question: Question) -> Tensor:
        """``[B]`` int64: tokens of each prompt. B may be a whole dataset: its rows are laid out in parts."""
        rows = torch.arange(len(question.length), device=question.length.device)
        parts = [question.of(part) for part in rows.split(COUNTED_AT_ONCE)]
        return torch.cat([self.sizes[self.choose(part)[0]].sum(dim=1) for part in parts])

    def _lay_out(self, question: Question, hybrid: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, which are real, and items behind placeholders (hybrid prompts only), each ``[B, n]``."""
        chosen, candidate = self.choose(question)
        tokens = self.pieces[chosen]
        real = torch.arange(tokens.shape[2], device=tokens.device) < self.sizes[chosen].unsqueeze(2)
        marked = real & (tokens == self.placeholder_id)
        items = torch.where(marked & hybrid, chosen.unsqueeze(2), self.num_items)
        own = (
            torch.where(candidate, self.candidate_id, self.placeholder_id)
            if hybrid
            else chosen.new_tensor(self.plain_id)
        )
        tokens = torch.where(marked, own.view(1, -1, 1), tokens)
        return tokens.flatten(1), real.flatten(1), items.flatten(1)

    def ask(self, question: Question, hybrid: bool = True, left: bool = True) -> PromptBatch:
        """Lay out prompts alone.

        Args:
            question: B prompts.
            hybrid: whether titles are followed by places for their embeddings.
            left: whether they are padded on the left, so that generation goes on from each prompt's last word.
        """
        tokens, real, items = self._lay_out(question, hybrid)
        (token_ids, packed), mask = pack_tokens(real, [(tokens, self.pad_id), (items, self.num_items)], left)
        return PromptBatch(token_ids, mask, packed)

    def answered(self, question: Question, target: Tensor, hybrid: bool = True, left: bool = False) -> AnsweredBatch:
        """Lay out prompts with their answers behind them; the labels are the answers' tokens (golden README §6).

        Args:
            question: B prompts.
            target: ``[B]``, the items that are the answers.
            hybrid: whether titles are followed by places for their embeddings.
            left: whether they are padded on the left, so that all answers end in the last column; else on the right, as
                published.
        """
        tokens, real, items = self._lay_out(question, hybrid)
        answers = self.answers[target]
        written = torch.arange(answers.shape[1], device=answers.device) < self.answer_sizes[target].unsqueeze(1)
        whole = torch.cat([tokens, answers], dim=1)
        labels = torch.cat([torch.full_like(tokens, IGNORED), answers], dim=1)
        items = torch.cat([items, torch.full_like(answers, self.num_items)], dim=1)
        columns = [(whole, self.pad_id), (items, self.num_items), (labels, IGNORED)]
        (token_ids, packed, learned), mask = pack_tokens(torch.cat([real, written], dim=1), columns, left)
        return AnsweredBatch(PromptBatch(token_ids, mask, packed), learned)

    def render(self, question: Question, hybrid: bool = True) -> list[str]:
        """The prompts as text, as the tokenizer reads its tokens back."""
        batch = self.ask(question, hybrid)
        real = [ids[mask.bool()].tolist() for ids, mask in zip(batch.token_ids, batch.attention_mask, strict=True)]
        return [str(self.tokenizer.decode(ids)) for ids in real]


def _require_lines(id_map: IdMap) -> None:
    """Only the first line of what is written counts as the answer, see `src.teacher.title_lm.text.first_line`."""
    broken = [raw for raw, title in zip(id_map.raw_ids, id_map.titles, strict=True) if ANSWER_END in title.strip()]
    if broken:
        raise DataError.one(
            "item titles",
            f"{len(broken)} of {id_map.num_items} have several lines (raw ids {', '.join(broken[:_SHOWN])})",
            "a written answer ends with its line, so that such a title could never be one",
            "put each title on one line in the dataset's files",
        )


def _newline(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a newline at the end of a text becomes."""
    plain, ended = encode(tokenizer, ["a", f"a{ANSWER_END}"])
    if ended[: len(plain)] != plain or len(ended) == len(plain):
        rule = "its tokenizer has no newline to end an answer with"
        step = "use another model, or one with an end-of-text token and teacher.title.answer=corrected"
        raise ModelError.one("teacher.llm", type(tokenizer).__name__, rule, step)
    return ended[len(plain) :]
