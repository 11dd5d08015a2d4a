"""`mini_dllm2rec` and `mini_llara_*`: the two published formats through our adapters."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.data.candidates import draw_candidate_lists
from src.data.dataset import load_dataset
from src.data.examples import Examples, SequenceData
from src.data.settings import DatasetSettings
from src.distill.data_bridge import CONFIDENCE_FILE, EMBEDDING_FILE, RANKING_FILE, import_dllm2rec
from tests.golden.sources import Leaves, Sources, require

_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def load_mini_dllm2rec(root: Path, titles: str | None = None) -> SequenceData:
    """The published folder under ``root``, every row kept, as wide as it is stored."""
    (folder,) = [path for path in (root / "data").iterdir() if path.is_dir()]
    options: dict[str, Any] = {"adapter": "dllm2rec", "root": root, "name": folder.name, "titles_file": titles}
    data = load_dataset(DatasetSettings(**options, min_history=0, min_items=2, window=_width(folder)))
    return data


def _width(folder: Path) -> int:
    header, values = (folder / "data_statis.csv").read_text(encoding="utf-8").splitlines()[:2]
    return int(dict(zip(header.split(","), values.split(","), strict=True))["seq_size"])


def teacher_folder(root: Path) -> Path:
    """Where the folder keeps the teacher's three files."""
    (folder,) = [path for path in (root / "tocf").iterdir() if path.is_dir()]
    return folder


def without_pickles(root: Path, target: Path) -> Path:
    """A copy of a folder in which every table that has a CSV twin is CSV only."""
    shutil.copytree(root, target)
    for pickled in target.rglob("*.df"):
        if pickled.with_suffix(".csv").exists():
            pickled.unlink()
    return target


def _test_rows(data: SequenceData) -> Examples:
    with tempfile.TemporaryDirectory() as folder:
        return data.test.open("golden check", Path(folder) / "opened.jsonl")


def check_mini_dllm2rec(sources: Sources, root: Path) -> None:
    """Adapter, pickles against their CSV twins, the teacher's files, the summary facts."""
    folder, teacher = next(path for path in (root / "data").iterdir() if path.is_dir()), teacher_folder(root)
    data = load_mini_dllm2rec(root)
    sources.whole(*folder.rglob("*"))
    with tempfile.TemporaryDirectory() as temporary:
        copy = without_pickles(root, Path(temporary) / "copy")
        require(data.fingerprints() == load_mini_dllm2rec(copy).fingerprints(), "tables and their CSV twins agree")
    _check_titles(sources, root)
    outputs = import_dllm2rec(teacher, data)
    sources.whole(*(teacher / name for name in (RANKING_FILE, CONFIDENCE_FILE, EMBEDDING_FILE)))
    require(bool((np.diff(outputs.distances, axis=1) >= 0).all()), "distances ascend: the first candidate is the best")
    table = teacher / "all_embeddings.npy"
    require(np.array_equal(outputs.item_embedding, np.load(table)), f"{EMBEDDING_FILE} and {table.name} agree")
    sources.whole(table)
    _check_facts(sources.json(root / "expected.json"), data, outputs.candidates, outputs.item_embedding.shape[1])
    # what the published script printed, with dropout on in its evaluation: nothing to compare with, by its own note
    runs = root / "reference_run.json"
    if runs.exists():
        sources.whole(runs)


def _check_titles(sources: Sources, root: Path) -> None:
    file = root / "item_titles_madeup.json"
    if not file.exists():
        return
    titles = sources.json(file)
    data = load_mini_dllm2rec(root, file.name)
    for raw in titles:
        titles.expect(raw, data.id_map.titles[int(raw)])
    require(data.id_map.untitled == data.num_items - len(list(titles)), f"{file.name}: titled items")


def _check_facts(facts: Leaves, data: SequenceData, candidates: NDArray[np.int64], width: int) -> None:
    """`expected.json`."""
    facts.expect("item_num", data.num_items)
    facts.expect("seq_size", data.history_length)
    facts.expect("pad_id", data.id_map.padding_id)
    facts.expect("n_train", len(data.train))
    facts.expect("n_val", len(data.validation))
    facts.expect("n_test", len(data.test))
    facts.expect("embedding_dim", width)
    facts.expect("teacher_columns", candidates.shape[1])
    facts.expect("item_counts", data.item_counts.tolist())
    first = facts.inside("first_train_row")
    first.expect("seq", data.train.history[0].tolist())
    first.expect("len_seq", int(data.train.length[0]))
    first.expect("next", int(data.train.target[0]))
    hits = (candidates[:, :10] == data.train.target[:, None]).any(axis=1)
    require(abs(facts["teacher_hit_at_10"] - hits.mean()) <= 1e-9, "teacher_hit_at_10")
    for storage in ("train_seq_column", "next_dtype"):  # how the pickle keeps its columns; read above, whatever it is
        require(isinstance(facts[storage], str), storage)


