"""Networks linearized in their parameters: the models of regression with the tangent kernel.

Lee, Xiao, Schoenholz, Bahri, Novak, Sohl-Dickstein, Pennington, "Wide neural networks of any depth evolve as linear
models under gradient descent", NeurIPS 2019, https://arxiv.org/abs/1902.06720; Ortiz-Jimenez, Moosavi-Dezfooli,
Frossard, "What can linearized neural networks actually say about generalization?", NeurIPS 2021,
https://arxiv.org/abs/2106.06770.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp

from pl_robust._call_with import call_with
from pl_robust.ntk._hollow import Hollow
from pl_robust.ntk._model import check_embeddings, formula_of_attention, same_attributes
from pl_robust.ntk._normalization import FormulaOfNormalization


def linearize(model: nn.Module, *, centered: bool = False) -> LinearizedModel:
    r"""Linearize a model in its parameters around their present values.

    Args:
        model: any module that maps a tensor to a tensor; it is copied, and neither changed nor shared.
        centered: whether to leave :math:`f(x; \theta_0)` out.

    Returns:
        :math:`f(x; \theta_0) + \langle \nabla_\theta f(x; \theta_0), \delta \rangle` with δ = 0, see
        ``LinearizedModel``.

    Raises:
        TypeError: if ``model`` is no nn.Module, or ``centered`` no bool.
        ValueError: if no parameter requires grad, one has no values yet, an embedding changes its weight or gradients,
            or ``model`` cannot be copied.
    """
    return LinearizedModel(model, centered=centered)


class LinearizedModel(nn.Module):
    r""":math:`f(x; \theta_0) + \langle \nabla_\theta f(x; \theta_0), \delta \rangle`, linear in its parameters δ.

    The first-order Taylor expansion of a model in its parameters (Ortiz-Jimenez et al. 2021, section 2), computed by
    forward-mode differentiation at about the price of two forward passes; gradients in δ and in the inputs are exact,
    of any order. Gradient descent on δ is gradient descent with the model's tangent kernel at θ0, which never changes.

    δ = θ - θ0 starts at zero, with a parameter ``displacement.conv1.weight`` for each ``conv1.weight`` of the model
    that requires grad, tied ones once. θ0, frozen parameters and the model's buffers are buffers,
    ``initial.conv1.weight``: the ``state_dict`` holds them too, and loading it turns the linearization of another
    initialization of the same architecture into this one.

    What is linearized is the function that the model computes in eval mode (batch norm by running statistics, no
    dropout), in whatever mode the original was or this module is. It computes outside autocast, in the precision of its
    parameters. What layers hold beside parameters and buffers is as it was when the model was copied. Under DDP all
    buffers are sent around at each step, θ0 among them, unless it is told ``broadcast_buffers=False``.

    Args:
        model: any module that maps a tensor to a tensor; it is copied, and neither changed nor shared.
        centered: whether to leave :math:`f(x; \theta_0)` out, so that the function is zero at first.

    Raises:
        TypeError: if ``model`` is no nn.Module, or ``centered`` no bool; on calling, if input or output is no tensor.
        ValueError: if no parameter requires grad, one has no values yet, an embedding changes its weight or gradients,
            or ``model`` cannot be copied; on calling, if an operation of the model has no forward-mode derivative, or
            parameters are read past their layers (held by a partial, a list or a hook; that of a hook is not seen
            where the first call is a compiled one).
    """

    def __init__(self, model: nn.Module, *, centered: bool = False) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"`model` must be an nn.Module, got {type(model).__name__}")
        if not isinstance(centered, bool):
            raise TypeError(f"`centered` must be true or false, got {centered!r}")
        model = getattr(model, "_orig_mod", model)  # of a compiled one
        check_embeddings(model)
        for name, layer in model.named_modules():
            if isinstance(layer, nn.DataParallel | torch.jit.ScriptModule):
                raise ValueError(
                    f"{name or 'the whole'!r} of `model` is a {type(layer).__name__}, in which parameters cannot be "
                    "replaced: give the module that it was made of"
                )
        self.centered = centered
        self.displacement = _Tensors()
        self.initial = _Tensors()
        self._homes: dict[str, str] = {}  # each name of a tensor -> its first one, under which we keep it
        hollow: dict[int, Any] = {}  # id of a tensor -> what stands in its place where only its name matters
        first_names: dict[int, str] = {}
        not_saved = _non_persistent(model)
        parameters = model.named_parameters(remove_duplicate=False)
        with torch.inference_mode(False), torch.no_grad():
            for name, tensor in chain(parameters, model.named_buffers(remove_duplicate=False)):
                self._homes[name] = first_names.setdefault(id(tensor), name)
                if id(tensor) in hollow:
                    continue
                if nn.parameter.is_lazy(tensor):
                    raise ValueError(f"{name!r} of `model` has no shape yet: call the model on some inputs first")
                if tensor.is_meta:
                    raise ValueError(
                        f"{name!r} of `model` is on the meta device and has no values: call "
                        "model.to_empty(device=...) and load or initialize its weights first"
                    )
                value = tensor.detach().clone()
                self.initial.put(name, value, persistent=name not in not_saved)
                hollow[id(tensor)] = Hollow.of(name, tensor.shape, tensor.dtype)
                if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
                    self.displacement.put(name, nn.Parameter(torch.zeros_like(value)))
            for layer in model.modules():
                for value in vars(layer).values():
                    # A hook's result, as of the old weight_norm and of pruning; deepcopy takes no such tensors.
                    if isinstance(value, Tensor) and not value.is_leaf:
                        hollow[id(value)] = value.detach().clone().requires_grad_()
        if next(self.displacement.parameters(), None) is None:
            raise ValueError(
                "`model` must have parameters with requires_grad=True, because it is linearized in these; got "
                f"{len(first_names)} parameters and buffers, none of which requires grad: unfreeze some"
            )
        # Hidden in a tuple, so that nobody's walk over submodules sets a mode or a device here.
        self._layers = (_copy(model, hollow),)
        self._is_checked = False
        for layer in self._layers[0].modules():
            layer.training = False
        self._is_recurrent = any(isinstance(layer, nn.RNNBase) for layer in self._layers[0].modules())
        _load_forward_mode()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _load_forward_mode()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs, of the shape that the model gives, at inputs [N, ...] as the model takes them."""
        if not isinstance(x, Tensor):
            raise TypeError(f"a linearized model takes one tensor, got {type(x).__name__}")
        displacement = dict(self.displacement.named_parameters())
        initial = dict(self.initial.named_buffers())
        with (
            _forward_mode(x.device.type),
            _plain_recurrence() if self._is_recurrent else nullcontext(),
            FormulaOfNormalization(),
            nullcontext() if torch.compiler.is_compiling() else same_attributes(self._layers[0]),
        ):
            if x.dtype in (torch.float16, torch.bfloat16):  # an autocast region made it
                x = x.to(next(iter(displacement.values())).dtype)

            def model(moving: dict[str, Tensor], x: Tensor) -> Tensor:
                tensors = {**initial, **moving}
                by_name = {name: tensors[home] for name, home in self._homes.items()}
                x = x.clone()  # the model may begin by writing into it
                outputs = call_with(self._layers[0], by_name, x, tie_weights=False)
                if not isinstance(outputs, Tensor):
                    raise TypeError(
                        f"the model must give a tensor, got {type(outputs).__name__}: wrap it in a module that gives "
                        "the one you mean"
                    )
                return outputs

            if not (self._is_checked or torch.compiler.is_compiling()):
                with torch.enable_grad():  # nothing that goes in has a gradient
                    if model({}, x.detach()).requires_grad:
                        raise ValueError(
                            "the model reads parameters past its layers, by which a linearization cannot move them: a "
                            "hook's closure or an attribute holds them: read them as attributes of the layer, or, if "
                            "they are no part of the model, freeze them by requires_grad_(False)"
                        )
                self._is_checked = True
            try:
                both: Any = jvp(partial(model, x=x), ({name: initial[name] for name in displacement},), (displacement,))
            except NotImplementedError as error:
                if "forward" not in str(error) or "AD" not in str(error):  # nothing of ours
                    raise
                raise ValueError(
                    "an operation of the model has no forward-mode derivative, by which it is linearized: put plain "
                    f"operations in its place. torch says: {str(error).splitlines()[0]}"
                ) from error
        outputs, change = both
        total: Tensor = change if self.centered else outputs + change
        return total

    def extra_repr(self) -> str:
        """Name the model."""
        return f"{type(self._layers[0]).__name__}, centered={self.centered}"


