"""A fair comparison of a source that names no users: DLLM2Rec's and LLaRA's files, say."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from src.tuning.fair import ScoredModel, compare_arms
from src.tuning.fair_document import arms_table
from tests.tuning.test_fair import Toy


def test_arms_are_compared_by_examples_where_there_are_no_users(tmp_path: Path) -> None:
    fair = Toy(tmp_path / "result").run()
    ranks = np.array([[1, 2, 3, 4], [2, 2, 3, 4]])
    models = [
        ScoredModel("student", "student", ranks + 1, 0.1, 3, uses_llm=False),
        ScoredModel("embedding", "student + embedding", ranks, 0.2, 3, uses_llm=True),
    ]
    answer = compare_arms(fair, models, np.full(4, -1), 200)
    assert (answer["users"], answer["examples"]) == (0, 4)
    for family in ("comparisons", "comparisons_with_best"):
        (line,) = answer[family]
        assert (line["name"], line["resampled"], line["users"]) == ("embedding", "examples", 0)
        assert line["sentence"].endswith(", 2 seeds, 4 examples).")
    assert arms_table({**answer, "missing": {}}).title == "the arms on 4 test examples"
