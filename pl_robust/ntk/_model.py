"""What every function of the room asks of a model, and how it looks at one without leaving a trace."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pl_robust._call_with import call_with
from pl_robust._probe import probe

_FEW = 4  # samples to try the model on


def check_model(model: nn.Module, x: Tensor) -> dict[str, nn.Parameter]:
    """Check that a model has a tangent kernel at these inputs, and find the parameters that span it.

    The model is tried on the first few samples: whether it takes them, what it gives, and whether it treats them one by
    one. Call it once, at the beginning.

    Args:
        model: the network, in eval mode, on the inputs' device.
        x: its inputs [N, ...].

    Returns:
        The parameters that require grad, by their first name; tied ones once.

    Raises:
        TypeError: if ``model`` is no nn.Module, a parameter is complex, or ``x`` has another dtype.
        ValueError: if the model is in training mode, has nothing to differentiate, changes its weights or gradients on
            the way, cannot take ``x``, gives no [N, C] or [N], or mixes samples.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be an nn.Module, whose parameters span the kernel, got {type(model).__name__}")
    training = [name or type(model).__name__ for name, part in model.named_modules() if part.training]
    if training:
        raise ValueError(
            "`model` must be in eval mode, because batch statistics and dropout are no part of the kernel: call "
            f"model.eval() first; in training mode: {_some(training)}"
        )
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise ValueError(
            "`model` must have parameters with requires_grad=True, because they span the kernel; got "
            f"{sum(1 for _ in model.parameters())} parameters, none of which requires grad: unfreeze some"
        )
    for name, parameter in parameters.items():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"parameter {name!r} of `model` has no shape yet: call the model on some inputs first")
        if parameter.is_meta:
            raise ValueError(
                f"parameter {name!r} of `model` is on the meta device and has no values: call "
                "model.to_empty(device=...) and load or initialize its weights first"
            )
        if not parameter.is_floating_point():
            raise TypeError(f"the parameters of `model` must be real, got {name!r} of dtype {parameter.dtype}")
        if parameter._backward_hooks:
            raise ValueError(
                f"parameter {name!r} of `model` has a hook that may change its gradient (register_hook), which is no "
                "derivative of the outputs any more: call remove() on the hook's handle first"
            )
    check_embeddings(model)
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError("`model` was made in inference mode, which rules out derivatives: make it outside")
    check_inputs(x, parameters)
    _try(model, x[:_FEW])
    return parameters


def check_embeddings(model: nn.Module) -> None:
    """Refuse embeddings that write into their weights, or give gradients that are no derivatives.

    Raises:
        ValueError: if there is one.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            continue
        if layer.max_norm is not None:
            raise ValueError(
                f"layer {name or type(layer).__name__!r} of `model` has max_norm={layer.max_norm}, so that each "
                "forward changes its weight: renormalize the weight once and set max_norm to None"
            )
        if layer.scale_grad_by_freq and layer.weight.requires_grad:
            raise ValueError(
                f"layer {name or type(layer).__name__!r} of `model` has scale_grad_by_freq=True, so that its gradients "
                "are no derivatives of the outputs: set it to False"
            )


def check_inputs(x: Tensor, parameters: dict[str, nn.Parameter], name: str = "x") -> None:
    """Check inputs that go to a model with these parameters.

    Args:
        x: inputs [N, ...], floating point, or of integers for a net that begins with an embedding.
        parameters: the trainable ones.
        name: the argument's name, for the error.

    Raises:
        TypeError: if ``x`` is no tensor, or has another floating dtype than the parameters.
        ValueError: if it is empty, on another device, or holds NaN.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"`{name}` must be a tensor of inputs [N, ...], got {type(x).__name__}")
    if x.dim() == 0 or len(x) == 0:
        raise ValueError(f"`{name}` must be inputs [N, ...] of at least one sample, got shape {list(x.shape)}")
    dtypes = dict.fromkeys(parameter.dtype for parameter in parameters.values())
    if (x.is_floating_point() or x.is_complex()) and x.dtype not in dtypes:
        wanted = " or ".join(map(str, dtypes))
        raise TypeError(f"`{name}` must be {wanted} as the model's parameters are, got {x.dtype}: cast one of the two")
    devices = dict.fromkeys(str(parameter.device) for parameter in parameters.values())
    if str(x.device) not in devices:
        raise ValueError(f"`{name}` must be on the model's device, {' or '.join(devices)}, got {x.device}")
    # A finite sum says at a fraction of the cost that all are.
    if x.is_floating_point() and not bool(x.sum().isfinite()):
        finite = x.isfinite().flatten(1).all(1) if x.dim() > 1 else x.isfinite()
        if not bool(finite.all()):
            samples = (~finite).nonzero().flatten()[:5].tolist()
            raise ValueError(f"`{name}` holds NaN or infinite values in samples {samples}")


