"""Shares of a GPU, the dashboard's doors, survivors, shared data."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch

from src.config.reading import read_settings
from src.core.errors import ArtefactError, ConfigError, Paused
from src.data.dataset import load_dataset
from src.data.settings import DatasetSettings
from src.data.teacher_outputs import TeacherOutputs
from src.distill.data_bridge import align
from src.pipeline.settings import RuntimeSettings
from src.tuning import resources, search_session
from src.tuning.dispatch import Search
from src.tuning.journal import open_journal
from src.tuning.preflight import check_search
from src.tuning.ray_session import check_ray
from src.tuning.resources import CONTEXT_BYTES, GpuNeed, Resources, check_gpu, decide, most_that_fit, most_that_pay
from src.tuning.search_settings import SearchSettings
from src.tuning.search_space import SearchSpace
from src.tuning.settings import RaySettings, TuningSettings
from src.tuning.shared_data import FOLDER, SharedData
from src.tuning.store import Store
from src.tuning.study import Record
from tests.pipeline.toy import toy_settings

GB = 10**9


@pytest.mark.parametrize(
    ("peak", "slots", "count"),
    [
        (1 * GB, 100, 42),  # 80 / (1.25 + 0.629) = 42.6
        (1 * GB, 16, 16),  # the CPUs feed no more
        (30 * GB, 16, 2),  # 80 / (37.5 + 0.6) = 2.1
        (70 * GB, 16, 1),
    ],
)
def test_as_many_trials_as_the_free_memory_holds(peak: int, slots: int, count: int) -> None:
    assert CONTEXT_BYTES == 600 * 2**20
    assert most_that_fit(GpuNeed(peak, 80 * GB), slots) == count


@pytest.mark.parametrize(
    ("rates", "bound", "count", "asked"),
    [
        ({1: 10.0, 2: 19.0, 4: 30.0, 8: 32.0, 16: 40.0}, 16, 4, [1, 2, 4, 8]),  # 8 bring 7 % for 100 % more
        ({1: 10.0, 2: 10.9}, 16, 1, [1, 2]),
        ({1: 10.0, 2: 19.0, 3: 20.5}, 3, 3, [1, 2, 3]),  # half as many more must bring half as much
        ({1: 10.0, 2: 0.0}, 2, 1, [1, 2]),  # out of memory
        ({}, 1, 1, []),  # nothing to choose
    ],
)
def test_no_more_trials_at_once_than_pay(rates: dict[int, float], bound: int, count: int, asked: list[int]) -> None:
    seen = list[int]()

    def rate(trials: int) -> float:
        seen.append(trials)
        return rates[trials]

    assert (most_that_pay(rate, bound), seen) == (count, asked)


def test_retries_double_the_share_up_to_the_whole_gpu() -> None:
    assert [Resources(1.0, 0.3).share(retries) for retries in range(4)] == [0.3, 0.6, 1.0, 1.0]


def test_a_share_is_of_what_is_free_and_holds_its_own_context() -> None:
    quarter = Resources(1.0, 0.25, free=8 * GB)
    assert [quarter.memory(retries) for retries in range(3)] == [2 * GB - CONTEXT_BYTES, 4 * GB - CONTEXT_BYTES, 0]
    # a context may be larger than such a share; a tenth is left, so that the trial fails and gets more
    assert Resources(1.0, 0.25, free=2 * GB).memory(0) == GB // 20


def test_trials_and_baseline_compute_on_the_same_kind_of_device(monkeypatch: pytest.MonkeyPatch) -> None:
    check_gpu(TuningSettings(gpu_per_trial=0), RaySettings(), "auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("auto", "cuda", "cuda:1"):
        with pytest.raises(ConfigError, match=r"tuning.gpu_per_trial = 0.*runtime.device=cpu for both"):
            check_gpu(TuningSettings(gpu_per_trial=0), RaySettings(), device)
        check_gpu(TuningSettings(), RaySettings(), device)
    check_gpu(TuningSettings(gpu_per_trial=0), RaySettings(), "cpu")
    with pytest.raises(ConfigError, match=r"runtime.device = 'cuda:1': a cluster gives"):
        check_gpu(TuningSettings(), RaySettings(address="auto"), "cuda:1")


def test_a_search_looks_at_the_gpu_before_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 2**30))
    asked = read_settings("tune_student", ["dataset=sample", "tuning.gpu_per_trial=0"], SearchSettings)[0]
    with pytest.raises(ConfigError, match="the baseline is trained on the GPU and the trials on the CPU"):
        check_search(asked, "student", "student")


# ------------------------------------------------------------------------------------------------------ what is decided


@dataclass
class Remote:
    """A method of a probe, which answers at once."""

    answer: object

    def remote(self, *_: object) -> object:
        """As Ray's; `ray.get` gives it back."""
        return self.answer


