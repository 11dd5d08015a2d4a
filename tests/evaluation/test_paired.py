"""Paired comparisons by hand, against exact enumeration, and on worlds whose truth is known."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from src.core.errors import DataError
from src.evaluation.paired import PairedComparison, compare, gain, holm, mean_interval

USER = np.array([7, 7, 7, 2])  # ids are no positions: user 7 owns three examples, user 2 one


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def only(
    differences: Sequence[Sequence[float]], user: NDArray, resamples: int = 500, **more: object
) -> PairedComparison:
    """The comparison of an arm that exceeds the reference (all 1/2) by ``differences`` [S, N]."""
    base = np.full(np.shape(differences), 0.5)
    arms = {"student": base, "arm": base + np.asarray(differences)}
    (found,) = compare(arms, user, "student", resamples, rng(), **more)  # type: ignore[arg-type]
    return found


def exact(differences: Sequence[Sequence[int]], user: Sequence[int]) -> list[Fraction]:
    """The plain bootstrap's statistic in each of its equally likely resamples of users and seeds."""
    owners = sorted(set(user))
    of = {owner: [n for n, name in enumerate(user) if name == owner] for owner in owners}
    values = []
    for seeds in itertools.product(range(len(differences)), repeat=len(differences)):
        for drawn in itertools.product(owners, repeat=len(owners)):
            places = [n for owner in drawn for n in of[owner]]
            total = sum(differences[seed][n] for seed in seeds for n in places)
            values.append(Fraction(total, len(seeds) * len(places)))
    return values


# ------------------------------------------------------------------------------------------------------ small parts


def test_gain_is_ndcg_of_one_target_in_any_shape() -> None:
    found = gain(np.array([[1, 3], [7, 8]], dtype=np.int32), 7)
    assert found.tolist() == [[1.0, 1 / 2], [1 / 3, 0.0]]
    assert found.dtype == np.float64
    assert gain(np.array(3), 2) == 0


@pytest.mark.parametrize("ranks", [[0, 1], [-1], [1.5], [math.nan]])
def test_gain_refuses_what_is_no_rank(ranks: list[float]) -> None:
    with pytest.raises(ValueError, match="from 1 upwards"):
        gain(np.array(ranks), 5)


