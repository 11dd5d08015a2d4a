"""A teacher that writes titles, as a `Teacher` with a score for every item of the catalogue: two ways.

*Constrained*: log P(title, end | prompt) of the titles that a beam search finds, all others behind them. *Grounded*:
the title that it writes freely, brought back to the catalogue; an item's score is minus its distance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from src.core.logging import get_logger
from src.teacher.interfaces import TeacherForward
from src.teacher.labelling.labels import CatalogueLabeller, TopItems
from src.teacher.settings import ExportSettings, TeacherSettings
from src.teacher.title_lm.decoding.beam_search import beam_search
from src.teacher.title_lm.decoding.grounding import ground
from src.teacher.title_lm.decoding.title_tree import TitleTree
from src.teacher.title_lm.model import TitleTeacher
from src.teacher.title_lm.ranking_ways import ranking_way

_log = get_logger(__name__)

_SHOWN = 3
_COMPARED = 2  # titles of a dry run
#: the score of an item that was not listed: below all others, yet a number
UNLISTED = torch.finfo(torch.float32).min


class TitleScorer:
    """What both ways share. The sequence embedding is the state from which the answer's first token is chosen.

    That token is a title's own with ``title.answer = corrected``. Published answers all begin with the same one (the
    second begin-of-text token): with ``as_released`` the state foretells only that, and says less about the sequence.

    ``says``: what scores and distances mean, for the manifest.
    """

    says: Mapping[str, str]

    def __init__(self, writer: TitleTeacher, settings: ExportSettings) -> None:
        """Lay the titles out as a tree."""
        self.writer, self.settings = writer, settings
        self.tree = TitleTree.of(writer.title_token_ids(), writer.prompts.end_id).to(writer.device)

    def __call__(self, history: Tensor, length: Tensor) -> TeacherForward:
        """Scores of all items for histories ``[B, L]`` of lengths ``[B]``, asked as in `TitleTeacher.question`."""
        embedded, mask = self.writer.prompt_embeddings(history, length)
        with first_states(self.writer.causal_lm) as states:
            scores = self.scores(history, length, embedded, mask)
        return TeacherForward(scores, states[0].float(), self.writer.gate_weights(history, length))

    def scores(self, history: Tensor, length: Tensor, embedded: Tensor, mask: Tensor) -> Tensor:
        """Score all items; the first pass through the language model reads the prompts.

        Args:
            history: ``[B, L]``.
            length: ``[B]``.
            embedded: ``[B, S, D]``, the prompts.
            mask: ``[B, S]``, padded on the left.

        Returns:
            ``[B, V]`` float32, finite, at most 0.
        """
        raise NotImplementedError

    @property
    def num_items(self) -> int:
        """Number of items, V."""
        return self.writer.num_items

    @property
    def device(self) -> torch.device:
        """The device that histories are expected on."""
        return self.writer.device

    def cost(self, history: Tensor, length: Tensor) -> Tensor:
        """``[B]`` int64: prompt tokens beside the candidates."""
        return self.writer.cost(history, length)

    def fingerprints(self) -> Mapping[str, str]:
        """``model`` and ``prompt``."""
        return self.writer.fingerprints()

    def eval(self) -> Self:
        """Switch dropout and noise off."""
        self.writer.eval()
        return self

    def embed_items(self, batch_size: int) -> Tensor:
        """``[V, D]`` float32: each item's title through the LLM, adapters off; equal titles have equal rows."""
        rows = self.writer.embed_items(batch_size)
        for group in self.tree.duplicates():
            rows[list(group)] = rows[group[0]].clone()
        return rows

    def facts(self) -> Mapping[str, Any]:
        """What the manifest of labels says: the way of ranking, and titles that several items bear, by raw id."""
        title = self.writer.settings.title
        shown = f"the encoder's best {title.candidates} items outside the history" if title.show_candidates else "none"
        groups = self.tree.duplicates()
        raw_ids = self.writer.prompts.raw_ids
        return {
            **self.says,
            "candidates_in_the_prompt": shown,
            "duplicate_titles": {
                "titles": len(groups),
                "items": sum(map(len, groups)),
                "raw_ids": [[raw_ids[item] for item in group] for group in groups],
            },
        }

    def warn_of_duplicates(self) -> None:
        """Warn of titles that several items bear: the model cannot tell these items apart."""
        groups = self.tree.duplicates()
        if not groups:
            return
        raw_ids = self.writer.prompts.raw_ids
        shown = "; ".join(", ".join(raw_ids[item] for item in group) for group in groups[:_SHOWN])
        more = " …" if len(groups) > _SHOWN else ""
        items = sum(map(len, groups))
        _log.warning("titles of several items: %d, of %d items in all (raw ids %s%s)", len(groups), items, shown, more)