def outputs_of(model: nn.Module, x: Tensor, name: str = "x") -> Tensor:
    """The model's outputs [N, C] at inputs [N, ...]; what it gives as [N] becomes [N, 1].

    Raises:
        ValueError: if it gives something else.
    """
    return as_outputs(_forward(model, x, name), len(x))


def check_vector(vector: Tensor, name: str, model: nn.Module, x: Tensor, inputs: str = "x") -> Tensor:
    """Check a vector that has an entry for each output of a model at each of its inputs.

    Args:
        vector: in the shape and dtype of model(x), [N, C] or [N].
        name: the argument's name, for the error.
        model: checked by ``check_model``.
        x: the inputs.
        inputs: their argument's name, for the error.

    Returns:
        The vector as [N, C].

    Raises:
        TypeError: if it is no tensor, or has another dtype.
        ValueError: if it has another shape, is on another device, or holds NaN.
    """
    if not isinstance(vector, Tensor) or not vector.is_floating_point():
        got = vector.dtype if isinstance(vector, Tensor) else type(vector).__name__
        raise TypeError(f"`{name}` must be a floating-point tensor in the shape of the model's outputs, got {got}")
    with derivatives(model):
        outputs = _forward(model, x[:1], inputs).detach()
    shape = [len(x), *outputs.shape[1:]]
    if list(vector.shape) != shape:
        raise ValueError(
            f"`{name}` must have the shape of the model's outputs, {shape}, got {list(vector.shape)}: class labels "
            "become one-hot, or -1 and 1 for a single output"
        )
    if vector.dtype != outputs.dtype:
        raise TypeError(f"`{name}` must be {outputs.dtype} as the model's outputs are, got {vector.dtype}: cast it")
    if vector.device != outputs.device:
        raise ValueError(f"`{name}` must be on the model's device, {outputs.device}, got {vector.device}")
    finite = vector.isfinite()
    if not bool(finite.all()):
        samples = torch.unique((~finite).nonzero()[:, 0])[:5].tolist()
        raise ValueError(f"`{name}` holds NaN or infinite values in samples {samples}")
    return vector if vector.dim() == 2 else vector[:, None]


def as_outputs(outputs: Any, count: int) -> Tensor:
    """Bring what a model gave for ``count`` samples to [N, C].

    Raises:
        ValueError: if it cannot be.
    """
    if (
        isinstance(outputs, Tensor)
        and outputs.is_floating_point()
        and outputs.dim() in (1, 2)
        and len(outputs) == count
        and outputs.shape[1:] != (0,)
    ):
        return outputs if outputs.dim() == 2 else outputs[:, None]
    got = f"{outputs.dtype} {list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
    raise ValueError(
        f"`model` must give real outputs [N, C] or [N] for N inputs, got {got} for N={count}: wrap it in a module that "
        "takes or flattens what you mean"
    )


@contextmanager
def derivatives(model: nn.Module) -> Iterator[None]:
    """Set the stage for derivatives of a model in eval mode, whatever the caller's grad mode, and put all back.

    Buffers, flags, ``.grad`` and random numbers are afterwards as before. Inside there is no autocast, and what has no
    derivative of the kind that is needed gives way to what has: compiled nets run eagerly, attention by its formula.
    """
    devices = {parameter.device.type for parameter in model.parameters()} | {"cpu"}
    with ExitStack() as stack:
        stack.enter_context(probe(model))
        for device in filter(torch.amp.is_autocast_available, sorted(devices)):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(differentiable_operations())
        stack.enter_context(same_attributes(model))
        yield


