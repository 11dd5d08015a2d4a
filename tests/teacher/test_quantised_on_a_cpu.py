"""4 and 8 bits on bitsandbytes' CPU build: a teacher is trained, saved and read again without a GPU.

The program itself refuses it, because no model of use would be fast enough; `test_on_a_gpu.py` is for a GPU.
"""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import pytest
import torch

from src.core.training import LoopSettings
from src.student.settings import EvaluationSettings
from src.teacher.backbone.llm import load_llm
from src.teacher.factory import load_teacher, save_teacher
from src.teacher.ilora_model import ILoRATeacher
from src.teacher.operations.model_shape import model_shape
from src.teacher.operations.resource_estimate import weight_bytes
from src.teacher.settings import PromptSettings, TeacherSettings
from src.teacher.training import train_teacher
from tests.fixtures import cycle_data
from tests.teacher.builders import CPU, SETTINGS, encoder_of
from tests.teacher.test_ilora_model import HISTORY, LENGTH
from tests.teacher.test_on_a_gpu import scale_bytes
from tests.teacher.title_builders import save_random_causal

pytestmark = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="needs bitsandbytes (its CPU build is enough)"
)
Bits = Literal["8bit", "4bit"]
LAYERS = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}
DATA = cycle_data(16, 4)


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the refusal, and without the layout of weights that some processors have for inference alone."""
    monkeypatch.setattr("src.teacher.backbone.llm.check_quantise", lambda quantise, device: None)
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal LLaMA whose widths are multiples of 64, the block that 4 bits are quantised in."""
    shape = {"hidden_size": 64, "intermediate_size": 128}
    return save_random_causal(tmp_path_factory.mktemp("model"), deviation=0.1, **shape)


def settings_for(model: Path, quantise: Bits, checkpointing: bool) -> TeacherSettings:
    """Of the item head, one epoch."""
    loop = LoopSettings(epochs=1, batch_size=8, monitor="ndcg_5")
    return replace(
        SETTINGS,
        llm=str(model),
        prompt=PromptSettings(max_tokens=160),
        train=replace(SETTINGS.train, loop=loop, learning_rate=1e-3),
        quantise=quantise,
        gradient_checkpointing=checkpointing,
    )


@pytest.mark.parametrize(("quantise", "checkpointing"), [("8bit", False), ("4bit", False), ("4bit", True)])
def test_a_quantised_teacher_says_the_same_when_it_is_read_again(
    model: Path, tmp_path: Path, quantise: Bits, checkpointing: bool
) -> None:
    settings = settings_for(model, quantise, checkpointing)
    run = train_teacher(settings, DATA, encoder_of(), str(model), CPU, 0, EvaluationSettings(ks=(5,)))
    teacher = run.teacher
    assert isinstance(teacher, ILoRATeacher)
    ups = [value for name, value in teacher.llm.named_parameters() if "lora_B" in name]
    # seven projections in each of two layers: every adapter has moved, in full precision
    assert len(ups) == 14
    assert all(up.any() and torch.isfinite(up).all() and up.dtype == torch.float32 for up in ups)
    assert all(math.isfinite(epoch["train_loss"]) for epoch in run.fit.history)
    save_teacher(tmp_path / "teacher", teacher, DATA, {})
    again = load_teacher(tmp_path / "teacher", settings, DATA, CPU)
    # the seven projections under each adapter
    kinds = [type(module).__name__ for name, module in again.llm.named_modules() if name.endswith("base_layer")]
    assert len(kinds) == 14
    assert all(kind == LAYERS[quantise] for kind in kinds)
    with torch.no_grad():
        assert torch.equal(teacher(HISTORY, LENGTH).logits, again(HISTORY, LENGTH).logits)
    assert torch.equal(teacher.embed_items(4), again.embed_items(4))
    assert teacher.fingerprints() == again.fingerprints()


@pytest.mark.parametrize("quantise", ["8bit", "4bit"])
def test_quantised_weights_weigh_what_is_estimated(tmp_path: Path, quantise: Bits) -> None:
    # multiples of 256 blocks of 64 weights: no block of scales is half empty
    folder = save_random_causal(tmp_path, deviation=0.1, hidden_size=256, intermediate_size=512)
    whole = model_shape(load_llm(str(folder), "auto", CPU).model, SETTINGS.lora)
    model = load_llm(str(folder), "auto", CPU, quantise).model
    assert model_shape(model, SETTINGS.lora) == whole
    held = sum(parameter.nbytes + scale_bytes(parameter) for parameter in model.parameters())
    assert held == weight_bytes(whole, quantise, with_head=False)
