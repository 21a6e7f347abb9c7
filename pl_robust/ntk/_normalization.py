"""Normalization by its formula, where torch's own has wrong derivatives of derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class FormulaOfNormalization(TorchFunctionMode):
    """Inside, layer and instance norm, and batch norm by the batch's statistics, are put together of plain operations.

    Reverse over forward mode of torch's own gives wrong gradients in the inputs (torch 2.15).
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Put the formula in the place of torch's function."""
        formula = _FORMULAS.get(func)
        given = NotImplemented if formula is None else formula(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if given is NotImplemented else given


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = False,
) -> Any:
    shape = list(normalized_shape)
    if list(input.shape[input.dim() - len(shape) :]) != shape:
        return NotImplemented
    out = _standardized(input, list(range(-len(shape), 0)), eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if not use_input_stats or running_mean is not None or input.dim() < 3 or input.shape[2:].numel() < 2:
        return NotImplemented
    return _by_channel(_standardized(input, list(range(2, input.dim())), eps), weight, bias)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if not training or running_mean is not None or input.dim() < 2 or input.numel() < 2 * input.shape[1]:
        return NotImplemented
    return _by_channel(_standardized(input, [0, *range(2, input.dim())], eps), weight, bias)


def _with_weights_first(formula: Callable[..., Any]) -> Callable[..., Any]:
    """The order of arguments of ``torch.instance_norm`` and ``torch.batch_norm``."""

    def reordered(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        by_input: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> Any:
        return formula(input, running_mean, running_var, weight, bias, by_input, momentum, eps)

    return reordered


def _standardized(input: Tensor, axes: list[int], eps: float) -> Tensor:
    centered = input - input.mean(axes, keepdim=True)
    scaled: Tensor = centered * (centered.square().mean(axes, keepdim=True) + eps).rsqrt()
    return scaled


def _by_channel(out: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = (-1, *[1] * (out.dim() - 2))
    out = out if weight is None else out * weight.view(shape)
    return out if bias is None else out + bias.view(shape)


# They give NotImplemented where torch itself is right, or says what is wrong.
_FORMULAS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.instance_norm: _instance_norm,
    torch.instance_norm: _with_weights_first(_instance_norm),
    F.batch_norm: _batch_norm,
    torch.batch_norm: _with_weights_first(_batch_norm),
}
