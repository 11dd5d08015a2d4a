"""Trials that train as one model are to the study what they are alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from optuna.trial import FrozenTrial
from torch import Tensor, nn

from src.config.reading import read_settings
from src.core.differences import NotBatchable
from src.core.errors import ConfigError, OutOfMemory, TrainingFailed
from src.core.stacked_members import StackedMembers
from src.core.training import FitResult, Fitting, LoopSettings
from src.data.dataset import load_dataset
from src.data.teacher_outputs import TeacherOutputs
from src.pipeline.run_folder import single_driver
from src.student.models import require_network
from src.tuning import journal, member_trials, population_groups, trainable
from src.tuning.dispatch import CHECKPOINT, MODEL, TRACEBACK, Dispatcher, Job, Search
from src.tuning.gpu_probe import GpuNeed
from src.tuning.member_trials import MemberTrials
from src.tuning.population_groups import PopulationGroups, check_population, decide_population_size, largest_population
from src.tuning.resources import CONTEXT_BYTES, Resources
from src.tuning.search_settings import SearchSettings
from src.tuning.search_space import FloatParameter, IntParameter, SearchSpace
from src.tuning.settings import TuningSettings
from src.tuning.shared_data import SharedData
from src.tuning.store import Store
from src.tuning.study import Record
from src.tuning.trainable import TOKEN, Trainable, TrialCheckpoint
from src.tuning.trained_model import TrainedModel
from src.tuning.trial_values import trial_values
from src.tuning.worker_trials import WorkerTrials
from tests.gpu.test_trial import DATASET, settings
from tests.tuning.killing import EPOCHS, EVERY, SPACE, DyingBackend, Killed, table, value
from tests.tuning.test_trainable import CONFIG

SHARE = {"share": 0.0, "memory": 0}
#: what a lone trial is decided to occupy
ALONE = Resources(1.0, 0.0)
NUMBERS = SearchSpace(
    "distill",
    {"ndcg_20": "maximize"},
    {
        "distill.lam": FloatParameter(type="float", low=0.1, high=1.0),
        "distill.alpha": FloatParameter(type="float", low=0.05, high=0.5),
        "distill.ed_weight": FloatParameter(type="float", low=0.1, high=1.0),
        "student.dropout": FloatParameter(type="float", low=0.05, high=0.5),
        "student.learning_rate": FloatParameter(type="float", low=1e-3, high=1e-2),
        "seed": IntParameter(type="int", low=1, high=9),
    },
)


@dataclass
class Driver:
    """The driver of a search whose workers run in its own process, one after the other."""

    dispatcher: Dispatcher
    trainable: Trainable
    monkeypatch: pytest.MonkeyPatch
    crews: list[WorkerTrials] = field(default_factory=list)
    share: Mapping[str, Any] = field(default_factory=lambda: SHARE)

    def run(self) -> None:
        """To the end of the search."""
        while jobs := self.dispatcher.together():
            crew = WorkerTrials(jobs)
            self.crews.append(crew)
            if crew.first.group:
                self.monkeypatch.setattr(
                    member_trials, "tell", lambda told, crew=crew: crew.take(self.dispatcher, told)
                )
                MemberTrials(self.trainable, crew.configuration(self.share)).train()
            else:
                self._alone(crew.first)
            for job in crew.jobs:
                self.dispatcher.on_end(job.start)

    def together(self, crew: WorkerTrials) -> None:
        """What a population's worker does."""
        self.monkeypatch.setattr(member_trials, "tell", lambda told: crew.take(self.dispatcher, told))
        MemberTrials(self.trainable, crew.configuration(self.share)).train()

    def _alone(self, job: Job) -> None:
        self.monkeypatch.setattr(trainable, "tell", lambda told: self.dispatcher.on_report(job.start, told))
        self.trainable({**CONFIG, **self.share, "values": dict(job.values), "folder": job.folder, "number": job.number})


# ---------------------------------------------------------------------------------------------------- real trials


def shared_data() -> SharedData:
    """A small sample and what a teacher may have said of it."""
    data = load_dataset(DATASET)
    rows = (data.train.target[:, None] + np.arange(20)) % data.num_items
    distances = np.tile(np.linspace(0.1, 4, 20, dtype=np.float32), (len(rows), 1))
    embedding = np.random.default_rng(0).normal(size=(data.num_items, 8)).astype(np.float32)
    outputs = TeacherOutputs(data.train.example_id, rows, -distances, distances, distances[:, :3], embedding, {})
    return SharedData.of(data, {"llm": outputs})