def search_over(*objectives: str) -> SearchSpace:
    """A space without parameters."""
    return SearchSpace("student", dict.fromkeys(objectives, "maximize"), {})


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A Ray with one GPU of 80 GB and 16 cores, where a trial holds 1 GB and four together do 2.5 times what one does;
    returns how many probes were asked for at once, in order."""
    asked = list[int]()
    steps = {1: 10.0, 2: 9.0, 4: 6.25, 8: 3.2}

    @contextmanager
    def probes(*_: object) -> Iterator[Callable[[int], list[object]]]:
        def take(count: int) -> list[object]:
            asked.append(count)
            probe = SimpleNamespace(measure=Remote(GpuNeed(GB, 80 * GB)), rate=Remote(steps[count]))
            return [probe] * count

        yield take

    monkeypatch.setattr(resources, "_probes", probes)
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 1.0})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 16.0, "GPU": 1.0}}])
    return asked


def decided(device: str, tmp_path: Path, space: SearchSpace, **tuning: Any) -> Resources:
    """For a student."""
    store = Store(str(tmp_path))
    return decide(TuningSettings(**tuning), replace(toy_settings(tmp_path), runtime=on(device)), space, {}, store)


def on(device: str) -> RuntimeSettings:
    """Computing there."""
    return RuntimeSettings(device=device)


def test_shares_are_as_many_as_pay(measuring: list[int], tmp_path: Path) -> None:
    # together 10, 18, 25 and 25.6 steps a second: eight are no faster than four
    found = decided("cuda", tmp_path, search_over("ndcg_20"))
    assert found == Resources(1.0, 0.25, 80 * GB)
    assert measuring == [1, 1, 2, 4, 8]


def test_no_more_shares_than_cores_can_feed(measuring: list[int], tmp_path: Path) -> None:
    found = decided("cuda", tmp_path, search_over("ndcg_20"), cpu_per_trial=8.0)
    assert found == Resources(8.0, 0.5, 80 * GB)
    assert measuring == [1, 1, 2]


@pytest.mark.parametrize("timed", ["latency_ms", "seconds"])
def test_a_time_is_measured_while_nothing_else_trains(measuring: list[int], tmp_path: Path, timed: str) -> None:
    found = decided("cuda", tmp_path, search_over("ndcg_20", timed))
    assert found == Resources(16.0, 1.0)  # all cores: none can start beside it
    assert measuring == []


def test_a_share_that_is_named_is_measured_for_its_memory_alone(measuring: list[int], tmp_path: Path) -> None:
    assert decided("cuda", tmp_path, search_over("ndcg_20"), gpu_per_trial=0.3) == Resources(1.0, 0.3, 80 * GB)
    assert measuring == [1]
    assert decided("cpu", tmp_path, search_over("ndcg_20")) == Resources(1.0, 0.0)
    assert measuring == [1]


def test_the_driver_gives_its_memory_back_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[str]()

    def ray_session(*_: object) -> None:
        told.append("ray")
        raise Paused("enough")

    kept = SimpleNamespace(save=lambda store: told.append("data"))
    monkeypatch.setattr(search_session, "SharedData", SimpleNamespace(of=lambda *_: kept))
    monkeypatch.setattr(search_session, "give_back", lambda device: told.append(f"memory of {device}"))
    monkeypatch.setattr(search_session, "ray_session", ray_session)
    asked = SimpleNamespace(tuning=TuningSettings(), ray=RaySettings(), dashboard=False)
    stages = SimpleNamespace(
        data=None, prior=None, reads_text=False, item_text=None, other_priors={}, device="cuda:0",
        settings=SimpleNamespace(runtime=on("cuda")),
    )  # fmt: skip
    store = Store(str(tmp_path))
    with pytest.raises(Paused):
        search_session._session(asked, tmp_path, stages, {}, search_over("ndcg_20"), {}, store).__enter__()  # type: ignore[arg-type]
    assert told == ["data", "memory of cuda:0", "ray"]


def test_a_signal_while_the_phases_that_have_ended_are_gone_through_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = SimpleNamespace(
        tuning=TuningSettings(), ray=RaySettings(), runtime=SimpleNamespace(tracking="none"), dashboard=False
    )
    session = search_session.SearchSession(
        asked, tmp_path, Store(str(tmp_path)), None, Resources(1.0, 0.0), tmp_path, lambda values: "",  # type: ignore[arg-type]
    )  # fmt: skip
    halted = list[str]()
    monkeypatch.setattr(search_session, "tracker_for", lambda *_: None)
    monkeypatch.setattr(search_session, "trial_curves", lambda tracker: nullcontext())
    monkeypatch.setattr(search_session, "execute", lambda dispatcher, *_: halted.append(dispatcher.halted))
    record = Record.open(open_journal(tmp_path), "a", search_over("ndcg_20"), TuningSettings(), 3, 9, "a")
    ended = Search(record, 0, 1)

    def phases() -> Iterator[list[Search]]:
        yield [ended]
        session.interrupt("terminated")

    session.work_through(phases())
    assert halted == ["terminated"]


def test_a_dashboard_for_everyone_needs_authentication(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    check_ray(RaySettings(dashboard_host="0.0.0.0"), dashboard=True)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    check_ray(RaySettings(), dashboard=True)
    check_ray(RaySettings(dashboard_host="0.0.0.0"), dashboard=False)
    with pytest.raises(ConfigError, match="needs token authentication, which RAY_AUTH_MODE=disabled switches off"):
        check_ray(RaySettings(dashboard_host="0.0.0.0"), dashboard=True)


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConfigError, match=rf"no cluster answers at 127.0.0.1:{port} \("):
        check_ray(RaySettings(address=f"127.0.0.1:{port}"), dashboard=False)
    with pytest.raises(ConfigError, match="must be auto or HOST:PORT"):
        check_ray(RaySettings(address="ray://head"), dashboard=False)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(ConfigError, match=rf"'auto': no cluster answers at 127.0.0.1:{port} of RAY_ADDRESS"):
        check_ray(RaySettings(address="auto"), dashboard=False)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(ConfigError, match="must be auto or HOST:PORT of RAY_ADDRESS"):
        check_ray(RaySettings(address="auto"), dashboard=False)


@pytest.fixture
def shared(tmp_path: Path) -> tuple[Store, SharedData]:
    data = load_dataset(DatasetSettings(sample_users=60, sample_items=60, sample_interactions=1500))
    rows = (data.train.target[:, None] + np.arange(6)) % data.num_items
    distances = np.tile(np.linspace(0.1, 4, 6, dtype=np.float32), (len(rows), 1))
    embedding = np.random.default_rng(0).normal(size=(data.num_items, 8)).astype(np.float32)
    outputs = TeacherOutputs(data.train.example_id, rows, -distances, distances, distances[:, :3], embedding, {})
    store, made = Store(str(tmp_path)), SharedData.of(data, {"llm": outputs})
    made.save(store)
    direct, kept = align(outputs, data.train, 4, "cpu"), made.taught(["llm"], 4)
    for name in ("slot", "candidates", "distances", "sequence_embedding", "item_embedding"):
        own = getattr(kept, name)
        # all that was exported is kept; each trial reads as many candidates as its settings say (`Step.ranking`)
        assert torch.equal(getattr(direct, name), own[:, :4] if name in ("candidates", "distances") else own), name
    return store, made


def test_shared_data_comes_back_equal(shared: tuple[Store, SharedData]) -> None:
    store, made = shared
    loaded = SharedData.load(Path(store.root) / FOLDER, torch.device("cpu"))
    assert torch.equal(loaded.students.train.history, made.students.train.history)
    assert torch.equal(loaded.students.validation.target, made.students.validation.target)
    assert torch.equal(loaded.students.propensity, made.students.propensity)
    assert torch.equal(loaded.taught(["llm"], 6).candidates, made.taught(["llm"], 6).candidates)
    assert (loaded.id_map, loaded.fingerprints) == (made.id_map, made.fingerprints)
    assert loaded.students.history_length == made.students.history_length
    with pytest.raises(ArtefactError, match="exported 6 candidates"):
        loaded.taught(["llm"], 7)
    with pytest.raises(ArtefactError, match="was started without these teachers"):
        loaded.taught(["llm", "linear"], 4)


def test_no_trial_can_change_anothers_data(shared: tuple[Store, SharedData]) -> None:
    folder = Path(shared[0].root) / FOLDER
    first, second = (SharedData.load(folder, torch.device("cpu")) for _ in range(2))
    before = second.students.train.items.clone()
    first.students.train.items.fill_(7)
    first.taught(["llm"], 6).item_embedding.fill_(0.5)
    third = SharedData.load(folder, torch.device("cpu"))
    for other in (second, third):
        assert torch.equal(other.students.train.items, before)
        own = other.taught(["llm"], 6).item_embedding
        assert torch.equal(own, shared[1].taught(["llm"], 6).item_embedding)


def test_the_data_is_mapped_and_not_copied(tmp_path: Path) -> None:
    """Reading 200 MB costs pages that the processes share: nothing that is this process's own."""
    from safetensors.torch import load_file, save_file

    save_file({"a": torch.ones(50_000_000)}, tmp_path / "a.safetensors")
    process = psutil.Process()
    before = process.memory_info()
    tensor = load_file(tmp_path / "a.safetensors")["a"]
    assert float(tensor[::1024].sum()) == len(range(0, 50_000_000, 1024))
    after = process.memory_info()
    assert (after.rss - after.shared) - (before.rss - before.shared) < 20e6
