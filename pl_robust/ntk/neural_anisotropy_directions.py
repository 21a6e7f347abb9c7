"""Neural anisotropy directions: the directions of input space that a network separates classes along, in its order.

Ortiz-Jimenez, Modas, Moosavi-Dezfooli, Frossard, "Neural anisotropy directions", NeurIPS 2020,
https://arxiv.org/abs/2006.09717; by the mixed derivative as in Ortiz-Jimenez, Moosavi-Dezfooli, Frossard, "What can
linearized neural networks actually say about generalization?", NeurIPS 2021, https://arxiv.org/abs/2106.06770.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from pl_robust._call_with import call_with
from pl_robust._number import check_count
from pl_robust.ntk._model import as_outputs, check_model, derivatives, plain

_CHUNK_BYTES = 2**28  # that a chunk of directions may take in the space of the parameters
_LARGEST_CHUNK = 64  # more are no faster on a CPU
_GRAM_BYTES = 2**34  # that a Gram matrix may take before we take it for a mistake


def neural_anisotropy_directions(
    model: nn.Module,
    input_shape: Sequence[int],
    k: int | None = None,
    *,
    output: int | None = None,
    x: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Right singular vectors of :math:`M = \partial^2 f / \partial\theta\,\partial x`, with squared singular values.

    A network learns to tell classes apart along its first directions with ease, and along its last with pains or not at
    all. M has a row for each trainable parameter and a column for each entry of an input. It is never formed: a product
    :math:`M^\top M u` is two backwards through a gradient. Many directions come from the eigenvectors of
    :math:`M^\top M`, made of the products of all unit vectors; a few, by Lanczos (``scipy.sparse.linalg.eigsh``).

    Published are networks of smooth activations (GELU). A ReLU network has the derivative of the linear piece that x
    lies in: at x = 0 that of the units whose biases let them pass. Without biases x = 0 is the corner of all pieces,
    autograd takes every slope for 0, and nothing is left: an error. Max pooling at x = 0 meets ties, of which autograd
    takes one; average pooling has none.

    Args:
        model: the network, in eval mode; parameters that do not require grad are left out.
        input_shape: shape of one input, such as (C, H, W).
        k: how many directions, at most as many as an input has entries; None: all. The paper leaves the last one out.
        output: which of the outputs is f; None: the only one.
        x: inputs [N, *input_shape] to take the derivative at; f is then its mean over them, all shifted alike, as in
            the paper's code. None: one input of zeros, as published.
        chunk_size: how many directions are multiplied at once, each taking the memory of the parameters several times;
            None: up to 64 that take 256 MiB once.

    Returns:
        Directions [k, *input_shape], orthonormal, the entry of largest magnitude positive; and their values [k], the
        squared singular values, largest first. In the parameters' dtype and on their device. Values below some 1e-7 of
        the largest in float32 are rounding, and so are their directions: cast the model to double for those.

    Raises:
        TypeError: if an argument is of another type, or ``x`` of another dtype than the parameters; nothing can be
            differentiated in integers.
        ValueError: for a value that is not allowed, a model in training mode, without trainable parameters or with
            several outputs of which none was chosen, or a mixed derivative that is zero or not finite.
        RuntimeError: by torch, if an operation has no second derivative, or is an autograd.Function without
            ``setup_context``.

    Example:
        >>> model = nn.Linear(2, 1, bias=False).eval()  # f = w x: each weight has its own direction
        >>> directions, values = neural_anisotropy_directions(model, (2,))
        >>> values
        tensor([1., 1.])
    """
    shape = _check_shape(input_shape)
    entries = math.prod(shape)
    for name, value in (("k", k), ("chunk_size", chunk_size)):
        if value is not None:
            check_count(value, name)
    wanted = entries if k is None else k
    if wanted > entries:
        raise ValueError(f"`k` must be at most the number of entries of one input, {entries}, got {k}")
    points = _points(model, shape, x)
    parameters = check_model(model, points)
    # Products one by one take four times as long as in chunks, and Lanczos some 40 + 4 k of them.
    is_dense = 160 + 16 * wanted >= entries
    if is_dense and 8 * entries**2 > _GRAM_BYTES:
        raise ValueError(
            f"`k`={k} directions of inputs with {entries} entries would need a matrix of "
            f"{8 * entries**2 / 2**30:.0f} GiB: ask for fewer, such as k=100, which Lanczos finds without it"
        )
    if chunk_size is None:
        size = sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())
        chunk_size = max(1, min(_LARGEST_CHUNK, _CHUNK_BYTES // size))
    with derivatives(model):
        multiply = _gram_product(model, parameters, points, output)
        found = _from_matrix(multiply, entries, chunk_size) if is_dense else _from_products(multiply, entries, wanted)
    values, vectors = (part[:wanted] for part in found)
    vectors = vectors * vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()
    return vectors.to(points).view(wanted, *shape), values.clamp_min(0).to(points)


def _check_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    sizes = list(input_shape) if isinstance(input_shape, list | tuple) else []
    if not sizes or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(
            "`input_shape` must be the shape of one input without the batch, positive integers such as (1, 32, 32), "
            f"got {input_shape!r}"
        )
    return tuple(sizes)


def _points(model: nn.Module, shape: tuple[int, ...], x: Tensor | None) -> Tensor:
    """The inputs [N, *shape] to take the derivative at."""
    if x is None:
        own = model.parameters() if isinstance(model, nn.Module) else iter(())  # `check_model` says what is wrong
        like = next((parameter for parameter in own if parameter.requires_grad), torch.zeros(()))
        return torch.zeros(1, *shape, dtype=like.dtype, device=like.device)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"`x` must be a floating-point tensor, for the model is differentiated in it, got {got}")
    if x.shape[1:] != shape:
        raise ValueError(f"`x` must be inputs [N, {', '.join(map(str, shape))}], got shape {list(x.shape)}")
    return plain(x)


def _gram_product(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], points: Tensor, output: int | None
) -> Callable[[Tensor], Tensor]:
    """Give the map from vectors [c, D] to their products with MᵀM, to be used inside ``derivatives(model)``."""
    theta = {name: parameter.detach() for name, parameter in parameters.items()}
    shift = torch.zeros_like(points[0])
    one = shift.new_ones(())

    def value(theta: dict[str, Tensor], shift: Tensor) -> Tensor:
        outputs = as_outputs(call_with(model, theta, points + shift), len(points))
        return outputs[:, _index(output, outputs.shape[1])].mean()

    def slope(theta: dict[str, Tensor]) -> Tensor:
        gradient: Tensor = vjp(partial(value, theta), shift)[1](one)[0]
        return gradient

    def rates(shift: Tensor) -> Any:
        return vjp(lambda theta: value(theta, shift), theta)[1](one)[0]

    # M is the derivative of either in the other's argument; each is pulled back once for all products.
    pull_slope, pull_rates = vjp(slope, theta)[1], vjp(rates, shift)[1]

    def product(vector: Tensor) -> Tensor:
        result: Tensor = pull_rates(pull_slope(vector.view(shift.shape))[0])[0]
        return result.reshape(-1)

    def multiply(vectors: Tensor) -> Tensor:
        vectors = vectors.to(points)
        products: Tensor = product(vectors[0])[None] if len(vectors) == 1 else vmap(product)(vectors)
        return products.detach().double().cpu()

    return multiply


