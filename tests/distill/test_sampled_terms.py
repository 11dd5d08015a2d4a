"""The distillation with a loss over sampled items: equal to today's where every item is drawn, and the baseline without
a teacher, bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from src.core.errors import ConfigError
from src.core.training import LoopSettings
from src.distill.data_bridge import TeachingRows, align
from src.distill.selection_policy import build_policy, require_policy_fits
from src.distill.settings import ActiveSettings, DistillSettings
from src.distill.trainer_distill import DistillObjective, build_taught, train_distilled
from src.student.datamodule import StudentData
from src.student.evaluator import InParts, rank_examples, rank_rows, scores_of
from src.student.losses import propensity
from src.student.objectives import negative_sampler, shared_sampler
from src.student.settings import EvaluationSettings, NetworkSettings
from src.student.trainer_baseline import new_student, train_student
from tests.dying import DyingCheckpoint, Killed
from tests.fixtures import NUM_ITEMS, cycle_data, outputs_for, student_of

EVALUATION = EvaluationSettings(ks=(1, 5))
NOTHING: dict[str, Any] = {"lam": 0.0, "alpha": 0.0, "ed_weight": 0.0, "candidate_topk": 4}
LABELLED = np.array([30, 2, 17, 5, 8, 11, 39])


def settings_of(loss: str = "sampled", **changes: Any) -> NetworkSettings:
    """A small student; all of the twelve items are drawn unless something else is asked for."""
    loop = LoopSettings(epochs=2, batch_size=16, monitor="ndcg_5", ema=0.9)
    options = {"prior": "none", "width": 8, "dropout": 0.3, "loss": loss, "shared_negatives": NUM_ITEMS, "loop": loop}
    return student_of(**{**options, **changes})


@pytest.fixture(scope="module")
def data() -> StudentData:
    """Forty training rows over twelve items."""
    found = StudentData.of(cycle_data(), "cpu")
    return StudentData(**{**vars(found), "propensity": propensity(found.item_counts)})


@pytest.fixture(scope="module")
def teaching() -> TeachingRows:
    """Seven of the forty rows are labelled."""
    train = cycle_data().train
    found = align(outputs_for(train, LABELLED), train, 4, "cpu")
    return TeachingRows(found.slot, found.candidates, found.distances.double(), found.sequence_embedding.double(),
                        found.item_embedding.double())  # fmt: skip


def objective_of(
    data: StudentData, teaching: TeachingRows, settings: NetworkSettings, distill: DistillSettings, policy: str = "all"
) -> DistillObjective:
    """In float64, with weights that are far from zero, without dropout."""
    model = build_taught(new_student(settings, data, 0), distill, teaching, data, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    draw = negative_sampler(data, 1, torch.Generator().manual_seed(2))
    found, active = shared_sampler(data, settings, 3), ActiveSettings(policy=policy, kl_threshold=0.05)
    return DistillObjective(
        model.double(), data, teaching, settings, distill, build_policy(active), draw, shared=found and found[0]
    )


TERMS: list[dict[str, Any]] = [
    {"alpha": 0.5, "beta": 0.7},
    {"lam": 0.7},
    {"lam": 0.7, "alpha": 0.5},
    {"lam": 0.7, "alpha": 0.5, "dro_weighting": "product", "ranking_negative": "sigmoid_of_one_minus"},
    {"soft_weight": 0.5, "soft_temperature": 2.0},
    {"rce_weight": 0.5, "rce_pool": 6},
    {"embedding_loss_weight": 0.3},
    {"ed_weight": 0.4},
    {"text_weight": 0.5, "text_dropout": 0.0},
    {"text_weight": 0.5, "text_dropout": 0.9},
    {"lam": 0.7, "alpha": 0.5, "soft_weight": 0.5, "rce_weight": 0.5, "ed_weight": 0.4, "text_weight": 0.5},
]


@pytest.mark.parametrize("architecture", ["sasrec", "transformer"])
@pytest.mark.parametrize("policy", ["all", "kl_divergence"])
@pytest.mark.parametrize("change", TERMS, ids=str)
def test_with_every_item_drawn_each_term_is_what_it_is_over_the_catalogue(
    data: StudentData, teaching: TeachingRows, architecture: str, policy: str, change: dict[str, Any]
) -> None:
    distill = DistillSettings(**{**NOTHING, **change})
    found = []
    for loss in ("ce", "sampled"):
        settings = settings_of(loss, architecture=architecture, dropout=0.0)
        objective = objective_of(data, teaching, settings, distill, policy)
        torch.manual_seed(5)
        value = objective.loss(torch.arange(len(data.train)))
        value.backward()
        found.append(
            (value.item(), {n: p.grad for n, p in objective.model.named_parameters()}, objective.taught_share())
        )
    (full, gradients, taught), (sampled, theirs, also) = found
    assert sampled == pytest.approx(full, abs=1e-9)
    assert also == taught
    for name, gradient in gradients.items():
        if gradient is not None:
            assert torch.allclose(theirs[name], gradient, atol=1e-9), name


@pytest.mark.parametrize("loss", ["sampled", "gbce"])
@pytest.mark.parametrize("architecture", ["sasrec", "transformer"])
@pytest.mark.parametrize("dro", [0.0, 0.3])
def test_without_distillation_it_is_the_baseline_to_the_last_bit(
    teaching: TeachingRows, loss: str, architecture: str, dro: float
) -> None:
    data = StudentData.of(cycle_data(), "cpu")
    settings = settings_of(loss, architecture=architecture, shared_negatives=4, negatives_power=0.5, dro_weight=dro)
    baseline = train_student(settings, EVALUATION, data, seed=7)
    nothing = DistillSettings(**{**NOTHING, "alpha": dro})
    taught = train_distilled(settings, nothing, ActiveSettings(), EVALUATION, data, teaching, seed=7)
    ours = [{name: value for name, value in row.items() if name != "taught_share"} for row in taught.fit.history]
    assert ours == baseline.fit.history
    left, right = taught.student.state_dict(), baseline.student.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in right)


def test_a_distillation_that_was_killed_goes_on_to_the_last_bit_and_its_tables_get_rows_alone() -> None:
    data, train = StudentData.of(cycle_data(), "cpu"), cycle_data().train
    teaching = align(outputs_for(train, LABELLED), train, 4, "cpu")
    full = DistillSettings(**{**NOTHING, **TERMS[-1]})
    loop = LoopSettings(epochs=2, batch_size=16, monitor="ndcg_5", ema=0.9, checkpoint_minutes=1e-9)
    settings = settings_of(architecture="transformer", shared_negatives=3, loop=loop)

    def run(checkpoint: DyingCheckpoint) -> Any:
        return train_distilled(
            settings, full, ActiveSettings(), EVALUATION, data, teaching, 7, checkpoint=checkpoint
        ).fit.history

    whole, killed = run(DyingCheckpoint(after=-1)), DyingCheckpoint(after=2)
    with pytest.raises(Killed):
        run(killed)
    assert run(killed) == whole


def test_a_step_projects_no_more_than_the_rows_that_it_reads(data: StudentData, teaching: TeachingRows) -> None:
    distill = DistillSettings(**{**NOTHING, "ed_weight": 0.4, "text_weight": 0.5, "lam": 0.5})
    settings = settings_of(architecture="transformer", shared_negatives=2)
    objective = objective_of(data, teaching, settings, distill)
    objective.model.student.sparse_gradients()
    projected: list[int] = []
    for name, layer in objective.model.named_modules():
        if name in ("parts.item_input.projection", "parts.item_text.row"):
            layer.register_forward_hook(lambda module, inputs, output: projected.append(inputs[0][..., 0].numel()))
    objective.loss(torch.tensor([0])).backward()
    # a history of ten places, and a target, four candidates, a negative and two shared items
    assert sorted(projected) == [8, 8, objective.model.student.window, objective.model.student.window]
    assert objective.model.student.item_embeddings.weight.grad.is_sparse


@pytest.mark.parametrize("policy", ["ground_truth_error", "tests.distill.test_own_policy:build"])
def test_a_policy_that_needs_the_whole_ranking_is_refused(
    data: StudentData, teaching: TeachingRows, policy: str
) -> None:
    active, distill = ActiveSettings(policy=policy), DistillSettings(**{**NOTHING, "lam": 0.5})
    with pytest.raises(
        ConfigError, match=r"active.policy = .*whole ranking, which student.loss=gbce .*use active.policy"
    ):
        train_distilled(settings_of("gbce"), distill, active, EVALUATION, data, teaching, seed=0)
    require_policy_fits(settings_of("ce"), distill, active)
    require_policy_fits(settings_of("gbce"), DistillSettings(**NOTHING), active)


@pytest.mark.parametrize("architecture", ["sasrec", "transformer"])
@pytest.mark.parametrize("gathered", [False, True])
def test_a_taught_student_is_ranked_by_parts_as_it_is_at_once(
    data: StudentData, teaching: TeachingRows, monkeypatch: pytest.MonkeyPatch, architecture: str, gathered: bool
) -> None:
    distill = DistillSettings(**{**NOTHING, "ed_weight": 0.4, "text_weight": 0.5})
    objective = objective_of(data, teaching, settings_of("ce", architecture=architecture), distill)
    model = objective.model.eval()
    model.gathered = gathered
    whole = rank_rows(lambda rows: scores_of(model, data.train, rows), data.train, EVALUATION)
    monkeypatch.setattr("src.student.evaluator.MAX_SCORES", 50)
    assert InParts.of(model, data.train) is not None
    assert torch.equal(rank_examples(model, data.train, EVALUATION), whole)