def _load_llara(root: Path, handling: str) -> SequenceData:
    options: dict[str, Any] = {"adapter": "llara", "root": root, "name": root.name, "title_handling": handling}
    return load_dataset(DatasetSettings(**options, min_history=3, window=10, min_items=2))


def check_mini_llara(sources: Sources, root: Path) -> None:
    """The published loader's rows and titles, with title handling as released."""
    data = _load_llara(root, "as_released")
    expected = sources.json(root / "expected_loader.json")
    sources.whole(*(path for path in root.iterdir() if path.suffix != ".json"))
    with tempfile.TemporaryDirectory() as temporary:
        copy = without_pickles(root, Path(temporary) / "copy")
        twin = _load_llara(copy, "as_released")
    require(data.split_fingerprint == twin.split_fingerprint, "tables and their CSV twins agree")
    expected.expect("padding_item_id", data.id_map.padding_id)
    names = expected.inside("item_id2name")
    require(len(list(names)) == data.num_items, "item_id2name")
    for raw in names:
        names.expect(raw, data.id_map.titles[int(raw)])
    splits = {"train": data.train, "validation": data.validation, "test": _test_rows(data)}
    rows, first_id = expected.inside("rows"), 0
    for theirs, ours in _SPLITS.items():
        _check_rows(rows[theirs], splits[ours], data, first_id, f"{root.name} {theirs}")
        first_id += _rows_of(root, theirs)
    _check_sample(expected.inside("example_sample_informational"), data)


def _rows_of(root: Path, split: str) -> int:
    """How many rows the file has, short histories included: examples are numbered by it."""
    (file,) = [path for path in root.glob("*_data.csv") if path.name.lower().startswith(split)]
    return len(file.read_text(encoding="utf-8").splitlines()) - 1


def _check_rows(want: list[dict[str, Any]], got: Examples, data: SequenceData, first_id: int, label: str) -> None:
    require(len(want) == len(got), f"{label}: {len(got)} rows are not {len(want)}")
    titles = data.id_map.titles
    for row, expected in enumerate(want):
        length, target = int(got.length[row]), int(got.target[row])
        history = got.history[row].tolist()
        ours = {
            "source_row": int(got.example_id[row]) - first_id,
            "seq": history,
            "seq_unpad": history[:length],
            "seq_title": [titles[item] for item in history[:length]],
            "len_seq": length,
            "next": target,
            "next_item_name": titles[target],
        }
        require(ours == expected, f"{label} row {row}: {ours} is not {expected}")


def _check_sample(sample: Leaves, data: SequenceData) -> None:
    """One published sample: its candidates keep the rule that ours keep, and its names are our titles."""
    titles, width = data.id_map.titles, data.history_length
    history, answer = sample["seq"][: sample["len_seq"]], sample["item_id"]
    sample.expect("seq", history + [data.id_map.padding_id] * (width - len(history)))
    count, others = sample["len_cans"], set(history) - {answer}
    row, seen = np.zeros(1, dtype=np.int64), np.array([sample["seq"]])
    example = Examples.of_rows(row, row, seen, np.array([sample["len_seq"]]), np.array([answer]), row.astype(float))
    ours = draw_candidate_lists(example, data.num_items, count, seed=0).items[0].tolist()
    for candidates in (sample["cans"], ours):
        require(len(set(candidates)) == len(candidates) == count, "candidates are distinct")
        require(answer in candidates and not set(candidates) & others, "candidates: answer, no history")
    sample.expect("seq_name", [titles[item] for item in history])
    sample.expect("seq_str", ", ".join(titles[item] for item in history))
    sample.expect("cans_name", [titles[item] for item in sample["cans"]])
    sample.expect("cans_str", ", ".join(titles[item] for item in sample["cans"]))
    sample.expect("item_name", titles[answer])
    sample.expect("correct_answer", titles[answer])
