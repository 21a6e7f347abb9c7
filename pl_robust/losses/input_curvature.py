"""Curvature of the loss in the input: the top eigenvalues of each sample's input Hessian.

Catastrophic overfitting shows there as a jump: the loss bends so strongly that a single step says nothing about it
(Moosavi-Dezfooli et al., "Robustness via curvature regularization, and vice versa", CVPR 2019,
https://arxiv.org/abs/1811.09716; Ortiz-Jimenez et al., TMLR 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pl_robust._number import check_count
from pl_robust.attacks._target import Loss, Model, Normalization, Target, check_choices, under_attack
from pl_robust.losses._double_backward import twice_differentiable

_BREAKDOWN = 100.0  # in units of machine precision: what is left of a product after rounding


def input_hessian_eigenvalues(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    k: int = 1,
    iterations: int = 10,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    normalization: Normalization | None = None,
    loss: Loss | None = None,
    generator: torch.Generator | None = None,
    check: bool = True,
) -> Tensor:
    r"""The k largest eigenvalues of :math:`\nabla_x^2 \ell(f(x_i), y_i)` for each sample i, in input units.

    Batched Lanczos on exact Hessian-vector products: one forward, one gradient, and one double backward for each
    iteration, for all samples at once. Every basis is orthogonalized against all of itself, twice; where an invariant
    subspace is exhausted (low rank, multiple eigenvalues) a random direction orthogonal to it takes over. With as many
    iterations as the input has entries the eigenvalues are exact; with fewer they come from below, the largest ones
    first, and copies of a multiple one last. All samples start from one direction, so that no sample's values depend
    on the others in the batch.

    Batch-norm layers in training mode use their running statistics meanwhile, because batch statistics mix the samples.
    Dropout in training mode gives the Hessian under one mask. A network that is linear in pieces (ReLU) is curved by
    its loss alone: jumps of its gradient are no part of a Hessian.

    Args:
        model: callable that gives logits [B, K] and treats samples one by one, twice differentiable almost everywhere.
        x: clean inputs, floating point [B, ...], images [B, C, H, W] in ``bounds``. In half precision the derivatives
            have the precision of the model's arithmetic.
        y: labels, int64 [B].
        k: number of eigenvalues, at most the number of entries of one input.
        iterations: Lanczos iterations, at least k; more than entries of an input are not made. With K classes, K are
            exact for cross-entropy on a network that is linear in pieces (its Hessian has rank K - 1). 10 found the
            largest eigenvalue to 0.2 %, the third to 5 %, on small ReLU and SiLU nets of 100 classes.
        bounds: lowest and highest valid input value, or None; only checked.
        normalization: (mean, std) per channel of already normalized data; the Hessian is then that in images before.
        loss: (logits, labels) -> losses [B]; None means cross-entropy.
        generator: source of the directions, on the device of ``x``; None takes torch's global one.
        check: whether to check values (NaN, range, labels), which waits for an accelerator.

    Returns:
        Eigenvalues [B, k], largest (most positive) first, at least float32, detached; NaN where the loss or one of its
        derivatives is not finite.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a value that is not allowed, a loss that reduces, wrong shapes, NaN, values outside the bounds,
            labels out of range.
    """
    check_choices(normalization, "eval")
    check_count(k, "k")
    check_count(iterations, "iterations")
    if iterations < k:
        raise ValueError(f"`iterations` must be at least `k`={k}, because each finds one eigenvalue, got {iterations}")
    with (
        under_attack(
            model,
            x,
            y,
            bounds=bounds,
            loss=loss,
            normalization=normalization,
            batch_norm="eval" if isinstance(model, nn.Module) else "train",  # a function has no layers to set
            check=check,
        ) as target,
        twice_differentiable(),
    ):
        rows, entries = len(x), math.prod(x.shape[1:])
        if k > entries:
            raise ValueError(f"`k` must be at most the number of entries of one input, {entries}, got {k}")
        if rows == 0:
            return target.x.new_zeros(0, k)
        multiply = _hessian(target)
        directions = torch.randn(
            min(iterations, entries), entries, dtype=target.x.dtype, device=x.device, generator=generator
        )
        return _ritz_values(*_lanczos(multiply, directions, rows))[:, :k]


def _hessian(target: Target) -> Callable[[Tensor], Tensor]:
    """Give the map from vectors [B, entries] to their products with the samples' Hessians."""
    point = target.x.detach().requires_grad_()
    _, losses = target.evaluate(point)
    if losses.dim() == 0:
        raise ValueError(
            "`loss` must give one value per sample [B] (reduction='none'): the scale of a reduced one is that of the "
            "batch, not of a sample; got a scalar"
        )
    if not losses.requires_grad:
        raise ValueError(
            "the model's output does not depend on its input through autograd: there is no curvature of a model that "
            "detaches, rounds or runs under no_grad inside"
        )
    # Samples do not mix, so that the Hessian of the sum has theirs as its blocks.
    (gradient,) = torch.autograd.grad(losses.sum(), point, create_graph=True, materialize_grads=True)

    def multiply(vectors: Tensor) -> Tensor:
        if not gradient.requires_grad:  # a loss that is linear in the input
            return torch.zeros_like(vectors)
        (products,) = torch.autograd.grad(
            gradient, point, vectors.view(point.shape), retain_graph=True, materialize_grads=True
        )
        return products.flatten(1)

    return multiply


