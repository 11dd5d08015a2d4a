"""Does an exported student say what PyTorch says? Every architecture, with and without a prior, and what int8 costs.

    python -m benchmarks.export_parity                                # the embedded sample
    python -m benchmarks.export_parity --root PATH/ml-100k

Each student is trained for `--epochs` on the first `--rows` training rows (a budget that makes scores like those of a
trained student, and no good one) and written as a graph by the command's own code. Graph and PyTorch then name the best
items, each with its score, of real histories that are cut to several lengths and asked for in batches of several sizes:
the largest difference of a score over the whole catalogue, the largest score beside it, and in how many of the lists
the best `--k` are the same ones in the same order. Of each network the graph's dynamic int8 form is compared likewise,
and both are judged on validation. `text_linear` reads drawn embeddings: no language model is asked.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.machine_rate import machine_line, table
from src.core.loop_settings import LoopSettings
from src.core.paths import write_json
from src.data.dataset import load_dataset
from src.data.examples import SequenceData
from src.data.settings import DatasetSettings
from src.serving.catalogue import Catalogue
from src.serving.export import served_ndcg
from src.serving.graph import export_graph
from src.serving.quantise import quantise_graph
from src.serving.students import CATALOGUE, CONFIG, GRAPH, GraphStudent, ModelStudent, ServedStudent
from src.student.base import Recommender
from src.student.datamodule import StudentData
from src.student.models import architectures, student_settings
from src.student.prior import fit_prior
from src.student.settings import EvaluationSettings, NetworkSettings, StudentSettings
from src.student.trainer_baseline import train_student

_SEED, _TEXT_WIDTH = 0, 32
#: a window that is no length of a history below, so that some are shorter, some longer
_WINDOW = 20


@dataclass(frozen=True)
class Agreement:
    """Of two students asked the same: how far their scores lie apart at most, the largest score, and lists alike."""

    difference: float
    largest: float
    alike: int
    lists: int

    @property
    def cells(self) -> tuple[str, str, str]:
        """For a table."""
        return f"{self.difference:.1e}", f"{self.largest:.2g}", f"{self.alike:,} of {self.lists:,}"


def settings_of(name: str, prior: str, epochs: int) -> StudentSettings:
    """An architecture with this prior and a small budget."""
    usual = student_settings(name)
    if not isinstance(usual, NetworkSettings):
        return usual
    loop = LoopSettings(epochs=epochs, patience=epochs, ema=usual.loop.ema)
    return replace(usual, window=_WINDOW, prior=prior, loop=loop)


def trained(name: str, prior: str, data: StudentData, epochs: int) -> Recommender:
    """A student, trained."""
    if prior != "none":
        found = fit_prior(student_settings(prior), data.train, data.validation, data.num_items, 2, _SEED)
        data = replace(data, prior=found)
    settings = settings_of(name, prior, epochs)
    return train_student(settings, EvaluationSettings(sample_rows=500), data, _SEED).student


def in_folder(model: Recommender, catalogue: Catalogue, folder: Path) -> Path:
    """What an opened graph reads: the graph, the id map, the name."""
    folder.mkdir()
    export_graph(model, folder / GRAPH)
    catalogue.save(folder / CATALOGUE)
    write_json(folder / CONFIG, {"name": folder.name, "fingerprints": {}})
    return folder


def asked(data: SequenceData, lengths: Sequence[int], batches: Sequence[int]) -> Iterator[tuple[Any, Any]]:
    """Histories and lengths in batches: the last items before validation targets, of every length and batch size."""
    past = data.validation.past
    for length in lengths:
        # where too few histories are so long, the same ones come again
        long = np.flatnonzero(past.earlier >= length)
        for size in batches:
            rows = np.resize(long, size) if len(long) else np.zeros(0, np.int64)
            history, found = past.take(rows).dense(max(1, length))
            yield history if length else np.full_like(history, data.num_items), np.minimum(found, length)


def compared(one: ServedStudent, other: ServedStudent, histories: Sequence[tuple[Any, Any]], k: int) -> Agreement:
    """Two students on the same histories, the second one being what is true."""
    difference, largest, alike, lists = 0.0, 0.0, 0, 0
    for history, length in histories:
        everything = one.catalogue.num_items
        ours, theirs = (by_item(*student.best(history, length, everything, False)) for student in (one, other))
        difference = max(difference, float(np.abs(ours - theirs).max(initial=0.0)))
        largest = max(largest, float(np.abs(theirs).max(initial=0.0)))
        for unseen in (False, True):
            found, wanted = (student.best(history, length, k, unseen)[0] for student in (one, other))
            alike += int((found == wanted).all(axis=1).sum())
            lists += len(found)
    return Agreement(difference, largest, alike, lists)


def by_item(items: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores in the order of the items, ``[B, V]``."""
    return np.take_along_axis(scores, np.argsort(items, axis=1), axis=1)


