"""A few steps of a trial, alone or beside others, in a process as a trial has one: what it needs and what it brings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import TypeAdapter

from src.core.checkpoints import NoCheckpoint
from src.core.errors import OutOfMemory, StopTraining
from src.core.hardware import resolve_device
from src.core.memory import give_back, is_out_of_memory
from src.core.training import LoopSettings, Report
from src.pipeline.settings import ExperimentSettings
from src.student.settings import NetworkSettings
from src.tuning.search_space import Stage, Value
from src.tuning.shared_data import FOLDER, SharedData
from src.tuning.stage_functions import train_stage
from src.tuning.store import Store
from src.tuning.trial_values import apply_values

#: steps of an epoch here: enough that the batch of evaluation after them weighs little; a teacher's steps are long
_STEPS: dict[Stage, int] = {"student": 32, "distill": 32, "teacher": 4}
_WITHOUT_END = 10**9


def in_worker(settings: ExperimentSettings, share: float) -> ExperimentSettings:
    """The settings of a trial in a worker with this share of a GPU, which is the only GPU that it sees: its first."""
    return replace(settings, runtime=replace(settings.runtime, device="cuda:0" if share else "cpu"))


@dataclass(frozen=True)
class GpuNeed:
    """One trial alone on a GPU.

    Attributes:
        peak: Bytes that torch's allocator held at most.
        free: Bytes that were free before, the process's own CUDA context apart.
    """

    peak: int
    free: int


class GpuProbe:
    """A trial's training cut to few rows; `ray.remote` makes it an actor. It reads what trials read from the store."""

    def __init__(self, settings: Mapping[str, object], stage: Stage, values: Mapping[str, Value], store: Store) -> None:
        asked = apply_values(TypeAdapter(ExperimentSettings).validate_python(settings), values)
        self.stage, self.settings = stage, without_end(in_worker(asked, 1.0))
        self.device = resolve_device(self.settings.runtime.device)
        torch.cuda.init()  # nothing is counted before a process has touched its GPU
        torch.cuda.reset_peak_memory_stats(self.device)
        self.free = int(torch.cuda.mem_get_info(self.device)[0])
        with store.scratch() as scratch:
            self.data = SharedData.load(store.download(FOLDER, Path(scratch)), self.device)

    def measure(self) -> GpuNeed:
        """Train some steps on all of the GPU that is free, and rank one batch."""

        def stop(epoch: int, metrics: Mapping[str, float]) -> None:
            raise StopTraining

        self._train(stop)
        return GpuNeed(torch.cuda.max_memory_reserved(self.device), self.free)

    def rate(self, seconds: float) -> float:
        """Training steps a second, over about so long; trainings a second where one has no steps; 0 where memory runs
        out."""
        start, times = time.perf_counter(), list[float]()

        def report(epoch: int, metrics: Mapping[str, float]) -> None:
            times.append(time.perf_counter())
            if len(times) > 1 and times[-1] - times[0] >= seconds:
                raise StopTraining

        try:
            self._train(report)
        except (OutOfMemory, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return 0.0
        if len(times) == 1:  # computed in one go
            return 1 / (times[0] - start)
        return self._steps * (len(times) - 1) / (times[-1] - times[0])

    @property
    def _steps(self) -> int:
        """Steps of an epoch; of a student in closed form, which reads every row at once, none."""
        if (loop := self._loop) is None:
            return 0
        return min(_STEPS[self.stage], -(-len(self.data.students.train) // loop.batch_size))

    @property
    def _loop(self) -> LoopSettings | None:
        if self.stage == "teacher":
            return self.settings.teacher.train.loop
        student = self.settings.student
        return student.loop if isinstance(student, NetworkSettings) else None

    def _train(self, report: Report) -> None:
        loop = self._loop
        rows = self._steps * loop.batch_size if loop is not None else len(self.data.students.train)
        with suppress(StopTraining):  # a student in closed form has no loop that would end by it
            if self.stage == "teacher":
                from src.tuning.teacher_trial import train_longest

                train_longest(self.settings, rows, report)
            else:
                data = _first(self.data, rows, self.settings.evaluation.batch_size)
                train_stage(self.stage, self.settings, data, self.device, report, NoCheckpoint())
        give_back(self.device)


def without_end(settings: ExperimentSettings) -> ExperimentSettings:
    """The same training, which nothing but its report ends."""

    def endless(loop: LoopSettings) -> LoopSettings:
        return replace(loop, epochs=_WITHOUT_END, patience=_WITHOUT_END, checkpoint_minutes=0.0)

    student, teacher = settings.student, settings.teacher
    train = replace(teacher.train, loop=endless(teacher.train.loop))
    return replace(
        settings,
        student=replace(student, loop=endless(student.loop)) if isinstance(student, NetworkSettings) else student,
        teacher=replace(teacher, train=train),
    )


def _first(data: SharedData, train: int, validation: int) -> SharedData:
    """The first rows of both splits, as views: what lies on the GPU stays there."""

    students = data.students
    few = replace(students, train=students.train.first(train), validation=students.validation.first(validation))
    return replace(data, students=few)
