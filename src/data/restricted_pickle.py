"""Reading pickled pandas tables without running anything that a pickle asks for.

Unpickling calls what the file names. Here every name that a pandas table needs is answered by a stand-in made for this
one load, which only records its arguments; any other name is refused. Nothing of pandas, numpy or pyarrow is called
with arguments that the file chose, apart from reading plain numbers out of bytes. So it also does not matter which
pandas wrote the table (1.0 to 3.x) and which one is installed.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.core.errors import DataError

Columns = dict[str, list[Any]]

_PLAIN_TYPES = ("O", "O8", "b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")

# What a damaged or hostile pickle makes the unpickler and the reading below raise.
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
    struct.error,
)


class _Refused(pickle.UnpicklingError):
    """The pickle names something that no table needs."""


class _Record:
    """Remembers what a pickle passed; has no behaviour."""

    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype(_Record):
    def resolve(self) -> np.dtype[Any]:
        """The numpy type; only booleans, numbers and objects are known."""
        code = self.arguments[0]
        if code not in _PLAIN_TYPES:
            raise _Refused(f"numpy.dtype({code!r})")
        order = self.state[1] if self.state else "="
        return np.dtype(f"{order}{code}" if order in ("<", ">") else code)


class _Array(_Record):
    def resolve(self) -> NDArray[Any]:
        """The array that numpy's own ``__setstate__`` would make: (version, shape, dtype, Fortran order, content)."""
        _, shape, dtype, fortran, content = self.state
        kind = dtype.resolve()
        if kind.hasobject:
            # element by element: numpy would unpack lists of equal length into a second axis
            flat: NDArray[Any] = np.fromiter(content, dtype=object, count=len(content))
        else:
            flat = np.frombuffer(content, dtype=kind)
        return flat.reshape(shape, order="F" if fortran else "C")


