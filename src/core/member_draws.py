"""Random draws inside a batched step: each member's come from its own stream, as they would if it trained alone."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_COMPARISONS: Mapping[Any, Callable[[float, float], bool]] = {
    Tensor.__gt__: operator.gt, Tensor.gt: operator.gt, Tensor.__lt__: operator.lt, Tensor.lt: operator.lt,
    Tensor.__eq__: operator.eq, Tensor.eq: operator.eq, Tensor.__ne__: operator.ne, Tensor.ne: operator.ne,
}  # fmt: skip


class MemberDraws(TorchFunctionMode):
    """Inside `torch.vmap` over members: what draws from torch's global stream draws from the members' streams.

    Dropout, also that inside of attention, and `torch.rand` are known, and `torch.randint` from a stream that each
    member has; anything else that draws is refused by `vmap`.
    """

    def __init__(
        self,
        member: Tensor,
        streams: Sequence[torch.Generator],
        varied: Mapping[int, float],
        own: Mapping[int, Sequence[torch.Generator]] | None = None,
    ) -> None:
        """Draw for some members.

        Args:
            member: the member's number inside `vmap`.
            streams: what stands for torch's global stream, a member.
            varied: for numbers that stand there as tensors, by their ids, one member's value: programs may ask on which
                side of 0 they are, which is the same for all.
            own: other streams, by the id of the one that the program holds: each member's.
        """
        super().__init__()
        self.member, self.streams, self.varied, self.own = member, streams, varied, own or {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What takes the place of a call of torch's."""
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention and self._is_on(kwargs.get("dropout_p", 0.0)):
            return self._attention(*args, **kwargs)
        if func is torch.rand:
            return self._uniform(*args, **kwargs)
        if func is torch.randint and id(kwargs.get("generator")) in self.own:
            return self._whole_numbers(*args, **kwargs)
        if func in _COMPARISONS and id(args[0]) in self.varied and args[1] == 0:
            return _COMPARISONS[func](self.varied[id(args[0])], 0)
        return func(*args, **kwargs)

    def each(self, functions: Sequence[Callable[..., Tensor]]) -> Callable[..., Tensor]:
        """A function that calls each member's own one, outside of `vmap`."""
        return lambda *tensors: _Each.apply(functions, self.member, *tensors)

    def _is_on(self, rate: float | Tensor) -> bool:
        return isinstance(rate, Tensor) or rate > 0

    def _dropout(self, given: Tensor, p: float | Tensor = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not (training and self._is_on(p)):
            return given
        mask: Tensor = _Masks.apply(self.streams, self.member, p, tuple(given.shape), given)
        return given * mask

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float | Tensor = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        """As torch computes it where it has no kernel of its own: with the root of the scale on both sides."""
        if enable_gqa:
            raise NotImplementedError("attention of fewer keys than queries is not known to a population")
        root = query.shape[-1] ** -0.25 if scale is None else scale**0.5
        scores = (query * root) @ (key * root).transpose(-2, -1)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        elif attn_mask is not None:
            scores = scores + attn_mask
        return self._dropout(scores.softmax(dim=-1), dropout_p) @ value

    def _uniform(
        self, *size: Any, device: Any = None, dtype: torch.dtype | None = None, generator: Any = None
    ) -> Tensor:
        shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
        device = device or "cpu"
        if generator is not None:  # a stream of the program's own: whose it is, nobody knows here
            return torch.rand(shape, device=device, dtype=dtype, generator=generator)
        draws = [
            lambda stream=stream: torch.empty(shape, device=device, dtype=dtype).uniform_(generator=stream)
            for stream in self.streams
        ]
        return self.each(draws)()

    def _whole_numbers(self, *bounds: Any, generator: torch.Generator, **named: Any) -> Tensor:
        draws = [
            lambda stream=stream: torch.randint(*bounds, generator=stream, **named)
            for stream in self.own[id(generator)]
        ]
        return self.each(draws)()


class _Each(torch.autograd.Function):
    """One member's function after another. Nothing that it gives has a gradient."""

    @staticmethod
    def forward(functions: Sequence[Callable[..., Tensor]], member: Tensor, *tensors: Tensor) -> Tensor:
        """Outside of `vmap`: the first member's."""
        return functions[int(member)](*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, functions: Sequence[Callable[..., Tensor]], member: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, int]:
        """The value of all members, ``[P, …]``."""
        dims = in_dims[2:]

        def own(place: int) -> list[Tensor]:
            return [
                tensor if dim is None else tensor.select(dim, place) for tensor, dim in zip(tensors, dims, strict=True)
            ]

        return torch.stack([function(*own(place)) for place, function in enumerate(functions)]), 0


class _Masks(torch.autograd.Function):
    """Dropout's masks: 0, or 1 / (1 - rate)."""

    @staticmethod
    def forward(
        streams: Sequence[torch.Generator], member: Tensor, rate: float | Tensor, shape: tuple[int, ...], like: Tensor
    ) -> Tensor:
        """Outside of `vmap`: one member's."""
        return _masks([streams[int(member)]], rate, shape, like)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, streams: Sequence[torch.Generator], member: Tensor, rate: float | Tensor,
        shape: tuple[int, ...], like: Tensor,
    ) -> tuple[Tensor, int]:  # fmt: skip
        """The value of all members, ``[P, …]``."""
        return _masks(streams, rate, shape, like), 0


def _masks(streams: Sequence[torch.Generator], rate: float | Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A mask of each stream, ``[P, …]``: on a CPU as torch's dropout draws it there."""
    if like.device.type == "cpu":
        own = rate.tolist() if isinstance(rate, Tensor) else [rate] * len(streams)
        masks = [_mask(stream, share, shape, like) for stream, share in zip(streams, own, strict=True)]
        return torch.stack(masks)
    # a rate is on the device: nobody waits for it
    drawn = torch.empty((len(streams), *shape), dtype=like.dtype, device=like.device)
    for row, stream in zip(drawn, streams, strict=True):
        row.uniform_(generator=stream)
    rates = rate.view(-1, *[1] * len(shape)) if isinstance(rate, Tensor) else rate
    return (drawn >= rates).to(like.dtype) / (1 - rates)


def _mask(stream: torch.Generator, rate: float, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """As torch's dropout draws it on a CPU."""
    keep = 1 - rate
    return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(keep, generator=stream).div_(keep)
