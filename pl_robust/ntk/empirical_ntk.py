"""The empirical neural tangent kernel of a network at some inputs.

Jacot, Gabriel, Hongler, "Neural Tangent Kernel: Convergence and Generalization in Neural Networks", NeurIPS 2018,
https://arxiv.org/abs/1806.07572. A layer's structure spares its Jacobian:
Novak, Sohl-Dickstein, Schoenholz, "Fast Finite Width Neural Tangent Kernel", ICML 2022,
https://arxiv.org/abs/2206.08720.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from pl_robust._number import check_count
from pl_robust.ntk._gram import add_kernel, add_symmetric_kernel
from pl_robust.ntk._heads import Outputs, check_rows, heads_of
from pl_robust.ntk._memory import check_result, make_plan
from pl_robust.ntk._model import check_inputs, check_model, derivatives, outputs_of, plain
from pl_robust.ntk._readout import Readout
from pl_robust.ntk._record import make_record


def empirical_ntk(
    model: nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    outputs: Outputs = "trace",
    chunk_size: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Compute :math:`K_{ij} = \langle \nabla_\theta f(x_i), \nabla_\theta f(x_j) \rangle`, exactly.

    One forward for each chunk of samples and a backward for each output, none of which computes a weight's gradient.
    Where parameters enter the network is read off autograd's graph: from linear layers, convolutions of any kind,
    embeddings, norms, biases and scales, however they are called and shared, the products of two samples' gradients
    come by what went in and the gradient of what came out, in the order that takes fewer operations. What the graph
    does not show to be one of these (bilinear and fused recurrent layers, parametrized weights, einsum) is
    differentiated sample by sample: slower, and as exact. In full precision float32 gives about 6 digits; the smallest
    eigenvalues of many samples want ``dtype=torch.float64``. With CUDA, convolutions have the precision that
    ``torch.backends.cudnn.allow_tf32`` gives them.

    Args:
        model: a network in eval mode, inputs [N, ...] -> outputs [N, C] or [N], which treats samples one by one. Its
            parameters with ``requires_grad=True`` span the kernel; tied ones count once. Nothing of it is changed.
        x1: inputs of the rows [N1, ...], in the dtype and on the device of the parameters; integers for a network that
            begins with an embedding.
        x2: inputs of the columns [N2, ...]; None means ``x1``, which takes half the work and gives a matrix that is
            symmetric to the last bit.
        outputs: ``"trace"`` for the sum over outputs :math:`\sum_c K^{cc}` (not the mean); the index c of an output
            for its kernel alone; a function [N, C] -> [N], differentiable and row by row, for the kernel of that; or
            ``"full"`` for all pairs of outputs.
        chunk_size: samples in a forward; None chooses by an estimate of the memory. Records of all samples are kept
            if they fit into about 1 GiB (on CUDA a quarter of the free memory); else those of columns are made several
            times, and many small chunks cost time.
        dtype: of the computation and the result; None means the parameters'. Another one takes a copy of the model,
            and inputs of any floating dtype.

    Returns:
        The kernel, detached, on the device of ``x1``, at least float32: [N1, N2], or for ``"full"`` [N1, N2, C, C]
        with :math:`K_{ijcd} = \langle \nabla_\theta f_c(x_i), \nabla_\theta f_d(x_j) \rangle`.

    Raises:
        TypeError: for another dtype than the model's, or what is no module, tensor, integer or function.
        ValueError: for a model in training mode, without trainable parameters, that mixes samples or hides parameters
            from autograd; for a value that is not allowed; for a kernel or a chunk that does not fit into memory.

    Example:
        >>> model = nn.Linear(2, 3).eval()  # x xᵀ + 1 for each of three outputs
        >>> empirical_ntk(model, torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        tensor([[18.,  9.],
                [ 9.,  6.]])
    """
    if chunk_size is not None:
        check_count(chunk_size, "chunk_size")
    if dtype is not None and isinstance(model, nn.Module):
        model = _cast(model, dtype)
        x1, x2 = _cast_inputs(x1, dtype), None if x2 is None else _cast_inputs(x2, dtype)
    parameters = check_model(model, x1)
    if x2 is not None:
        check_inputs(x2, parameters, "x2")
    with derivatives(model), torch.no_grad():
        with torch.enable_grad():  # which a model may need inside
            few = outputs_of(model, plain(x1[:4])).detach()
            if x2 is not None:
                outputs_of(model, x2[:1], "x2")
        heads = heads_of(outputs, few.shape[1])
        if callable(outputs):
            check_rows(outputs, few)
            readout = Readout(range(0), heads[0])
        else:
            columns = range(outputs, outputs + 1) if isinstance(outputs, int) else range(few.shape[1])
            readout = Readout(columns, joint=outputs == "full" and len(columns) > 1)
        partners = len(x1 if x2 is None else x2)
        width = readout.width if readout.joint else 1
        result = torch.promote_types(few.dtype, torch.float32)
        check_result((len(x1), partners, width, width), result, x1.device)
        make = partial(make_record, model, parameters, partners=partners)
        plan = make_plan(model, make, plain(x1), readout, chunk_size=chunk_size)
        kernel = torch.zeros(len(x1), partners, width, width, dtype=result, device=x1.device)
        chunks = [torch.split(plain(x), plan.chunk_size) for x in (x1, x2) if x is not None]
        for start in range(0, readout.width, plan.together):
            some = partial(make, readout.part(start, start + plan.together))
            if x2 is None:
                add_symmetric_kernel(kernel, some, chunks[0], kept_bytes=plan.kept_bytes)
            else:
                add_kernel(kernel, some, *chunks, kept_bytes=plan.kept_bytes)
    return kernel if outputs == "full" else kernel[:, :, 0, 0]


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"`dtype` must be a real floating-point dtype of torch, such as torch.float64, got {dtype!r}")
    try:
        with torch.inference_mode(False):
            return copy.deepcopy(model).to(dtype)
    except RuntimeError as error:
        raise ValueError(
            f"`dtype` takes a copy of `model`, and this one cannot be copied ({error}): cast it yourself, and leave "
            "`dtype` out"
        ) from error


def _cast_inputs(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
