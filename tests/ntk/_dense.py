"""Jacobians and kernels in full, row by row: what the room's functions must agree with."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """J [N, C, P] by one plain backward for each sample alone and output."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = []
    for sample in torch.split(x, 1):
        for output in model(sample).flatten():
            gradients = torch.autograd.grad(output, parameters, retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([gradient.to_dense().flatten() for gradient in gradients]))
    return torch.stack(rows).view(len(x), -1, rows[0].numel())


def kernel(model: nn.Module, x1: Tensor, x2: Tensor | None = None) -> Tensor:
    """K [N1, N2, C, C] of all pairs of outputs."""
    first = jacobian(model, x1)
    return torch.einsum("icp,jdp->ijcd", first, first if x2 is None else jacobian(model, x2))


def as_matrix(kernel: Tensor) -> Tensor:
    """A kernel [N, M, C, C] as a matrix [N C, M C]."""
    return kernel.transpose(1, 2).flatten(2).flatten(0, 1)