@pytest.fixture(scope="module")
def shared() -> SharedData:
    return shared_data()


def searched(
    folder: Path,
    shared: SharedData,
    population_size: int,
    trials: int,
    monkeypatch: pytest.MonkeyPatch,
    device: str = "cpu",
    share: Mapping[str, Any] = SHARE,
) -> tuple[list[FrozenTrial], Store, Driver]:
    """A random search over numbers without early stopping by the study."""
    (folder / "trials").mkdir()
    store, asked = Store(str(folder / "trials")), settings(device, folder)
    shared.save(store)
    store.write(TOKEN, b"mine")
    tuning = TuningSettings(sampler="random", pruner="none")
    record = Record.open(journal.open_journal(folder), "search", NUMBERS, tuning, 5, 2, "identity")

    def values(trial: FrozenTrial) -> dict[str, Any]:
        return trial_values("distill", asked, trial.number, trial.params)

    search = Search(record, trials, keep=trials, values=values)
    groups = PopulationGroups(asked, "distill", shared.students.num_items)
    dispatcher = Dispatcher([search], store, retries=0, population_size=population_size, group=groups)
    driver = Driver(dispatcher, Trainable(asked, NUMBERS, store, "mine", 0.0), monkeypatch, share=share)
    driver.run()
    return record.trials(), store, driver


