"""Texts of items: a template over fields, whose missing fields go with their punctuation."""

from __future__ import annotations

import pytest

from src.core.errors import ConfigError
from src.data.item_text import ItemTemplate, source_of

TEMPLATE = ItemTemplate.parse("{title} ({year}), {genres}")


@pytest.mark.parametrize(
    ("title", "year", "genres", "text"),
    [
        ("Heat", "1995", "Crime, Drama", "Heat (1995), Crime, Drama"),
        ("Heat", "", "Drama", "Heat, Drama"),
        ("Heat", "1995", "", "Heat (1995)"),
        ("Heat", "", "", "Heat"),
        ("", "", "Drama", "Drama"),
        ("", "", "", ""),
    ],
)
def test_missing_fields_go_with_their_punctuation(title: str, year: str, genres: str, text: str) -> None:
    assert TEMPLATE.render({"title": title, "year": year, "genres": genres}) == text


def test_the_title_alone_is_the_title_to_the_byte() -> None:
    assert ItemTemplate.parse("{title}").render({"title": " , odd ( title"}) == " , odd ( title"


def test_words_belong_to_the_field_behind_them_and_the_end_stays() -> None:
    template = ItemTemplate.parse("Title: {title} by {author}. Genre: {genres}. {{sic}}")
    assert template.render({"title": "A", "author": "", "genres": "x"}) == "Title: A. Genre: x. {sic}"
    assert template.render({"title": "A", "author": "B", "genres": ""}) == "Title: A by B. {sic}"
    assert template.fields == ("title", "author", "genres")


@pytest.mark.parametrize("template", ["{title", "no field", "{title!r}", "{title:10}", "{0.x}", "{}", "{a b}"])
def test_templates_that_cannot_be_read(template: str) -> None:
    with pytest.raises(ConfigError, match=r"dataset.item_text = .*write it as '\{title\} \(\{year\}\), \{genres\}'"):
        ItemTemplate.parse(template)


def test_a_field_under_another_name() -> None:
    assert source_of("year", ["item_id", "release_year"]) == "release_year"
    assert source_of("genres", ["class", "genre"]) == "genre"
    assert source_of("Genres", ["GENRES"]) == "GENRES"
    assert source_of("price", ["item_id"]) is None
