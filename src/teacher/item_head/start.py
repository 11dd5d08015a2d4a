"""Where the item head starts: a linear map from pooled LLM states h ``[n, D]`` to logits over the catalogue.

Thousands of prompts are too few to learn a catalogue-wide head from nothing. Each start is a closed form of states that
the untrained teacher gives for some training examples; training goes on from there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LinearStart(NamedTuple):
    """Weight ``[V, D]`` and bias ``[V]`` of the item head."""

    weight: Tensor
    bias: Tensor


def ridge_regression(inputs: Tensor, outputs: Tensor, penalty: float) -> LinearStart:
    """Fit a linear map by least squares with a penalty, in float64.

    Args:
        inputs: ``[n, D]``.
        outputs: ``[n, H]``.
        penalty: times the mean variance of the inputs; added to every variance.

    Returns:
        Weight ``[H, D]`` and bias ``[H]``.
    """
    x, y = inputs.double(), outputs.double()
    centre, level = x.mean(dim=0), y.mean(dim=0)
    x = x - centre
    covariance = x.T @ x / len(x)
    diagonal = penalty * covariance.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    covariance.diagonal().add_(diagonal)
    weight = torch.linalg.solve(covariance, x.T @ (y - level) / len(x)).T
    return LinearStart(weight.to(inputs.dtype), (level - weight @ centre).to(inputs.dtype))


def recommender_start(states: Tensor, users: Tensor, scorer: LinearStart, penalty: float) -> LinearStart:
    """Start as the recommender's scorer over user vectors that a ridge regression predicts from the LLM's states.

    Args:
        states: ``[n, D]``.
        users: ``[n, H]``, the frozen SASRec's.
        scorer: ``[V, H]`` and ``[V]``, likewise.
        penalty: see `ridge_regression`.
    """
    regression = ridge_regression(states, users, penalty)
    return LinearStart(scorer.weight @ regression.weight, scorer.weight @ regression.bias + scorer.bias)


def title_start(states: Tensor, item_embedding: Tensor, item_counts: Tensor, sharpness: float) -> LinearStart:
    """Start as similarity of centred states to centred, normalised title embeddings, plus log popularity.

    Args:
        states: ``[n, D]``.
        item_embedding: ``[V, D]``.
        item_counts: ``[V]``, training targets.
        sharpness: the similarities' deviation over states and items.
    """
    centre = states.mean(dim=0)
    titles = torch.nn.functional.normalize(item_embedding - item_embedding.mean(dim=0), dim=1)
    spread = ((states - centre) @ titles.T).std().clamp(min=torch.finfo(torch.float32).tiny)
    weight = titles * (sharpness / spread)
    smoothed = item_counts.float() + 1.0
    return LinearStart(weight, torch.log(smoothed / smoothed.sum()) - weight @ centre)
