"""Float32 with every matrix product rounded once, whatever kernel the processor has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}


class ProductsRoundedOnce(TorchDispatchMode):
    """Float32 matrix products are summed in float64 and rounded to float32; all other arithmetic is what it is.

    A BLAS kernel chooses its order of summation by shape and processor. Where large terms cancel that alone exceeds
    1e-5: the same float32 formula of a LoRA gradient, in two shapes, differs by 1.5e-5 on one machine. In here only the
    formula counts.
    """

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Widen the operands of a product, narrow its result."""
        if function not in _PRODUCTS or not all(value.dtype == torch.float32 for value in _tensors(args)):
            return function(*args, **(kwargs or {}))
        widened = [value.double() if isinstance(value, Tensor) else value for value in args]
        return function(*widened, **(kwargs or {})).float()


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]
