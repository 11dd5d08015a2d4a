"""The table that a search ends with."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from src.evaluation.comparison import ComparisonRow, as_frame, as_short_table, as_table, metric_title, missing_row


def rows() -> list[ComparisonRow]:
    values = {"popularity": 0.1, "baseline": 0.2, "distilled": 0.25, "teacher": 0.15}
    splits = {"validation": 10, "test": 10, "validation sample": 5, "test sample": 5}
    return [
        ComparisonRow(
            model,
            split,
            examples,
            1 + (model == "distilled"),
            {"ndcg_5": 0.0, "ndcg_20": value, "recall_20": 2 * value},
        )
        for split, examples in splits.items()
        for model, value in values.items()
        if model != "teacher" or split.endswith("sample")
    ]


def shown(winner: str) -> tuple[list[list[str]], list[str]]:
    """The cells of each line, and the models whose line stands out."""
    table = as_short_table(rows(), 20, "t", winner)
    screen = StringIO()
    Console(width=120, file=screen).print(table)
    lines = [line.replace("┃", "│").split("│") for line in screen.getvalue().splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines if len(line) > 2]
    return cells, [cells[1 + place][0] for place, row in enumerate(table.rows) if row.style]


def test_a_model_has_one_line_and_the_winner_stands_out() -> None:
    cells, marked = shown("distilled")
    assert cells == [
        ["model", "trials", "NDCG@20 validation", "NDCG@20 test", "Recall@20 test"],
        ["popularity", "1", "0.1000", "0.1000", "0.2000"],
        ["baseline", "1", "0.2000", "0.2000", "0.4000"],
        ["distilled", "2", "0.2500", "0.2500", "0.5000"],
    ]
    assert marked == ["distilled"]


def test_a_teacher_is_shown_beside_the_others_on_its_sample() -> None:
    cells, marked = shown("teacher")
    assert cells[0][2:] == ["NDCG@20 validation sample", "NDCG@20 test sample", "Recall@20 test sample"]
    assert [line[0] for line in cells[1:]] == ["popularity", "baseline", "distilled", "teacher"]
    assert marked == ["teacher"]


def test_a_model_that_is_missing_has_its_row_and_its_reason() -> None:
    table = [*rows(), *(missing_row("ease", split, "needs 9 GB [of memory]") for split in ("validation", "test"))]
    for shown in (as_short_table(table, 20, "t", "distilled"), as_table(table, (5, 20), "t")):
        screen = StringIO()
        Console(width=120, file=screen).print(shown)
        lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in screen.getvalue().splitlines()]
        own = [cells for cells in lines if cells and cells[0] == "ease"]
        assert own
        assert all(set(cells[1:]) <= {"–", "validation", "test"} for cells in own)
        assert screen.getvalue().count("ease is missing: needs 9 GB [of memory]") == 1


def test_the_table_as_a_file_says_why_a_model_is_missing() -> None:
    whole = as_frame(rows())
    assert "missing" not in whole.columns
    frame = as_frame([*rows(), missing_row("ease", "test", "too many items")])
    assert frame.columns.tolist() == [*whole.columns, "missing"]
    assert frame.iloc[-1].dropna().to_dict() == {
        "model": "ease", "split": "test", "examples": 0, "trials": 0, "missing": "too many items"
    }  # fmt: skip
    assert frame.missing.isna().tolist() == [True] * len(whole) + [False]


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("ndcg_20", "NDCG@20"),
        ("hit_ratio_5", "HitRatio@5"),
        ("masked_ndcg_20", "NDCG@20 masked"),
        ("unmasked_ndcg_20", "NDCG@20 unmasked"),
        ("valid_ratio", "answers valid"),
        ("coverage_20", "Coverage@20"),
        ("seconds", "seconds"),
    ],
)
def test_metrics_have_their_usual_names(name: str, title: str) -> None:
    assert metric_title(name) == title