def test_gain_refuses_a_cutoff_below_one() -> None:
    with pytest.raises(ValueError, match="k = 0"):
        gain(np.array([1]), 0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([3 * 0.01, 2 * 0.03, 2 * 0.03])
    assert holm([0.5, 0.6, 0.001]) == pytest.approx([1.0, 1.0, 0.003])
    assert holm([0.2]) == [0.2]


# ------------------------------------------------------------------------------------------------- values by hand


def test_means_are_over_examples_not_over_users() -> None:
    arms = {"arm": np.array([[1, 1, 0, 1], [0, 1, 0, 0]]) / 1, "student": np.array([[1, 0, 0, 0], [0, 1, 0, 0]]) / 1}
    (found,) = compare(arms, USER, "student", 200, rng())
    assert (found.mean, found.mean_against) == (4 / 8, 2 / 8)
    assert found.difference == pytest.approx(2 / 8)
    assert found.relative == pytest.approx(1.0)
    assert (found.name, found.against) == ("arm", "student")
    assert (found.users, found.examples, found.seeds, found.resamples) == (2, 4, 2, 200)


def test_two_users_have_three_resamples() -> None:
    # user 7: three examples of +2/10; user 2: one of -1/10. Drawn both: (6 - 1) / 40
    found = only([[0.2, 0.2, 0.2, -0.1]], USER, 20_000)
    assert found.difference == pytest.approx(5 / 40)
    assert (found.low, found.high) == pytest.approx((-1 / 10, 2 / 10))
    assert found.p == pytest.approx(2 * 1 / 4, abs=2 * 4 * math.sqrt(3 / 16 / 20_000))  # only (2, 2) is not above zero


def test_resamples_are_the_exact_distribution_of_users_crossed_with_seeds() -> None:
    differences, user = [[3, -1, 2, 0, 4], [5, 2, -4, -6, 1]], [0, 0, 1, 2, 2]
    values = exact(differences, user)
    assert len(values) == 2**2 * 3**3
    below, above = (Fraction(sum(side), len(values)) for side in ([v <= 0 for v in values], [v >= 0 for v in values]))
    p = 2 * float(min(below, above))
    resamples = 100_000
    found = only(differences, np.array(user), resamples, stretch_seeds=False)
    assert 0.2 < p < 0.9  # far enough from both ends to be a test
    assert found.p == pytest.approx(p, abs=4 * math.sqrt(p * (2 - p) / resamples))
    ordered = sorted(values)
    for level in (0.95, 0.8, 0.5):
        at = only(differences, np.array(user), resamples, stretch_seeds=False, level=level)
        for bound, share in ((at.low, (1 - level) / 2), (at.high, (1 + level) / 2)):
            near = [ordered[round(share * len(ordered) + step) - 1] for step in (-1, 0, 1, 2)]
            assert float(min(near)) - 1e-9 <= bound <= float(max(near)) + 1e-9


def test_the_smallest_p_is_two_over_resamples_plus_one() -> None:
    found = only([[0.1, 0.2, 0.1, 0.3]], USER, 199)
    assert found.p == pytest.approx(2 / 200)
    assert found.verdict == "helped"


def test_holm_and_bonferroni_cover_the_whole_family() -> None:
    user = np.arange(40)
    noise = rng(1).normal(size=(4, 1, 40))
    arms = {"student": np.zeros((1, 40))} | {f"arm {a}": noise[a] + a / 5 for a in range(4)}
    family = compare(arms, user, "student", 2_000, rng())
    assert [c.name for c in family] == ["arm 0", "arm 1", "arm 2", "arm 3"]
    assert [c.p_corrected for c in family] == holm([c.p for c in family])
    alone = compare(arms, user, "student", 2_000, rng(), level=1 - 0.05 / 4)
    for c, wide in zip(family, alone, strict=True):
        assert (c.low_all, c.high_all) == pytest.approx((wide.low, wide.high))
        assert c.low_all < c.low < c.high < c.high_all


def test_an_arm_in_the_family_changes_no_other_arms_resamples() -> None:
    user, noise = np.arange(30) % 9, rng(1).normal(size=(3, 5, 30))
    arms = {"student": noise[0], "arm": noise[1]}
    (alone,) = compare(arms, user, "student", 300, rng())
    together = compare({**arms, "other": noise[2]}, user, "student", 300, rng())
    assert (together[0].low, together[0].high, together[0].p) == pytest.approx((alone.low, alone.high, alone.p))


def test_a_family_member_needs_more_evidence_than_a_lone_arm() -> None:
    user, noise = np.arange(60), rng(1).normal(size=(1, 60))
    shift = 2.2 / math.sqrt(60)  # 2.2 standard errors: p near 0.03
    arms = {"student": np.zeros((1, 60)), "arm": (noise - noise.mean()) / noise.std() + shift}
    (alone,) = compare(arms, user, "student", 5_000, rng())
    fillers = {f"idle {a}": np.zeros((1, 60)) for a in range(3)}
    together = compare({**arms, **fillers}, user, "student", 5_000, rng())[0]
    assert (alone.verdict, together.verdict) == ("helped", "cannot be told")
    assert together.low > 0 > together.low_all


# ---------------------------------------------------------------------------------------------------- what it is for


def test_identical_arms_differ_by_nothing() -> None:
    same = rng(1).random((5, 4))
    (found,) = compare({"student": same, "copy": same.copy()}, USER, "student", 300, rng())
    assert (found.difference, found.low, found.high, found.relative) == (0, 0, 0, 0)
    assert (found.p, found.p_corrected, found.verdict) == (1, 1, "cannot be told")


@pytest.mark.parametrize("sign", [1, -1])
def test_a_difference_that_is_only_rounding_is_a_tie(sign: int) -> None:
    # three users of +3/10, one of -1/10: drawn once and thrice (12 of 256 resamples) they cancel, but not in floats
    found = only([[sign * 0.3, sign * 0.3, sign * 0.3, -sign * 0.1]], np.arange(4), 20_000)
    p = 2 * (12 + 1) / 256
    assert found.p == pytest.approx(p, abs=4 * math.sqrt(p * (2 - p) / 20_000))


def test_swapping_the_arms_flips_the_answer() -> None:
    noise = rng(1).normal(size=(2, 5, 80))
    user = np.arange(80) % 13
    arms = {"a": noise[0] + 2, "b": noise[1] + 1}
    (better,) = compare(arms, user, "b", 1_000, rng())
    (worse,) = compare(arms, user, "a", 1_000, rng())
    assert (better.verdict, worse.verdict) == ("helped", "hurt")
    assert worse.difference == pytest.approx(-better.difference)
    assert (worse.low, worse.high, worse.low_all) == pytest.approx((-better.high, -better.low, -better.high_all))
    assert worse.p == pytest.approx(better.p)


def test_one_heavy_user_widens_the_interval() -> None:
    # user 0 owns 90 % of the examples and alone gains
    user = np.array([0] * 90 + list(range(1, 11)))
    differences = [np.where(user == 0, 0.2, -0.2) + rng(1).normal(0, 0.01, 100)]
    by_user, by_example = (only(differences, owners, 2_000) for owners in (user, np.arange(100)))
    assert by_user.difference == by_example.difference
    assert by_user.high - by_user.low > 2 * (by_example.high - by_example.low)
    assert (by_user.verdict, by_example.verdict) == ("cannot be told", "helped")


def test_a_seed_is_the_same_in_both_arms_of_a_pair() -> None:
    lucky = np.array([0.0, 0.3, -0.2, 0.1, 0.6])[:, None] + np.zeros((5, 4))
    (found,) = compare({"student": lucky, "arm": lucky + 1 / 100}, USER, "student", 500, rng())
    assert (found.low, found.high) == pytest.approx((1 / 100, 1 / 100))
    assert found.verdict == "helped"
    _, low, high = mean_interval(lucky, USER, 500, rng())
    assert high - low > 0.3


def test_seeds_that_disagree_widen_the_interval() -> None:
    user = np.arange(50)
    agreeing = np.full((5, 50), 0.1) + rng(1).normal(0, 0.05, 50)
    disagreeing = agreeing + np.array([0.3, -0.3, 0.2, -0.2, 0.0])[:, None]
    narrow, wide = only(agreeing, user), only(disagreeing, user)
    assert wide.difference == pytest.approx(narrow.difference)
    assert (narrow.verdict, wide.verdict) == ("helped", "cannot be told")


def test_five_seeds_of_one_sign_are_not_yet_proof() -> None:
    # the plain bootstrap never leaves the side of zero that all five seeds are on, whatever their spread
    differences = np.array([0.01, 0.02, 0.3, 0.5, 0.02])[:, None] + np.zeros((5, 20))
    plain = only(differences, np.arange(20), 2_000, stretch_seeds=False)
    assert (plain.p, plain.verdict) == (pytest.approx(2 / 2_001), "helped")
    stretched = only(differences, np.arange(20), 2_000)
    # Student's t with 4 degrees of freedom: 0.17 / (0.2194 / √5) = 1.73, two-sided p 0.158
    assert stretched.p == pytest.approx(0.158, abs=0.05)
    assert stretched.verdict == "cannot be told"


def test_one_seed_resamples_users_only() -> None:
    user, differences = np.arange(12) % 4, rng(1).normal(size=(1, 12))
    once, repeated = only(differences, user, 2_000), only(np.repeat(differences, 3, axis=0), user, 2_000)
    assert once.seeds == 1
    assert (once.low, once.high) == pytest.approx((repeated.low, repeated.high), abs=0.05)
    assert "1 seed," in once.sentence()


def test_the_generator_decides_and_nothing_else() -> None:
    user, noise = rng(2).integers(0, 20, 100), rng(1).normal(size=(2, 5, 100))
    arms = {"student": noise[0], "arm": noise[1]}
    assert compare(arms, user, "student", 400, rng(3)) == compare(arms, user, "student", 400, rng(3))
    assert compare(arms, user, "student", 400, rng(3)) != compare(arms, user, "student", 400, rng(4))
    assert mean_interval(noise[0], user, 400, rng(3)) == mean_interval(noise[0], user, 400, rng(3))


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    user, differences = np.arange(40) % 11, rng(1).normal(size=(3, 40))
    whole = only(differences, user, 500)
    monkeypatch.setattr("src.evaluation.paired._CELLS", 77)
    blocks = only(differences, user, 500)
    assert (blocks.low, blocks.high, blocks.p) == pytest.approx((whole.low, whole.high, whole.p))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """60 users of unequal size who differ, 5 seeds that differ; the true difference of all four arms is 0."""
    world, arms, worlds = rng(5), 4, 150
    held = told = 0
    for _ in range(worlds):
        user = np.repeat(np.arange(60), world.integers(1, 8, 60))
        shape = (arms, 5, len(user))
        truth = world.normal(0, 0.3, (arms, 1, 60))[:, :, user] + world.normal(0, 0.1, (arms, 5, 1))
        scores = {f"arm {a}": d for a, d in enumerate(truth + world.normal(0, 1, shape))}
        family = compare({"student": np.zeros(shape[1:]), **scores}, user, "student", 300, world)
        held += sum(c.low <= 0 <= c.high for c in family)
        told += any(c.verdict != "cannot be told" for c in family)
    assert 0.92 <= held / (worlds * arms) <= 1
    assert told / worlds <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / worlds)


