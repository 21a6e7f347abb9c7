"""Keep what was computed from tensors, for as long as the very same tensors come again, unchanged."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple, TypeVar
from weakref import ref

import torch
from torch import Tensor

T = TypeVar("T")


class _Entry(NamedTuple):
    inputs: tuple[ref[Tensor] | None, ...]
    versions: tuple[int | None, ...]
    settings: Hashable
    value: Any


class Kept:
    """The last result of a function of tensors that are the same at every step, such as a graph's.

    PyG's ``cached=True`` gives the result of the first graph for any other one, and goes into copies and pickles.

    Tensors are the same if they are the same objects and have not been changed in place since, as far as PyTorch knows:
    changes by way of ``.data`` or a NumPy array on the same memory are not seen. Nothing is kept of
    tensors that require gradients, that were made in inference mode, or inside ``torch.func``'s transforms and compiled
    code. The tensors themselves are not held on to: the result goes when one of them does. Copies of a network, and
    pickled ones, start without it; it is in no state_dict.
    """

    def __init__(self) -> None:
        self._entry: _Entry | None = None

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()

    def __call__(self, compute: Callable[..., T], *inputs: Tensor | None, settings: Hashable = None) -> T:
        """Give ``compute(*inputs)``, where autocast is off.

        Args:
            compute: without side effects.
            inputs: the tensors that it depends on.
            settings: whatever else it depends on.
        """
        device = next(tensor.device.type for tensor in inputs if tensor is not None)
        if not can_keep(*inputs):
            with torch.autocast(device, enabled=False):
                return compute(*inputs)
        versions = tuple(None if tensor is None else tensor._version for tensor in inputs)
        entry = self._entry  # read once: threads of DataParallel share it
        if (
            entry is not None
            and entry.versions == versions
            and entry.settings == settings
            and all(_is(known, tensor) for known, tensor in zip(entry.inputs, inputs, strict=True))
        ):
            value: T = entry.value
            return value
        # A result of inference mode could not be trained on later.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            value = compute(*inputs)
        forget = partial(_forget, ref(self))  # ``self`` would be a circle, and the result live on after the network
        known = tuple(None if tensor is None else ref(tensor, forget) for tensor in inputs)
        self._entry = _Entry(known, versions, settings, value)
        return value


def _forget(whose: ref[Kept], gone: ref[Tensor]) -> None:
    kept = whose()
    if kept is not None and kept._entry is not None and any(known is gone for known in kept._entry.inputs):
        kept._entry = None


def _is(known: ref[Tensor] | None, tensor: Tensor | None) -> bool:
    return tensor is None if known is None else known() is tensor


def can_keep(*inputs: Tensor | None) -> bool:
    """Tell whether results of these tensors may be kept, here and now."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return not any(tensor is not None and (tensor.requires_grad or tensor.is_inference()) for tensor in inputs)
