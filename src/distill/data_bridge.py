"""Where the teacher's outputs meet the training examples, joined by `example_id`; and DLLM2Rec's three files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.core.errors import ArtefactError, ConfigError, DataError, Problem
from src.core.paths import atomic_folder
from src.data.examples import Examples, SequenceData
from src.data.teacher_outputs import TeacherOutputs

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, eq=False)
class TeachingRows:
    """The teacher's outputs, reached by training row number; on the training device, sequence embeddings apart.

    These are a large model's states, gigabytes of them, and only the embedding loss reads them, a batch at a time:
    they stay in the host's memory, so that many trials can share a GPU.

    ``slot`` ``[N_train]`` points into the M labelled rows, or at the last, empty row M where there is no label.
    ``candidates`` ``[M + 1, K]``, ``distances`` ``[M + 1, K]``, ``sequence_embedding`` ``[M + 1, E]``;
    ``item_embedding`` ``[V, W]``.
    """

    slot: Tensor
    candidates: Tensor
    distances: Tensor
    sequence_embedding: Tensor
    item_embedding: Tensor

    def labelled(self, rows: Tensor) -> Tensor:
        """``[B]`` bool: whether the teacher said something about these rows."""
        return self.slot[rows] < len(self.candidates) - 1

    def ranking(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates and distances ``[B, K]``; items 0..K-1 at distance 0 where a row has no label."""
        slot = self.slot[rows]
        return self.candidates[slot], self.distances[slot]

    def embedding(self, rows: Tensor) -> Tensor:
        """``[B, E]`` sequence embeddings; zeros where a row has no label."""
        return self.sequence_embedding[self.slot[rows].to(self.sequence_embedding.device)].to(self.slot.device)

    def require(self, topk: int) -> None:
        """Raises ``ArtefactError`` when there are fewer than ``topk`` candidates a row."""
        if problem := _too_few(topk, self.candidates.shape[1]):
            raise ArtefactError([problem])

    def require_item_embeddings(self, key: str, value: float) -> None:
        """Raises ``ConfigError`` about a setting that needs item embeddings where these teachers have none."""
        if self.item_embedding.shape[1] == 0:
            rule = "these teachers have no item embeddings: only a language model has"
            raise ConfigError.one(key, value, rule, "set it to 0, or name llm among distill.teachers")

    @property
    def num_labelled(self) -> int:
        """Number of labelled rows, M."""
        return len(self.candidates) - 1


def _too_few(topk: int, exported: int) -> Problem | None:
    if topk <= exported:
        return None
    rule, step = f"the teacher exported {exported} candidates a row", "lower it, or export more: teacher.export.top_n"
    return Problem("distill.candidate_topk", topk, rule, step)


def align(outputs: TeacherOutputs, train: Examples, topk: int, device: torch.device | str) -> TeachingRows:
    """Join by `example_id` and keep the first candidates of each row.

    Args:
        outputs: what the teacher said.
        train: the examples that are trained on.
        topk: K, candidates that are kept.
        device: where the result lies.

    Raises:
        ArtefactError: a label belongs to no training example, or fewer than ``topk`` candidates were exported.
    """
    problems = []
    if problem := _too_few(topk, outputs.candidates.shape[1]):
        problems.append(problem)
    order = np.argsort(train.example_id, kind="stable")
    place = np.searchsorted(train.example_id, outputs.example_id, sorter=order)
    row = order[np.minimum(place, len(order) - 1)]
    stray = outputs.example_id[train.example_id[row] != outputs.example_id]
    if len(stray):
        problems.append(
            Problem("example_id", stray[:5].tolist(), "labels no training example of this split", "label again")
        )
    if problems:
        raise ArtefactError(problems)
    slot = np.full(len(train), len(outputs), dtype=np.int64)
    slot[row] = np.arange(len(outputs))
    return TeachingRows(
        slot=torch.tensor(slot, device=device),
        candidates=_with_empty_row(outputs.candidates[:, :topk], np.arange(topk), device),
        distances=_with_empty_row(outputs.distances[:, :topk], np.zeros(topk, np.float32), device),
        sequence_embedding=_with_empty_row(
            outputs.sequence_embedding, np.zeros(outputs.sequence_embedding.shape[1], np.float32), "cpu"
        ),
        item_embedding=torch.tensor(np.asarray(outputs.item_embedding), dtype=torch.float32, device=device),
    )


