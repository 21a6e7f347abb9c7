"""Products of the empirical NTK with vectors, without the kernel: J (Jᵀ v)."""

from __future__ import annotations

from torch import Tensor, nn

from pl_robust.ntk._chunks import split_samples
from pl_robust.ntk._jacobian import Jacobian
from pl_robust.ntk._model import check_inputs, check_model, check_vector, derivatives


def ntk_vector_product(
    model: nn.Module, x1: Tensor, v: Tensor, x2: Tensor | None = None, *, chunk_size: int | None = None
) -> Tensor:
    r"""Multiply the empirical NTK with a vector: :math:`K(x_1, x_2)\, v = J(x_1) J(x_2)^\top v`.

    The kernel is that of all pairs of samples and outputs, ``empirical_ntk(model, x1, x2, outputs="full")``, and is
    never formed: one forward and one backward over ``x2``, one forward in forward mode over ``x1``, one vector of the
    parameters' size. Operations without forward mode (recurrent layers, autograd functions without ``jvp``) are
    differentiated twice in reverse mode instead, with the same result at about three times the cost.

    Args:
        model: a network in eval mode, inputs [N, ...] -> outputs [N, C] or [N], which treats samples one by one. Its
            parameters with ``requires_grad=True`` span the kernel.
        x1: inputs [N1, ...] of the rows.
        v: the vector, in shape and dtype of model(x2).
        x2: inputs [N2, ...] of the columns; None means ``x1``.
        chunk_size: samples in a forward; None takes what keeps 256 MiB of activations, or a
            quarter of what is free on a CUDA device.

    Returns:
        The product in shape and dtype of model(x1), detached. Sums over samples are made in float32 at least.

    Raises:
        TypeError: for another dtype than the model's, or what is no module or tensor.
        ValueError: for a model in training mode, without trainable parameters or that mixes samples; a wrong shape, or
            NaN.
        RuntimeError: if an operation of the model has neither forward mode nor a second backward.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(2, 1, bias=False).eval()  # its kernel is x xᵀ
        >>> ntk_vector_product(model, torch.eye(2), torch.tensor([[3.0], [4.0]]))
        tensor([[3.],
                [4.]])
    """
    parameters = check_model(model, x1)
    if x2 is not None:
        check_inputs(x2, parameters, "x2")
    columns = check_vector(v, "v", model, x1, "x1") if x2 is None else check_vector(v, "v", model, x2, "x2")
    x2 = x1 if x2 is None else x2
    rows, others = split_samples(model, x1, chunk_size), split_samples(model, x2, chunk_size)
    with derivatives(model):
        pulled = Jacobian(model, parameters, others).pull(columns)
        product = Jacobian(model, parameters, rows).push(pulled)
    return product.reshape(len(x1), *v.shape[1:])
