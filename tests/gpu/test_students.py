"""Every way to train a student, on a pretended GPU: nothing mixes devices, and the student is the CPU's."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from src.core.checkpoints import pack, unpack
from src.core.hardware import resolve_device
from src.distill.settings import ActiveSettings, DistillSettings
from src.distill.trainer_distill import train_distilled
from src.student.base import SequenceStudent
from src.student.evaluator import evaluate_model, rank_examples
from src.teacher.labelling.selection import choose_rows, predict_with_student
from src.teacher.operations.teacher_check import student_ranker
from src.teacher.settings import ExportSettings
from src.tuning.trained_model import TrainedModel, latency_ms
from tests.fixtures import cycle_data
from tests.gpu.pretended import CPU, GPU, PretendedGPU, device_of
from tests.gpu.stages import (
    EVALUATION,
    EVERYTHING,
    OWN,
    TERMS,
    data_on,
    default_student,
    distilled,
    student,
    student_settings,
)

pytestmark = pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN")
COMBINED = list(product(("transformer", "sasrec", "gru4rec", "caser"), ("ce", "bce")))
NOTHING = DistillSettings(candidate_topk=4, lam=0.0, alpha=0.0, ed_weight=0.0)


def weights(model: SequenceStudent) -> list[Tensor]:
    """On the host, in their order."""
    return [value.detach().cpu().clone() for value in model.state_dict().values()]


def assert_same(on_gpu: SequenceStudent, on_cpu: SequenceStudent) -> None:
    """The pretended GPU computes as the CPU does, so a student that was trained right is the same."""
    assert {device_of(value) for value in on_gpu.state_dict().values()} == {GPU}
    assert all(torch.equal(a, b) for a, b in zip(weights(on_gpu), weights(on_cpu), strict=True))


@pytest.mark.parametrize(("architecture", "loss"), COMBINED)
@pytest.mark.parametrize(
    "changes",
    [{}, {"dro_weight": 0.3}, {"gradient_clip": 1.0, "micro_batch_size": 5}, {"adapt_micro_batch": True}],
    ids=["plain", "dro", "micro-batches", "adaptive"],
)
def test_a_student_alone(architecture: str, loss: str, changes: dict[str, float]) -> None:
    settings = student_settings(architecture, loss, **changes)
    on_cpu = student(CPU, settings)
    with PretendedGPU():
        assert_same(student(resolve_device("auto"), settings), on_cpu)


@pytest.mark.parametrize(("architecture", "loss"), COMBINED)
@pytest.mark.parametrize("policy", ["all", "kl_divergence", "ground_truth_error"])
def test_a_student_with_a_teacher(architecture: str, loss: str, policy: str) -> None:
    settings = student_settings(architecture, loss)
    on_cpu = distilled(CPU, settings, policy=policy)
    with PretendedGPU():
        assert_same(distilled(resolve_device("cuda"), settings, policy=policy), on_cpu)


@pytest.mark.parametrize(
    "terms",
    [
        NOTHING,
        DistillSettings(candidate_topk=4, alpha=0.0),
        DistillSettings(candidate_topk=4, lam=0.0),
        DistillSettings(
            candidate_topk=4, embedding_loss_weight=0.5, embedding_loss="cosine", lam=0.0, alpha=0.0, ed_weight=0.0
        ),
        DistillSettings(candidate_topk=4, dro_weighting="product", ranking_negative="sigmoid_of_one_minus"),
    ],
    ids=["none", "no dro", "no ranking", "embeddings alone", "as released"],
)
def test_terms_of_the_loss(terms: DistillSettings) -> None:
    settings = student_settings(loss="bce")
    on_cpu = distilled(CPU, settings, terms)
    with PretendedGPU():
        assert_same(distilled(GPU, settings, terms), on_cpu)


@pytest.mark.parametrize("form", OWN)
def test_the_default_student(form: str) -> None:
    settings, where = default_student(form)
    alone, taught = student(CPU, settings, **where), distilled(CPU, settings, **where)
    with PretendedGPU():
        assert_same(student(GPU, settings, **where), alone)
        assert_same(distilled(GPU, settings, **where), taught)


@pytest.mark.parametrize("loss", ["ce", "sampled"])
@pytest.mark.parametrize("term", TERMS)
def test_every_term_beside_the_default_student(term: str, loss: str) -> None:
    settings = student_settings("transformer", prior="linear", loss=loss, shared_negatives=6)
    on_cpu = distilled(CPU, settings, TERMS[term], prior="linear")
    with PretendedGPU():
        assert_same(distilled(GPU, settings, TERMS[term], prior="linear"), on_cpu)


class Killed(Exception):
    """The training's end in the middle."""


class InMemory:
    """A checkpoint as bytes."""

    def __init__(self) -> None:
        self.content = b""

    def load(self) -> object:
        """As `Checkpoint.load`."""
        return unpack(self.content, "mine", "memory") if self.content else None

    def save(self, state: object) -> None:
        """As `Checkpoint.save`."""
        self.content = pack(state, "mine")  # type: ignore[arg-type]


def test_a_killed_training_goes_on_to_the_same_student() -> None:
    settings, checkpoint = student_settings(loss="bce", epochs=2), InMemory()

    def train(report: object, checkpoint: InMemory) -> SequenceStudent:
        data, teaching = data_on(GPU)
        return train_distilled(
            settings, EVERYTHING, ActiveSettings(), EVALUATION, data, teaching, 0, report, checkpoint  # type: ignore[arg-type]
        ).student  # fmt: skip

    def kill(epoch: int, metrics: object) -> None:
        raise Killed

    with PretendedGPU():
        with pytest.raises(Killed):
            train(kill, checkpoint)
        on = train(lambda epoch, metrics: None, checkpoint)
        whole = train(lambda epoch, metrics: None, InMemory())
        assert_same(on, whole)


def test_what_is_done_with_a_trained_student() -> None:
    made = cycle_data()
    with PretendedGPU():
        model, data = student(GPU, student_settings()), data_on(GPU)[0]
        assert evaluate_model(model, data.validation, EVALUATION)["recall_5"] >= 0
        ranks = rank_examples(model, data.validation, EVALUATION)
        on_cpu = student(CPU, student_settings())
        assert torch.equal(ranks.cpu(), rank_examples(on_cpu, data_on(CPU)[0].validation, EVALUATION))
        assert latency_ms(model) > 0
        trained = TrainedModel(None, model, None)  # type: ignore[arg-type]
        assert trained.weights == TrainedModel(None, student(CPU, student_settings()), None).weights  # type: ignore[arg-type]
        for select in ("random", "most_recent", "student_uncertain", "student_wrong", "diverse"):
            settings = ExportSettings(budget=10, select=select)  # type: ignore[arg-type]
            assert len(choose_rows(made.train, settings, 0, lambda: predict_with_student(model, made.train, 8))) == 10
        assert len(student_ranker(model, 4, True)(made.validation).ranks) == 10
