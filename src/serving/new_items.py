"""Items that came after training: read from a table, embedded by the student's own language model, scored as others.

The language model itself is reached by the caller, who hands in a function: what serves a student does without it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from src.core.errors import ConfigError, DataError
from src.data.catalogue import ItemRows, build_id_map, each_once
from src.data.event_log import read_items
from src.data.id_map import IdMap
from src.data.item_text import TextSource, source_of
from src.data.settings import DatasetSettings
from src.data.tables import Table, open_table
from src.serving.catalogue import Catalogue
from src.serving.students import ModelStudent, ServedStudent
from src.student.new_items import refused, takes_items, with_items

#: embeddings ``[n, W]`` of the texts of some items, by the model that a source names
EmbedTexts = Callable[[TextSource, IdMap], Tensor]
_FIELD = "new_items"


def open_new_items(path: Path) -> Table:
    """A table of items: CSV, TSV, Parquet or JSON Lines; raises ``DataError`` where there is none."""
    return open_table(path)


def read_new_items(table: Table, known: Catalogue, source: TextSource, item: str = "item") -> IdMap:
    """New items with their texts, made as those of the training data were.

    Args:
        table: a row an item: its id, ``title``, and the other fields that the student's texts are made of.
        known: the student's own catalogue.
        source: tells the template.
        item: the column of ids; without it ``item_id`` or ``id``.

    Raises:
        ConfigError: a column is not there.
        DataError: an item is known already, has no title, or stands twice with different words.
    """
    column = next((name for name in (item, "item_id", "id") if name in table.names), None)
    title = source_of("title", table.names)
    for role, found in (("columns.item", column), ("title", title)):
        if found is None:
            names = ", ".join(table.names)
            raise ConfigError.one(f"{_FIELD}: {role}", table.label, f"is no column; there are {names}", "name it so")
    assert column is not None
    assert title is not None
    settings = DatasetSettings(item_text=source.template)
    rows: ItemRows = each_once(read_items(table, settings, column, title))
    new = build_id_map(rows, settings)
    if not new.num_items:
        raise DataError.one(_FIELD, table.label, "holds no item", "name a table with a row an item")
    if there := [raw for raw in new.raw_ids if raw in known.index]:
        rule = f"{len(there)} of its items are in the student's catalogue already"
        raise DataError.one(_FIELD, there[0], rule, "leave them out: the student knows them from training")
    if empty := [raw for raw, name in zip(new.raw_ids, new.titles, strict=True) if not name.strip()]:
        raise DataError.one(_FIELD, empty[0], "has no title: nothing tells what it is", "give it one, or leave it out")
    return new


def require_takes_items(student: ServedStudent) -> TextSource:
    """The source of a student's text embeddings.

    Raises:
        ConfigError: it is a graph, whose catalogue is fixed, reads no text, or does not tell which model embedded it.
    """
    if not isinstance(student, ModelStudent):
        rule = "is a graph of a student that reads no text of an item: its catalogue is fixed"
        raise ConfigError.one(_FIELD, student.name, rule, "name a student that reads texts")
    if not takes_items(student.model):
        raise refused(student.name)
    if student.text_source is None:
        rule = "does not tell which language model embedded its texts (imported or quantised)"
        raise ConfigError.one(_FIELD, student.name, rule, "train it with teacher.llm, not with given outputs")
    return student.text_source


def add_items(student: ServedStudent, new: IdMap, embed: EmbedTexts) -> ModelStudent:
    """A student that recommends these items, too.

    Args:
        student: see `require_takes_items`.
        new: from `read_new_items`.
        embed: gives the embeddings of their texts.

    Raises:
        ConfigError: the student takes no items, or the language model is another one.
    """
    source = require_takes_items(student)
    assert isinstance(student, ModelStudent)
    model = with_items(student.model, student.settings, embed(source, new).cpu())
    known, counts = student.catalogue.id_map, student.catalogue.counts
    id_map = IdMap((*known.raw_ids, *new.raw_ids), (*known.titles, *new.titles), (*known.texts, *new.texts))
    counted = None if counts is None else np.concatenate([counts, np.zeros(new.num_items, np.int64)])
    catalogue = Catalogue(id_map, counted)
    return ModelStudent(model, catalogue, student.name, student.fingerprints, student.settings, source)
