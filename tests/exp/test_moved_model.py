"""A search whose language model is gone: with teacher and labels in the cache it ends; without, it is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from src.config.overrides import format_value
from src.core.errors import TERMINATED, Paused
from src.core.logging import log_to
from src.evaluation.example_histories import read_examples
from src.exp import tune_distill
from src.tuning import distill_search
from tests.pipeline.test_known_models import TAUGHT
from tests.pipeline.toy import toy_arguments
from tests.teacher.builders import save_random_llama


@pytest.fixture
def paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a search that was paused before its first trial; the language model is gone since."""
    monkeypatch.chdir(tmp_path)
    model = save_random_llama(tmp_path / "model")
    arguments = toy_arguments(tmp_path, f"teacher.llm={format_value(str(model))}", *TAUGHT, "trials=2")

    def pause(*_: Any) -> None:
        raise Paused(TERMINATED)

    with monkeypatch.context() as patched:
        patched.setattr(distill_search, "_run_single", pause)
        begun = [*arguments, "hydra.run.dir=found"]
        assert tune_distill.ENTRY.execute(begun) == 143
    shutil.rmtree(model)
    yield tmp_path / "found"
    log_to(None)


@pytest.mark.slow
def test_a_search_ends_without_its_language_model(paused: Path) -> None:
    check = (paused / "metrics" / "teacher_check.json").read_bytes()
    assert tune_distill.ENTRY.execute([f"resume={paused}"]) == 0
    table = pd.read_csv(paused / "comparison.csv").set_index(["model", "split"])
    for split in ("validation", "test"):
        assert "the folder of the language model is gone" in table.loc[("teacher", split)]["missing"]
        assert table.loc[("distilled", split)]["ndcg_20"] > 0
    assert json.loads((paused / "manifest.json").read_text())["search"]["first_trial_reproduces_baseline"] is True
    assert (paused / "metrics" / "teacher_check.json").read_bytes() == check
    assert "teacher check: that of before is kept, since the folder" in (paused / "run.log").read_text()
    examples = read_examples(paused / "metrics" / "examples.json")
    assert "teacher" not in examples.models
    assert "labels of training examples" in examples.no_teacher


@pytest.mark.slow
def test_without_the_labels_it_is_refused(paused: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(tmp_path / "cache" / "teacher_outputs")
    before = {file: file.read_bytes() for file in paused.rglob("*") if file.is_file()}
    assert tune_distill.ENTRY.execute([f"resume={paused}"]) == 2
    assert "nosuchfolder→nameamodel'sfolder" in "".join(capfd.readouterr().out.split())
    assert {file: file.read_bytes() for file in paused.rglob("*") if file.is_file()} == before