@contextmanager
def same_attributes(model: nn.Module) -> Iterator[None]:
    """Put back the tensors that modules hold as plain attributes, such as a stored activation.

    What a forward under torch.func leaves there is dead afterwards: it can be neither copied nor saved.
    """
    before = [(part, dict(vars(part))) for part in model.modules()]
    try:
        yield
    finally:
        for part, were in before:
            for name, value in list(vars(part).items()):
                if isinstance(value, Tensor) and value is not were.get(name):
                    if name in were:
                        vars(part)[name] = were[name]
                    else:
                        del vars(part)[name]


@contextmanager
def differentiable_operations() -> Iterator[None]:
    """Keep to operations that have derivatives in reverse and in forward mode: attention by its formula."""
    with formula_of_attention(), warnings.catch_warnings():
        # torch's own, about what it does at the first use of forward mode.
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
        yield


def plain(tensor: Tensor) -> Tensor:
    """A copy of a tensor as autograd takes it.

    Always a copy, one for each forward: a model may begin by writing into its input, as ReLU(inplace=True) does, and
    the caller's must stay as it is.
    """
    return tensor.detach().clone()


def reads_hidden_parameters(model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor) -> bool:
    """Tell whether a model reads some of its parameters past the places where ``functional_call`` puts others.

    A partial, a list or a hook's closure may hold them. Derivatives by ``functional_call`` would miss that part.

    Args:
        model: the network, inside ``derivatives``.
        parameters: the trainable ones.
        x: some inputs [n, ...].
    """
    others = {name: plain(parameter) for name, parameter in parameters.items()}
    outputs = as_outputs(call_with(model, others, plain(x)), len(x))
    if not outputs.requires_grad:  # nothing that was put in does
        return False
    used = torch.autograd.grad(outputs.sum(), list(parameters.values()), allow_unused=True)
    return any(gradient is not None for gradient in used)


def _try(model: nn.Module, x: Tensor) -> None:
    with derivatives(model):
        together = as_outputs(_forward(model, x), len(x))
        if not together.requires_grad:
            raise ValueError(
                "the outputs of `model` do not depend on its trainable parameters through autograd: it detaches, or "
                "runs under no_grad inside"
            )
        together = together.detach()
        if len(x) == 1 or not bool(together.isfinite().all()):
            return
        # The first and the last, because a recurrence over the samples leaves the first as it is.
        alone = [_alone(model, x[row : row + 1]) for row in (0, len(x) - 1)]
    difference = (torch.cat(alone) - together[[0, -1]]).abs().max()
    # Far above what another batch size does to the rounding (TF32 included), far below what a mixture does. The second
    # summand is for networks whose outputs cancel to zero, as those do that are symmetrized at initialization.
    precision = torch.finfo(together.dtype).eps
    allowed = precision ** (1 / 3) * together.abs().max() + precision ** (2 / 3)
    if bool(difference > allowed):
        raise _mixes(f"gives another output for a sample alone than in a batch of {len(x)}, by {float(difference):.2g}")


def _forward(model: nn.Module, x: Tensor, name: str = "x") -> Any:
    """What a model gives for inputs that it may not be able to take."""
    try:
        return model(plain(x))
    except torch.cuda.OutOfMemoryError:  # is a RuntimeError, too
        raise
    except (RuntimeError, TypeError) as error:
        if not x.is_floating_point():
            raise ValueError(
                f"`model` does not take integers, and `{name}` is {x.dtype}: give floating-point inputs (uint8 images "
                f"divided by 255); only a net that begins with an embedding takes integers ({error})"
            ) from error
        if isinstance(error, TypeError):
            raise
        raise ValueError(
            f"`model` cannot take `{name}`, inputs of shape {list(x.shape)}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _alone(model: nn.Module, x: Tensor) -> Tensor:
    try:
        given = model(plain(x))
    except (RuntimeError, ValueError) as error:
        raise _mixes(f"fails for a sample alone ({error})") from error
    return as_outputs(given, 1).detach()


def _mixes(what: str) -> ValueError:
    return ValueError(
        f"`model` must treat samples one by one, but {what}: batch norm without running statistics, another operation "
        "across the batch, a recurrent layer that takes the batch for time (batch_first), or randomness in eval mode"
    )


@contextmanager
def formula_of_attention() -> Iterator[None]:
    """Attention by its formula: the fused kernels, also nn.MultiheadAttention's own, have not all derivatives."""
    was_on = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_on)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