def _with_empty_row(rows: NDArray[Any], empty: NDArray[Any], device: torch.device | str) -> Tensor:
    dtype = torch.int64 if np.issubdtype(rows.dtype, np.integer) else torch.float32
    return torch.tensor(np.concatenate([rows, empty[None]]), dtype=dtype, device=device)


RANKING_FILE, CONFIDENCE_FILE, EMBEDDING_FILE = "myrank_train.txt", "confidence_train.txt", "all_embeddings.pt"


def export_dllm2rec(folder: Path, outputs: TeacherOutputs, train: Examples) -> None:
    """Write DLLM2Rec's three files, line i for training row i (golden §8).

    Args:
        folder: where they are written.
        outputs: labels of every training row.
        train: the rows, in their order.

    Raises:
        ArtefactError: some training row has no label: that format has no way to say so.
    """
    teaching = align(outputs, train, outputs.candidates.shape[1], "cpu")
    missing = int((teaching.slot == teaching.num_labelled).sum())
    if missing:
        raise ArtefactError.one(
            "teacher outputs",
            f"{missing} rows without a label",
            "DLLM2Rec's files need one line for every training row",
            "label all rows: teacher.export.budget=1.0",
        )
    with atomic_folder(folder) as target:
        np.savetxt(target / RANKING_FILE, teaching.candidates[teaching.slot].numpy(), fmt="%d")
        np.savetxt(target / CONFIDENCE_FILE, teaching.distances[teaching.slot].numpy(), fmt="%.9g")
        torch.save(teaching.item_embedding, target / EMBEDDING_FILE)


def import_dllm2rec(folder: Path, data: SequenceData) -> TeacherOutputs:
    """Read DLLM2Rec's three files as teacher outputs for every training row.

    They hold no sequence embeddings (width 0 here) and no scores (−distance stands in). Raises ``DataError`` that names
    file and line.
    """
    candidates = _read_table(folder / RANKING_FILE, np.int64)
    distances = _read_table(folder / CONFIDENCE_FILE, np.float32)
    embedding = _read_embeddings(folder / EMBEDDING_FILE, data.num_items)
    problems = [
        Problem(str(folder / name), len(table), f"needs one line for each of {len(data.train)} training rows")
        for name, table in ((RANKING_FILE, candidates), (CONFIDENCE_FILE, distances))
        if len(table) != len(data.train)
    ]
    if candidates.shape != distances.shape:
        problems.append(Problem("columns", (candidates.shape, distances.shape), "rankings and confidences must agree"))
    if problems:
        raise DataError(problems)
    outputs = TeacherOutputs(
        data.train.example_id, candidates, -distances, distances, np.zeros((len(data.train), 0), np.float32), embedding,
        imported_manifest(data, folder),
    )  # fmt: skip
    if problems := outputs.check(data.num_items):
        raise DataError(problems)
    return outputs


def imported_manifest(data: SequenceData, folder: Path) -> Mapping[str, Any]:
    """The manifest of outputs that came from files: the model and the prompt are unknown."""
    fingerprints = {**data.fingerprints(), "model": f"imported from {folder}", "prompt": "unknown"}
    return {"fingerprints": fingerprints, "source": str(folder)}


#: No id is larger: a number beyond it (1e30) is damage.
_LARGEST = 1 << 53


