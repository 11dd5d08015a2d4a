"""The table that a search ends with."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from src.evaluation.comparison import Row, as_short_table


def rows() -> list[Row]:
    values = {"popularity": 0.1, "baseline": 0.2, "distilled": 0.25, "teacher": 0.15}
    splits = {"validation": 10, "test": 10, "validation sample": 5, "test sample": 5}
    return [
        Row(
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
