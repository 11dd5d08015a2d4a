"""The published text rules (golden README §6, §7): how a template is filled, and what an answer counts for.

Templates hold slots. In a hybrid prompt every title is followed by the placeholder of its embedding, in a text-only one
by a placeholder that stands for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from src.teacher.prompts import PLACEHOLDER as HISTORY_MARK

HISTORY_SLOT, CANDIDATES_SLOT, TARGET_SLOT = "[HistoryHere]", "[CansHere]", "[TargetHere]"
CANDIDATES_MARK, PLAIN_MARK, TARGET_MARK = "[CansEmb]", "[PH]", "[ItemEmb]"
SEPARATOR = ","
#: behind a published answer
ANSWER_END = "\n"

#: our own words
TEMPLATE = f"Picked one after the other: {HISTORY_SLOT}. One of these comes next: {CANDIDATES_SLOT}. The next pick:"
HISTORY_TEMPLATE = f"Picked one after the other: {HISTORY_SLOT}. The next pick:"


def split_slots(template: str) -> list[str]:
    """Words and slots in turn: even places are words (possibly none), odd ones a history or candidates slot."""
    return re.split(f"({re.escape(HISTORY_SLOT)}|{re.escape(CANDIDATES_SLOT)})", template)


def list_titles(titles: Sequence[str], mark: str) -> str:
    """Every title with its mark, joined by commas."""
    return f"{SEPARATOR} ".join(f"{title} {mark}" for title in titles)


def fill(template: str, history: Sequence[str], candidates: Sequence[str], target: str, hybrid: bool) -> str:
    """Fill a template's slots.

    Args:
        template: with slots.
        history: titles, oldest first.
        candidates: titles.
        target: a title; its slot is filled in hybrid prompts only (as published).
        hybrid: whether titles are followed by places for their embeddings.
    """
    fillings = {
        HISTORY_SLOT: list_titles(history, HISTORY_MARK if hybrid else PLAIN_MARK),
        CANDIDATES_SLOT: list_titles(candidates, CANDIDATES_MARK if hybrid else PLAIN_MARK),
        TARGET_SLOT: f"{target} {TARGET_MARK}" if hybrid else TARGET_SLOT,
    }
    # in one pass: a title that looks like a slot stays a title
    slots = "|".join(re.escape(slot) for slot in fillings)
    return re.sub(slots, lambda match: fillings[match[0]], template)


class Judgement(NamedTuple):
    """``valid``: the answer names exactly one candidate; ``correct``: and that is the target."""

    valid: bool
    correct: bool


def answer_of(text: str) -> str:
    """What of a generated text is the answer."""
    return text.strip().split(ANSWER_END)[0]


def judge_answer(answer: str, target: str, candidates: Sequence[str]) -> Judgement:
    """Judge whether an answer is valid and correct: a candidate is named when its title is a part of the answer.

    All are stripped and in lower case. As published, a title that contains another candidate's is never valid.

    Args:
        answer: what was written.
        target: the title that came next.
        candidates: the titles of the list.
    """
    said, wanted = answer.strip().lower(), target.strip().lower()
    named = [title for title in (title.strip().lower() for title in candidates) if title in said]
    return Judgement(len(named) == 1, named == [wanted])


class AnswerShares(NamedTuple):
    """Shares of answers.

    ``valid_ratio`` = valid / rows (ValidRatio); ``of_valid`` = correct / valid (published as HitRatio@1; 0 without a
    valid row); ``of_all`` = correct / rows, their product, by which the published training chooses its epoch.
    """

    valid_ratio: float
    of_valid: float
    of_all: float


def answer_hit_ratio(judgements: Sequence[Judgement]) -> AnswerShares:
    """The shares of answers that are items, and that hit, over all rows; raises ``ValueError`` for none."""
    if not judgements:
        raise ValueError("no rows to evaluate")
    rows, valid, correct = len(judgements), sum(j.valid for j in judgements), sum(j.correct for j in judgements)
    return AnswerShares(valid / rows, correct / valid if valid else 0.0, correct / rows)
