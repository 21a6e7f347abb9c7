"""Alignment of the empirical NTK with a target: how much of it lies where the kernel is large.

Ortiz-Jimenez, Moosavi-Dezfooli, Frossard, "What can linearized neural networks actually say about generalization?",
NeurIPS 2021, https://arxiv.org/abs/2106.06770; the normalized one is the kernel alignment of Cristianini et al., "On
kernel-target alignment", NeurIPS 2001.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from pl_robust._number import check_count
from pl_robust.ntk._chunks import split_samples
from pl_robust.ntk._jacobian import squared_norm
from pl_robust.ntk._model import check_model, check_vector
from pl_robust.ntk._streaming import NTKAlignment, cka_from, random_signs, streamed_alignment
from pl_robust.ntk.empirical_ntk import empirical_ntk


def ntk_alignment(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    cka: bool = False,
    per_output: bool = True,
    per_layer: bool = False,
    samples: int | None = None,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
) -> NTKAlignment:
    r"""Measure how well the empirical NTK of a network is aligned with a target.

    :math:`\|J^\top y\|^2 / \|y\|^2 = y^\top K y / \|y\|^2`, with the kernel K of all pairs of samples and outputs, by
    backwards in chunks and without K: the Rayleigh quotient of K at y. The larger it is, the faster gradient descent
    on the linearized network learns y. It has the units of K, and counts y as it is: centre a target whose mean shall
    not count.

    The normalized :math:`\langle K, yy^\top\rangle / (\|K\|_F \|yy^\top\|_F)` (CKA, without its centring) has no
    units. Exactly it takes K, with its (N C)² entries. Or ``samples`` random probes z estimate
    :math:`\|K\|_F^2 = E\|Kz\|^2` (Hutchinson), each by two forwards and a backward. The few large eigenvalues of such a
    kernel let the probes vary: the standard error, relative to the CKA, is up to :math:`1/\sqrt{2\,\mathrm{samples}}`.
    It is estimated from the probes and comes with the result.

    Args:
        model: a network in eval mode, inputs [N, ...] -> outputs [N, C] or [N], which treats samples one by one. Its
            parameters with ``requires_grad=True`` span the kernel.
        x: inputs [N, ...].
        y: the target, in shape and dtype of model(x): one-hot labels, -1 and 1, or values of a function.
        cka: whether to give the normalized alignment, too.
        per_output: whether to give each output's alignment, which costs C forwards and backwards instead of one.
        per_layer: whether to give each module's share in the total.
        samples: number of probes for the CKA, at least 2; None computes it exactly.
        chunk_size: samples in a forward; None takes what keeps 256 MiB of activations, or a
            quarter of what is free on a CUDA device.
        generator: source of the probes; None takes torch's global one of the CPU.

    Returns:
        The alignment: ``total``, ``per_output``, ``per_layer``, ``cka``, ``cka_error``; None for what was not asked
        for.

    Raises:
        TypeError: for another dtype than the model's, or what is no module or tensor.
        ValueError: for a model in training mode, without trainable parameters or that mixes samples; for a y of another
            shape, with NaN or zero everywhere; for ``samples`` without ``cka``, or less than 2.
        RuntimeError: from ``samples``, if an operation of the model has neither forward mode nor a second backward.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(2, 1, bias=False).eval()  # its kernel is x xᵀ
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> ntk_alignment(model, x, torch.tensor([[1.0], [1.0], [0.0]])).total  # its first eigenvector
        2.0
    """
    if samples is not None:
        check_count(samples, "samples")
        if not cka:
            raise ValueError(f"`samples` is the number of probes for the CKA: give cka=True with it, got {samples}")
        if samples < 2:
            raise ValueError(f"`samples` must be at least 2, because their spread gives the error, got {samples}")
    parameters = check_model(model, x)
    targets = check_vector(y, "y", model, x)
    chunks = split_samples(model, x, chunk_size)
    signs = None
    if samples is not None:
        signs = random_signs(samples, (targets.shape[0], targets.shape[1]), generator, device=y.device)
    result = streamed_alignment(
        model,
        parameters,
        list(zip(chunks, torch.split(targets, [len(chunk) for chunk in chunks]), strict=True)),
        per_output=per_output,
        per_layer=per_layer,
        signs=signs,
    )
    if not cka or samples is not None:
        return result
    kernel = empirical_ntk(model, x, outputs="full", chunk_size=chunk_size)
    exact, error = cka_from(result.total, float(squared_norm(kernel)))
    return replace(result, cka=exact, cka_error=error)
