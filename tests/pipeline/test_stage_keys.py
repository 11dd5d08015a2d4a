"""What decides a stage's content decides its key, and nothing else does. Nothing is trained here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from src.core.data_utils import fingerprint
from src.core.paths import write_json
from src.pipeline.cache import StageCache, StageRecord
from src.pipeline.stages import Stages
from tests.pipeline.toy import toy_settings

STAGES = ("student_baseline", "encoder", "tiny_llm", "teacher", "teacher_outputs")


class KeysOnly(StageCache):
    """Gives every stage its folder with a model config that tells the key, and builds nothing."""

    def stage(
        self, name: str, determined_by: Mapping[str, Any], build: Callable[[Path], None], kind: str = ""
    ) -> StageRecord:
        key = fingerprint(kind or name, determined_by)
        folder = self.root / (kind or name) / key
        write_json(folder / "config.json", {"key": key})
        (folder / "model.safetensors").write_bytes(key.encode())
        return self._remember(StageRecord(name, key, folder, 0.0, reused=True))


def keys(tmp_path: Path, *overrides: str) -> dict[str, str]:
    """Each stage's key under these overrides."""
    stages = Stages(toy_settings(tmp_path, *overrides), KeysOnly(tmp_path / "keys"))
    _ = stages.baseline, stages.outputs_record
    return {record.name: record.key for record in stages.cache.records if record.name in STAGES}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return keys(tmp_path_factory.mktemp("before"))


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in STAGES if before[name] != after[name]}


def test_every_stage_has_a_key_and_they_repeat(tmp_path: Path, before: dict[str, str]) -> None:
    assert set(before) == set(STAGES)
    assert keys(tmp_path) == before


FROM_TEACHER = {"teacher", "teacher_outputs"}
CASES = {
    "distill.lam=0.9": set(),
    "active.policy=kl_divergence": set(),
    "distill.alpha=0.4": set(),
    "teacher.test_rows=7": set(),
    "teacher.export.top_n=15": {"teacher_outputs"},
    "teacher.export.budget=0.3": {"teacher_outputs"},
    "teacher.export.ranking=item_head": set(),
    "teacher.export.beams=50": set(),
    "teacher.lora.rank=8": FROM_TEACHER,
    "teacher.gate.kind=mlp": FROM_TEACHER,
    "teacher.prompt.history_titles=3": FROM_TEACHER,
    "teacher.train_rows=100": FROM_TEACHER,
    "teacher.train.learning_rate=0.01": FROM_TEACHER,
    "teacher.tiny.layers=3": {"tiny_llm", *FROM_TEACHER},
    "teacher.encoder.width=16": {"encoder", *FROM_TEACHER},
    "student.width=16": {"student_baseline"},
    "student=gru4rec": {"student_baseline"},
    "teacher.lora.compute=base": FROM_TEACHER,
    "teacher.compile=true": set(),
    "teacher.gradient_checkpointing=true": set(),
    "evaluation.mask_history=true": {"student_baseline", "encoder", *FROM_TEACHER},
    "evaluation.batch_size=7": set(),
    "student.loop.checkpoint_minutes=1.0": set(),
    "teacher.encoder.loop.checkpoint_minutes=1.0": set(),
    "teacher.train.loop.checkpoint_minutes=1.0": set(),
    "teacher.tiny.loop.checkpoint_minutes=1.0": set(),
    "seed=7": set(STAGES),
    "dataset.sample_seed=7": set(STAGES),
    "dataset.window=7": set(STAGES),
}


@pytest.mark.parametrize("override", CASES)
def test_an_option_changes_the_keys_of_the_stages_that_it_decides(
    override: str, tmp_path: Path, before: dict[str, str]
) -> None:
    assert changed(before, keys(tmp_path, override)) == CASES[override]


def test_another_student_never_retrains_the_teacher_but_an_equal_encoder_is_shared(tmp_path: Path) -> None:
    same = keys(
        tmp_path,
        "student=sasrec",
        *(f"teacher.encoder.{key}" for key in ("width=8", "loop.epochs=2", "loop.batch_size=64")),
    )
    assert same["encoder"] == same["student_baseline"]


class SameWeights(KeysOnly):
    """As if every stage came out the same."""

    def stage(
        self, name: str, determined_by: Mapping[str, Any], build: Callable[[Path], None], kind: str = ""
    ) -> StageRecord:
        record = super().stage(name, determined_by, build, kind)
        (record.folder / "model.safetensors").write_bytes(b"weights")
        return record


def test_an_encoder_that_comes_out_the_same_never_retrains_the_teacher(tmp_path: Path) -> None:
    found = []
    for ks in ("[5,10,20]", "[5,10,20,50]"):
        cache = SameWeights(tmp_path / "keys")
        stages = Stages(toy_settings(tmp_path, f"evaluation.ks={ks}", "teacher.export.select=diverse"), cache)
        found.append((stages.encoder.key, stages.teacher.key, stages.outputs_record.key))
    assert found[0][0] != found[1][0]
    assert found[0][1:] == found[1][1:]


def test_how_a_teacher_ranks_decides_its_labels_not_the_teacher(tmp_path: Path) -> None:
    found = {way: keys(tmp_path, "teacher=title", f"teacher.export.ranking={way}") for way in ("auto", "constrained")}
    assert found["auto"] == found["constrained"]
    for override in ("teacher.export.ranking=grounded", "teacher.export.beams=50"):
        assert changed(found["auto"], keys(tmp_path, "teacher=title", override)) == {"teacher_outputs"}


def test_the_language_models_content_decides_not_its_path(tmp_path: Path) -> None:
    found = []
    for folder, vocabulary in (("one", 7), ("two", 7), ("three", 8)):
        write_json(tmp_path / folder / "config.json", {"model_type": "llama", "vocab_size": vocabulary})
        (tmp_path / folder / "model.safetensors").write_bytes(b"weights")
        stages = Stages(toy_settings(tmp_path, f"teacher.llm={tmp_path / folder}"), KeysOnly(tmp_path / "keys"))
        found.append(stages.teacher.key)
    assert found[0] == found[1] != found[2]
