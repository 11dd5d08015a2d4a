"""What the platform costs a trial, and what trials that run side by side cost each other.

1. overhead: the same trainings called plainly, one after the other, in one process, against a search that runs them one
   at a time (first trial excluded: it starts the worker). What counts is the time that is not spent inside the epochs
   (start, checkpoints, reports, saving, the next trial's start), because other load slows the epochs of both sides
   alike. Per trial, and as a share of a trial of 60 s; the plain trainings are called before and after the search.
2. throughput: a search with 1 worker of one thread against 2 on 2 cores.
3. memory: the driver and the workers with 1 and with 4 trials at a time (USS: what is not shared).

    python -m benchmarks.trial_overhead [--dataset recbole --root PATH --name ml-100k]

On a GPU, ``--fractions`` prints trials an hour at shares 1, 1/2, 1/4 and 1/8.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import psutil
import torch

from src.config.reading import read_settings
from src.core.checkpoints import FileCheckpoint
from src.core.logging import log_to
from src.pipeline.cache import StageCache
from src.pipeline.stages import Stages
from src.tuning.preflight import prepare_space
from src.tuning.search import run_search
from src.tuning.search_settings import SearchSettings, experiment
from src.tuning.search_space import SearchSpace, Value
from src.tuning.settings import TuningSettings
from src.tuning.shared_data import SharedData
from src.tuning.stage_functions import train_stage
from src.tuning.trial_values import apply_values

#: a space, and the same points of it for every measurement
Trials = tuple[SearchSpace, Sequence[Mapping[str, Value]]]


def trials_of(settings: SearchSettings) -> Trials:
    """Learning rates that differ a little."""
    space = prepare_space(experiment(settings), settings.tuning, "student", "student").only(["student.learning_rate"])
    return space, [{"student.learning_rate": 1e-3 * (1 + 0.01 * number)} for number in range(settings.trials)]


@dataclass(frozen=True)
class Took:
    """Seconds of one trial: in all, and of its epochs."""

    whole: float
    epochs: float

    @property
    def beside(self) -> float:
        """Not inside of an epoch."""
        return self.whole - self.epochs


def plainly(trials: Trials, stages: Stages, folder: Path) -> list[Took]:
    """Each training called as a function, with its checkpoints; the first is left out."""
    data, took = SharedData.of(stages.data, {}, stages.prior), []
    for number, point in enumerate(trials[1]):
        settings = apply_values(stages.settings, point)
        start = time.perf_counter()
        checkpoint = FileCheckpoint(folder / f"{number}.pt", "benchmark")
        trained = train_stage("student", settings, data, stages.device, lambda *_: None, checkpoint)
        trained.save(folder / f"model_{number}")
        took.append(Took(time.perf_counter() - start, trained.fit.seconds))
    return took[1:]


class Memory:
    """The largest sum of private memory (USS) of this process's children that are Ray workers, sampled."""

    def __init__(self) -> None:
        self.peak, self._on = 0, True
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while self._on:
            total = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.cmdline()[:1] and "ImplicitFunc" in process.cmdline()[0]:
                        total += process.memory_full_info().uss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)
            time.sleep(0.2)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._on = False
        self._thread.join()


def searched(trials: Trials, stages: Stages, settings: SearchSettings) -> tuple[list[Took], int]:
    """From the end of a trial to the end of the next, in order of their ends, and the workers' peak memory in bytes.

    The first trials, which start their workers, are left out.
    """
    space, points = trials
    with (
        tempfile.TemporaryDirectory(prefix="anyo-bench-") as folder,
        Memory() as memory,
        run_search(settings, stages, space, points, {}, Path(folder)) as outcome,
    ):
        done = outcome.search.record.trials()
    ended = [(t.datetime_complete.timestamp(), t.user_attrs["seconds"]) for t in done if t.datetime_complete]
    took = [Took(end - before, float(trained)) for (before, _), (end, trained) in pairwise(sorted(ended))]
    workers = max(1, int((psutil.cpu_count() or 1) / settings.tuning.cpu_per_trial))
    return took[workers - 1 :], memory.peak


def tell(name: str, values: Sequence[float]) -> None:
    """Median and range."""
    print(f"{name:44} median {statistics.median(values):6.2f} s   ({min(values):.2f} to {max(values):.2f})")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="sample")
    parser.add_argument("--root", default="")
    parser.add_argument("--name", default="")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--fractions", action="store_true")
    options = parser.parse_args()
    log_to(None)
    chosen = [f"dataset={options.dataset}", f"student.loop.epochs={options.epochs}", "student.loop.patience=99"]
    chosen += [f"dataset.root={options.root}"] if options.root else []
    chosen += [f"dataset.name={options.name}"] if options.name else []
    asked, _ = read_settings("tune_student", chosen, SearchSettings)
    settings = replace(asked, tuning=TuningSettings(pruner="none", keep_top=1, finalists=1), trials=options.trials)
    stages = Stages(experiment(settings), StageCache(settings.runtime.cache))
    trials = trials_of(settings)
    _ = stages.baseline

    def sharing(**change: float) -> tuple[list[Took], int]:
        return searched(trials, stages, replace(settings, tuning=replace(settings.tuning, **change)))

    if options.fractions:
        for share in (1.0, 0.5, 0.25, 0.125):
            took, _ = sharing(gpu_per_trial=share)
            print(f"share {share:5.3f}: {3600 / statistics.mean(one.whole for one in took):8.0f} trials an hour")
        return
    torch.set_num_threads(1)
    cores = float(psutil.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="anyo-bench-") as folder:
        alone = plainly(trials, stages, Path(folder))
        single, one = sharing(cpu_per_trial=cores)
        alone += plainly(trials, stages, Path(folder) / "again")
    pair, _ = sharing(cpu_per_trial=cores / 2)
    _, four = sharing(cpu_per_trial=cores / 4)
    for name, took in (("called plainly", alone), ("in a search, one at a time", single)):
        tell(f"{name}: a trial", [each.whole for each in took])
        tell(f"{name}: beside its epochs", [each.beside for each in took])
    extra = statistics.median(t.beside for t in single) - statistics.median(t.beside for t in alone)
    print(f"overhead a trial: {extra:.2f} s, {extra / 60:.1%} of a trial of 60 s")
    ratio = statistics.mean(t.whole for t in single) / statistics.mean(t.whole for t in pair)
    print(f"throughput of 2 workers against 1: {ratio:.2f}x")
    print(f"workers' private memory: {one / 1e6:.0f} MB with 1 trial at a time, {four / 1e6:.0f} MB with 4")


if __name__ == "__main__":
    main()
