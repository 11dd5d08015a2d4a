"""How many epochs does a grid by hand train, and how many does the search need to be as good?

    python -m benchmarks.grid_against_search --outputs FOLDER --root PATH/ml-100k

A 6 x 6 grid of distill.ed_weight and distill.lam without pruning, and the same two parameters searched by TPE with the
median rule from three sampler seeds; the student, its seed, the epochs and early stopping are the same on both sides.
FOLDER holds finished teacher outputs (result/.../teacher_outputs or the cache's). The search has needed as many epochs
as were trained, in any trial, when the first validation value reached the grid's best - 1 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

BOUND = {"distill.ed_weight": 1.0, "distill.lam": 1.0}


def space(folder: Path, grid: bool) -> Path:
    """The search-space document: six levels of each parameter, or the same range without steps."""
    step = ", step: 0.2" if grid else ""
    lines = [f"  {key}: {{type: float, low: 0.0, high: {high}{step}}}" for key, high in BOUND.items()]
    path = folder / ("grid.yaml" if grid else "range.yaml")
    path.write_text("\n".join(["stage: distill", "metric: ndcg_20", "parameters:", *lines, ""]))
    return path


def run(folder: Path, options: argparse.Namespace, *extra: str) -> Path:
    """One search; returns its result folder, an existing one is taken as it is."""
    if not (folder / "manifest.json").exists():
        line = [
            sys.executable, "-m", "src.exp.tune_distill", "dataset=recbole", f"dataset.root={options.root}",
            f"dataset.name={options.name}", f"distill.outputs_from={options.outputs}",
            f"student.loop.epochs={options.epochs}", f"student.dropout={options.dropout}",
            f"hydra.run.dir={folder}", *extra,
        ]  # fmt: skip
        if (folder / "command.json").exists():
            line = [*line[:3], f"resume={folder}"]
        subprocess.run(line, check=True)
    return folder


def values_in_order(folder: Path) -> list[float]:
    """Every epoch's validation value, in the order in which the journal got them."""
    records = (json.loads(line) for line in (folder / "study.journal").read_text().splitlines())
    return [float(record["intermediate_value"]) for record in records if record["op_code"] == 7]


def needed(values: list[float], goal: float) -> int | None:
    """Epochs until the goal, None where it was not reached."""
    return next((count for count, value in enumerate(values, start=1) if value >= goal), None)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--name", default="ml-100k")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--folder", type=Path, default=Path("result/grid_against_search"))
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    grid_space, free_space = space(options.folder, True), space(options.folder, False)
    grid = run(
        options.folder / "grid", options, f"tuning.search_space={grid_space}", "tuning.sampler=grid",
        "tuning.pruner=none",
    )  # fmt: skip
    by_grid = values_in_order(grid)
    goal = 0.99 * max(by_grid)
    print(f"grid: 36 trials, {len(by_grid)} epochs, best validation NDCG@20 {max(by_grid):.4f}, goal {goal:.4f}")
    print(f"  (the grid itself reached the goal after {needed(by_grid, goal)} epochs)")
    counts = []
    for seed in range(3):
        searched = run(
            options.folder / f"search_{seed}", options, f"tuning.search_space={free_space}", f"tuning.seed={seed}",
            f"trials={options.trials}",
        )  # fmt: skip
        values = values_in_order(searched)
        count = needed(values, goal)
        counts.append(count if count is not None else len(values) + 1)
        reached = f"after {count} epochs" if count else "not reached"
        print(f"search, sampler seed {seed}: {len(values)} epochs in all, best {max(values):.4f}, goal {reached}")
    median = statistics.median(counts)
    print(f"median {median:.0f} epochs: {median / len(by_grid):.1%} of the grid's (goal: at most 20 %)")


if __name__ == "__main__":
    main()
