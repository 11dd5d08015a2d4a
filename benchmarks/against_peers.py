"""This project's student beside RecTools' and RecBole's SASRec: quality, and CPU seconds to reach it.

The same training, validation and test examples, full ranking. Every arm gets the same number of tries (`ARMS`, below),
judged on validation with one seed; the best of them is trained with further seeds. Arms take turns, one training at a
time, one thread each, every library in an interpreter of its own, until validation has not risen for ``--patience``
evaluations. While they train, validation is a seeded part of the validation split, the same for all. The sides see the
histories of the test split without the targets and write their scores; ranks are computed here, once, at the end.

    python3 -m venv rectools-env
    rectools-env/bin/pip install torch==2.13.0 "rectools[torch]==0.19.0"
    python3 -m venv recbole-env
    recbole-env/bin/pip install torch==2.13.0 "numpy<2" "pandas<2.2" "scipy<1.13" recbole==1.2.1 "setuptools<81"
    python -m benchmarks.against_peers --out FOLDER --rectools-python rectools-env/bin/python \
        --recbole-python recbole-env/bin/python -- dataset=recbole dataset.root=PATH/ml-100k dataset.name=ml-100k

A training whose result lies in the folder already is not repeated. An arm without its interpreter is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from src.config.reading import read_settings
from src.core.logging import log_to
from src.core.paths import write_json
from src.core.seed import numpy_generator
from src.data.dataset import load_dataset
from src.data.examples import Examples, SequenceData
from src.data.tensor_examples import TensorExamples
from src.evaluation.paired import PairedComparison, compare, gain
from src.pipeline.settings import ExperimentSettings
from src.student.evaluator import rank_rows, sampled_rows
from src.student.settings import EvaluationSettings

TOP = 20
STUDENT, ALONE = "ours, with the linear prior", "ours, without it"
RESAMPLES = 10_000


@dataclass(frozen=True)
class Arm:
    """One model: the side that trains it, and the settings that are tried."""

    side: str
    tries: tuple[dict[str, Any], ...]


_RECTOOLS = {"n_factors": 64, "n_heads": 2, "session_max_len": 50, "batch_size": 16, "judge_every": 3}
_SAMPLED = {**_RECTOOLS, "n_negatives": 256, "gbce_t": 0.75}
_RECBOLE = {"MAX_ITEM_LIST_LENGTH": 20, "train_batch_size": 256}
_OURS: tuple[dict[str, Any], ...] = ({}, {"dropout": 0.3}, {"learning_rate": 1e-3})
ARMS = {
    STUDENT: Arm("student_peer", tuple({"prior": "linear", **asked} for asked in _OURS)),
    ALONE: Arm("student_peer", tuple({"prior": "none", **asked} for asked in _OURS)),
    "RecTools SASRec, softmax": Arm(
        "rectools_peer",
        (
            _RECTOOLS,
            {**_RECTOOLS, "session_max_len": 200, "dropout_rate": 0.3},
            {"judge_every": 5},  # the library's own: width 256, sessions of 100, 128 of them a step
        ),
    ),
    "RecTools SASRec, sampled losses": Arm(
        "rectools_peer",
        (
            {**_SAMPLED, "loss": "gBCE"},
            {**_SAMPLED, "loss": "sampled_softmax"},
            {**_SAMPLED, "loss": "gBCE", "session_max_len": 200},
        ),
    ),
    "RecBole SASRec": Arm(
        "recbole_peer",
        (
            {**_RECBOLE, "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2},
            _RECBOLE,  # the library's own dropout, 0.5
            {**_RECBOLE, "MAX_ITEM_LIST_LENGTH": 50},
        ),
    ),
}


def columns(split: Examples, name: str, targets: bool = True) -> dict[str, NDArray[Any]]:
    """A split for `peer_trial.Rows`; without the answers where ``targets`` is false."""
    past = split.past
    shown = split.target if targets else split.target[:0]
    found = {"items": past.items.astype(np.int64), "end": past.end, "earlier": past.earlier, "target": shown}
    return {f"{name}_{column}": values for column, values in found.items()}


def export(file: Path, data: SequenceData, test: Examples, shown: int) -> None:
    """Write the splits as every side reads them."""
    looked_at = sampled_rows(len(data.validation), EvaluationSettings(sample_rows=shown), torch.device("cpu"))
    rows = np.arange(len(data.validation)) if looked_at is None else looked_at.numpy()
    splits = columns(data.train, "train") | columns(data.validation, "validation") | columns(test, "test", False)
    np.savez(file, num_items=data.num_items, shown=rows, **splits)


@dataclass(frozen=True)
class Field:
    """Where trainings run and lie."""

    folder: Path
    pythons: dict[str, Path]
    epochs: int
    patience: int

    def file(self, arm: str, settings: dict[str, Any], seed: int) -> Path:
        """A training's result."""
        number = ARMS[arm].tries.index(settings)
        return self.folder / f"{arm.replace(', ', '_').replace(' ', '_')}-{number}-{seed}.json"

    def train(self, arm: str, settings: dict[str, Any], seed: int) -> dict[str, Any]:
        """Train as asked unless that was done; what the side wrote."""
        file = self.file(arm, settings, seed)
        if not file.exists():
            side = ARMS[arm].side
            asked = {"settings": settings, "seed": seed, "epochs": self.epochs, "patience": self.patience}
            root = Path(__file__).resolve().parent.parent
            environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
            command = [self.pythons[side], "-m", f"benchmarks.{side}", self.folder / "splits.npz", json.dumps(asked)]
            print(f"{arm}, seed {seed}: {settings}", flush=True)
            with tempfile.TemporaryDirectory() as scratch:  # RecBole writes logs into its working folder
                subprocess.run([*map(str, command), str(file)], cwd=scratch, env=environment, check=True)
        found: dict[str, Any] = json.loads(file.read_text())
        print(f"{arm}, seed {seed}: {told(found)}", flush=True)
        return found

    def ranks(self, arm: str, settings: dict[str, Any], seed: int, examples: Examples, split: str, masked: bool) -> Any:
        """The ranks of a split's targets under a training's scores, ``[N]``."""
        scores = torch.from_numpy(np.load(self.file(arm, settings, seed).with_suffix(f".{split}.npy"), mmap_mode="c"))
        shown = TensorExamples.of(examples, "cpu")
        return rank_rows(lambda rows: scores[rows], shown, EvaluationSettings(mask_history=masked)).numpy()


