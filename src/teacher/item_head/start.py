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
    """Weight ``[H, D]`` and bias ``[H]`` that predict ``outputs`` ``[n, H]`` from ``inputs`` ``[n, D]``, least squares.

    ``penalty`` × (mean variance of the inputs) is added to every variance. Computed in float64.
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
    """The recommender's scorer over user vectors that a ridge regression predicts from the LLM's states.

    ``states`` ``[n, D]``, ``users`` ``[n, H]`` (the frozen SASRec's), ``scorer`` ``[V, H]`` and ``[V]``.
    """
    regression = ridge_regression(states, users, penalty)
    return LinearStart(scorer.weight @ regression.weight, scorer.weight @ regression.bias + scorer.bias)


def title_start(states: Tensor, item_embedding: Tensor, item_counts: Tensor, sharpness: float) -> LinearStart:
    """Similarity of centred states to centred, normalised title embeddings ``[V, D]``, plus log popularity.

    The similarities' deviation over states and items is ``sharpness``; ``item_counts`` ``[V]`` are training targets.
    """
    centre = states.mean(dim=0)
    titles = torch.nn.functional.normalize(item_embedding - item_embedding.mean(dim=0), dim=1)
    spread = ((states - centre) @ titles.T).std().clamp(min=torch.finfo(torch.float32).tiny)
    weight = titles * (sharpness / spread)
    smoothed = item_counts.float() + 1.0
    return LinearStart(weight, torch.log(smoothed / smoothed.sum()) - weight @ centre)