def test_an_effect_that_is_there_is_found() -> None:
    world = rng(5)
    user = np.repeat(np.arange(60), 4)
    found = only(0.3 + world.normal(0, 0.3, 60)[user] + world.normal(0, 0.3, (5, 240)), user)
    assert found.verdict == "helped"
    assert 0.15 < found.low < 0.3 < found.high < 0.45


def test_the_mean_of_one_arm_by_hand() -> None:
    mean, low, high = mean_interval(np.array([[1.0, 1.0, 1.0, 0.0]]), USER, 2_000, rng())
    assert (mean, low, high) == (3 / 4, 0, 1)  # user 7 alone, user 2 alone, or both
    constant = mean_interval(np.full((5, 4), 0.25), USER, 100, rng())
    assert constant == pytest.approx((1 / 4, 1 / 4, 1 / 4))


# -------------------------------------------------------------------------------------------------------- sentences

TOLD = PairedComparison(
    name="student + ranking",
    against="student",
    metric="NDCG@20",
    mean=0.0801,
    mean_against=0.0723,
    difference=0.0078,
    low=0.0041,
    high=0.0113,
    low_all=0.0030,
    high_all=0.0125,
    relative=0.0078 / 0.0723,
    p=0.0005,
    p_corrected=0.002,
    verdict="helped",
    level=0.95,
    users=189,
    examples=9_000,
    seeds=5,
    resamples=10_000,
)
BRACKETS = "(+10.8 %, 95 % interval +0.0041 to +0.0113, corrected p 0.002, 5 seeds, 189 users)."


