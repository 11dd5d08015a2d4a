"""A language model whose folder is gone is known by the cache's note; its labels are enough for a distillation."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from src.config.overrides import format_value
from src.core.checkpoints import load_weights
from src.core.documents import read_json_document
from src.core.errors import ArtefactError, ConfigError, ModelError
from src.core.paths import write_json
from src.pipeline import known_models
from src.pipeline.known_models import note_fingerprint, noted_fingerprint
from src.pipeline.preflight import check_experiment, check_trial_priors
from src.pipeline.runs import run_distill
from src.pipeline.stages import Stages
from src.teacher.backbone.model_fingerprint import fingerprint_llm
from tests.pipeline.toy import new_run, toy_settings, toy_stages
from tests.teacher.builders import save_random_llama

ROWS = 12
#: a teacher around a small model of one's own
TAUGHT = [
    "teacher.prompt.max_tokens=64", "teacher.encoder.width=8", "teacher.encoder.loop.epochs=1", "teacher.lora.rank=8",
    "teacher.train_rows=24", "teacher.train.loop.epochs=1", "teacher.train.loop.batch_size=8",
    f"teacher.validation_rows={ROWS}", f"teacher.test_rows={ROWS}", "teacher.export.budget=9",
]  # fmt: skip


def write_model(folder: Path, weights: bytes) -> Path:
    """What `fingerprint_llm` reads of a model."""
    write_json(folder / "config.json", {"model_type": "llama"})
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def stages_of(root: Path, model: Path, *more: str) -> Stages:
    return toy_stages(root, f"teacher.llm={format_value(str(model))}", *more)


# ------------------------------------------------------------------------------------------------------- the note


def test_a_folder_that_is_there_is_read_and_one_that_is_gone_is_what_it_last_was(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", b"one")
    first = stages_of(tmp_path, model).llm_fingerprint
    write_model(model, b"two")
    second = stages_of(tmp_path, model).llm_fingerprint
    assert first != second == fingerprint_llm(str(model))
    shutil.rmtree(model)
    assert stages_of(tmp_path, model).llm_fingerprint == second
    model.mkdir()  # where a disk is mounted that is not there
    assert stages_of(tmp_path, model).llm_fingerprint == second
    with pytest.raises(ArtefactError, match=r"is missing → say with teacher\.llm where the model lies now"):
        _ = stages_of(tmp_path, tmp_path / "another").llm_fingerprint


def test_a_folder_that_cannot_be_listed_is_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = stages_of(tmp_path, write_model(tmp_path / "model", b"one"))

    def refuse(folder: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert not stages.llm_is_gone


def test_a_cache_that_can_only_be_read_serves_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "cache")

    monkeypatch.setattr(known_models, "write_json", refuse)
    model = write_model(tmp_path / "model", b"one")
    assert stages_of(tmp_path, model).llm_fingerprint == fingerprint_llm(str(model))


def test_a_hub_id_that_cannot_be_reached_is_what_it_last_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = ["0123456789abcdef"]

    def of_hub(name: str) -> str:
        assert name == "org/model"
        if not reached:
            raise ModelError.one("teacher.llm", name, "its config.json cannot be read")
        return reached[0]

    monkeypatch.setattr("src.teacher.backbone.model_fingerprint.fingerprint_llm", of_hub)
    found = toy_stages(tmp_path, "teacher.llm=org/model")
    assert (found.llm_is_gone, found.llm_fingerprint) == (False, reached[0])
    reached[0] = "fedcba9876543210"  # another revision
    assert toy_stages(tmp_path, "teacher.llm=org/model").llm_fingerprint == reached[0]
    reached.clear()
    gone = toy_stages(tmp_path, "teacher.llm=org/model")
    assert (gone.llm_is_gone, gone.llm_fingerprint) == (True, "fedcba9876543210")
    assert gone.why_gone == "the language model cannot be reached (teacher.llm = 'org/model')"
    never = toy_stages(tmp_path / "another", "teacher.llm=org/model")
    assert not never.llm_is_gone
    with pytest.raises(ModelError):
        _ = never.llm_fingerprint


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: "{}",
        lambda text: text.replace('"0123456789abcdef"', '"0123456789abcdee"'),
        lambda text: text.replace('"0123456789abcdef"', "3"),
        lambda text: text.replace("/model", "/other"),
    ],
)
def test_a_damaged_note_is_refused_and_written_anew(tmp_path: Path, damage: Callable[[str], str]) -> None:
    note_fingerprint(tmp_path, "/model", "0123456789abcdef")
    (file,) = (tmp_path / "language_models").iterdir()
    sound = file.read_text()
    file.write_text(damage(sound))
    with pytest.raises(ArtefactError):
        noted_fingerprint(tmp_path, "/model")
    note_fingerprint(tmp_path, "/model", "0123456789abcdef")
    assert file.read_text() == sound


# -------------------------------------------------------------------------------------------- a distillation without


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place where one student was distilled, and where the language model is gone since."""
    root = tmp_path_factory.mktemp("moved")
    model = save_random_llama(root / "model")
    run_distill(check(root), new_run(root / "before"))
    shutil.rmtree(model)
    return root