def _lanczos(multiply: Callable[[Tensor], Tensor], directions: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Tridiagonalize symmetric operators, one for each row.

    Args:
        multiply: vectors [B, n] -> products [B, n].
        directions: random ones [m, n]: the start, and one for each breakdown that may come; shared by all rows.
        rows: B.

    Returns:
        The diagonals [B, m] and those beside them [B, m - 1].
    """
    count, entries = directions.shape
    precision = torch.finfo(directions.dtype).eps
    basis = directions.new_zeros(rows, count, entries)
    basis[:, 0] = _unit(directions[0].expand(rows, -1))[0]
    diagonal, beside = directions.new_zeros(rows, count), directions.new_zeros(rows, count)
    scale = directions.new_zeros(rows)
    for step in range(count):
        known = basis[:, : step + 1]
        product = multiply(basis[:, step])
        diagonal[:, step] = (product * basis[:, step]).sum(1)
        product = _orthogonalize(product, known)
        direction, length = _unit(product)
        scale = torch.maximum(scale, diagonal[:, step].abs() + length)
        if step + 1 == count:
            break
        # `<=`, because all of this is 0 for a loss that is linear.
        has_ended = length <= _BREAKDOWN * precision * scale
        fresh, _ = _unit(_orthogonalize(directions[step + 1].expand(rows, -1), known))
        basis[:, step + 1] = torch.where(has_ended[:, None], fresh, direction)
        beside[:, step] = torch.where(has_ended, 0.0, length)
    return diagonal, beside[:, : count - 1]


def _orthogonalize(vectors: Tensor, basis: Tensor) -> Tensor:
    """Remove from vectors [B, n] what lies in the span of orthonormal ones [B, m, n]; twice is enough (Kahan)."""
    for _ in range(2):
        inside = torch.bmm(basis, vectors[:, :, None])
        vectors = vectors - torch.bmm(basis.mT, inside)[:, :, 0]
    return vectors


def _unit(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Directions and lengths of vectors [B, n]; a zero vector stays one."""
    # By the largest entry first: the squares of a confident net's derivatives underflow.
    largest = vectors.abs().amax(1, keepdim=True)
    scaled = vectors / largest.clamp_min(torch.finfo(vectors.dtype).tiny)
    lengths = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / lengths.clamp_min(1.0), (largest * lengths)[:, 0]  # at least 1, if there is any


def _ritz_values(diagonal: Tensor, beside: Tensor) -> Tensor:
    """Eigenvalues [B, m] of symmetric tridiagonal matrices, largest first; NaN where an entry is not finite."""
    matrices = torch.diag_embed(diagonal) + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
    # The solver raises on NaN: one sample of a diverged network must not end the run.
    finite = matrices.isfinite().flatten(1).all(1)
    values = torch.linalg.eigvalsh(torch.where(finite[:, None, None], matrices, 0.0)).flip(1)
    return torch.where(finite[:, None], values, torch.nan)