class ConstrainedScorer(TitleScorer):
    """The first ``listed`` items by beams along the title tree. Items that the search does not list share the lowest
    score: they rank behind all that are listed, and as ties count against a target, such a target ranks last.
    """

    says = {
        "ranking": "constrained",
        "scores": "log P(title, end token | prompt), by beam search over the titles",
        "distances": "-log P(title, end token | prompt)",
    }

    def __init__(self, writer: TitleTeacher, settings: ExportSettings, listed: int) -> None:
        """``listed`` items (all, in a smaller catalogue) are found by ``settings.beams`` beams, more where needed."""
        super().__init__(writer, settings)
        self.listed = min(listed, self.num_items)
        self.beams = max(settings.beams, self.listed)

    def scores(self, history: Tensor, length: Tensor, embedded: Tensor, mask: Tensor) -> Tensor:
        """Score the items that the beams list by their log-probability, all others below them."""
        gate = self.writer.gate_for(history, length)
        llm, at_once = self.writer.llm, self.settings.batch_size
        found = beam_search(llm, embedded, mask, self.tree, self.listed, self.beams, gate, at_once=at_once)
        scores = torch.full((len(history), self.num_items), UNLISTED, device=embedded.device)
        return scores.scatter(1, found.items, found.log_probability)


class GroundedScorer(TitleScorer):
    """All items by the distance of their titles to a free answer, in the space of the item embeddings."""

    says = {
        "ranking": "grounded",
        "scores": "minus the distance",
        "distances": "Euclidean distance of the embeddings of the written answer and the title, adapters off",
    }

    def __init__(self, writer: TitleTeacher, settings: ExportSettings) -> None:
        """Embed the titles, once."""
        super().__init__(writer, settings)
        self.items = super().embed_items(settings.batch_size)

    def embed_items(self, batch_size: int) -> Tensor:
        """As everywhere; what the answers were compared with."""
        return self.items

    def scores(self, history: Tensor, length: Tensor, embedded: Tensor, mask: Tensor) -> Tensor:
        """Score all items by minus the distance of their titles to what is written."""
        prompts, gate = self.writer.prompts, self.writer.gate_for(history, length)
        return -ground(
            self.writer.llm,
            prompts.tokenizer,
            embedded,
            mask,
            self.items,
            prompts.longest_answer,
            prompts.end_id,
            gate,
            batch_size=self.settings.batch_size,
            longest_text=prompts.settings.title_tokens,
        )


def ground_few(writer: TitleTeacher, history: Tensor, length: Tensor) -> None:
    """Write an answer to each history and compare it with a few titles alone.

    Args:
        writer: the teacher that writes.
        history: ``[B, L]``, padded with V.
        length: ``[B]``.
    """
    prompts = writer.prompts
    embedded, mask = writer.prompt_embeddings(history, length)
    items = writer.embed_titles(torch.arange(min(_COMPARED, writer.num_items), device=writer.device))
    gate = writer.gate_for(history, length)
    ground(writer.llm, prompts.tokenizer, embedded, mask, items, prompts.longest_answer, prompts.end_id, gate)


def title_labeller(writer: TitleTeacher, settings: TeacherSettings) -> CatalogueLabeller:
    """Label with the top N by the way of ranking that the settings name; equal scores by ascending id.

    Distances: −log P(title, end | prompt) of the constrained ranking, the embeddings' distance of the grounded one.
    Raises ``ConfigError`` when N exceeds the catalogue.
    """
    export = settings.export
    scorer = ranking_way(settings.ranking).scorer(writer, export, export.top_n)
    scorer.warn_of_duplicates()
    return CatalogueLabeller(scorer, export, best_first, scorer.facts())


def best_first(scores: Tensor, n: int) -> TopItems:
    """The n highest scores of ``[B, V]``, equal ones by ascending id."""
    order = scores.sort(dim=1, descending=True, stable=True)
    return TopItems(order.indices[:, :n], order.values[:, :n])


@contextmanager
def first_states(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Inside of the block the list gets one entry: the last column ``[B, D]`` of the first states that reach the head.

    ``model`` is a causal language model. A search does not return states, and one more pass over the prompts would
    double their cost. They are caught before the head: some families call their inner model part by part.
    """
    found: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if not found:
            found.append(arguments[0][:, -1])

    handle = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield found
    finally:
        handle.remove()