def _read_table(path: Path, dtype: type) -> NDArray[Any]:
    """Finite numbers between whitespace or commas, ids also in float notation, the same count on every line; numpy's
    comments are left out."""
    whole = np.issubdtype(dtype, np.integer)
    rows: list[list[float]] = []
    for number, line in enumerate(_lines(path), start=1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            raise DataError.one(f"{path}:{number}", line[:60], "must hold numbers only") from None
        if rows and len(values) != len(rows[0]):
            raise DataError.one(f"{path}:{number}", len(values), f"must hold {len(rows[0])} numbers like line 1")
        if not all(map(math.isfinite, values)):
            bad = next(word for word, value in zip(words, values, strict=True) if not math.isfinite(value))
            step = "every row needs as many candidates; write fewer columns where a ranking is short"
            raise DataError.one(f"{path}:{number}", bad, "must hold finite numbers only", step)
        if whole and any(value != int(value) or abs(value) > _LARGEST for value in values):
            raise DataError.one(f"{path}:{number}", line[:60], "must hold whole item ids")
        rows.append(values)
    return np.array(rows, dtype=dtype)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError.one("file", str(path), "is missing") from None
    except UnicodeDecodeError:
        raise DataError.one("file", str(path), "is not text", "save it with numpy.savetxt") from None
    except OSError as error:
        raise DataError.one("file", str(path), f"cannot be read ({error.strerror})", "check the path") from None


#: no embedding is wider: a sparse or a repeated table of a few bytes can stand for more than any memory
_WIDEST = 1 << 16


def _read_embeddings(path: Path, num_items: int) -> NDArray[np.float32]:
    """One table ``[items, width]``: a tensor (a parameter, a sparse one) or an array, saved by torch or numpy."""
    if not path.is_file():
        raise DataError.one("file", str(path), "is missing")
    step = "save it as a tensor: torch.save(torch.tensor(table), 'all_embeddings.pt')"
    try:
        table = _load_array(path)
        if isinstance(table, Mapping):
            # the state of an nn.Embedding
            table = next(iter(table.values())) if len(table) == 1 else table
        if isinstance(table, (Tensor, np.ndarray)):
            _require_shape(path, table.shape, num_items, step)  # before anything is written out
        if isinstance(table, Tensor):
            if table.is_complex():
                raise TypeError("complex numbers")
            dense = table.detach()
            dense = dense.to_dense() if dense.layout != torch.strided else dense
            dense = dense.dequantize() if dense.is_quantized else dense
            table = dense.float().numpy()
        result = np.asarray(table, dtype=np.float32)
    except (
        RuntimeError, OSError, ValueError, EOFError, TypeError, KeyError, AttributeError, IndexError, OverflowError,
        MemoryError, UnpicklingError,
    ) as error:  # fmt: skip
        raise DataError.one("file", str(path), f"is not a saved tensor ({_reason(error)})", step) from None
    _require_shape(path, result.shape, num_items, step)
    if not np.isfinite(result).all():
        row = int(np.flatnonzero(~np.isfinite(result).all(axis=1))[0])
        raise DataError.one(f"{path} row {row}", result[row][:5].tolist(), "must hold finite numbers only")
    return result


def _require_shape(path: Path, shape: Sequence[int], num_items: int, step: str) -> None:
    """Raises ``DataError`` for what is no table with a row an item."""
    if len(shape) != 2 or not 1 <= shape[1] <= _WIDEST:
        raise DataError.one("file", str(path), f"must hold one table [items, width], holds {list(shape)}", step)
    if shape[0] != num_items:
        raise DataError.one("item_embedding", shape[0], f"must have {num_items} rows, one an item")


def _reason(error: Exception) -> str:
    """Why a file could not be read, in our words where torch's advise to run what the file holds."""
    if isinstance(error, UnpicklingError):
        return "it is damaged, or names code, which is not run"
    return (_ANSI.sub("", str(error)).splitlines() or ["damaged"])[0][:120]


def _load_array(path: Path) -> Any:
    """What a file of numpy's or of torch's holds; of code, only what makes plain arrays of numbers is run."""
    with path.open("rb") as handle:
        if handle.read(6) == b"\x93NUMPY":
            return np.load(path, allow_pickle=False)
    kinds = [type(np.dtype(code)) for code in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")]
    rebuild = np.zeros(1).__reduce__()[0]
    old = "numpy.core.multiarray"  # how numpy 1 called the same function
    scalar = np.float64(0).__reduce__()[0]
    makers: list[Any] = [np.ndarray, np.dtype, *kinds, rebuild, (rebuild, f"{old}._reconstruct")]
    makers += [scalar, (scalar, f"{old}.scalar")]
    # a sparse tensor whose indices lie outside would be written out over other memory
    with torch.serialization.safe_globals(makers), torch.sparse.check_sparse_tensor_invariants():
        return torch.load(path, map_location="cpu", weights_only=True)
