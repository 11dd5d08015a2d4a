"""The one line that a single search ends with."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from src.evaluation.verdict import judge_search, read_sentences

USER = np.repeat(np.arange(50), 2)
POOR = np.full(100, 21)  # outside the first 20: NDCG@20 is 0
GOOD = np.where(np.arange(100) % 2, 1, 3)  # 1 and 1/2: 0.75


def test_it_helped_and_it_hurt() -> None:
    better = judge_search(GOOD, POOR, USER, k=20, seed=0, distilled=True)
    assert better.verdict == "helped"
    assert better.comparison is not None
    assert better.sentence == (
        "distillation helped: NDCG@20 0.7500 against 0.0000 (95 % interval +0.7500 to +0.7500, "
        "corrected p 0.0002, 1 seed, 50 users)."
    )
    worse = judge_search(POOR, GOOD, USER, k=20, seed=0, distilled=True, what="tuning")
    assert worse.verdict == "hurt"
    assert worse.sentence.startswith("tuning hurt: NDCG@20 0.0000 against 0.7500 (-100.0 %, 95 % interval -0.7500 to ")


def test_it_cannot_be_told() -> None:
    mixed = np.where(USER % 2, 1, 21)
    other = np.where(USER % 2, 21, 1)
    found = judge_search(mixed, other, USER, k=20, seed=0, distilled=True)
    assert found.verdict == "cannot be told"
    assert found.sentence.startswith("it cannot be told whether distillation helped: NDCG@20 0.5000 against 0.5000 (")
    same = judge_search(GOOD, GOOD, USER, k=20, seed=0, distilled=True)
    assert same.verdict == "cannot be told"


def test_it_was_not_distilled() -> None:
    found = judge_search(GOOD, GOOD, USER, k=20, seed=0, distilled=False)
    assert (found.verdict, found.comparison) == ("not distilled", None)
    assert found.sentence == (
        "not distilled: the setting without distillation won on validation "
        "(NDCG@20 0.7500, 95 % interval 0.7500 to 0.7500, 50 test users)."
    )


def test_a_source_without_users_counts_examples() -> None:
    nobody = np.full(100, -1)
    assert judge_search(GOOD, POOR, nobody, 20, 0, distilled=True).sentence.endswith(", 1 seed, 100 examples).")
    assert judge_search(GOOD, GOOD, nobody, 20, 0, distilled=False).sentence.endswith(", 100 test examples).")


def test_a_single_example_is_no_error_after_a_whole_search() -> None:
    one = np.array([1])
    found = judge_search(one, np.array([3]), one, k=20, seed=0, distilled=True)
    assert (found.verdict, found.comparison) == ("cannot be told", None)
    assert found.sentence == (
        "it cannot be told whether distillation helped: NDCG@20 1.0000 against 0.5000, on a single test example."
    )
    alone = judge_search(one, one, one, k=20, seed=0, distilled=False)
    assert alone.sentence.endswith("won on validation (NDCG@20 1.0000, 1 test example).")


def test_the_seed_decides_and_it_is_ready_for_json() -> None:
    draws = np.random.default_rng(1)
    ranks = draws.integers(1, 40, (2, 100))
    first, again, other = (judge_search(*ranks, USER, 20, seed, distilled=True) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert json.loads(json.dumps(asdict(first), allow_nan=False))["verdict"] == first.verdict


def test_ranks_of_other_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        judge_search(GOOD, GOOD[:3], USER, 20, 0, distilled=True)
    with pytest.raises(ValueError, match="at least one"):
        judge_search(GOOD[:0], GOOD[:0], USER[:0], 20, 0, distilled=True)


def test_a_sentence_that_reads_like_code_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "told_verdict").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "told_verdict" / "verdict.json"
    path.write_text(json.dumps({"against": {"baseline": {"sentence": "told_verdict: it helped."}}}))
    assert read_sentences(path) == ["told_verdict: it helped."]
