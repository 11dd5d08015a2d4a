"""What a step costs a GPU: operations, of which a small student's step is made of hundreds, and waits, of which a loop
over batches has none that is not listed here."""

from __future__ import annotations

import pytest
import torch

from src.student.datamodule import StudentData
from src.student.evaluator import evaluate_model
from tests.fixtures import cycle_data
from tests.gpu.pretended import GPU, PretendedGPU
from tests.gpu.stages import (
    BATCH,
    EVALUATION,
    TERMS,
    PerStep,
    default_student,
    distilled,
    per_step,
    student,
    student_settings,
)

pytestmark = pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN")
#: operations a step; who lowers one writes the new number here. A GRU is one call to a library on a GPU: not counted
ALONE = {
    ("transformer", "ce"): 138,
    ("transformer", "bce"): 185,
    ("sasrec", "ce"): 134,
    ("sasrec", "bce"): 182,
    ("caser", "ce"): 70,
    ("caser", "bce"): 118,
}
TAUGHT = {
    ("transformer", "all"): 411,
    ("transformer", "kl_divergence"): 422,
    ("transformer", "ground_truth_error"): 416,
    ("sasrec", "all"): 398,
    ("sasrec", "kl_divergence"): 409,
    ("sasrec", "ground_truth_error"): 403,
    ("caser", "all"): 334,
    ("caser", "kl_divergence"): 345,
    ("caser", "ground_truth_error"): 339,
}
#: of the student that is the default, with what the published ones have not: alone, and taught with every term
OWN = {
    "prior, ce": (144, 417),
    "prior, sampled": (248, 543),
    "gbce": (302, 606),
    "all positions": (159, 432),
    "mean of the weights": (139, 412),
}
#: beside the default student with the linear prior: with the full catalogue, with sampled items
TERM = {"soft": (206, 327), "rce": (249, 371), "text": (243, 365)}
#: what torch adds up in a fixed order, by a sort, where a GPU must compute deterministically
SORTED = ("aten::scatter_add", "aten::embedding_dense_backward", "aten::index_put_")
#: waits a step, by reason and place
ALLOWED: dict[str, float] = {
    # how many forward passes the rows of a batch share, and how long the longest is, must be known
    "aten::_unique2: student/shared_passes.py represent_rows": 1.0,
    "aten::_local_scalar_dense: student/shared_passes.py represent_rows": 1.0,
    # only the pretended GPU's: torch sorts the gradients by their real device before it clips them
    "copy to the host: core/lazy_adam.py clip_gradients": 1.0,
}


def assert_within(found: PerStep, kernels: float) -> None:
    """No more operations than recorded, no waits but the allowed ones."""
    waits = {place: count for place, count in found.waits.items() if count > ALLOWED.get(place, 0.0)}
    assert not waits, f"waits in every step: {waits}"
    assert found.kernels <= kernels, f"{found.kernels:g} operations a step, {kernels:g} are recorded"


@pytest.mark.parametrize(("architecture", "loss"), ALONE)
def test_a_step_of_a_student_alone(architecture: str, loss: str) -> None:
    with PretendedGPU() as gpu:
        found = per_step(gpu, lambda rows: student(GPU, student_settings(architecture, loss), rows))
    assert_within(found, ALONE[architecture, loss])


@pytest.mark.parametrize(("architecture", "policy"), TAUGHT)
def test_a_step_of_distillation(architecture: str, policy: str) -> None:
    with PretendedGPU() as gpu:
        settings = student_settings(architecture)
        found = per_step(gpu, lambda rows: distilled(GPU, settings, policy=policy, train=rows))
    assert_within(found, TAUGHT[architecture, policy])


@pytest.mark.parametrize("form", OWN)
def test_a_step_of_the_default_student(form: str) -> None:
    settings, where = default_student(form)
    # rows that share passes are dealt to steps in another way where there are few of them
    steps = {"first": 2, "steps": 3} if settings.positions == "all" else {}
    with PretendedGPU() as gpu:
        alone = per_step(gpu, lambda rows: student(GPU, settings, rows, **where), **steps)
        taught = per_step(gpu, lambda rows: distilled(GPU, settings, train=rows, **where), **steps)
    assert_within(alone, OWN[form][0])
    assert_within(taught, OWN[form][1])


@pytest.mark.parametrize(("loss", "place"), [("ce", 0), ("sampled", 1)])
@pytest.mark.parametrize("term", TERM)
def test_a_step_of_a_term(term: str, loss: str, place: int) -> None:
    settings = student_settings("transformer", prior="linear", loss=loss, shared_negatives=6)
    with PretendedGPU() as gpu:
        found = per_step(gpu, lambda rows: distilled(GPU, settings, TERMS[term], train=rows, prior="linear"))
    assert_within(found, TERM[term][place])


def test_few_sums_of_a_step_are_sorted() -> None:
    """The gathers of the target's and the candidates' logits, and of the item table: five and two in all."""
    with PretendedGPU() as gpu:
        counts = []
        for rows in (BATCH, 3 * BATCH):
            gpu.kernels.clear()
            distilled(GPU, student_settings(), train=rows)
            counts.append(sum(gpu.kernels[name] for name in SORTED))
    assert (counts[1] - counts[0]) / 2 <= 5 + 2


@pytest.mark.parametrize(
    "changes",
    [{"architecture": "gru4rec"}, {"gradient_clip": 1.0}, {"adapt_micro_batch": True}, {"micro_batch_size": 5}],
    ids=["gru4rec", "clipped", "adaptive", "micro-batches"],
)
def test_other_steps_do_not_wait_either(changes: dict[str, object]) -> None:
    with PretendedGPU() as gpu:
        settings = student_settings(**changes)  # type: ignore[arg-type]
        found = per_step(gpu, lambda rows: distilled(GPU, settings, train=rows))
    assert_within(found, float("inf"))


def test_an_evaluation_waits_a_fixed_number_of_times() -> None:
    """However many batches it ranks: the GPU is not left idle between them."""
    with PretendedGPU() as gpu:
        model = student(GPU, student_settings())
        counts = []
        for rows in (10, 40):
            data = StudentData.of(cycle_data(validation=rows), GPU)
            gpu.waits.clear()
            with torch.no_grad():
                evaluate_model(model, data.validation, EVALUATION)
            counts.append(gpu.waits.copy())
    assert counts[0] == counts[1]
    assert counts[0].total() <= 7