def best_epoch(found: dict[str, Any]) -> dict[str, float]:
    """The epoch of a curve with the highest validation."""
    return max(found["curve"], key=lambda epoch: float(epoch["ndcg"]))


def seconds_to(found: dict[str, Any], level: float) -> float:
    """CPU seconds of training until validation reaches ``level``; infinite where it never does."""
    return next((epoch["seconds"] for epoch in found["curve"] if epoch["ndcg"] >= level), float("inf"))


def told(found: dict[str, Any]) -> str:
    """A training in a line."""
    best = best_epoch(found)
    reached, whole = seconds_to(found, 0.99 * best["ndcg"]), found["curve"][-1]["seconds"]
    return (
        f"validation {best['ndcg']:.4f}, the {found['curve'].index(best) + 1}th of {len(found['curve'])} evaluations; "
        f"best less 1 % after {reached:.0f} s of CPU, {whole:.0f} s in all"
    )


def chosen_settings(field: Field, arms: Sequence[str], tries: int) -> dict[str, dict[str, Any]]:
    """Every arm's first tries in turn; the best of each on validation."""
    levels: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(tries):
        for arm in arms:
            levels[arm].append(best_epoch(field.train(arm, ARMS[arm].tries[number], 0))["ndcg"])
    return {arm: ARMS[arm].tries[int(np.argmax(levels[arm]))] for arm in arms}


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    names = (
        "validation",
        "test NDCG@20",
        "test, masked",
        "CPU s to its best - 1 %",
        "of ours",
        "parameters",
        "settings",
    )
    lines = [f"| model | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        cells = [f"{row[name]:.4f}" for name in ("validation", "test", "masked")]
        cells += [f"{row['seconds']:.0f}", f"{row['times']:.1f}", f"{row['parameters']:,}", f"`{row['settings']}`"]
        lines.append(f"| {row['model']} | {' | '.join(cells)} |")
    return lines


def against(row: PairedComparison, split: str) -> str:
    """A comparison with the reference arm in a line."""
    return f"{split}: {row.name} - {STUDENT}: {row.difference:+.4f} ({row.low:+.4f} to {row.high:+.4f})"


def judge(
    field: Field, chosen: dict[str, dict[str, Any]], seeds: Sequence[int], data: SequenceData, test: Examples
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each arm, means over seeds; and the paired differences from the first arm on test."""
    rows, gains = [], {"unmasked": {}, "masked": {}}  # type: list[dict[str, Any]], dict[str, dict[str, Any]]
    for arm, settings in chosen.items():
        runs = [field.train(arm, settings, seed) for seed in seeds]
        asked = [(arm, settings, seed) for seed in seeds]
        of_validation = [gain(field.ranks(*run, data.validation, "validation", False), TOP) for run in asked]
        gains["unmasked"][arm] = np.stack([gain(field.ranks(*run, test, "test", False), TOP) for run in asked])
        gains["masked"][arm] = np.stack([gain(field.ranks(*run, test, "test", True), TOP) for run in asked])
        rows.append(
            {
                "model": arm,
                "settings": settings,
                "parameters": runs[0]["parameters"],
                "validation": float(np.mean(of_validation)),
                "test": float(gains["unmasked"][arm].mean()),
                "masked": float(gains["masked"][arm].mean()),
                "seconds": float(np.mean([seconds_to(run, 0.99 * best_epoch(run)["ndcg"]) for run in runs])),
                "epochs": [len(run["curve"]) for run in runs],
            }
        )
    rows = [{**row, "times": row["seconds"] / rows[0]["seconds"]} for row in rows]
    lines = []
    for split, scores in gains.items():
        if len(scores) > 1:
            found = compare(
                scores, test.user, next(iter(chosen)), RESAMPLES, numpy_generator(0, "peers"), metric="ndcg_20"
            )
            lines += [against(row, f"test, {split}") for row in found]
    return rows, lines


def main() -> None:
    """Train what is missing, judge, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the splits, the trainings and the table")
    parser.add_argument("--rectools-python", type=Path, help="interpreter of RecTools' environment")
    parser.add_argument("--recbole-python", type=Path, help="interpreter of RecBole's environment")
    parser.add_argument("--tries", type=int, default=3, choices=range(1, 4), help="settings that each arm tries")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each arm's best settings")
    parser.add_argument("--epochs", type=int, default=500, help="at most")
    parser.add_argument("--patience", type=int, default=5, help="evaluations without a better one before it ends")
    parser.add_argument("--shown", type=int, default=2000, help="validation rows that are looked at while training")
    parser.add_argument("overrides", nargs="*", help="of the configuration, after --")
    options = parser.parse_args()
    log_to(None)
    settings, _ = read_settings("config", options.overrides, ExperimentSettings)
    data, folder = load_dataset(settings.dataset), options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    test = data.test.open("scores of peers, whose targets they do not see", folder / "test_openings.jsonl", "peers")
    export(folder / "splits.npz", data, test, options.shown)
    given = {"rectools_peer": options.rectools_python, "recbole_peer": options.recbole_python}
    pythons = {side: path.absolute() for side, path in given.items() if path} | {"student_peer": Path(sys.executable)}
    arms = [name for name, arm in ARMS.items() if arm.side in pythons]
    field = Field(folder, pythons, options.epochs, options.patience)
    chosen = chosen_settings(field, arms, options.tries)
    for seed in range(1, options.seeds):
        for arm in arms:
            field.train(arm, chosen[arm], seed)
    rows, lines = judge(field, chosen, range(options.seeds), data, test)
    write_json(folder / "table.json", {"rows": rows, "against": lines})
    print("\n".join([*table(rows), "", *lines]))


if __name__ == "__main__":
    main()