class _Tensors(nn.Module):
    """Tensors under names with dots, in submodules made for them; a plain dict of them could have no such names."""

    def put(self, name: str, tensor: Tensor, persistent: bool = True) -> None:
        *path, leaf = name.split(".")
        owner: nn.Module = self
        for part in path:
            # Not by add_module, which refuses names that are taken, as that of this method is.
            owner = owner._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
        if isinstance(tensor, nn.Parameter):
            owner._parameters[leaf] = tensor
        else:
            owner._buffers[leaf] = tensor
            if not persistent:
                owner._non_persistent_buffers_set.add(leaf)

    def __repr__(self) -> str:
        tensors = [*self.parameters(), *self.buffers()]
        return f"{len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors):,} entries"


def _copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            "`model` must be one that copy.deepcopy can copy, because its linearization keeps a copy; what it says: "
            f"{(str(error).splitlines() or [''])[0]}"
        ) from error


def _non_persistent(model: nn.Module) -> set[str]:
    """Names of the buffers that ``state_dict`` leaves out."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in model.named_modules()
        for name in part._non_persistent_buffers_set
    }


@cache
def _load_forward_mode() -> None:
    """Let torch load what it loads at the first use of forward mode, without its warning about its own code."""
    one = torch.ones(())
    with warnings.catch_warnings():  # once in a process: each time makes Python repeat all warnings it has shown
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
        jvp(torch.neg, (one,), (one,))


@contextmanager
def _forward_mode(device: str) -> Iterator[None]:
    """Make forward-mode derivatives possible; whether reverse-mode ones are recorded stays as it was."""
    # Under autocast, batch norm gives its tangent in another precision than its value.
    with torch.autocast(device, enabled=False), formula_of_attention():
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                yield
        else:
            yield


@contextmanager
def _plain_recurrence() -> Iterator[None]:
    """Keep recurrent layers from the libraries' kernels, which have no forward mode."""
    libraries: list[Any] = [torch.backends.mkldnn, torch.backends.cudnn]
    were_on = [library.enabled for library in libraries]
    try:
        for library in libraries:
            library.enabled = False
        yield
    finally:
        for library, was_on in zip(libraries, were_on, strict=True):
            library.enabled = was_on
