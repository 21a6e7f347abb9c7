"""Linear layers of several networks at once: one product instead of the product and sum that vmap makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class BatchedLinear(TorchFunctionMode):
    """Inside vmap over the parameters, give each ``F.linear`` with a bias a rule that needs no temporaries."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call what was called, or the layer with its rule."""
        if func is F.linear and len(args) == 3 and not kwargs and args[2] is not None and args[0].ndim == 2:
            return _Linear.apply(*args)
        return func(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For layers that do not differ between the networks: frozen ones that other parameters precede."""
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.mT @ x, gradient.sum(0)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        x, weight, bias = (
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(inputs, in_dims, strict=True)
        )
        return torch.baddbmm(bias[:, None], x, weight.mT), 0
