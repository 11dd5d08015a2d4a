"""DLLM2Rec's files of a teacher as people save them: what is read, and what names file and line."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.core.errors import DataError
from src.distill.data_bridge import _read_embeddings, _read_table

TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize(
    "saved",
    [
        torch.tensor(TABLE),
        torch.nn.Parameter(torch.tensor(TABLE)),
        torch.nn.Embedding.from_pretrained(torch.tensor(TABLE)).state_dict(),
        torch.tensor(TABLE).to_sparse(),
        torch.tensor(TABLE).to_sparse_csr(),
        torch.tensor(TABLE).half(),
        torch.tensor(TABLE).bfloat16(),
        torch.tensor(TABLE).double(),
        TABLE,
        TABLE.astype(np.float64),
        TABLE.tolist(),
    ],
)
def test_item_embeddings_in_every_form(saved: Any, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "all_embeddings.pt")
    read = _read_embeddings(tmp_path / "all_embeddings.pt", 4)
    assert read.dtype == np.float32
    assert read.tolist() == TABLE.tolist()


def test_item_embeddings_that_numpy_saved(tmp_path: Path) -> None:
    with (tmp_path / "all_embeddings.pt").open("wb") as handle:
        np.save(handle, TABLE)
    assert _read_embeddings(tmp_path / "all_embeddings.pt", 4).tolist() == TABLE.tolist()


class _Evil:
    def __reduce__(self) -> Any:
        return print, ("run",)


def _outside() -> torch.Tensor:
    """A sparse table that says where it lies, wrongly: written out, it would end the process, or worse."""
    return torch.sparse_coo_tensor(torch.tensor([[10**7], [2]]), torch.ones(1), (4, 3), check_invariants=False)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (torch.zeros(3), r"must hold one table \[items, width\], holds \[3\]"),
        (torch.tensor([[1.0, float("nan")]] * 4), r"row 0 = .*must hold finite numbers only"),
        ({"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}, "is not a saved tensor"),
        (np.array([["a", None]], dtype=object), "is not a saved tensor"),
        (_Evil(), "is not a saved tensor .*save it as a tensor"),
        (None, "must hold one table|is not a saved tensor"),
        (torch.zeros(5, 3), "item_embedding = 5: must have 4 rows, one an item"),
        (torch.zeros(4, 0), r"holds \[4, 0\]"),
        (torch.zeros(4, 3, dtype=torch.complex64), "is not a saved tensor .complex numbers"),
        (_outside(), "is not a saved tensor"),
        # a few bytes that stand for 16 GB
        (torch.zeros(1, 1).expand(4, 10**9), "holds .4, 1000000000."),
        (torch.sparse_coo_tensor(torch.zeros(2, 1).long(), torch.ones(1), (4, 10**9)), "holds .4, 1000000000."),
    ],
)
def test_what_is_no_table_of_embeddings(
    saved: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(saved, tmp_path / "all_embeddings.pt")
    with pytest.raises(DataError, match=message) as caught:
        _read_embeddings(tmp_path / "all_embeddings.pt", 4)
    assert "\x1b" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"no tensor", b"PK\x03\x04", pickle.dumps(TABLE), b"\x93NUMPYxx"])
def test_damaged_files_of_embeddings(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "all_embeddings.pt").write_bytes(content)
    with pytest.raises(DataError, match="is not a saved tensor"):
        _read_embeddings(tmp_path / "all_embeddings.pt", 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 2\n3 nan\n", r":2 = 'nan': must hold finite numbers only → every row needs as many candidates"),
        ("1 2\ninf 4\n", r":2 = 'inf'"),
        ("1 2\n3 1e30\n", r":2 = '3 1e30': must hold whole item ids"),
        ("1 2\n3 4.5\n", "must hold whole item ids"),
        ("1 2\n3\n", "must hold 2 numbers like line 1"),
        ("1 x\n", "must hold numbers only"),
        ("\udcff", "is not text"),
    ],
)
def test_rankings_that_are_wrong(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "myrank_train.txt"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message):
        _read_table(path, np.int64)


def test_rankings_in_float_notation(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "r.txt", np.array([[3, 1], [2, 0]]))
    assert _read_table(tmp_path / "r.txt", np.int64).tolist() == [[3, 1], [2, 0]]


@pytest.mark.parametrize(
    "content",
    [b"3,1\n2,0\n", b"3, 1\r\n2, 0\r\n", b"\xef\xbb\xbf3 1\n2 0\n", b"# rankings of the valid rows\n3 1\n\n2 0\n"],
    ids=["commas", "spaces after commas", "a byte order mark", "numpy's header"],
)
def test_rankings_as_people_save_them(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_bytes(content)
    assert _read_table(tmp_path / "r.txt", np.int64).tolist() == [[3, 1], [2, 0]]
