"""Columns of any type as dictionary-encoded text: each distinct id once, and a number a row."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

#: Arrow's type of a column of ids: each distinct text once, and a number a row.
IDS = pa.dictionary(pa.int32(), pa.string())


def as_ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of any type as dictionary-encoded text; null where there is nothing."""
    if column.type == IDS:
        return column
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    if pa.types.is_nested(column.type) or pa.types.is_string_view(column.type) or _is_extension(column.type):
        column = pa.chunked_array([_texts(chunk) for chunk in column.chunks], type=pa.string())
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    chunks = [
        pa.DictionaryArray.from_arrays(chunk.indices.cast(pa.int32()), _texts(chunk.dictionary))
        for chunk in encoded.chunks
    ]
    return pa.chunked_array(chunks, type=IDS)


def _is_extension(kind: pa.DataType) -> bool:
    """Whether a type is one that pyarrow has no functions for (uuid and the like)."""
    return isinstance(kind, pa.BaseExtensionType)


def _texts(values: pa.Array) -> pa.Array:
    if pa.types.is_nested(values.type) or pa.types.is_binary(values.type) or _is_extension(values.type):
        return pa.array([plain_text(value) for value in values.to_pylist()], pa.string())
    if pa.types.is_floating(values.type):
        values = _whole(values)
    return values.cast(pa.string())


def _whole(values: pa.Array) -> pa.Array:
    """Fractions as whole numbers where all of them are: from 1e16 on their text would have an exponent."""
    try:
        return values.cast(pa.int64())
    except pa.ArrowInvalid:
        return values


def plain_text(value: Any) -> str | None:
    """A JSON or Python value as text: lists as their parts with commas between, nothing as None."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (list, tuple)):
        return ", ".join(part for entry in value if (part := plain_text(entry)))
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def as_ids_or_text(column: pa.Array, wanted: pa.DataType) -> pa.Array:
    """A text column, dictionary-encoded where ids are wanted."""
    return column.dictionary_encode() if wanted == IDS else column
