"""The title rule, as it should be and as it was released."""

from __future__ import annotations

import pytest

from src.data.titles import move_article, movie_title


@pytest.mark.parametrize(
    ("field", "corrected", "released"),
    [
        ("Heat (1995)", "Heat", "Heat"),
        ("Full Monty, The (1997)", "The Full Monty", "The Full Monty"),
        ("Map of Dust, A (1984)", "A Map of Dust", "A Map of Dust"),
        ("Ember in Paris, An (1986)", "An Ember in Paris", "A Ember in Parisn"),
        ("Sky, Another (1990)", "Sky, Another", "A Skynother"),
        ("Ash, The River and The Fen, The (1989)", "The Ash, The River and The Fen", "The Ash River and The Fen"),
        ("unknown", "unknown", ""),
        (
            "Lost Children, The (Les enfants) (1995)",
            "The Lost Children (Les enfants)",
            "The Lost Children (Les enfants)",
        ),
        ("Valley, The (1995) (V)", "The Valley", "The Valley (19"),
        ("1984", "1984", ""),
    ],
)
def test_movie_titles(field: str, corrected: str, released: str) -> None:
    assert movie_title(field, "corrected") == corrected
    assert movie_title(field, "as_released") == released


def test_the_year_is_kept_on_request() -> None:
    assert movie_title("Full Monty, The (1997)", "corrected", keep_year=True) == "The Full Monty (1997)"
    assert movie_title("unknown", "corrected", keep_year=True) == "unknown"


def test_only_a_final_article_moves() -> None:
    assert move_article("Theory, The") == "The Theory"
    assert move_article("The Theory") == "The Theory"
    assert move_article("Salt, Ember & Co.") == "Salt, Ember & Co."
