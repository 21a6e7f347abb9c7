"""Mean squared errors of several networks, and their gradient taken part by part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

# Stacked tensors of g networks by name, and coordinates [N, d] -> values [g, N, c].
Outputs: TypeAlias = Callable[[dict[str, Tensor], Tensor], Tensor]


def mean_squared_errors(outputs: Tensor, values: Tensor) -> Tensor:
    """Mean over points and channels of the squared error, in float32 or better.

    Args:
        outputs: [S, N, c] or [N, c].
        values: of the same shape.

    Raises:
        ValueError: if the shapes differ.
    """
    if outputs.shape != values.shape:
        if outputs.ndim == values.ndim and outputs.shape[:-1] == values.shape[:-1]:
            raise ValueError(
                f"the net gives {outputs.shape[-1]} values at each point, the signal has {values.shape[-1]}: set the "
                "net's `out_features` to the signal's channels"
            )
        raise ValueError(f"the net must give values {list(values.shape)}, [N, c], got {list(outputs.shape)}")
    wide = torch.promote_types(outputs.dtype, torch.float32)
    return (outputs.to(wide) - values).square().flatten(-2).mean(-1)


def errors_part_by_part(
    outputs: Outputs,
    parts: Sequence[slice],
    trained: Mapping[str, Tensor],
    fixed: Mapping[str, Tensor],
    x: Tensor,
    values: Tensor,
) -> Tensor:
    """Mean squared errors [S] of all networks; no more than one part's activations are held at a time.

    Args:
        outputs: see ``Outputs``.
        parts: which networks go together; all of them, one behind the other.
        trained: parameters [S, ...] that the errors have a gradient for.
        fixed: the other tensors [S, ...].
        x: coordinates [N, d], without a gradient.
        values: targets [S, N, c].
    """
    errors: Tensor = _PartByPart.apply(outputs, parts, list(trained), fixed, x, values, *trained.values())
    return errors


class _PartByPart(torch.autograd.Function):
    """Takes each part's gradient right behind its forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        outputs: Outputs,
        parts: Sequence[slice],
        names: Sequence[str],
        fixed: Mapping[str, Tensor],
        x: Tensor,
        values: Tensor,
        *trained: Tensor,
    ) -> Tensor:
        errors: list[Tensor] = []
        gradients: list[Tensor | None] = [None] * len(trained)
        for part in parts:
            leaves = [one[part].detach().requires_grad_() for one in trained]
            tensors = {name: one[part] for name, one in fixed.items()} | dict(zip(names, leaves, strict=True))
            with torch.enable_grad():
                found = mean_squared_errors(outputs(tensors, x), values[part])
                pieces = torch.autograd.grad(found.sum(), leaves, allow_unused=True)
            errors.append(found.detach())
            for index, piece in enumerate(pieces):
                if piece is not None:
                    whole = gradients[index]
                    if whole is None:
                        gradients[index] = whole = torch.empty_like(trained[index])
                    whole[part] = piece
        ctx.gradients = gradients
        return torch.cat(errors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what is there by the gradients [S] of the errors."""
        scaled = [
            None if one is None else one * weights.to(one.dtype).view(-1, *[1] * (one.ndim - 1))
            for one in ctx.gradients
        ]
        return (None, None, None, None, None, None, *scaled)
