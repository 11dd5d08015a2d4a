"""A training that hangs: the worker ends itself and leaves in the trial's log where it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from src.tuning.store import Store

ROOT = Path(__file__).parents[2]

_WORKER = """
import threading
from pathlib import Path
from src.config.reading import read_settings
from src.tuning.search_settings import SearchSettings
from src.tuning.search_settings import experiment
from src.tuning import trainable
from src.tuning.search_space import SearchSpace
from src.tuning.store import Store

def hang_after_an_epoch(stage, settings, data, device, report, checkpoint):
    report(1, {"ndcg_20": 0.5})
    threading.Event().wait()

told = []
trainable.tell = told.append
trainable.train_stage = hang_after_an_epoch
trainable.SharedData.load = lambda folder, device: None
settings = experiment(read_settings("tune_student", ["dataset=sample"], SearchSettings)[0])
space = SearchSpace("student", {"ndcg_20": "maximize"}, {})
worker = trainable.Trainable(settings, space, Store("FOLDER"), "token", 0.01)
worker({"number": 0, "values": {}, "folder": "0", "share": 0.0})
"""


def test_a_training_that_hangs_ends_its_worker_and_says_where(tmp_path: Path) -> None:
    program = _WORKER.replace("FOLDER", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    log = (tmp_path / "0" / "trial.log").read_text()
    assert "Timeout" in log
    assert "hang_after_an_epoch" in log


def test_what_it_left_is_swept(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with store.scratch() as folder:
        assert Path(folder).parent == tmp_path
    (tmp_path / Path(folder).name).mkdir()  # as a killed worker leaves it
    (tmp_path / Path(folder).name / "model").touch()
    for trial in ("0", "student/1"):
        (tmp_path / trial / ".model.77").mkdir(parents=True)  # an upload and a checkpoint that were never finished
        (tmp_path / trial / ".checkpoint.pt.a1b2").touch()
        (tmp_path / trial / "checkpoint.pt").touch()
    store.sweep()
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["0/checkpoint.pt", "student/1/checkpoint.pt"]
    assert not list(tmp_path.rglob("*model*"))
