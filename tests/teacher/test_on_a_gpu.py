"""What only a GPU can show: half precision, 8 and 4 bits and compiled models are trained, saved and read the same."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from src.core.training import LoopSettings
from src.student.settings import EvaluationSettings
from src.teacher.backbone.llm import load_llm
from src.teacher.factory import load_teacher, save_teacher
from src.teacher.ilora_model import GatedTeacher, ILoRATeacher
from src.teacher.operations.model_shape import model_shape
from src.teacher.operations.resource_estimate import weight_bytes
from src.teacher.settings import PromptSettings, TeacherSettings
from src.teacher.title_lm.model import TitleTeacher
from src.teacher.training import train_teacher
from tests.fixtures import cycle_data
from tests.teacher.builders import SETTINGS, encoder_of
from tests.teacher.test_ilora_model import HISTORY, LENGTH
from tests.teacher.title_builders import TITLE_SETTINGS, save_random_causal

DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# again: activations are computed a second time in the backward pass
FORMS: list[Any] = [
    pytest.param({"dtype": "bfloat16"}, id="bf16"),
    pytest.param({"dtype": "bfloat16", "gradient_checkpointing": True}, id="bf16, again"),
    pytest.param({"quantise": "8bit"}, id="8bit"),
    pytest.param({"quantise": "4bit"}, id="4bit"),
    pytest.param({"quantise": "4bit", "gradient_checkpointing": True}, id="4bit, checkpointed"),
    pytest.param({"dtype": "bfloat16", "compile": True}, id="compiled", marks=pytest.mark.slow),
]


def test_bitsandbytes_is_there() -> None:
    # on a GPU a skipped test would look like one that has passed
    assert find_spec("bitsandbytes") is not None, "run ANYO_EXTRAS=quantised ./env_shell/setup_env.sh first"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal LLaMA whose widths are multiples of 64, the block that 4 bits are quantised in."""
    shape = {"hidden_size": 64, "intermediate_size": 128}
    return save_random_causal(tmp_path_factory.mktemp("model"), deviation=0.1, **shape)


def trained(settings: TeacherSettings, model: Path) -> GatedTeacher:
    """Two epochs; every adapter has moved, everything is finite."""
    run = train_teacher(
        settings, cycle_data(24, 6), encoder_of().to(DEVICE), str(model), DEVICE, 0, EvaluationSettings(ks=(5,))
    )
    ups = [value for name, value in run.teacher.llm.named_parameters() if "lora_B" in name]
    assert len(ups) == 14
    assert all(up.any() and torch.isfinite(up).all() and up.dtype == torch.float32 for up in ups)
    assert all(math.isfinite(epoch["train_loss"]) for epoch in run.fit.history)
    return run.teacher


@pytest.mark.parametrize("form", FORMS)
def test_an_item_teacher_says_the_same_when_it_is_read_again(model: Path, tmp_path: Path, form: dict[str, Any]) -> None:
    loop = LoopSettings(epochs=2, batch_size=8, patience=2, monitor="ndcg_5")
    train = replace(SETTINGS.train, loop=loop, learning_rate=1e-3)
    settings = replace(SETTINGS, llm=str(model), prompt=PromptSettings(max_tokens=160), train=train, **form)
    teacher = trained(settings, model)
    assert isinstance(teacher, ILoRATeacher)
    save_teacher(tmp_path / "teacher", teacher, cycle_data(24, 6), {})
    again = load_teacher(tmp_path / "teacher", settings, cycle_data(24, 6), DEVICE)
    quantised = [type(module).__name__ for module in again.llm.modules() if "bit" in type(module).__name__]
    assert bool(quantised) == ("quantise" in form)
    history, length = HISTORY.to(DEVICE), LENGTH.to(DEVICE)
    with torch.no_grad():
        assert torch.equal(teacher(history, length).logits, again(history, length).logits)
    assert torch.equal(teacher.embed_items(4), again.embed_items(4))
    assert teacher.fingerprints() == again.fingerprints()


@pytest.mark.parametrize("form", FORMS)
def test_a_teacher_that_writes_says_the_same_when_it_is_read_again(
    model: Path, tmp_path: Path, form: dict[str, Any]
) -> None:
    settings = replace(TITLE_SETTINGS, llm=str(model), **form)
    settings = replace(settings, train=replace(settings.train, loop=replace(settings.train.loop, epochs=2)))
    teacher = trained(settings, model)
    assert isinstance(teacher, TitleTeacher)
    save_teacher(tmp_path / "teacher", teacher, cycle_data(24, 6), {})
    again = load_teacher(tmp_path / "teacher", settings, cycle_data(24, 6), DEVICE)
    question, target = teacher.question(HISTORY.to(DEVICE), LENGTH.to(DEVICE)), torch.tensor([3, 4, 5], device=DEVICE)
    with torch.no_grad():
        assert torch.equal(teacher(question, target).logits, again(question, target).logits)


@pytest.mark.parametrize("quantise", ["8bit", "4bit"])
def test_quantised_weights_are_counted_by_their_layers_and_weigh_what_is_estimated(
    tmp_path: Path, quantise: Literal["8bit", "4bit"]
) -> None:
    # multiples of 256 blocks of 64 weights: no block of scales is half empty
    folder = save_random_causal(tmp_path, deviation=0.1, hidden_size=1024, intermediate_size=2048)
    whole = model_shape(load_llm(str(folder), "auto", torch.device("cpu")).model, SETTINGS.lora)
    model = load_llm(str(folder), "auto", DEVICE, quantise).model
    assert model_shape(model, SETTINGS.lora) == whole
    held = sum(parameter.nbytes + scale_bytes(parameter) for parameter in model.parameters())
    assert held == weight_bytes(whole, quantise, with_head=False)


def scale_bytes(parameter: Any) -> int:
    """What bitsandbytes keeps beside 4-bit weights, without the two tables that never grow."""
    state = getattr(parameter, "quant_state", None)
    return 0 if state is None else int(state.absmax.nbytes + state.state2.absmax.nbytes)
