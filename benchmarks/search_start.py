"""What a search costs beside its trainings: a whole `tune_student` of six small trials, whose trainings take a second.

Checkouts are measured in turn, ``--rounds`` times, so that other load meets all of them. Each has a cache of its own,
which is filled before: what is measured is the command with its imports, Ray, the worker, trials and finalists, tables
and report.

    python -m benchmarks.search_start [--checkout OTHER_CHECKOUT ...] [--rounds 5]

CPU seconds are those of the whole machine meanwhile: measure on an idle one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from src.core.logging import console
from src.core.paths import REPOSITORY

COMMAND = [
    sys.executable, "-m", "src.exp.tune_student", "trials=6", "dataset.sample_users=60", "dataset.sample_items=60",
    "dataset.sample_interactions=1500", "student.width=16", "student.loop.epochs=4", "runtime.cache=cache",
]  # fmt: skip


@dataclass(frozen=True)
class RunCost:
    """Wall seconds of a command, and the machine's CPU seconds meanwhile."""

    wall: float
    cpu: float


def run_cost(checkout: Path, place: Path, name: str) -> RunCost:
    """One search of a checkout's code.

    Args:
        checkout: whose code runs.
        place: a folder for its cache and results.
        name: the result folder's.

    Raises:
        RuntimeError: the search did not end well.
    """
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    start, before = time.perf_counter(), busy_seconds()
    done = subprocess.run(
        [*COMMAND, f"hydra.run.dir={name}"], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    cost = RunCost(time.perf_counter() - start, busy_seconds() - before)
    if done.returncode:
        raise RuntimeError(f"{checkout}: exit code {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return cost


def busy_seconds() -> float:
    """The CPU seconds that this machine has spent on processes."""
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice)


def main() -> None:
    """Print the medians of each checkout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, action="append", default=[], help="another one, measured in turn")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    checkouts = [REPOSITORY, *(path.resolve() for path in asked.checkout)]
    found: dict[Path, list[RunCost]] = {checkout: [] for checkout in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        places = {checkout: Path(folder) / str(number) for number, checkout in enumerate(checkouts)}
        for checkout, place in places.items():
            place.mkdir()
            run_cost(checkout, place, "first")
        for number in range(asked.rounds):
            for checkout, place in places.items():
                found[checkout].append(run_cost(checkout, place, f"result_{number}"))
    for checkout, costs in found.items():
        wall, cpu = ([getattr(cost, name) for cost in costs] for name in ("wall", "cpu"))
        console.print(
            f"{checkout}: {statistics.median(wall):.1f} s ({min(wall):.1f} to {max(wall):.1f}), "
            f"{statistics.median(cpu):.1f} CPU s ({min(cpu):.1f} to {max(cpu):.1f})",
            markup=False,
        )


if __name__ == "__main__":
    main()