def check(root: Path, *more: str, labels_suffice: bool = True) -> Stages:
    """As `run_distill` looks at its settings; with ``labels_suffice=False`` as `run_teacher` does."""
    asked = toy_settings(root, f"teacher.llm={format_value(str(root / 'model'))}", *TAUGHT, *more)
    return check_experiment(asked, teacher=True, labels_suffice=labels_suffice)


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "comparison.csv").set_index(["model", "split"])


def test_teacher_and_labels_in_the_cache_need_no_language_model(moved: Path) -> None:
    again = new_run(moved / "again")
    (again.path / "metrics").mkdir()
    (again.path / "metrics" / "teacher_check.json").write_text("{}")  # of an earlier part of this run
    run_distill(check(moved), again)
    one, other = (load_weights(moved / name / "best_student" / "model.safetensors") for name in ("before", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    before, after = table(moved / "before"), table(again.path)
    assert before.loc[("teacher", "validation sample")]["examples"] == ROWS
    assert "missing" not in before
    reason = after.loc[("teacher", "validation")]["missing"]
    assert reason == f"the folder of the language model is gone (teacher.llm = '{moved / 'model'}')"
    assert after["missing"].notna().sum() == 1
    whole = [(name, "validation") for name in ("popularity", "baseline", "distilled")]
    pd.testing.assert_frame_equal(before.loc[whole], after.loc[whole, before.columns], check_dtype=False)
    assert (again.path / "metrics" / "teacher_check.json").read_text() == "{}"
    assert {"teacher", "teacher_outputs"} <= set(read_json_document(again.path / "manifest.json")["reused_stages"])


@pytest.mark.parametrize(
    ("more", "labels_suffice"),
    [
        (["teacher.export.budget=10"], True),  # other labels
        (["teacher.train_rows=16"], True),  # another teacher
        (["distill.teachers=[llm,titles]"], True),  # embeddings that nobody has asked for
        (["runtime.reuse=false"], True),
        ([], False),  # the teacher is what is asked for
    ],
)
def test_what_is_not_finished_still_needs_it(moved: Path, more: list[str], labels_suffice: bool) -> None:
    before = sorted(moved.rglob("*"))
    named = re.escape(f"teacher.llm = '{moved / 'model'}': no such folder → name a model's folder")
    with pytest.raises(ConfigError, match=named):
        check(moved, *more, labels_suffice=labels_suffice)
    assert sorted(moved.rglob("*")) == before


def test_a_prior_of_some_trials_needs_embeddings_of_texts(moved: Path) -> None:
    stages = check(moved)
    stages.trial_priors = ("text_linear",)
    with pytest.raises(ConfigError, match="no such folder"):
        check_trial_priors(stages)


@pytest.mark.parametrize("asked", [["distill.teachers=[titles]"], ["student.prior=text_linear", "distill.lam=0"]])
def test_embeddings_of_texts_in_the_cache_need_no_language_model(tmp_path: Path, asked: list[str]) -> None:
    model = save_random_llama(tmp_path / "model")
    first = stages_of(tmp_path, model, *asked).title_outputs.item_embedding
    shutil.rmtree(model)
    settings = toy_settings(tmp_path, f"teacher.llm={format_value(str(model))}", *asked)
    stages = check_experiment(settings, teacher="titles" in asked[0])
    np.testing.assert_array_equal(stages.title_outputs.item_embedding, first)
