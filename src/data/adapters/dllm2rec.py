"""DLLM2Rec's data folder: ``data/<name>/`` with ``train_data``, ``val_data``, ``test_data`` and ``data_statis``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from src.core.errors import DataError, Problem
from src.data.adapters.registry import Adapter, register
from src.data.catalogue import ItemRows, build_id_map
from src.data.columns import guess
from src.data.delimited import limited, read_text, split_records
from src.data.event_log import plain_id
from src.data.pre_split import PreSplit
from src.data.sequence_table import read_columns, read_sequence_table
from src.data.settings import DatasetSettings
from src.data.titles import movie_title

READS = frozenset({"titles_file"})

#: No catalogue has more items; a file that says so is damaged.
MOST_ITEMS = 1 << 31

_TABLES = {"train": "train_data", "validation": "val_data", "test": "test_data"}


def load(settings: DatasetSettings) -> PreSplit:
    """Read the three tables (``.df`` or ``.csv``) and the catalogue's size; titles come from ``root/<titles_file>``.

    Row i of ``train_data`` has ``example_id`` i: it is row i of the teacher's text files.
    """
    folder = settings.root / "data" / settings.name
    if not folder.is_dir():
        step = "dataset.root must hold data/<dataset.name>/"
        raise DataError.one("folder", str(folder), "does not exist", step)
    num_items = _num_items(folder)
    titles = ("",) * num_items
    if settings.titles_file is not None:
        titles = read_titles(settings.root / settings.titles_file, num_items)
    label = str(folder if settings.titles_file is None else settings.root / settings.titles_file)
    id_map = build_id_map(ItemRows(label, list(map(str, range(num_items))), titles), settings)
    tables = {split: read_sequence_table(folder, stem, num_items) for split, stem in _TABLES.items()}
    return PreSplit(settings.name, id_map, tables)


def _num_items(folder: Path) -> int:
    columns = read_columns(folder, "data_statis")
    values = columns.get("item_num", [])
    try:
        number = float(values[0])
        if number != int(number) or not 1 <= number <= MOST_ITEMS:
            raise ValueError
    except (IndexError, ValueError, TypeError, OverflowError):
        rule = "must have a column item_num with one whole number, the number of items"
        raise DataError.one(f"{folder / 'data_statis'} item_num", values[:3], rule) from None
    return int(number)


def read_titles(path: Path, num_items: int) -> tuple[str, ...]:
    """Titles of items 0..V-1 from a JSON list or object, a CSV ``id,title``, ``id::name`` or ``name TAB id``.

    Items that are left out have the title ``""``.

    Raises ``DataError`` for ids outside the catalogue, an id with two titles and a list of another length.
    """
    step = "check dataset.titles_file, a path under dataset.root"
    pairs = _pairs(path, read_text(path, next_step=step, fallback="iso-8859-1"), num_items)
    titles = [""] * num_items
    said: dict[int, str] = {}
    problems = []
    for place, raw, title in pairs:
        number = plain_id(raw)
        if not (number.isdecimal() and int(number) < num_items):
            problems.append(Problem(place, raw, f"is outside the catalogue 0..{num_items - 1}"))
            continue
        item = int(number)
        if said.setdefault(item, title) != title:
            problems.append(Problem(place, raw, f"has another title already, {said[item]!r}", "keep one title an item"))
        titles[item] = title.strip()
    if problems:
        raise DataError(limited(problems, str(path)))
    return tuple(titles)


def _pairs(path: Path, text: str, num_items: int) -> list[tuple[str, str, str]]:
    """(where, id, title) of each entry, in whichever of the known forms the file is."""
    if path.suffix == ".csv":
        return _csv_pairs(path, text)
    if not text.lstrip().startswith(("[", "{")) and (pairs := _line_pairs(path, text)):
        return pairs
    try:
        content: Any = json.loads(text)
    except json.JSONDecodeError as error:
        step = "known are a JSON list, {id: title}, CSV id,title (named .csv), id::name, and name TAB id"
        raise DataError.one(
            f"{path} line {error.lineno}", error.msg, "must be JSON, or a file named .csv", step
        ) from None
    except RecursionError:
        raise DataError.one(str(path), text[:60], "must be a list of titles or an object {id: title}") from None
    if isinstance(content, list):
        if len(content) != num_items:
            raise DataError.one(str(path), len(content), f"must list {num_items} titles, one an item")
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        raise DataError.one(str(path), type(content).__name__, "must be a list of titles or an object {id: title}")
    if wrong := [raw for raw, title in content.items() if isinstance(title, (dict, list))]:
        shown = str(content[wrong[0]])[:60]
        raise DataError.one(f"{path} entry {wrong[0]}", shown, "must be a title, text or null")
    return [(f"{path} entry {raw}", str(raw), "" if title is None else str(title)) for raw, title in content.items()]


def _csv_pairs(path: Path, text: str) -> list[tuple[str, str, str]]:
    """``id,title`` under any header, or the columns of a wider file that are known as the item and its title."""
    header, *rows = [(line, fields) for line, fields in split_records(text, ",") if fields != [""]] or [(1, [""])]
    names = [name.strip() for name in header[1]]
    item, title = (names.index(found) if (found := guess(role, names)) else None for role in ("item", "title"))
    places = (0, 1) if item is None or title is None else (item, title)
    width = 2 if item is None or title is None else len(names)
    if wrong := [(line, fields) for line, fields in rows if len(fields) != width]:
        line, fields = wrong[0]
        raise DataError.one(f"{path} line {line}", fields, "must be id,title")
    return [(f"{path} line {line}", fields[places[0]], fields[places[1]]) for line, fields in rows]


def _line_pairs(path: Path, text: str) -> list[tuple[str, str, str]]:
    """``id::name`` (LLaRA's; MovieLens' ``movies.dat``, genres behind), ``name TAB id`` (BIGRec's), ``id TAB name``."""
    lines = [
        (number, line) for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1) if line.strip()
    ]
    if not lines:
        return []
    where = [f"{path} line {number}" for number, _ in lines]
    fields = [line.split("::") for _, line in lines]
    if all(len(row) > 1 and _is_id(row[0]) for row in fields):
        movies = all(len(row) > 2 for row in fields)
        titles = [movie_title("::".join(row[1:-1]), "corrected") if movies else "::".join(row[1:]) for row in fields]
        return list(zip(where, (row[0] for row in fields), titles, strict=True))
    tabbed = [line.partition("\t") for _, line in lines]
    if all(tab and _is_id(raw) for raw, tab, _ in tabbed) and not all(_is_id(name) for *_, name in tabbed):
        return [(place, raw, name) for place, (raw, _, name) in zip(where, tabbed, strict=True)]
    swapped = [line.rpartition("\t") for _, line in lines]
    if all(tab and _is_id(raw) for _, tab, raw in swapped):
        return [(place, raw, name) for place, (name, _, raw) in zip(where, swapped, strict=True)]
    return []


def _is_id(text: str) -> bool:
    return plain_id(text).isdecimal()


register("dllm2rec", Adapter(load, READS, pre_split=True))
