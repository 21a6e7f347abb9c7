"""Alignment and spectrum of the kernel of samples that several processes share, without the kernel itself.

Each process comes with its own samples and a ``reduce`` that sums a tensor over all of them, and gets the same result.
Every process enters every reduction, also one that has no samples.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pl_robust.ntk._heads import Outputs, column, heads_of
from pl_robust.ntk._jacobian import Jacobian, Reduce, alone, squared_norm
from pl_robust.ntk._model import derivatives


@dataclass(frozen=True)
class NTKAlignment:
    r"""How well a target y lies in the kernel K = J Jᵀ of a network.

    Attributes:
        total: :math:`\|J^\top y\|^2 / \|y\|^2`, the Rayleigh quotient of K at y.
        per_output: :math:`\|J_c^\top y_c\|^2 / \|y_c\|^2` for each output c, float64 [C] on the CPU; NaN for an output
            whose target is zero everywhere. None if not asked for.
        per_layer: share of :math:`\|J^\top y\|^2` of the parameters that each module owns, by the module's name (that
            of the model itself is ""); they sum to 1, and are NaN where there is nothing to share. None if not asked
            for.
        cka: :math:`\langle K, y y^\top\rangle / (\|K\|_F \|y\|^2)`, in [0, 1]. None if not asked for.
        cka_error: its standard error, 0 if it is exact. None if not asked for.
    """

    total: float
    per_output: Tensor | None = None
    per_layer: dict[str, float] | None = None
    cka: float | None = None
    cka_error: float | None = None


def streamed_alignment(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    chunks: Sequence[tuple[Tensor, Tensor]],
    *,
    reduce: Reduce = alone,
    per_output: bool = False,
    per_layer: bool = False,
    signs: Tensor | None = None,
) -> NTKAlignment:
    """Measure the alignment of the kernel with a target: one forward and one backward for each chunk.

    Args:
        model: the network, in eval mode.
        parameters: what ``check_model`` gave for it.
        chunks: this process's samples, x [n, ...] and y [n, C]; maybe none.
        reduce: sums over the processes.
        per_output: whether to give each output's alignment, too: C forwards and backwards.
        per_layer: whether to give each module's share, too.
        signs: this process's rows of ``random_signs``, [s, n, C]: whether to estimate the CKA, too, which takes two
            forwards and a backward for each of the s, at least 2.

    Returns:
        The alignment of all processes' samples. Where derivatives are not finite, neither is it.

    Raises:
        ValueError: if y is zero on all processes.
    """
    targets = [y for _, y in chunks]
    with derivatives(model):
        jacobian = Jacobian(model, parameters, [x for x, _ in chunks], reduce=reduce)
        lengths = _squares_by_output(targets, jacobian)
        length = float(lengths.sum())
        if length == 0:
            raise ValueError("`y` must not be zero everywhere: it has no direction that a kernel could be aligned with")
        if per_output:
            pulled, by_output = _pull_by_output(jacobian, targets, len(lengths))
        else:
            pulled, by_output = jacobian.pull(targets), None
        energy = float(squared_norm(pulled))
        cka, cka_error = None, None
        if signs is not None:
            mean, error = squared_frobenius_norm(jacobian, signs)
            cka, cka_error = cka_from(energy / length, mean, error)
        relative = None if by_output is None else (by_output / lengths).cpu()
    return NTKAlignment(
        total=energy / length,
        per_output=relative,
        per_layer=_shares(jacobian, pulled) if per_layer else None,
        cka=cka,
        cka_error=cka_error,
    )


def random_signs(
    probes: int, shape: tuple[int, int], generator: torch.Generator | None = None, *, device: torch.device
) -> Tensor:
    """Draw random signs for all samples of all processes, int8 [probes, N, C]; each process takes its rows.

    Args:
        probes: how many.
        shape: N and C.
        generator: in the same state on every process; None takes torch's global one of the CPU.
        device: where to put them.
    """
    place = torch.device("cpu") if generator is None else generator.device
    bits = torch.randint(2, (probes, *shape), generator=generator, device=place, dtype=torch.int8)
    return (2 * bits - 1).to(device)


def squared_frobenius_norm(jacobian: Jacobian, signs: Tensor) -> tuple[float, float]:
    r"""Estimate the squared Frobenius norm of the kernel over samples and outputs by Hutchinson's method.

    :math:`\|K\|_F^2 = E\|K z\|^2` for random signs z (Hutchinson 1990).

    Args:
        jacobian: the operator, inside ``derivatives``.
        signs: this process's rows of ``random_signs``, [s, n, C], s at least 2.

    Returns:
        Mean and standard error of the s values.
    """
    squares = [squared_norm(jacobian.push(jacobian.pull(z))) for z in signs]
    values = jacobian.reduce(torch.stack(squares))
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def cka_from(alignment: float, square: float, error: float = 0.0) -> tuple[float, float]:
    """CKA and its standard error from the alignment and the kernel's squared Frobenius norm, by the delta method.

    Both are NaN for a kernel that is zero, or whose norm overflows.
    """
    if not 0 < square < math.inf:
        return math.nan, math.nan
    cka = alignment / math.sqrt(square)
    return cka, cka * error / (2 * square)


def streamed_eigh(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    inputs: Sequence[Tensor],
    k: int,
    start: Tensor,
    *,
    outputs: Outputs = "trace",
    num_outputs: int,
    rows: Tensor | None = None,
    reduce: Reduce = alone,
) -> tuple[Tensor, Tensor]:
    """Find the largest eigenvalues of the kernel by Lanczos on products, and their vectors.

    Implicitly restarted (ARPACK, ``scipy.sparse.linalg.eigsh``), on every process alike: they differ in the rows of a
    product that they compute. A product takes two forwards and a backward for each chunk, and C times that for
    ``outputs="trace"``.

    Args:
        model: the network, in eval mode.
        parameters: what ``check_model`` gave for it.
        inputs: this process's samples in chunks [n, ...]; maybe none.
        k: number of eigenvalues, less than the entries of ``start``.
        start: a random vector, float64, the same on every process: [N, C] for ``outputs="full"``, else [N], with all
            samples of all processes.
        outputs: as of ``empirical_ntk``.
        num_outputs: number C of the model's outputs.
        rows: which of the N samples are this process's, int64; None means all.
        reduce: sums over the processes.

    Returns:
        Eigenvalues [k], largest first, and vectors [k, N] or [k, N, C], float64 on the CPU.

    Raises:
        ValueError: if the kernel is not finite.
        RuntimeError: if Lanczos does not converge.
    """
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

    heads = heads_of(outputs, num_outputs)
    size, is_zero = start.numel(), True
    with derivatives(model):
        jacobian = Jacobian(model, parameters, inputs, reduce=reduce)

        def multiply(vector: Any) -> Any:
            whole = torch.as_tensor(vector, device=jacobian.device).reshape(start.shape).to(jacobian.dtype)
            own = whole if rows is None else whole[rows]
            parts = [jacobian.push(jacobian.pull(own, head), head) for head in heads]
            product = torch.zeros_like(whole)
            if jacobian.inputs:
                product[slice(None) if rows is None else rows] = torch.stack(parts).sum(0).to(product)
            product = reduce(product)
            nonlocal is_zero
            is_zero = is_zero and not bool(product.any())
            if not bool(product.isfinite().all()):
                raise ValueError(
                    "the kernel is not finite: the derivatives of `model` overflow, or its weights are NaN"
                )
            return product.flatten().double().cpu().numpy()

        options: dict[str, Any] = {"v0": start.flatten().cpu().numpy(), "tol": torch.finfo(jacobian.dtype).eps}
        if "rng" in inspect.signature(eigsh).parameters:  # scipy 1.17 and later; before, it was always the same
            options["rng"] = 0
        try:
            values, vectors = eigsh(LinearOperator((size, size), multiply, dtype="float64"), k, which="LA", **options)
        except ArpackNoConvergence as error:
            raise RuntimeError(
                f"Lanczos has found {len(error.eigenvalues)} of the k={k} eigenvalues and does not converge: ask for "
                'fewer, or take method="dense"'
            ) from error
        except ArpackError:
            if not is_zero:
                raise
            return torch.zeros(k, dtype=torch.float64), torch.eye(k, size, dtype=torch.float64).reshape(k, *start.shape)
    order = values.argsort()[::-1]
    return torch.from_numpy(values[order]), torch.from_numpy(vectors.T[order].copy()).reshape(k, *start.shape)


def _squares_by_output(targets: Sequence[Tensor], jacobian: Jacobian) -> Tensor:
    """Squared lengths of the target of each output, over all processes, float64 [C]."""
    # A process without samples does not know C.
    known = torch.tensor([targets[0].shape[1], 1] if targets else [0, 0], device=jacobian.device)
    width, holders = jacobian.reduce(known).tolist()
    squares = torch.zeros(width // max(1, holders), dtype=torch.float64, device=jacobian.device)
    for y in targets:
        squares += y.double().square().sum(0)
    return jacobian.reduce(squares)


def _pull_by_output(jacobian: Jacobian, targets: Sequence[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Jᵀ y as the sum over outputs, and the squared lengths of its summands, [C]."""
    # One output at a time, although the forwards could be shared: as many vectors of all parameters would be in memory.
    total, squares = jacobian.zeros(), []
    for index in range(count):
        part = jacobian.pull([y[:, index] for y in targets], partial(column, index=index))
        squares.append(squared_norm(part))
        total += part
    return total, torch.stack(squares)


def _shares(jacobian: Jacobian, pulled: Tensor) -> dict[str, float]:
    """Each module's share of the squared length of a flat vector."""
    squares = jacobian.by_owner(pulled)
    parts = torch.stack(list(squares.values()))
    return dict(zip(squares, (parts / parts.sum()).tolist(), strict=True))