def test_a_population_of_8_gives_the_states_of_8_lone_trials(
    tmp_path: Path, shared: SharedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("together", "alone"):
        (tmp_path / name).mkdir()
    together, store, driver = searched(tmp_path / "together", shared, 8, 9, monkeypatch)
    alone, lone_store, _ = searched(tmp_path / "alone", shared, 1, 9, monkeypatch)
    assert [len(crew.jobs) for crew in driver.crews] == [1, 8]  # trial 0 is alone
    assert together[0].user_attrs["weights"] == alone[0].user_attrs["weights"]
    for ours, theirs in zip(together, alone, strict=True):
        assert (ours.number, ours.state, ours.params) == (theirs.number, theirs.state, theirs.params)
        assert ours.state.name == "COMPLETE"
        assert ours.values == pytest.approx(theirs.values, abs=2e-3)
        assert ours.intermediate_values == pytest.approx(theirs.intermediate_values, abs=2e-3)
        for name in ("epochs", "best_epoch"):
            assert ours.user_attrs[name] == theirs.user_attrs[name]
        assert ours.user_attrs["metrics"] == pytest.approx(theirs.user_attrs["metrics"], abs=5e-3)
        assert set(ours.user_attrs) == set(theirs.user_attrs)
        for found in (store, lone_store):
            assert found.exists(f"{ours.number}/{MODEL}")
            assert found.exists(f"{ours.number}/{CHECKPOINT}")
    # a member's checkpoint holds its own numbers alone
    sizes = [len(found.read(f"3/{CHECKPOINT}") or b"") for found in (store, lone_store)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
    assert "batched" not in (store.read("3/trial.log") or b"").decode()


def test_groups_differ_in_form_and_not_in_numbers(tmp_path: Path) -> None:
    asked = settings("cpu", tmp_path)
    group = PopulationGroups(asked, "distill", 60)
    here = group({"distill.lam": 0.5})
    assert here
    for same in ({"distill.lam": 0.1}, {"student.dropout": 0.7}, {"seed": 4}, {"active.rank_threshold": 3}):
        assert group({"distill.lam": 0.5, **same}) == here
    # another width is another shape, another policy another program, and 0 switches a term off
    for other in (
        {"student.width": 32},
        {"active.policy": "kl_divergence"},
        {"distill.lam": 0.0},
        {"student.heads": 2},
    ):
        assert group({"distill.lam": 0.5, **other}) not in ("", here)


@pytest.mark.parametrize(
    "values",
    [
        {"student.loss": "sampled", "student.shared_negatives": 8},
        {"student.positions": "all"},
        {"student.dropout": 2.0},
    ],
)
def test_what_cannot_be_batched_trains_alone(values: dict[str, Any], tmp_path: Path) -> None:
    assert PopulationGroups(settings("cpu", tmp_path), "distill", 60)(values) == ""


def test_gru4rec_and_teachers_and_adaptive_steps_train_alone(tmp_path: Path) -> None:
    asked = settings("cpu", tmp_path)
    loop = replace(require_network(asked.student).loop, adapt_micro_batch=True)
    assert PopulationGroups(replace(asked, student=replace(asked.student, loop=loop)), "student", 60)({}) == ""
    gru = read_settings("tune_student", ["dataset=sample", "student=gru4rec"], SearchSettings)[0].student
    assert PopulationGroups(replace(asked, student=gru), "student", 60)({}) == ""
    assert PopulationGroups(asked, "teacher", 60)({}) == ""


# ---------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("bad", ["1", "0", "257", "many", "2.5"])
def test_a_population_that_cannot_be_is_refused_at_the_door(bad: str) -> None:
    with pytest.raises(ConfigError, match="tuning.population"):
        read_settings("tune_student", ["dataset=sample", f"tuning.population={bad}"], SearchSettings)


@pytest.mark.parametrize("said", ["auto", "off", "8"])
def test_a_population_is_auto_off_or_a_number(said: str) -> None:
    found = read_settings("tune_student", ["dataset=sample", f"tuning.population={said}"], SearchSettings)[0]
    assert str(found.tuning.population) == said


def test_an_objective_that_is_a_time_and_a_teacher_refuse_a_population() -> None:
    timed = SearchSpace("student", {"ndcg_20": "maximize", "latency_ms": "minimize"}, {})
    rule = "tuning.population = 8: latency_ms of a trial cannot be told among others.*→ tuning.population=off"
    with pytest.raises(ConfigError, match=rule):
        check_population(TuningSettings(population=8), timed)
    with pytest.raises(ConfigError, match="a teacher is trained alone"):
        check_population(TuningSettings(population=8), SearchSpace("teacher", {"ndcg_20": "maximize"}, {}))
    check_population(TuningSettings(population="auto"), timed)


def test_memory_decides_how_many() -> None:
    # (10 GB - a context) / (1.25 · 1 GB) = 7.5
    assert largest_population(GpuNeed(peak=10**9, free=10**10), 1.0) == 7
    assert largest_population(GpuNeed(peak=10**9, free=10**10), 0.5) == 3
    assert largest_population(GpuNeed(peak=10**6, free=10**10), 1.0) == 32
    assert largest_population(GpuNeed(peak=10**10, free=CONTEXT_BYTES + 10), 1.0) == 1


@pytest.mark.parametrize(
    ("gpus", "tuning", "objectives", "found"),
    [
        # (10 GB - a context) / (1.25 · 1 GB) = 7.5; of a half 3.5
        (1.0, {"population": "auto"}, ("ndcg_20",), (Resources(1.0, 1.0, 10**10), 7)),
        (1.0, {"population": "auto", "gpu_per_trial": 0.5}, ("ndcg_20",), (Resources(1.0, 0.5, 10**10), 3)),
        (1.0, {"population": 16}, ("ndcg_20",), (Resources(1.0, 1.0, 10**10), 16)),
        (1.0, {"population": "auto"}, ("ndcg_20", "latency_ms"), (ALONE, 1)),
        (1.0, {}, ("ndcg_20",), (ALONE, 1)),
        (0.0, {"population": "auto"}, ("ndcg_20",), (ALONE, 1)),  # on a CPU it seldom pays
        (0.0, {"population": 4}, ("ndcg_20",), (ALONE, 4)),
    ],
)
def test_the_places_of_a_worker(
    gpus: float, tuning: dict[str, Any], objectives: tuple[str, ...], found: tuple[Resources, int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": gpus})
    monkeypatch.setattr(population_groups, "measure_alone", lambda *_: GpuNeed(peak=10**9, free=10**10))
    monkeypatch.setattr(population_groups, "decide", lambda *_: ALONE)
    space = SearchSpace("distill", dict.fromkeys(objectives, "maximize"), {})
    asked, store = TuningSettings(**tuning), Store(str(tmp_path))
    assert decide_population_size(asked, settings("auto", tmp_path), space, {}, store) == found
    if gpus:
        teachers = SearchSpace("teacher", {"ndcg_20": "maximize"}, {})
        assert decide_population_size(asked, settings("auto", tmp_path), teachers, {}, store) == (ALONE, 1)
        space = SearchSpace("distill", {"ndcg_20": "maximize"}, {})
        on_cpu = decide_population_size(asked, settings("cpu", tmp_path), space, {}, store)
        assert on_cpu == (ALONE, asked.population if isinstance(asked.population, int) else 1)


# ---------------------------------------------------------------------------------------------------- kills


class Weight(nn.Module):
    """One number, and what it costs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def loss(self, rows: Tensor) -> Tensor:
        """A parabola."""
        return self.weight.square().sum() * rows.numel()


@dataclass
class ToyTrials:
    """A search whose trials are a number and a function of their values."""

    folder: Path
    tuning: TuningSettings
    monkeypatch: pytest.MonkeyPatch
    trained: list[tuple[int, int]] = field(default_factory=list)
    #: trials that fail at their second epoch, by what
    failing: tuple[int, ...] = ()
    error: type[Exception] = TrainingFailed
    population_size: int = 3
    crews: list[WorkerTrials] = field(default_factory=list)

    def run(self, trials: int = 5) -> Record:
        """Start, or go on, as the real driver does."""
        self.folder.mkdir(exist_ok=True)
        with single_driver(self.folder):
            first = [{"distill.lam": 0.0}]
            storage = journal.open_journal(self.folder)
            record = Record.open(storage, "search", SPACE, self.tuning, 7, EPOCHS, "identity", first, 1)
            store = Store(str(self.folder / "trials"))
            store.remove("orders")
            store.write(TOKEN, b"mine")
            dispatcher = Dispatcher(
                [Search(record, trials, keep=2)], store, 1, population_size=self.population_size, group=self._group
            )
            driver = Driver(dispatcher, self._trainable(store), self.monkeypatch, self.crews)
            # the toy has one way to train
            driver._alone = lambda job: driver.together(WorkerTrials([job]))  # type: ignore[method-assign]
            driver.run()
        return record

    @staticmethod
    def _group(values: Mapping[str, Any]) -> str:
        return str(values["active.policy"]) if "active.policy" in values else "first"

    def _trainable(self, store: Store) -> Trainable:
        toy = self

        class Own(Trainable):
            def __init__(self) -> None:
                self.stage, self.objectives = "distill", ["ndcg_20"]
                self.store, self.token, self.stall_minutes = store, "mine", 0.0

            def settings_of(self, values: Mapping[str, Any], share: float) -> Any:
                student, runtime = SimpleNamespace(threads=1), SimpleNamespace(device="cpu")
                return SimpleNamespace(student=student, runtime=runtime, seed=0, student_seed=None, values=values)

            def checkpoint_of(self, settings: Any, folder: str) -> TrialCheckpoint:
                return TrialCheckpoint(store, f"{folder}/{CHECKPOINT}", "identity", "mine")

        (self.folder / "trials" / "data").mkdir(parents=True, exist_ok=True)
        self.monkeypatch.setattr(SharedData, "load", lambda folder, device: None)
        self.monkeypatch.setattr(member_trials, "prepare_stage", toy._prepare)
        self.monkeypatch.setattr(member_trials, "clean_worker", lambda seed, device, config: None)
        self.monkeypatch.setattr(member_trials, "give_back", lambda device: None)
        return Own()

    def _prepare(
        self, stage: str, settings: Any, data: None, report: Any, checkpoint: TrialCheckpoint
    ) -> tuple[Fitting, Callable[[FitResult], TrainedModel]]:
        module, number = Weight(), int(Path(checkpoint.name).parent.name)

        def evaluate() -> dict[str, float]:
            epoch = fitting.progress.epoch + 1
            if number in self.failing and epoch == 2:
                raise self.error("it diverged")
            self.trained.append((number, epoch))
            return {"ndcg_20": value(settings.values, epoch)}

        optimiser = torch.optim.Adam(module.parameters(), 0.1)
        loop = LoopSettings(epochs=EPOCHS, batch_size=2, patience=99)
        fitting = Fitting(
            module, module, optimiser, loop, 4, evaluate, torch.Generator().manual_seed(number), report,
            checkpoint=checkpoint,
        )  # fmt: skip
        return fitting, lambda fit: TrainedModel(fit, module, lambda folder: folder.mkdir())


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `test_kills`."""
    monkeypatch.setattr(journal, "JournalFileBackend", DyingBackend)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    DyingBackend.at = DyingBackend.written = 0


def without_times(record: Record) -> list[tuple[Any, ...]]:
    """The trials without seconds."""
    return [
        (*row[:5], {key: said for key, said in row[5].items() if key != "seconds"}, row[6]) for row in table(record)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["none", "asha"])
@pytest.mark.parametrize("every", EVERY)
@pytest.mark.usefixtures("dying")
def test_killed_at_any_record(tmp_path: Path, pruner: str, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = TuningSettings(sampler="random", pruner=pruner, pruner_warmup_epochs=1, reduction_factor=2)  # type: ignore[arg-type]
    whole = ToyTrials(tmp_path / "whole", tuning, monkeypatch)
    expected = without_times(whole.run())
    records = DyingBackend.written
    assert max(len(crew.jobs) for crew in whole.crews) > 1
    for at in range(1, records + 1, every):
        toy = ToyTrials(tmp_path / f"{at}", tuning, monkeypatch)
        DyingBackend.at, DyingBackend.partial, DyingBackend.written = at, at % 2 == 0, 0
        with pytest.raises(Killed):
            toy.run()
        DyingBackend.at = 0
        found = without_times(toy.run())
        assert len(toy.trained) == len(set(toy.trained)), f"an epoch was trained twice after record {at} of {records}"
        if pruner == "none":
            assert found == expected, f"killed at record {at} of {records}"
        else:  # who is compared with whom follows from when each value came
            assert [(row[0], row[3]) for row in found] == [(row[0], row[3]) for row in expected]
            assert all(row[1] in ("COMPLETE", "PRUNED") for row in found)


def test_free_places_are_filled_and_one_that_fails_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = TuningSettings(sampler="random", pruner="none")
    toy = ToyTrials(tmp_path / "a", tuning, monkeypatch, failing=(2,))
    monkeypatch.setattr(ToyTrials, "_group", staticmethod(lambda values: "one"))
    trials = toy.run(trials=6).trials()
    # trial 0 by itself; then three places for five trials, and who comes last takes the place of who left
    assert [[job.number for job in crew.jobs] for crew in toy.crews] == [[0], [1, 2, 3, 4, 5]]
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2 + ["FAIL"] + ["COMPLETE"] * 3
    assert trials[2].user_attrs["failure"] == "it diverged"
    assert set(toy.trained) == {(n, e) for n in range(6) for e in range(1, EPOCHS + 1) if n != 2 or e == 1}
    assert len(toy.trained) == len(set(toy.trained))


@pytest.mark.parametrize("error", [TypeError, KeyError, RuntimeError, AssertionError])
def test_a_defect_in_one_ends_it_alone_and_leaves_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    tuning = TuningSettings(sampler="random", pruner="none")
    toy = ToyTrials(tmp_path / "a", tuning, monkeypatch, failing=(2,), error=error)
    monkeypatch.setattr(ToyTrials, "_group", staticmethod(lambda values: "one"))
    trials = toy.run(trials=4).trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2 + ["FAIL", "COMPLETE"]
    assert "it diverged" in trials[2].user_attrs["failure"]
    text = (tmp_path / "a" / "trials" / "2" / TRACEBACK).read_text()
    assert text.startswith("Traceback")
    assert error.__name__ in text


def test_what_cannot_be_batched_says_so_in_every_log(
    tmp_path: Path, shared: SharedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(stack: StackedMembers) -> None:
        raise NotBatchable("it asks for a value")

    monkeypatch.setattr(StackedMembers, "verify", refuse)
    trials, store, driver = searched(tmp_path, shared, 2, 3, monkeypatch)
    assert [len(crew.jobs) for crew in driver.crews] == [1, 2]
    assert all(trial.state.name == "COMPLETE" for trial in trials)
    for number in (1, 2):
        told = (store.read(f"{number}/trial.log") or b"").decode()
        assert told.count("it is trained in turns with others, not as one with them: it asks for a value") == 1


def test_out_of_memory_brings_all_back_in_half_the_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = TuningSettings(sampler="random", pruner="none")
    toy = ToyTrials(tmp_path / "a", tuning, monkeypatch, failing=(2,), error=OutOfMemory, population_size=4)
    monkeypatch.setattr(ToyTrials, "_group", staticmethod(lambda values: "one"))
    trials = toy.run(trials=5).trials()
    # four places, two, one: whose fault it was is known when it is alone; the last worker has them one after the other
    crews = [[job.number for job in crew.jobs] for crew in toy.crews]
    assert crews == [[0], [1, 2, 3, 4], [1, 2], [3, 4], [1, 2]]
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2 + ["FAIL"] + ["COMPLETE"] * 2
    assert len(toy.trained) == len(set(toy.trained))


def test_trials_of_another_group_wait_and_train_with_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = ToyTrials(tmp_path / "a", TuningSettings(sampler="random", pruner="none"), monkeypatch)
    trials = toy.run(trials=7).trials()
    assert all(trial.state.name == "COMPLETE" for trial in trials)
    for crew in toy.crews[1:]:
        assert len({job.group for job in crew.jobs}) == 1
    assert sorted(job.number for crew in toy.crews for job in crew.jobs) == list(range(7))
