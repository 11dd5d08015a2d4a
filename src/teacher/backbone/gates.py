"""From a user vector to the experts' weights: u ``[B, H]`` → gate_weights ``[B, E]``, each row a softmax.

The published convolutional router and the published linear and MLP gates (golden README §5), at any H and E.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.teacher.settings import GateSettings

_CHANNELS = (16, 32, 64)
_BLOCKS = 3


def keep_largest(weights: Tensor, k: int) -> Tensor:
    """The k largest probabilities of each row ``[B, E]``, through a second softmax over their values (as published).

    The softmax is over probabilities, not logits: k = 1 gives exactly one-hot weights.
    """
    largest = weights.topk(k, dim=1)
    kept = torch.full_like(weights, float("-inf")).scatter(1, largest.indices, largest.values)
    return kept.softmax(dim=1)


class _Noise(nn.Module):
    """Normal noise on a gate's logits: drawn in training only, or as given (the published gates add it always)."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """``logits + deviation * noise``, all ``[B, E]``; ``noise`` is standard normal."""
        if noise is None and self.training and self.deviation > 0:
            noise = torch.randn_like(logits)
        return logits if noise is None else logits + self.deviation * noise


class LinearGate(nn.Module):
    """softmax(u W^T), with dropout or noise on the logits, or only the ``top_k`` largest weights."""

    def __init__(self, width: int, experts: int, dropout: float = 0.0, noise: float = 0.0, top_k: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(width, experts, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.noise = _Noise(noise)
        self.top_k = top_k

    def forward(self, user: Tensor, noise: Tensor | None = None) -> Tensor:
        """``[B, H]`` → ``[B, E]``; ``noise`` ``[B, E]`` replaces the drawn one, also in eval mode."""
        weights = self.noise(self.dropout(self.linear(user)), noise).softmax(dim=1)
        return keep_largest(weights, self.top_k) if self.top_k else weights


class MLPGate(nn.Module):
    """softmax(W2 f(W1 u)), f exact GELU (with biases) or ReLU (without), as the two published variants."""

    def __init__(
        self,
        width: int,
        experts: int,
        hidden: int = 128,
        activation: Literal["gelu", "relu"] = "gelu",
        bias: bool = True,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden, bias=bias)
        self.outer = nn.Linear(hidden, experts, bias=bias)
        self.activation = nn.GELU() if activation == "gelu" else nn.ReLU()
        self.noise = _Noise(noise)

    def forward(self, user: Tensor, noise: Tensor | None = None) -> Tensor:
        """``[B, H]`` → ``[B, E]``; ``noise`` ``[B, E]`` replaces the drawn one, also in eval mode."""
        logits = self.outer(self.activation(self.inner(user)))
        weights: Tensor = self.noise(logits, noise).softmax(dim=1)
        return weights


class ResidualBlock(nn.Module):
    """conv3-BN-relu-conv3-BN plus the input, then relu; a strided input is subsampled and its channels zero-padded."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.missing = stride, outputs - inputs
        self.convolution_in = nn.Conv1d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm_in = nn.BatchNorm1d(outputs)
        self.convolution_out = nn.Conv1d(outputs, outputs, 3, padding=1, bias=False)
        self.norm_out = nn.BatchNorm1d(outputs)

    def forward(self, signal: Tensor) -> Tensor:
        """``[B, inputs, W]`` → ``[B, outputs, ceil(W / stride)]``."""
        half = self.missing // 2
        shortcut = F.pad(signal[:, :, :: self.stride], (0, 0, half, self.missing - half))
        inner = F.relu(self.norm_in(self.convolution_in(signal)))
        return F.relu(self.norm_out(self.convolution_out(inner)) + shortcut)


class ConvolutionalRouter(nn.Module):
    """The published router: u as a one-channel signal through a small residual network, averaged, then a softmax.

    BatchNorm behaves as usual: batch statistics in training, running ones in eval.
    """

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, _CHANNELS[0], 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm1d(_CHANNELS[0])
        blocks, width = [], _CHANNELS[0]
        for stage, channels in enumerate(_CHANNELS):
            for index in range(_BLOCKS):
                blocks.append(ResidualBlock(width, channels, stride=2 if stage and not index else 1))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(width, experts)

    def features(self, user: Tensor) -> Tensor:
        """``[B, H]`` → ``[B, 64]``: what the last linear layer reads."""
        signal = F.relu(self.stem_norm(self.stem(user.unsqueeze(1))))
        averaged: Tensor = self.blocks(signal).mean(dim=2)
        return averaged

    def forward(self, user: Tensor) -> Tensor:
        """``[B, H]`` → ``[B, E]``."""
        weights: Tensor = self.linear(self.features(user)).softmax(dim=1)
        return weights


def build_gate(settings: GateSettings, width: int, experts: int) -> nn.Module:
    """Make a freshly initialised gate; draws from torch's global stream.

    Args:
        settings: which kind, and its own settings.
        width: H, of user vectors.
        experts: E.
    """
    if settings.kind == "convolutional":
        return ConvolutionalRouter(experts)
    if settings.kind == "linear":
        return LinearGate(width, experts, settings.dropout, settings.noise, settings.top_k)
    return MLPGate(width, experts, settings.hidden, noise=settings.noise)


def normalised_entropy(gate_weights: Tensor) -> Tensor:
    """Entropy of each row of ``[B, E]`` over log E: 1 for uniform weights (or E = 1), 0 where one expert has all."""
    experts = gate_weights.shape[1]
    if experts == 1:
        return torch.ones_like(gate_weights[:, 0])
    entropy = -torch.special.xlogy(gate_weights, gate_weights).sum(dim=1)
    return entropy / torch.log(torch.tensor(float(experts), dtype=gate_weights.dtype, device=gate_weights.device))
