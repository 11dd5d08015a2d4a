"""How the adapters of one model find the gate weights of the batch that is passing through, and multiply by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class _Opened:
    """Gate weights ``[B, E]`` in scope, and by rank r what activations are multiplied by: E·g as ``[B, 1, r]``."""

    gate_weights: Tensor
    factors: Mapping[int, Tensor]


class GateScope:
    """Where the adapters of one model find the gate weights of the batch that is passing through.

    ``with scope(gate_weights):`` opens it, and nothing else does: a LoRA layer that runs outside raises. What all
    layers need is computed once, when it is opened: with some hundred layers the small steps would add up.
    """

    def __init__(self, experts: int) -> None:
        self.experts = experts
        self.ranks: set[int] = set()
        self._opened: _Opened | None = None
        #: S of the forward pass that is running, see `WidthHook`
        self.width = 0
        #: while `probe_layouts` looks: layers by name whose activations belong to no sequence; None at all other times
        self.ungated: list[str] | None = None

    @contextmanager
    def __call__(self, gate_weights: Tensor) -> Iterator[None]:
        """Hold gate weights ``[B, E]`` for the block; scopes may be nested."""
        scaled = self.experts * gate_weights
        spread = {rank: scaled.repeat_interleave(rank // self.experts, dim=-1).unsqueeze(1) for rank in self.ranks}
        with self.again(_Opened(gate_weights, spread)):
            yield

    @contextmanager
    def again(self, opened: _Opened | None, width: int = 0) -> Iterator[None]:
        """Hold for the block what was held before."""
        outer = self._opened, self.width
        self._opened, self.width = opened, width
        try:
            yield
        finally:
            self._opened, self.width = outer

    @property
    def gate_weights(self) -> Tensor | None:
        """The weights in scope, or None outside of it."""
        return None if self._opened is None else self._opened.gate_weights

    def factor(self, shape: torch.Size, turned: bool = False) -> Tensor:
        """E times each expert's weight, once for each of its r/E inner activations.

        ``[B, 1, ..., r]`` for activations ``[B, ..., r]``, ``[1, B, r]`` for those that are ``turned``, ``[S, B, r]``
        (XLNet), and ``[B·S, r]`` for those of a layer that sees the tokens of all sequences one below the other (OPT's
        feed-forward layers). Raises ``RuntimeError`` outside of a scope,
        ``ValueError`` when the weights in it are not ``[B, E]``.
        """
        if self._opened is None:
            raise RuntimeError("LoRA experts ran without a gate: open `with scope(gate_weights):` around the model")
        sequences, *middle, rank = shape
        found = tuple(self._opened.gate_weights.shape)
        if not middle and sequences == found[0] * self.width and found[1:] == (self.experts,):
            return self._opened.factors[rank].expand(-1, self.width, -1).reshape(sequences, rank)
        if turned and found == (*middle, self.experts):
            return self._opened.factors[rank].transpose(0, 1)
        if found != (sequences, self.experts):
            raise ValueError(f"gate_weights are {found}; {sequences} sequences met {self.experts} experts")
        factor = self._opened.factors[rank]
        return factor if len(middle) == 1 else factor.view(sequences, *[1] * len(middle), rank)

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts for a checkpointed forward pass and for its recomputation, which runs after the scope has closed."""
        return nullcontext(), nullcontext() if self._opened is None else _Reopened(self, self._opened, self.width)


class _Reopened:
    """A scope that can be entered again for each recomputation."""

    def __init__(self, scope: GateScope, opened: _Opened, width: int) -> None:
        self.scope, self.opened, self.width = scope, opened, width

    def __enter__(self) -> None:
        self._open = self.scope.again(self.opened, self.width)
        self._open.__enter__()

    def __exit__(self, *problem: Any) -> None:
        self._open.__exit__(*problem)


class GateHook:
    """Multiplies what `lora_A` of the layer ``name`` returns, ``[B, ..., r]``, by E times the gate in scope."""

    def __init__(self, scope: GateScope, name: str) -> None:
        self.scope, self.name = scope, name
        #: whether the layer has tokens first and sequences second; `probe_layouts` finds out
        self.turned = False

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], activations: Tensor) -> Tensor:
        if self.scope.ungated is not None and not self._probe(activations.shape, self.scope.ungated):
            return activations
        return activations * self.scope.factor(activations.shape, self.turned).to(activations.dtype)

    def _probe(self, shape: torch.Size, ungated: list[str]) -> bool:
        """Note how the layer lays out sequences, in a pass with more tokens than sequences; whether it does at all."""
        assert self.scope.gate_weights is not None
        sequences = len(self.scope.gate_weights)
        self.turned = len(shape) == 3 and shape[0] != sequences and shape[1] == sequences
        flat = len(shape) == 2 and shape[0] == sequences * self.scope.width
        if not (self.turned or flat or shape[0] == sequences):
            ungated.append(self.name)
            return False
        return True


class WidthHook:
    """Notes how many tokens each sequence has in the forward pass that begins.

    Only so can a layer whose rows are tokens be told from one whose rows are something else (a router's choice): rows
    that are no whole sequences in order are refused.
    """

    def __init__(self, scope: GateScope) -> None:
        self.scope = scope

    def __call__(self, llm: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = [*inputs, named.get("inputs_embeds"), named.get("input_ids")]
        self.scope.width = next((int(tensor.shape[1]) for tensor in given if isinstance(tensor, Tensor)), 0)
