"""Language models that cannot be used, through the real command: said before anything is trained or written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.config.overrides import format_value
from src.core.checkpoints import FileCheckpoint
from src.core.errors import ArtefactError
from src.core.logging import log_to
from src.exp import run_teacher, tune_distill
from src.pipeline.stages import Stages
from tests.pipeline.toy import toy_arguments, toy_stages
from tests.teacher.builders import save_random_llama

SHORT_CONTEXT = 100  # of the 128 tokens that the model reads
SHORT = ["teacher.prompt.max_tokens=64"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that nothing is wrong with."""
    return save_random_llama(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Commands are started in an empty folder; log files are closed at the end."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    log_to(None)


def lose(pattern: str) -> Callable[[Path], None]:
    """Remove the files of a model whose names match."""

    def remove(folder: Path) -> None:
        for file in folder.glob(pattern):
            file.unlink()

    return remove


def quantise(folder: Path) -> None:
    """Say in a model's config that it is stored in 4 bits."""
    config = json.loads((folder / "config.json").read_text())
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": stored}))


def leave(folder: Path) -> None:
    """Nothing."""


@pytest.mark.parametrize("command", [run_teacher, tune_distill], ids=["run_teacher", "tune_distill"])
@pytest.mark.parametrize(
    ("damage", "arguments", "said"),
    [
        (lose("model.safetensors"), [], "weights are missing"),
        (lose("token*"), [], "its tokenizer cannot be read"),
        (leave, ["teacher.lora.target_modules=[c_attn]"], "no such linear layer in the language model → choose from"),
        (
            leave,
            ["teacher.llm=tiny", "teacher.lora.target_modules=[c_attn]"],
            "no such linear layer in the language model",
        ),
        (
            leave,
            ["teacher.prompt.max_tokens=8"],
            "teacher.prompt.max_tokens = 8: a prompt with the longest title needs",
        ),
        (leave, ["teacher.llm=tiny", "teacher.prompt.max_tokens=8"], "teacher.prompt.max_tokens = 8: a prompt with"),
        (
            leave,
            ["teacher=title", "teacher.title.candidates=2", f"teacher.prompt.max_tokens={SHORT_CONTEXT}"],
            "has no weights for its language-model head (lm_head.weight)",
        ),
        (leave, ["teacher.lora.rank=10"], "teacher.lora.rank = 10 must be a multiple of lora.experts = 4"),
        (
            leave,
            ["teacher.quantise=4bit"],
            "teacher.quantise = '4bit': needs a CUDA device, and this run computes on cpu",
        ),
        (quantise, [], "is already quantised (4bit), and teacher.quantise is none → set teacher.quantise=4bit"),
        (leave, ["teacher.quantise=8bit", "teacher.dtype=float32"], "contradicts teacher.quantise = '8bit'"),
        (leave, ["teacher.compile=true", "teacher.gradient_checkpointing=true"], "exclude each other"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_before_anything_is_trained(
    sound: Path,
    workplace: Path,
    capfd: pytest.CaptureFixture[str],
    command: Any,
    damage: Callable[[Path], None],
    arguments: list[str],
    said: str,
) -> None:
    folder = Path(shutil.copytree(sound, workplace / "model"))
    damage(folder)
    given = [*toy_arguments(workplace, f"teacher.llm={format_value(str(folder))}"), *SHORT, *arguments]
    assert command.ENTRY.execute(given) == 2
    # the terminal breaks lines; where is not this test's business
    assert said.replace(" ", "") in "".join(capfd.readouterr().out.split())
    assert not (workplace / "result").exists()
    assert not list((workplace / "cache").glob("*"))


class Reached(Exception):
    """A training would begin."""


@pytest.fixture
def would_save_to(monkeypatch: pytest.MonkeyPatch) -> Callable[[Stages], Path]:
    """Where an interrupted training of a teacher would leave its state, and look for it."""

    def ask(stages: Stages) -> Path:
        found = list[Path]()

        def begin(*arguments: Any, checkpoint: FileCheckpoint, **named: Any) -> None:
            found.append(checkpoint.path)
            raise Reached

        with monkeypatch.context() as patched:
            patched.setattr("src.teacher.training.train_teacher", begin)
            with pytest.raises(Reached):
                _ = stages.teacher
        return found[0]

    return ask


def stages_of(workplace: Path, folder: Path, *changes: str) -> Stages:
    """The stages of a toy experiment with a teacher around this model."""
    return toy_stages(workplace, f"teacher.llm={format_value(str(folder))}", *SHORT, *changes)


def test_a_checkpoint_of_another_model_is_refused_before_a_step_and_stays(
    sound: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, would_save_to: Callable[[Stages], Path]
) -> None:
    path = would_save_to(stages_of(workplace, sound))
    FileCheckpoint(path, "another model").save({"progress": {}})
    before = path.read_bytes()
    monkeypatch.setattr("src.core.training._accumulate", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(ArtefactError, match="belongs to a training with another model, data or configuration"):
        _ = stages_of(workplace, sound).teacher
    assert path.read_bytes() == before


def test_another_model_or_catalogue_looks_for_another_checkpoint(
    sound: Path, workplace: Path, would_save_to: Callable[[Stages], Path]
) -> None:
    other = Path(shutil.copytree(sound, workplace / "other"))
    content = bytearray((other / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (other / "model.safetensors").write_bytes(bytes(content))
    first, again, model, catalogue, bits = (
        would_save_to(stages_of(workplace, folder, *changes))
        for folder, *changes in (
            (sound,),
            (sound,),
            (other,),
            (sound, "dataset.sample_items=20"),
            (sound, "teacher.quantise=4bit"),
        )
    )
    assert first == again
    assert len({first, model, catalogue, bits}) == 4