def _frombuffer(content: Any, dtype: _Dtype, shape: Any, order: str) -> NDArray[Any]:
    return np.frombuffer(content, dtype=dtype.resolve()).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _Dtype, content: bytes) -> Any:
    return np.frombuffer(content, dtype=dtype.resolve(), count=1)[0].item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _Refused(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


def _arrow_strings(description: tuple[Any, ...]) -> list[str]:
    """Strings from Arrow's layout: type, length, nulls, offset, [validity, positions, characters]."""
    kind, length, nulls, offset, buffers = description[:5]
    if kind not in ("string", "large_string") or nulls:
        raise _Refused(f"an Arrow array of type {kind!r} with {nulls} missing values")
    places = np.frombuffer(buffers[1], dtype="<i4" if kind == "string" else "<i8")[offset : offset + length + 1]
    return [bytes(buffers[2][start:end]).decode() for start, end in pairwise(places.tolist())]


def _stand_ins() -> dict[tuple[str, str], Any]:
    """Fresh objects for every allowed name, so that no load can change another's."""

    def record(name: str, base: type[_Record] = _Record) -> type[_Record]:
        return type(name, (base,), {})

    def function(body: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: body(*arguments)

    frame, manager, index = record("Frame"), record("Manager"), record("Index")
    array, strings = record("Array", _Array), record("Strings")
    block, new_index = record("Block"), record("NewIndex")
    allowed: dict[tuple[str, str], Any] = {
        ("pandas", "DataFrame"): frame,
        ("pandas.core.frame", "DataFrame"): frame,
        ("pandas.core.internals.managers", "BlockManager"): manager,
        ("pandas.core.internals", "BlockManager"): manager,
        ("pandas._libs.internals", "_unpickle_block"): block,
        ("pandas.core.indexes.base", "_new_Index"): new_index,
        ("pandas.arrays", "ArrowStringArray"): strings,
        ("pandas.core.arrays.string_arrow", "ArrowStringArray"): strings,
        ("pandas", "StringDtype"): record("StringDtype"),
        ("pandas.core.arrays.string_", "StringDtype"): record("StringDtype"),
        ("pyarrow.lib", "_restore_array"): function(_arrow_strings),
        ("pyarrow.lib", "chunked_array"): function(lambda chunks, *kind: [text for chunk in chunks for text in chunk]),
        ("pyarrow.lib", "type_for_alias"): function(str),
        ("pyarrow.lib", "py_buffer"): function(bytes),
        ("_codecs", "encode"): function(_encode),
        ("numpy", "ndarray"): array,
        ("numpy", "dtype"): record("Dtype", _Dtype),
    }
    for name in ("Index", "RangeIndex", "Int64Index", "Float64Index"):
        allowed["pandas", name] = index
        for module in ("base", "range", "numeric"):
            allowed[f"pandas.core.indexes.{module}", name] = index
    for module in ("numpy.core", "numpy._core"):
        allowed[f"{module}.multiarray", "_reconstruct"] = function(lambda *arguments: array())
        allowed[f"{module}.multiarray", "scalar"] = function(_scalar)
        allowed[f"{module}.numeric", "_frombuffer"] = function(_frombuffer)
    for module in ("builtins", "__builtin__"):
        allowed[module, "slice"] = slice
        allowed[module, "bytearray"] = function(bytes)
    return allowed


class _Unpickler(pickle.Unpickler):
    def __init__(self, handle: Any) -> None:
        super().__init__(handle)
        self._allowed = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for an allowed name; nothing is ever imported."""
        try:
            return self._allowed[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


def _values(stored: Any) -> list[list[Any]]:
    """A block's columns as lists."""
    if isinstance(stored, _Array):
        stored = stored.resolve()
    if isinstance(stored, np.ndarray):
        return [column.tolist() for column in np.atleast_2d(stored)]
    if isinstance(stored, _Record):
        return [list(stored.state["_pa_array"])]
    raise TypeError(f"a block of {type(stored).__name__}")


def _places(placement: Any, count: int) -> Iterable[int]:
    if isinstance(placement, slice):
        return range(*placement.indices(count))
    return (int(place) for place in _values(placement)[0])


def _blocks(manager: Any) -> tuple[list[str], list[tuple[Any, Any]]]:
    """Column names, and (values, placement) of each block, from pandas ≥ 1.3's form or the one before."""
    if manager.arguments:
        blocks, axes = manager.arguments[:2]
        parts = [(block.arguments[0], block.arguments[1]) for block in blocks]
    else:
        stored = manager.state[3]["0.14.1"]
        axes = stored["axes"]
        parts = [(block["values"], block["mgr_locs"]) for block in stored["blocks"]]
    return [str(name) for name in _values(axes[0].arguments[1]["data"])[0]], parts


def _columns(frame: Any) -> Columns:
    if not isinstance(frame, _Record) or type(frame).__name__ != "Frame" or not isinstance(frame.state, dict):
        raise TypeError("the pickle holds no table")
    names, parts = _blocks(frame.state.get("_mgr", frame.state.get("_data")))
    found: dict[int, list[Any]] = {}
    for stored, placement in parts:
        found.update(zip(_places(placement, len(names)), _values(stored), strict=True))
    columns = {name: found[place] for place, name in enumerate(names)}
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError("columns of different lengths")
    return columns


def read_pickled_table(path: Path) -> Columns:
    """The columns of a pickled ``DataFrame`` as lists of plain Python values, by name.

    Raises ``DataError`` when the file is missing, is damaged, holds no table, or names what no table needs.
    """
    advice = "take the file from a source that you trust, or save the table as .csv"
    try:
        with path.open("rb") as handle:
            return _columns(_Unpickler(handle).load())
    except FileNotFoundError:
        raise DataError.one("file", str(path), "is missing", "check dataset.root and dataset.name") from None
    except OSError as error:
        raise DataError.one("file", str(path), f"cannot be read ({error.strerror})", "check the path") from None
    except _Refused as error:
        raise DataError.one("pickle", str(path), f"refused: it names {error}, which no table needs", advice) from None
    except _DAMAGE as error:
        raise DataError.one("pickle", str(path), f"is damaged or holds no table ({error})", advice) from None
