"""The published text rules by hand; the published examples are under tests/golden."""

from __future__ import annotations

import pytest

from src.teacher.title_lm.text import (
    HISTORY_TEMPLATE,
    TEMPLATE,
    AnswerShares,
    Judgement,
    answer_hit_ratio,
    fill,
    judge_answer,
    split_slots,
)


def test_our_own_template_filled() -> None:
    text = fill(TEMPLATE, ["Heat", "M"], ["Alien"], "Alien", hybrid=True)
    assert text == (
        "Picked one after the other: Heat [HistoryEmb], M [HistoryEmb]. One of these comes next: Alien [CansEmb]. "
        "The next pick:"
    )
    assert fill(HISTORY_TEMPLATE, ["Heat"], ["Alien"], "Alien", hybrid=False) == (
        "Picked one after the other: Heat [PH]. The next pick:"
    )


def test_a_title_that_looks_like_a_slot_stays_a_title() -> None:
    assert fill("[HistoryHere] | [CansHere]", ["[CansHere]"], ["[HistoryHere]"], "", hybrid=False) == (
        "[CansHere] [PH] | [HistoryHere] [PH]"
    )


def test_the_targets_slot_is_filled_in_hybrid_prompts_only() -> None:
    assert fill("[TargetHere]", [], [], "Heat", hybrid=True) == "Heat [ItemEmb]"
    assert fill("[TargetHere]", [], [], "Heat", hybrid=False) == "[TargetHere]"


def test_words_and_slots_alternate() -> None:
    assert split_slots("[CansHere] after [HistoryHere]:") == ["", "[CansHere]", " after ", "[HistoryHere]", ":"]
    assert split_slots("nothing") == ["nothing"]


@pytest.mark.parametrize(
    ("answer", "target", "candidates", "wanted"),
    [
        (" HEAT ", "Heat", ["Heat", "M"], Judgement(True, True)),
        ("Heat", "Heat", ["Heat", "Alien"], Judgement(True, True)),
        ("I say: heat!", "Heat ", ["Heat", "Alien"], Judgement(True, True)),
        ("Alien", "Heat", ["Heat", "Alien"], Judgement(True, False)),
        ("Heat, Alien", "Heat", ["Heat", "Alien"], Judgement(False, False)),
        ("Brazil", "Heat", ["Heat", "Alien"], Judgement(False, False)),
        ("Aliens", "Aliens", ["Alien", "Aliens"], Judgement(False, False)),
        ("Alien", "Alien", ["Alien", "Aliens"], Judgement(True, True)),
        ("Heat", "Heat", ["Heat", "heat "], Judgement(False, False)),
    ],
)
def test_an_answer_counts_when_it_names_exactly_one_candidate(
    answer: str, target: str, candidates: list[str], wanted: Judgement
) -> None:
    assert judge_answer(answer, target, candidates) == wanted


def test_ratios_by_hand() -> None:
    rows = [Judgement(True, True)] * 2 + [Judgement(True, False)] + [Judgement(False, False)]
    assert answer_hit_ratio(rows) == AnswerShares(valid_ratio=3 / 4, of_valid=2 / 3, of_all=1 / 2)
    assert answer_hit_ratio([Judgement(False, False)]) == AnswerShares(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="no rows"):
        answer_hit_ratio([])
