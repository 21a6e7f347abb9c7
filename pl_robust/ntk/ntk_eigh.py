"""The largest eigenvalues of the empirical NTK, and its eigenfunctions at the samples.

Nyström's method: Williams & Seeger, "Using the Nyström method to speed up kernel machines", NeurIPS 2000; for the NTK:
Ortiz-Jimenez, Moosavi-Dezfooli, Frossard, NeurIPS 2021, https://arxiv.org/abs/2106.06770.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from pl_robust._number import check_count
from pl_robust.ntk._chunks import split_samples
from pl_robust.ntk._heads import Outputs, check_rows, heads_of
from pl_robust.ntk._model import check_model, derivatives, outputs_of, plain
from pl_robust.ntk._streaming import streamed_eigh
from pl_robust.ntk.empirical_ntk import empirical_ntk

Method: TypeAlias = Literal["dense", "lanczos", "nystrom"]


class NTKEigen(NamedTuple):
    """Eigenvalues of a kernel and its eigenvectors, the values of its eigenfunctions at the samples.

    Attributes:
        values: [k], largest first.
        vectors: [N, k], or [N, C, k] of the kernel of all pairs of outputs: one column for each eigenvalue.
    """

    values: Tensor
    vectors: Tensor


def ntk_eigh(
    model: nn.Module,
    x: Tensor,
    k: int | None = None,
    *,
    method: Method = "dense",
    outputs: Outputs = "trace",
    chunk_size: int | None = None,
    landmarks: int | Sequence[int] | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> NTKEigen:
    r"""Decompose the empirical NTK of a network at some samples.

    * ``"dense"``: of the whole kernel by LAPACK. Memory for N² entries (times C² for ``outputs="full"``), time N³.
    * ``"lanczos"``: by ARPACK on products with vectors (``ntk_vector_product``), without the kernel: some 2 k + 20
      products or more, each of two forwards and a backward over the samples; for ``outputs="trace"`` C times that.
      As exact as the products' arithmetic.
    * ``"nystrom"``: from the kernel of m landmarks and its columns at the others, as published: the eigenvalues of the
      landmarks' kernel times N / m, and :math:`\sqrt{m / N}\, K_{Nm} u / \lambda` as vectors, which are nearly, not
      exactly, orthonormal. Memory for N m entries. V diag(values) Vᵀ of all of them is exact if the landmarks span the
      kernel.

    Decompositions are made in float64, but the kernel's entries have the precision of the model: in float32,
    eigenvalues below 1e-7 of the largest are rounding, and ``model.double()`` with ``x.double()`` goes deeper. The sign
    of a vector means nothing; given is the one whose entry of largest magnitude is positive.

    Args:
        model: a network in eval mode, inputs [N, ...] -> outputs [N, C] or [N], which treats samples one by one. Its
            parameters with ``requires_grad=True`` span the kernel.
        x: inputs [N, ...].
        k: how many; at most the number n of rows, which is N, or N C for ``outputs="full"``; with Lanczos less than n,
            with Nyström at most as many as the landmarks' kernel has above rounding. None means all of these.
        method: ``"dense"``, ``"lanczos"`` or ``"nystrom"``.
        outputs: the kernel: ``"trace"`` (sum over outputs), ``"full"`` (all pairs), the index of an output, or a
            function [N, C] -> [N] of them, as of ``empirical_ntk``.
        chunk_size: samples in a forward; None chooses by memory.
        landmarks: for Nyström: how many samples, drawn without replacement, or their indices.
        generator: source of the landmarks, or of the start of Lanczos; None takes torch's global one of the CPU.

    Returns:
        ``values`` [k], largest first, and ``vectors`` [N, k] (or [N, C, k]), on the device of ``x``, in the
        parameters' dtype, at least float32. Zero eigenvalues come out as anything of the size of rounding, also
        negative.

    Raises:
        TypeError: for another dtype than the model's, or what is no module, tensor or integer.
        ValueError: for a model in training mode, without trainable parameters or that mixes samples; for a value that
            is not allowed; for a kernel that is not finite.
        RuntimeError: if Lanczos does not converge.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(2, 1, bias=False).eval()  # its kernel is x xᵀ
        >>> values, vectors = ntk_eigh(model, torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
        >>> values
        tensor([9., 4.])
    """
    if method not in get_args(Method):
        raise ValueError(f"`method` must be one of {get_args(Method)}, got {method!r}")
    if k is not None:
        check_count(k, "k")
    if (method == "nystrom") != (landmarks is not None):
        raise ValueError(
            f"`landmarks`, how many samples or which, must come with method='nystrom' and with no other, got "
            f"method={method!r}, landmarks={landmarks!r}"
        )
    parameters = check_model(model, x)
    with torch.inference_mode(False), torch.no_grad():  # what inference mode makes is of no use outside
        return _decompose(model, parameters, x, k, method, outputs, chunk_size, landmarks, generator)


def _decompose(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    x: Tensor,
    k: int | None,
    method: Method,
    outputs: Outputs,
    chunk_size: int | None,
    landmarks: int | Sequence[int] | Tensor | None,
    generator: torch.Generator | None,
) -> NTKEigen:
    with derivatives(model):
        few = outputs_of(model, plain(x[:2])).detach()
    num_outputs = few.shape[1]
    heads_of(outputs, num_outputs)  # says what is wrong with them
    if callable(outputs):
        check_rows(outputs, few)
    shape = (len(x), num_outputs) if outputs == "full" else (len(x),)
    size = math.prod(shape)
    if k is not None and k > size:
        raise ValueError(f"`k` must be at most the number of rows of the kernel, {size}, got {k}")
    if method == "lanczos":
        if k is None or k == size:
            raise ValueError(
                f"method='lanczos' finds some eigenvalues, so `k` must be less than the {size} rows of the kernel, "
                f"got {k}: method='dense' finds all"
            )
        place = torch.device("cpu") if generator is None else generator.device
        start = torch.randn(shape, dtype=torch.float64, generator=generator, device=place)
        chunks = split_samples(model, x, chunk_size)
        values, vectors = streamed_eigh(model, parameters, chunks, k, start, outputs=outputs, num_outputs=num_outputs)
        vectors = vectors.flatten(1).mT
    elif landmarks is not None:
        chosen = _choose(landmarks, len(x), generator).to(x.device)
        columns = empirical_ntk(model, x, x[chosen], outputs=outputs, chunk_size=chunk_size)
        values, vectors = _nystrom(columns, chosen, k)
    else:
        values, vectors = _eigh(_as_matrix(empirical_ntk(model, x, outputs=outputs, chunk_size=chunk_size)))
    values, vectors = values[:k], vectors[:, :k]
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    dtype = torch.promote_types(next(iter(parameters.values())).dtype, torch.float32)
    return NTKEigen(values.to(x.device, dtype), (vectors * signs).reshape(*shape, -1).to(x.device, dtype))


def _as_matrix(kernel: Tensor) -> Tensor:
    """A kernel [N, M], or [N, M, C, C], as a matrix in float64 with a row for each sample, or sample and output."""
    if not bool(kernel.isfinite().all()):
        raise ValueError("the kernel is not finite: the derivatives of `model` overflow, or its weights are NaN")
    if kernel.dim() == 4:
        rows, columns, outputs, _ = kernel.shape
        kernel = kernel.transpose(1, 2).reshape(rows * outputs, columns * outputs)
    return kernel.double()


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a symmetric matrix, largest first, and vectors as columns."""
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0), vectors.flip(1)


