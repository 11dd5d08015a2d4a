"""A range whose end no memory holds is refused before a search begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.core.errors import ConfigError
from src.pipeline import preflight
from src.tuning.preflight import check_searched_sizes
from src.tuning.search_space import CategoricalParameter, FloatParameter, IntParameter, SearchSpace
from tests.pipeline.toy import toy_stages


def space(high: int, blocks: list[int | float | str | bool]) -> SearchSpace:
    """Widths from 8, numbers of blocks, and what is no size."""
    return SearchSpace(
        "student",
        {"ndcg_20": "maximize"},
        {
            "student.width": IntParameter(type="int", low=8, high=high, step=8),
            "student.blocks": CategoricalParameter(type="categorical", choices=blocks),
            "student.dropout": FloatParameter(type="float", low=0.0, high=0.5),
        },
    )


def test_an_end_that_no_memory_holds_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 20 items of 256 histories at a width of 8, and a network that is small beside them, take 0.2 MB
    monkeypatch.setattr(preflight, "memory_of", lambda device: 10**6)
    stages = toy_stages(tmp_path)
    check_searched_sizes(space(16, [1, 2]), stages.settings, stages)
    with pytest.raises(ConfigError) as caught:
        check_searched_sizes(space(4096, [1, 100]), stages.settings, stages)
    told = [(problem.field, problem.value) for problem in caught.value.problems]
    assert told == [("search space: student.width", 4096), ("search space: student.blocks", 100)]
    assert all("24 items, and there are 1.0 MB in all" in problem.rule for problem in caught.value.problems)
    assert caught.value.problems[0].next_step == "lower the bound, or leave it out"
