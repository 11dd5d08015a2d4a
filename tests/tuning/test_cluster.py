"""Two Ray nodes on one machine, one of which dies in the middle of a search."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from optuna.trial import TrialState
from ray.cluster_utils import Cluster

from src.config.reading import read_settings
from src.core.errors import ConfigError
from src.core.result_files import JOURNAL
from src.exp.tune_student import ENTRY as TUNE_STUDENT
from src.tuning.preflight import prepare_space
from src.tuning.ray_session import check_ray, check_shared
from src.tuning.search import run_search
from src.tuning.search_settings import SearchSettings
from src.tuning.store import Store
from tests.pipeline.toy import toy_arguments, toy_stages

TRIALS = 8


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head with one core; the tests add nodes."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.slow
def test_every_trial_ends_although_a_node_dies(cluster: Cluster, tmp_path: Path) -> None:
    second = cluster.add_node(num_cpus=1)
    epochs = ["student.loop.epochs=6", "student.loop.patience=9"]
    search = ["tuning.pruner=none", "tuning.keep_top=1", "tuning.finalists=1", "tuning.retries=2", f"trials={TRIALS}"]
    place = [f"ray.address={cluster.address}", f"storage={tmp_path}/shared"]
    asked = toy_arguments(tmp_path, *epochs, *search, *place)
    settings, stages = read_settings("tune_student", asked, SearchSettings)[0], toy_stages(tmp_path, *epochs)
    check_ray(settings.ray, dashboard=False)
    (tmp_path / "result").mkdir()
    space = prepare_space(stages.settings, settings.tuning, "student", "student").only(["student.learning_rate"])
    points = [{"student.learning_rate": 0.001 * (number + 1)} for number in range(TRIALS)]
    journal, killed = tmp_path / "result" / JOURNAL, threading.Event()

    def kill() -> None:
        while not journal.exists() or journal.read_bytes().count(b"\n") < 12:
            killed.wait(0.05)
        cluster.remove_node(second, allow_graceful=False)
        killed.set()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with run_search(settings, stages, space, points, {}, tmp_path / "result") as outcome:
        trials = outcome.search.record.trials()
        assert (outcome.model_folder / "model.safetensors").is_file()
    assert killed.is_set()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * TRIALS
    # a trial that went on elsewhere has each epoch once
    assert [len(trial.intermediate_values) for trial in trials] == [6] * TRIALS


@pytest.mark.slow
def test_a_folder_that_a_node_does_not_see_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    ray.init(address=cluster.address)
    check_shared(Store(str(tmp_path / "shared")))

    class Blind(Store):
        """What a folder of this machine is to another one."""

        def read(self, name: str) -> bytes | None:
            """Nothing."""
            return None

    with pytest.raises(ConfigError, match="is not shared"):
        check_shared(Blind(str(tmp_path / "shared")))


def test_a_cluster_that_is_not_there_is_told_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert TUNE_STUDENT.execute(["ray.address=127.0.0.1:1", "trials=2"]) == 2
    assert "no cluster answers at 127.0.0.1:1" in " ".join(capfd.readouterr().out.split())
    assert not (tmp_path / "result").exists()