def _nystrom(kernel: Tensor, chosen: Tensor, k: int | None) -> tuple[Tensor, Tensor]:
    """Extend the eigenvectors of the landmarks' kernel to all samples, from the kernel's columns at the landmarks."""
    columns = _as_matrix(kernel)
    block = _as_matrix(kernel[chosen])
    values, vectors = _eigh((block + block.mT) / 2)
    # What is below rounding has no direction, and division by it none either.
    rank = int((values > torch.finfo(kernel.dtype).eps * values[0]).sum())
    if k is not None and k > rank:
        raise ValueError(
            f"`k` must be at most {rank}, the number of eigenvalues above rounding of the kernel of the {len(chosen)} "
            f"`landmarks`, got {k}: take more landmarks, or fewer eigenvalues"
        )
    scale = len(kernel) / len(chosen)
    values, vectors = values[:rank], vectors[:, :rank]
    return scale * values, columns @ (vectors / values) / math.sqrt(scale)


def _choose(landmarks: int | Sequence[int] | Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Indices of the landmarks among ``count`` samples."""
    if isinstance(landmarks, int):
        check_count(landmarks, "landmarks")
        if landmarks > count:
            raise ValueError(f"`landmarks` must be at most the number of samples, {count}, got {landmarks}")
        place = torch.device("cpu") if generator is None else generator.device
        return torch.randperm(count, generator=generator, device=place)[:landmarks]
    try:
        chosen = torch.as_tensor(landmarks)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"`landmarks` must be a number of samples, or their indices, got {landmarks!r}") from error
    if chosen.dim() != 1 or len(chosen) == 0 or chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise ValueError(f"`landmarks` must be a number of samples, or the indices of at least one, got {landmarks!r}")
    low, high = int(chosen.min()), int(chosen.max())
    if low < 0 or high >= count or len(torch.unique(chosen)) < len(chosen):
        raise ValueError(f"`landmarks` must be different indices from 0 to {count - 1}, got {landmarks!r}")
    return chosen.long()
