"""Where projector, head and learning rates start, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from src.teacher.backbone.projector import Projector, TokenMoments
from src.teacher.item_head.start import LinearStart, recommender_start, ridge_regression, title_start
from src.teacher.schedule import rate


def test_ridge_regression_by_hand() -> None:
    # inputs of variance 1 around 3, outputs 2x + 1; a penalty of 1 doubles the variance and halves the slope
    inputs, outputs = torch.tensor([[2.0], [4.0]]), torch.tensor([[5.0], [9.0]])
    exact, shrunk = ridge_regression(inputs, outputs, 1e-12), ridge_regression(inputs, outputs, 1.0)
    torch.testing.assert_close(exact.weight, torch.tensor([[2.0]]))
    torch.testing.assert_close(exact.bias, torch.tensor([-1.0]) + 2.0)
    torch.testing.assert_close(shrunk.weight, torch.tensor([[1.0]]))
    torch.testing.assert_close(shrunk.bias, torch.tensor([7.0 - 3.0]))


def test_recommender_start_scores_what_the_regression_predicts() -> None:
    torch.manual_seed(0)
    states, true = torch.randn(50, 6), torch.randn(3, 6)
    users = states @ true.T + 0.5
    scorer = LinearStart(torch.randn(7, 3), torch.randn(7))
    head = recommender_start(states, users, scorer, 1e-9)
    wanted = users @ scorer.weight.T + scorer.bias
    torch.testing.assert_close(states @ head.weight.T + head.bias, wanted, rtol=1e-3, atol=1e-3)


def test_title_start_is_centred_similarity_and_log_popularity() -> None:
    torch.manual_seed(0)
    states, titles, counts = torch.randn(20, 4) + 5, torch.randn(6, 4) + 2, torch.tensor([0, 1, 2, 3, 4, 5])
    head = title_start(states, titles, counts, 0.5)
    logits = states @ head.weight.T + head.bias
    popularity = torch.log(torch.tensor([k / 21 for k in range(1, 7)]))
    torch.testing.assert_close(logits.mean(dim=0), popularity)
    similarity = logits - popularity
    torch.testing.assert_close(similarity.std(), torch.tensor(0.5))
    centred = torch.nn.functional.cosine_similarity(
        (states - states.mean(dim=0)).unsqueeze(1), (titles - titles.mean(dim=0)).unsqueeze(0), dim=2
    )
    ratio = similarity / centred / (states - states.mean(dim=0)).norm(dim=1, keepdim=True)
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-3, atol=1e-3)


def test_projector_by_hand() -> None:
    projector = Projector(1, 1)
    with torch.no_grad():
        for parameter, value in zip(projector.parameters(), (2.0, 0.0, 3.0, 0.5), strict=True):
            parameter.fill_(value)
    # 3 * gelu(2) + 0.5 with gelu(2) = 2 * Phi(2)
    wanted = 3 * 2 * 0.5 * (1 + math.erf(2 / math.sqrt(2))) + 0.5
    torch.testing.assert_close(projector(torch.tensor([[1.0]])), torch.tensor([[wanted]]))


def test_a_calibrated_projector_makes_token_like_embeddings_and_tells_items_apart() -> None:
    torch.manual_seed(0)
    items, tokens = torch.randn(40, 8) * 0.01 + 0.3, torch.randn(100, 12) * 0.2 - 1.0
    projector = Projector(8, 12)
    assert projector(items).std(dim=0).mean() < 0.01
    projector.calibrate(items, TokenMoments.of(nn.Embedding.from_pretrained(tokens)))
    projected = projector(items)
    torch.testing.assert_close(projected.mean(dim=0), tokens.mean(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(projected.std(dim=0).mean(), tokens.std(dim=0).mean())


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 1 / 11), (9, 10 / 11), (10, 1.0), (55, 1 / 2), (100, 0.0), (70, 0.5 * (1 + math.cos(2 * math.pi / 3)))],
)
def test_the_rate_warms_up_linearly_and_falls_as_a_cosine(step: int, factor: float) -> None:
    assert rate(step, 100, 0.1) == pytest.approx(factor, abs=1e-12)


def test_a_run_without_warm_up_starts_at_the_full_rate() -> None:
    assert rate(0, 1, 0.0) == 1.0
