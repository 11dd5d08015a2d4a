"""From item files to the id map: titles as people write them, each item once, and items that only the log knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from src.core.errors import ConfigError, DataError, Problem
from src.core.logging import get_logger
from src.data.delimited import limited
from src.data.id_map import IdMap
from src.data.item_text import ItemTemplate, source_of
from src.data.settings import DatasetSettings
from src.data.titles import clean_title

_log = get_logger(__name__)

_SHOWN = 5


@dataclass(frozen=True)
class ItemRows:
    """What an item file says, a row an item: raw ids, titles (None: the file has no titles), and fields by name.

    ``places`` tells where each row stands, for messages; ``columns`` are all columns of the file.
    """

    label: str
    raw_ids: Sequence[str]
    titles: Sequence[str] | None
    fields: Mapping[str, Sequence[str]] = field(default_factory=dict)
    places: Sequence[str] = ()
    columns: Sequence[str] = ()

    def where(self, row: int) -> str:
        """A row as a person finds it."""
        return self.places[row] if self.places else f"{self.label} row {row}"

    def only(self, rows: Sequence[int]) -> ItemRows:
        """These rows, in this order; where they stand in the file is not kept."""
        return ItemRows(
            self.label,
            [self.raw_ids[row] for row in rows],
            None if self.titles is None else [self.titles[row] for row in rows],
            {name: [column[row] for row in rows] for name, column in self.fields.items()},
            (),
            self.columns,
        )


def wanted_fields(settings: DatasetSettings, columns: Sequence[str]) -> dict[str, str]:
    """The columns that ``item_text`` needs beside the title, by the names that the template gives them.

    Raises ``ConfigError`` for a field that the item file does not have.
    """
    names = [name for name in ItemTemplate.parse(settings.item_text).fields if name != "title"]
    found = {name: source_of(name, columns) for name in names}
    if missing := [name for name, column in found.items() if column is None]:
        step = f"the fields are {', '.join(dict.fromkeys(['title', *columns]))}"
        raise ConfigError([Problem("dataset.item_text", name, "is no field of the items", step) for name in missing])
    return {name: column for name, column in found.items() if column is not None}


def each_once(items: ItemRows) -> ItemRows:
    """Rows that say the same of the same item are one row, with a count; the file's order stays.

    Raises ``DataError`` for an item with two rows that differ, naming both.
    """
    first: dict[str, int] = {}
    repeated, problems = 0, []
    for row, raw in enumerate(items.raw_ids):
        if raw not in first:
            first[raw] = row
        elif _says(items, row) == _says(items, first[raw]):
            repeated += 1
        else:
            earlier = items.where(first[raw]).rpartition(" ")[2]
            rule = f"item_id is listed twice, with other words in line {earlier}"
            problems.append(Problem(items.where(row), raw, rule, "keep one line an item"))
    if problems:
        raise DataError(limited(problems, items.label))
    if not repeated:
        return items
    _log.warning("%s: %d lines repeat another one and count once", items.label, repeated)
    return items.only(list(first.values()))


def _says(items: ItemRows, row: int) -> tuple[str, ...]:
    title = "" if items.titles is None else items.titles[row]
    return (title, *(column[row] for column in items.fields.values()))


def build_id_map(items: ItemRows, settings: DatasetSettings, clean: bool = True) -> IdMap:
    """The items' id map: titles cleaned (counted in a line), untitled ones treated as the settings say, texts made.

    ``clean=False`` keeps titles byte for byte, as published loaders do. What ``untitled`` drops or refuses is left to
    whoever knows which items are used.

    Args:
        items: what the source says of each item.
        settings: how titles and texts are made.
        clean: whether titles are cleaned.
    """
    raw_ids = tuple(items.raw_ids)
    titles = list(items.titles) if items.titles is not None else [""] * len(raw_ids)
    if clean:
        titles = cleaned(items.label, titles)
    if settings.untitled == "id" and (empty := [place for place, title in enumerate(titles) if not title.strip()]):
        for place in empty:
            titles[place] = raw_ids[place]
        _log.warning("%s: %d items have no title and take their raw id (dataset.untitled=id)", items.label, len(empty))
    template = ItemTemplate.parse(settings.item_text)
    names = [name for name in template.fields if name != "title"]
    columns = {name: [_listed(clean_title(value)) for value in items.fields[name]] for name in names}
    if template.fields == ("title",) and settings.item_text == "{title}":
        return IdMap(raw_ids, tuple(titles))
    texts = tuple(
        template.render({"title": title, **{name: columns[name][place] for name in names}})
        for place, title in enumerate(titles)
    )
    return IdMap(raw_ids, tuple(titles), texts, {name: tuple(column) for name, column in columns.items()})


def _listed(value: str) -> str:
    """Values that a source separates by bars (``Action|Drama``) as people list them; a year without its ``.0``."""
    if value.endswith(".0") and value[:-2].isdecimal():
        return value[:-2]
    return ", ".join(part.strip() for part in value.split("|")) if "|" in value else value


def cleaned(label: str, titles: Sequence[str]) -> list[str]:
    """Titles as people write them (`clean_title`); lines count those that changed, and those that show nothing."""
    clean = [clean_title(title) for title in titles]
    missing = sum(not new and bool(old) for old, new in zip(titles, clean, strict=True))
    marked = sum(bool(new) and new != old.strip() for old, new in zip(titles, clean, strict=True))
    if missing:
        _log.warning("%s: %d titles show nothing (blank, invisible, nan, null) and count as missing", label, missing)
    if marked:
        _log.info("%s: %d titles held HTML or line breaks and are written as people write them", label, marked)
    return clean


def with_unlisted(items: ItemRows, raw_items: Sequence[str]) -> tuple[ItemRows, list[str]]:
    """The items of the file and, behind them, those of the log that it does not list, without title; and these."""
    known = set(items.raw_ids)
    unlisted = [raw for raw in raw_items if raw not in known]
    if not unlisted:
        return items, []
    empty = [""] * len(unlisted)
    rows = ItemRows(
        items.label,
        [*items.raw_ids, *unlisted],
        None if items.titles is None else [*items.titles, *empty],
        {name: [*column, *empty] for name, column in items.fields.items()},
        (),
        items.columns,
    )
    return rows, unlisted


def tell_unlisted(items: ItemRows, unlisted: Sequence[str], rows: int, settings: DatasetSettings) -> None:
    """One line about all items that only the log knows.

    Args:
        items: what the item file says.
        unlisted: raw ids that stand in the log alone.
        rows: interactions with them.
        settings: how untitled items are treated.
    """
    if unlisted:
        shown = ", ".join(unlisted[:_SHOWN]) + (", …" if len(unlisted) > _SHOWN else "")
        _log.warning(
            "%s does not list %s items of the log (%s; %s rows): they have no title (dataset.untitled=%s)",
            items.label, f"{len(unlisted):,}", shown, f"{rows:,}", settings.untitled,
        )  # fmt: skip
