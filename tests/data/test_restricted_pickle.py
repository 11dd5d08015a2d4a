"""Tables come out of pickles; nothing else does."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from src.core.errors import DataError
from src.data.restricted_pickle import read_pickled_table

COLUMNS = {"seq": [[1, 2], [3, 4]], "len_seq": [2, 2], "next": [5.0, 6.5], "text": ["[1, 2]", "ä"]}


def _frame() -> pd.DataFrame:
    frame = pd.DataFrame(COLUMNS)
    return frame.astype({"text": object}).set_axis(pd.Index(list(COLUMNS), dtype=object), axis=1)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_table_of_any_protocol_is_read(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "table.df"
    path.write_bytes(pickle.dumps(_frame(), protocol=protocol))
    assert read_pickled_table(path) == COLUMNS


def test_filtered_rows_and_numpy_scalars_inside_lists(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2, 3], "seq": [[(np.int64(k), np.int64(4)), (9, 0)] for k in range(3)]})
    frame = frame.set_axis(pd.Index(["a", "seq"], dtype=object), axis=1)[lambda table: table["a"] > 1]
    path = tmp_path / "table.df"
    frame.to_pickle(path)
    columns = read_pickled_table(path)
    assert columns == {"a": [2, 3], "seq": [[(1, 4), (9, 0)], [(2, 4), (9, 0)]]}
    assert type(columns["seq"][0][0][0]) is int


def test_arrow_strings_of_todays_pandas(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "table.df"
    pd.DataFrame(COLUMNS).astype({"text": pd.StringDtype("pyarrow", na_value=np.nan)})[1:].to_pickle(path)
    assert read_pickled_table(path) == {name: values[1:] for name, values in COLUMNS.items()}


class _OldManager:
    """Pickles as pandas before 1.3 did: axes and blocks in the state."""

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (), self.state

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("only written here")


def test_the_form_before_pandas_1_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = _frame()
    axes = [frame.columns, frame.index]
    blocks = [
        {"values": np.array([[2, 2]]), "mgr_locs": slice(1, 2, 1)},
        {"values": np.array([[7.0, 8.0], [5.0, 6.5]]), "mgr_locs": np.array([0, 2])},
        {"values": np.array([["x", "y"]], dtype=object), "mgr_locs": slice(3, 4, 1)},
    ]
    manager = _OldManager((axes, [], [], {"0.14.1": {"axes": axes, "blocks": blocks}}))
    _OldManager.__module__, _OldManager.__qualname__ = "pandas.core.internals.managers", "BlockManager"
    monkeypatch.setattr("pandas.core.internals.managers.BlockManager", _OldManager)
    object.__setattr__(frame, "_mgr", manager)
    monkeypatch.setattr(pd.DataFrame, "__getstate__", lambda self: {"_data": manager}, raising=False)
    path = tmp_path / "table.df"
    path.write_bytes(pickle.dumps(frame, protocol=4))
    monkeypatch.undo()
    assert read_pickled_table(path) == {"seq": [7.0, 8.0], "len_seq": [2, 2], "next": [5.0, 6.5], "text": ["x", "y"]}


def _calls(module: str, name: str, *arguments: str) -> bytes:
    """A protocol 4 pickle that calls ``module.name(*arguments)``."""

    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    return b"\x80\x04" + text(module) + text(name) + b"\x93(" + b"".join(map(text, arguments)) + b"tR."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "check_output"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("importlib", "import_module"),
        ("pandas.core.frame", "DataFrame.eval"),
        ("pandas", "DataFrame.__init__.__globals__"),
        ("pandas", "eval"),
        ("pandas", "read_pickle"),
        ("pandas.io.common", "os.system"),
        ("numpy", "load"),
        ("numpy._core.multiarray", "fromfile"),
        ("operator", "attrgetter"),
        ("src.core.paths", "write_text"),
    ],
)
def test_everything_else_is_refused_by_name(module: str, name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "table.df"
    path.write_bytes(_calls(module, name, f"touch {marker}"))
    with pytest.raises(DataError) as caught:
        read_pickled_table(path)
    assert f"it names {module}.{name}," in str(caught.value)
    assert str(path) in str(caught.value)
    assert not marker.exists()


def test_an_old_style_global_and_a_reduce_hidden_in_a_cell_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Hidden:
        def __reduce__(self) -> tuple[Any, ...]:
            return __import__("os").system, (f"touch {marker}",)

    path = tmp_path / "table.df"
    path.write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())
    with pytest.raises(DataError, match=r"os\.system"):
        read_pickled_table(path)
    path.write_bytes(pickle.dumps(pd.DataFrame({"seq": [[1], [Hidden()]]})))
    with pytest.raises(DataError, match=r"system"):
        read_pickled_table(path)
    assert not marker.exists()


def test_a_pickle_cannot_change_pandas(tmp_path: Path) -> None:
    # BUILD with a slot state sets attributes on whatever object the pickle names: here on the class itself
    path = tmp_path / "table.df"
    path.write_bytes(b"cpandas.core.frame\nDataFrame\n(N(dS'planted'\nS'x'\nstb.")
    with pytest.raises(DataError, match="no table"):
        read_pickled_table(path)
    assert not hasattr(pd.DataFrame, "planted")
    (tmp_path / "good.df").write_bytes(pickle.dumps(_frame()))
    assert read_pickled_table(tmp_path / "good.df") == COLUMNS


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"a": 1}), pickle.dumps([1, 2])])
def test_no_table(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.df"
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged or holds no table"):
        read_pickled_table(path)


def test_a_cut_table_and_a_missing_one(tmp_path: Path) -> None:
    path = tmp_path / "table.df"
    whole = pickle.dumps(_frame())
    for end in range(10, len(whole) - 1, 37):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError):
            read_pickled_table(path)
    with pytest.raises(DataError, match="is missing"):
        read_pickled_table(tmp_path / "none.df")