def test_a_sentence_for_each_verdict() -> None:
    values = f"NDCG@20 0.0801 against 0.0723 {BRACKETS}"
    assert TOLD.sentence() == f"student + ranking helped: {values}"
    assert replace(TOLD, verdict="hurt").sentence() == f"student + ranking hurt: {values}"
    unclear = replace(TOLD, verdict="cannot be told")
    assert unclear.sentence() == f"it cannot be told whether student + ranking helped: {values}"


def test_a_sentence_has_no_negative_zero_and_no_power_of_ten() -> None:
    odd = replace(TOLD, low=-0.000001, p_corrected=0.00002, relative=-0.00001).sentence()
    assert "(+0.0 %, 95 % interval +0.0000 to +0.0113, corrected p below 0.0001, " in odd


def test_a_reference_of_zero_has_no_relative_difference() -> None:
    arms = {"student": np.zeros((1, 4)), "arm": np.array([[0.1, 0.2, 0.1, 0.3]])}
    (found,) = compare(arms, USER, "student", 300, rng(), metric="NDCG@5")
    assert found.relative is None
    assert "NDCG@5 0.1750 against 0.0000 (95 % interval" in found.sentence()


def test_a_comparison_is_ready_for_json() -> None:
    found = only([[0.2, 0.2, 0.2, -0.1]], USER)
    assert PairedComparison(**json.loads(json.dumps(asdict(found), allow_nan=False))) == found


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arms", "reference", "message"),
    [
        ({"a": np.zeros((2, 4)), "b": np.zeros((3, 4))}, "a", r"arms of different shapes: .*'b': \(3, 4\)"),
        ({"a": np.zeros((2, 4)), "b": np.zeros((2, 4))}, "c", r"'c' is not among \['a', 'b'\]"),
        ({"a": np.zeros((2, 4))}, "a", "'a' is the only arm"),
        ({"a": np.zeros(4), "b": np.zeros(4)}, "a", r"scores \(4,\)"),
        ({"a": np.zeros((0, 4)), "b": np.zeros((0, 4))}, "a", "at least one seed and example"),
        ({"a": np.zeros((2, 5)), "b": np.zeros((2, 5))}, "a", r"user \(4,\)"),
        ({"a": np.zeros((1, 4)), "b": np.array([[0, np.nan, 0, np.inf]])}, "a", "b: 2 of 4 scores are not finite"),
    ],
)
def test_input_without_an_answer_is_refused(arms: Mapping[str, NDArray], reference: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(arms, USER, reference, 100, rng())


def test_no_examples_are_refused() -> None:
    empty = np.zeros((2, 0))
    with pytest.raises(ValueError, match="at least one seed and example"):
        compare({"a": empty, "b": empty}, np.zeros(0), "a", 100, rng())
    with pytest.raises(ValueError, match="at least one seed and example"):
        mean_interval(empty, np.zeros(0), 100, rng())


@pytest.mark.parametrize(("resamples", "level"), [(0, 0.95), (100, 0.0), (100, 1.0), (100, 95.0)])
def test_numbers_out_of_range_are_refused(resamples: int, level: float) -> None:
    with pytest.raises(ValueError, match=f"resamples = {resamples}, level = {level}"):
        mean_interval(np.zeros((1, 4)), USER, resamples, rng(), level)


@pytest.mark.parametrize(("user", "named"), [([-1, -1, -1, -1], 0), ([4, 4, 4, 4], 1)])
def test_examples_are_resampled_where_there_are_no_two_users(user: list[int], named: int) -> None:
    """DLLM2Rec's and LLaRA's files name no users: their comparison must not end with an error after all trials."""
    noise = rng(1).normal(size=(2, 3, 4))
    arms = {"student": noise[0], "arm": noise[1]}
    (found,) = compare(arms, np.array(user), "student", 500, rng())
    (each,) = compare(arms, np.arange(4), "student", 500, rng())
    assert (found.resampled, found.users, found.examples) == ("examples", named, 4)
    assert (each.resampled, each.users, each.examples) == ("users", 4, 4)
    assert (found.low, found.high, found.p) == (each.low, each.high, each.p)
    assert found.sentence().endswith(", 3 seeds, 4 examples).")
    assert each.sentence().endswith(", 3 seeds, 4 users).")
    assert mean_interval(noise[0], np.array(user), 500, rng()) == mean_interval(noise[0], np.arange(4), 500, rng())


def test_one_example_has_no_interval() -> None:
    arms = {"student": np.zeros((5, 1)), "arm": np.ones((5, 1))}
    with pytest.raises(DataError, match="test examples = 1: .* at least two of them → evaluate"):
        compare(arms, np.array([4]), "student", 100, rng())