def size_of(folder: Path) -> int:
    """Bytes of a graph with its weights."""
    return sum(path.stat().st_size for path in folder.glob(f"{GRAPH}*"))


def quantised(
    folder: Path, model: ModelStudent, data: SequenceData, options: argparse.Namespace, asking: Any
) -> list[str]:
    """The cells of a network whose graph is replaced by its int8 form."""
    examples = data.validation.take(np.arange(min(len(data.validation), options.examples)))
    before, size = served_ndcg(GraphStudent(folder, 1).best, examples, options.k), size_of(folder)
    quantise_graph(folder / GRAPH)
    small = GraphStudent(folder, 1)
    after, found = served_ndcg(small.best, examples, options.k), compared(small, model, asking, options.k)
    change = f"{after / before - 1:+.2%}" if before else "–"
    sizes = (f"{size / 1e6:.2f}", f"{size_of(folder) / 1e6:.2f}")
    return [*found.cells, f"{before:.4f}", f"{after:.4f}", change, *sizes]


def main(given: Sequence[str] | None = None) -> None:
    """Print a table of the graphs, and one of their int8 forms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder with RecBole's files of --name; none: the sample")
    parser.add_argument("--name", default="ml-100k")
    parser.add_argument("--students", nargs="+", default=[*architectures()])
    parser.add_argument("--prior", default="linear", help="of the networks, beside none")
    parser.add_argument("--rows", type=int, default=20_000, help="training rows, the first ones")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--examples", type=int, default=2_000, help="validation examples that judge int8")
    parser.add_argument("--lengths", type=int, nargs="+", default=[0, 1, 5, 19, 20, 21, 60])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 7, 64, 256])
    parser.add_argument("--k", type=int, default=20)
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    begun = time.process_time()
    source = DatasetSettings()
    if options.root is not None:
        source = DatasetSettings(adapter="recbole", root=options.root, name=options.name)
    data = load_dataset(source)
    torch.manual_seed(_SEED)
    whole = StudentData.of(data, "cpu", item_text=torch.randn(data.num_items, _TEXT_WIDTH))
    rows, asking = (
        replace(whole, train=whole.train.first(options.rows)),
        [*asked(data, options.lengths, options.batches)],
    )
    parity, small = [], []
    for name in options.students:
        network = isinstance(student_settings(name), NetworkSettings)
        for prior in ("none", options.prior) if network else ("none",):
            with tempfile.TemporaryDirectory() as place:
                model = trained(name, prior, rows, options.epochs)
                catalogue = Catalogue(data.id_map)
                folder, theirs = (
                    in_folder(model, catalogue, Path(place) / name),
                    ModelStudent(model, catalogue, name, {}),
                )
                found = compared(GraphStudent(folder, 1), theirs, asking, options.k)
                parity.append([name, prior, *found.cells])
                print(f"{name}, prior {prior}: {', '.join(found.cells)}", flush=True)
                if network:
                    small.append([name, prior, *quantised(folder, theirs, data, options, asking)])
    print(f"\n{machine_line(torch.device('cpu'))}; {time.process_time() - begun:.0f} s of processors in all")
    lengths, batches = (", ".join(map(str, numbers)) for numbers in (options.lengths, options.batches))
    print(f"{data.name}: {data.num_items:,} items, {len(rows.train):,} training rows, {options.epochs} epochs")
    print(f"histories of {lengths} items in batches of {batches}\n")
    head = ["student", "prior", "largest difference", "largest score", f"lists of {options.k} alike"]
    print(table(head, parity))
    judged = [f"NDCG@{options.k}", "as int8", "change", "MB", "as int8"]
    print(f"\nint8, judged on {min(len(data.validation), options.examples):,} validation examples:\n")
    print(table([*head, *judged], small))


if __name__ == "__main__":
    main()
