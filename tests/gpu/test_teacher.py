"""Both kinds of teacher on a pretended GPU: trained, saved, read again, asked for labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from src.core.checkpoints import FileCheckpoint
from src.core.training import LoopSettings
from src.student.settings import EvaluationSettings
from src.teacher.backbone.tiny_llm import build_tiny_llm
from src.teacher.factory import save_teacher
from src.teacher.labelling.cache import LabelCache
from src.teacher.operations.inference import load_trained
from src.teacher.settings import GateSettings, PromptSettings, TeacherSettings, TinySettings
from src.teacher.training import train_teacher
from tests.fixtures import cycle_data
from tests.gpu.pretended import GPU, PretendedGPU
from tests.gpu.stages import per_step
from tests.teacher.builders import SETTINGS, encoder_of
from tests.teacher.title_builders import TITLE_SETTINGS, save_random_causal

EVALUATION = EvaluationSettings(ks=(5,))
DATA = cycle_data(16, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal LLaMA."""
    return save_random_causal(tmp_path_factory.mktemp("model"), deviation=0.1)


def shortened(settings: TeacherSettings, model: Path, **loop: object) -> TeacherSettings:
    """Of one epoch, in half precision as on a GPU, with out of memory looked out for."""
    changed = replace(settings.train.loop, epochs=1, adapt_micro_batch=True, gradient_clip=1.0, **loop)  # type: ignore[arg-type]
    return replace(
        settings,
        llm=str(model),
        dtype="bfloat16",
        prompt=PromptSettings(max_tokens=160),
        train=replace(settings.train, loop=changed, learning_rate=1e-3),
    )


def label(settings: TeacherSettings, model: Path, folder: Path) -> None:
    """Train, save, read, ask."""
    checkpoint = FileCheckpoint(folder / "checkpoint.pt", "mine")
    encoder = encoder_of().to(GPU)
    run = train_teacher(settings, DATA, encoder, str(model), GPU, 0, EVALUATION, checkpoint=checkpoint)
    assert next(run.teacher.parameters()).device == GPU
    save_teacher(folder / "teacher", run.teacher, DATA, run.summary())
    again = load_trained(folder / "teacher", settings, DATA, GPU, 0)
    rows = np.arange(8)
    outputs = LabelCache.at(folder / "labels", {"mine": 1}).outputs(DATA, rows, settings.export, again.labeller)
    assert np.isfinite(outputs.distances).all()
    assert outputs.candidates.shape == (8, settings.export.top_n)


def item_teacher(model: Path) -> TeacherSettings:
    """Of the item head."""
    return shortened(SETTINGS, model, monitor="ndcg_5")


FORMS: dict[str, Callable[[Path], TeacherSettings]] = {
    "item": item_teacher,
    "convolutional gate": lambda model: replace(item_teacher(model), gate=GateSettings(kind="convolutional")),
    "activations again": lambda model: replace(item_teacher(model), gradient_checkpointing=True),
    "title, constrained": lambda model: title_teacher(model, "constrained"),
    "title, grounded": lambda model: title_teacher(model, "grounded"),
}


def title_teacher(model: Path, ranking: str) -> TeacherSettings:
    """One that writes."""
    settings = shortened(TITLE_SETTINGS, model)
    return replace(settings, export=replace(settings.export, ranking=ranking, top_n=5, beams=6))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def cudnn_attention() -> Iterator[None]:
    """Switched on before each test, as torch has it."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(True)


#: operations of a step, and its waits by reason and place; a teacher's step is long, and packs prompts on the host
STEPS: dict[str, tuple[int, dict[str, float]]] = {
    "item": (
        967,
        {
            "aten::_local_scalar_dense: teacher/prompts.py pack_tokens": 1,
            "aten::nonzero: teacher/prompts.py pack_tokens": 1,
            "mask as an index: teacher/ilora_model.py embed_tokens": 1,
            "aten::_local_scalar_dense: teacher/ilora_model.py _states": 1,
        },
    ),
    "title, grounded": (
        975,
        {
            "copy to the GPU: title_lm/prompts.py choose": 1,
            "aten::_local_scalar_dense: teacher/prompts.py pack_tokens": 1,
            "aten::nonzero: teacher/prompts.py pack_tokens": 1,
            "aten::_local_scalar_dense: title_lm/model.py embed_tokens": 1,
            "aten::nonzero: title_lm/model.py forward": 1,
            "aten::_local_scalar_dense: title_lm/model.py forward": 2,
        },
    ),
}
# only the pretended GPU's: torch sorts the gradients by their real device before it clips them
PRETENDED = {"copy to the host: core/lazy_adam.py clip_gradients"}


@pytest.mark.parametrize("form", STEPS)
def test_a_step_of_a_teacher(model: Path, form: str) -> None:
    settings = FORMS[form](model)

    def train(rows: int) -> object:
        return train_teacher(settings, cycle_data(rows, 4), encoder_of().to(GPU), str(model), GPU, 0, EVALUATION)

    with PretendedGPU() as gpu:
        found = per_step(gpu, train, batch=settings.train.loop.batch_size, first=2)
    kernels, allowed = STEPS[form]
    waits = {place: count for place, count in found.waits.items() if place not in PRETENDED}
    assert {place: count for place, count in waits.items() if count > allowed.get(place, 0)} == {}
    assert found.kernels <= kernels


@pytest.mark.parametrize("form", FORMS)
def test_a_teacher_is_trained_and_asked(model: Path, tmp_path: Path, form: str) -> None:
    with PretendedGPU():
        label(FORMS[form](model), model, tmp_path)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_the_tiny_language_model_is_pretrained(tmp_path: Path) -> None:
    loop = LoopSettings(epochs=1, batch_size=8, monitor="log_likelihood")
    with PretendedGPU():
        settings = TinySettings(vocabulary=300, width=16, layers=1, heads=2, loop=loop)
        build_tiny_llm(tmp_path / "tiny", settings, DATA, 0, torch.device("cuda", 0))
    assert (tmp_path / "tiny").is_dir()
    assert not torch.backends.cuda.cudnn_sdp_enabled()
