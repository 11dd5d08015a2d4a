"""Segments by hand: who is in which, what is computed there, and what stays empty."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from src.evaluation.paired import compare, gain
from src.evaluation.segments import ExampleFacts, segments, segments_frame

FACTS = ExampleFacts(
    target_count=np.array([0, 1, 5, 6, 20, 21]),
    history_length=np.array([0, 2, 3, 5, 9, 10]),
    user=np.array([1, 1, 2, 2, 3, 4]),
    user_in_training=np.array([True, True, True, True, False, False]),
)
#: NDCG@3 of rank 1 is 1, of rank 3 is 1/2, of rank 4 is 0
BASE = np.array([4, 4, 3, 4, 1, 1])
ARM = np.array([1, 3, 3, 4, 3, 1])


def line(frame: pd.DataFrame, by: str, segment: str, model: str) -> dict:
    (found,) = frame[(frame.by == by) & (frame.segment == segment) & (frame.model == model)].to_dict("records")
    return found


def without_users(facts: ExampleFacts) -> ExampleFacts:
    nobody = np.full(len(facts.user), -1)
    return ExampleFacts(facts.target_count, facts.history_length, nobody, np.zeros(len(nobody), bool))


def test_each_example_is_in_its_segment() -> None:
    members = {(by, name): np.flatnonzero(inside).tolist() for by, name, inside in segments(FACTS)}
    assert members == {
        ("all", "all"): [0, 1, 2, 3, 4, 5],
        ("target frequency", "never"): [0],
        ("target frequency", "1-5"): [1, 2],
        ("target frequency", "6-20"): [3, 4],
        ("target frequency", "more than 20"): [5],
        ("history length", "0-2"): [0, 1],
        ("history length", "3-5"): [2, 3],
        ("history length", "6-9"): [4],
        ("history length", "10 or more"): [5],
        ("user", "in training"): [0, 1, 2, 3],
        ("user", "new"): [4, 5],
    }


def test_ndcg_and_gain_by_hand() -> None:
    frame = segments_frame({"student": BASE, "arm": ARM}, FACTS, "student", k=3, seed=0, resamples=200)
    assert list(frame.columns) == [
        "by", "segment", "examples", "users", "model", "seeds", "ndcg_3", "against", "gain", "low", "high", "resampled",
    ]  # fmt: skip
    assert len(frame) == 11 * 2
    whole = line(frame, "all", "all", "arm")
    assert (whole["ndcg_3"], whole["examples"], whole["users"]) == (pytest.approx(3.5 / 6), 6, 4)
    assert whole["gain"] == pytest.approx((1 + 1 / 2 + 0 + 0 - 1 / 2 + 0) / 6)
    assert line(frame, "all", "all", "student")["ndcg_3"] == pytest.approx(2.5 / 6)
    few = line(frame, "target frequency", "1-5", "arm")
    assert (few["ndcg_3"], few["gain"], few["resampled"]) == (1 / 2, 1 / 4, "users")
    # user 1 gains 1/2, user 2 nothing: drawn both 1/4, else one of them alone
    assert (few["low"], few["high"]) == (0.0, 1 / 2)
    new = line(frame, "user", "new", "arm")
    assert (new["ndcg_3"], new["gain"], new["users"]) == (3 / 4, -1 / 4, 2)


def test_the_interval_is_that_of_the_paired_comparison() -> None:
    generator = np.random.default_rng(3)
    n = 400
    facts = ExampleFacts(np.full(n, 3), np.full(n, 4), np.arange(n) % 37, np.ones(n, bool))
    ranks = {name: generator.integers(1, 40, n) for name in ("student", "arm")}
    frame = segments_frame(ranks, facts, "student", k=20, seed=0, resamples=4000)
    (found,) = compare({m: gain(r, 20)[None] for m, r in ranks.items()}, facts.user, "student", 4000, generator)
    for by, segment in (
        ("all", "all"),
        ("target frequency", "1-5"),
        ("history length", "3-5"),
        ("user", "in training"),
    ):
        told = line(frame, by, segment, "arm")
        assert told["gain"] == pytest.approx(found.difference)
        assert (told["low"], told["high"]) == pytest.approx((found.low, found.high), abs=0.1 * (found.high - found.low))


def test_what_a_segment_is_too_small_for_stays_empty() -> None:
    frame = segments_frame({"student": BASE, "arm": ARM}, FACTS, "student", k=3, seed=0, resamples=200)
    single = line(frame, "target frequency", "never", "arm")
    assert (single["examples"], single["ndcg_3"], single["gain"]) == (1, 1.0, 1.0)
    assert np.isnan([single["low"], single["high"]]).all()
    reference = line(frame, "all", "all", "student")
    assert np.isnan([reference["gain"], reference["low"], reference["high"]]).all()
    nobody = ExampleFacts(np.zeros(6, int), FACTS.history_length, FACTS.user, FACTS.user_in_training)
    frame = segments_frame({"student": BASE, "arm": ARM}, nobody, "student", k=3, seed=0, resamples=200)
    empty = line(frame, "target frequency", "1-5", "arm")
    assert empty["examples"] == 0
    assert np.isnan([empty["ndcg_3"], empty["gain"], empty["low"], empty["high"]]).all()


def test_a_source_without_users_has_no_segments_of_users_and_resamples_examples() -> None:
    ranks = {"student": BASE, "arm": ARM}
    frame = segments_frame(ranks, without_users(FACTS), "student", k=3, seed=0, resamples=200)
    assert set(frame.by) == {"all", "target frequency", "history length"}
    assert set(frame[frame.model == "arm"].resampled.dropna()) == {"examples"}
    assert set(frame.users) == {0}


def test_one_training_stands_against_each_seed_of_the_others() -> None:
    seeds = np.stack([ARM, BASE, BASE])
    frame = segments_frame({"popularity": BASE, "arm": seeds}, FACTS, "popularity", k=3, seed=0, resamples=200)
    found = line(frame, "all", "all", "arm")
    assert (found["seeds"], line(frame, "all", "all", "popularity")["seeds"]) == (3, 1)
    assert found["gain"] == pytest.approx(1 / 3 * 1 / 6)


def test_the_seed_decides_and_nothing_else() -> None:
    ranks = {"student": BASE, "arm": ARM}
    first, again, other = (segments_frame(ranks, FACTS, "student", 3, seed, 50) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


def test_input_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="'nobody' is not among"):
        segments_frame({"student": BASE}, FACTS, "nobody", 3, 0)
    with pytest.raises(ValueError, match="ranks of shapes"):
        segments_frame({"student": BASE, "arm": ARM[:3]}, FACTS, "student", 3, 0)
    with pytest.raises(ValueError, match="ranks of shapes"):
        segments_frame({"student": np.stack([BASE] * 2), "arm": np.stack([ARM] * 3)}, FACTS, "student", 3, 0)
    with pytest.raises(ValueError, match="facts of shapes"):
        ExampleFacts(np.zeros(2, int), np.zeros(3, int), np.zeros(3, int), np.zeros(3, bool))