def _index(output: int | None, count: int) -> int:
    if output is None and count > 1:
        raise ValueError(f"`output` must say which of the {count} outputs of `model` is meant, 0 to {count - 1}")
    if output is not None and (isinstance(output, bool) or not isinstance(output, int) or not 0 <= output < count):
        raise ValueError(f"`output` must be one of the outputs of `model`, 0 to {count - 1}, got {output!r}")
    return output or 0


def _from_matrix(multiply: Callable[[Tensor], Tensor], entries: int, chunk_size: int) -> tuple[Tensor, Tensor]:
    """All eigenvalues of the Gram matrix, largest first, and its eigenvectors as rows."""
    gram = torch.cat([multiply(rows) for rows in torch.split(torch.eye(entries), chunk_size)])
    _check_product(gram)
    values, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
    return values.flip(0), vectors.mT.flip(0)


def _from_products(multiply: Callable[[Tensor], Tensor], entries: int, k: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues, and eigenvectors as rows, by Lanczos; from a start that is always the same."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    start = torch.randn(entries, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _check_product(multiply(start[None]))

    def matvec(vector: Any) -> Any:
        return multiply(torch.from_numpy(vector).view(1, -1))[0].numpy()

    operator = LinearOperator((entries, entries), matvec=matvec, dtype="float64")
    values, vectors = eigsh(operator, k, v0=start.numpy())
    return torch.from_numpy(values[::-1].copy()), torch.from_numpy(vectors.T[::-1].copy())


def _check_product(product: Tensor) -> None:
    if not bool(product.isfinite().all()):
        raise ValueError("the mixed derivative of `model` is not finite: its weights are, or overflow to, NaN")
    if not bool(product.any()):
        raise ValueError(
            "the mixed derivative of `model` at `x` is zero and has no directions: the units of a ReLU network are all "
            "off there, as those without biases are at x = 0 (take GELU, or another `x`); or the slope in the inputs "
            "does not depend on the trainable parameters"
        )
