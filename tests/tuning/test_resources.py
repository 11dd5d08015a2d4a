"""Shares of a GPU, the dashboard's doors, the private token, shared data."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from src.core.errors import ArtefactError, ConfigError
from src.data.dataset import load_dataset
from src.data.settings import DatasetSettings
from src.data.teacher_outputs import TeacherOutputs
from src.distill.data_bridge import align
from src.tuning.processes import end_survivors, remember_children
from src.tuning.ray_session import check_ray, private_token
from src.tuning.resources import CONTEXT_BYTES, Measured, Resources, gpu_share
from src.tuning.settings import RaySettings
from src.tuning.shared_data import FOLDER, SharedData
from src.tuning.store import Store

GB = 10**9


@pytest.mark.parametrize(
    ("peak", "slots", "share"),
    [
        (1 * GB, 100, 1 / 42),  # 80 / (1.25 + 0.629) = 42.6
        (1 * GB, 16, 1 / 16),  # the CPUs feed no more
        (30 * GB, 16, 1 / 2),  # 80 / (37.5 + 0.6) = 2.1
        (70 * GB, 16, 1.0),
    ],
)
def test_the_share_is_the_smallest_that_fits(peak: int, slots: int, share: float) -> None:
    assert CONTEXT_BYTES == 600 * 2**20
    assert gpu_share(Measured(peak, 1.0, 80 * GB), slots) == pytest.approx(share)


def test_retries_double_the_share_up_to_the_whole_gpu() -> None:
    assert [Resources(1.0, 0.3).share(retries) for retries in range(4)] == [0.3, 0.6, 1.0, 1.0]


def test_a_dashboard_for_everyone_needs_authentication(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    check_ray(RaySettings(dashboard_host="0.0.0.0"), dashboard=True)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    check_ray(RaySettings(), dashboard=True)
    check_ray(RaySettings(dashboard_host="0.0.0.0"), dashboard=False)
    with pytest.raises(ConfigError, match="needs token authentication, which RAY_AUTH_MODE=disabled switches off"):
        check_ray(RaySettings(dashboard_host="0.0.0.0"), dashboard=True)


def test_a_cluster_that_does_not_answer() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConfigError, match="no cluster answers there"):
        check_ray(RaySettings(address=f"127.0.0.1:{port}"), dashboard=False)
    with pytest.raises(ConfigError, match="must be auto or HOST:PORT"):
        check_ray(RaySettings(address="ray://head"), dashboard=False)


def test_rays_token_is_the_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "ray" / "token"))
    path = private_token()
    assert path is not None
    token = path.read_text()
    assert (stat.S_IMODE(path.stat().st_mode), len(token)) == (0o600, 64)
    path.chmod(0o644)
    assert private_token() == path
    assert (stat.S_IMODE(path.stat().st_mode), path.read_text()) == (0o600, token)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert private_token() is None


def test_survivors_are_known_by_number_and_start_time(tmp_path: Path) -> None:
    child = psutil.Popen(["sleep", "60"])
    remember_children(tmp_path, tmp_path / "scratch")
    (tmp_path / "scratch").mkdir()
    assert end_survivors(tmp_path) == 1
    assert child.wait(timeout=10) != 0
    assert not (tmp_path / "scratch").exists()
    assert end_survivors(tmp_path) == 0
    # a number that was given to another process since is left alone
    other = psutil.Popen(["sleep", "60"])
    note = tmp_path / "processes.json"
    note.write_text(f'{{"scratch": "/nowhere", "children": [{{"pid": {other.pid}, "started": 1.0}}]}}')
    assert end_survivors(tmp_path) == 0
    assert other.is_running()
    other.kill()
    other.wait(timeout=10)
    note.write_text("nonsense")
    assert end_survivors(tmp_path) == 0


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
