"""Tensors without values for a copy of a module, into which ``functional_call`` puts them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten


class Hollow(Tensor):
    """What stands in the place of a tensor where only its name matters; using it is an error that speaks.

    Attributes:
        about: name, shape and dtype of the tensor.
    """

    about: tuple[str, torch.Size, torch.dtype]

    @staticmethod
    def of(name: str, shape: torch.Size, dtype: torch.dtype) -> Hollow:
        """Make one for the tensor of this name."""
        hollow: Hollow = Tensor._make_subclass(Hollow, torch.empty(shape, dtype=dtype, device="meta"))
        hollow.about = (name, shape, dtype)
        return hollow

    def __deepcopy__(self, memo: dict[int, Any]) -> Hollow:
        memo[id(self)] = copied = Hollow.of(*self.about)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Hollow.of, self.about

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Refuse what would compute with it; its shape and the like anyone may read."""
        # RuntimeError: meta tensors meet others, of which this must not be the last word.
        with torch._C.DisableTorchFunctionSubclass(), suppress(RuntimeError):
            given = func(*args, **(kwargs or {}))
            if not any(isinstance(leaf, Tensor) for leaf in tree_flatten(given)[0]):
                return given
        leaves, _ = tree_flatten((args, kwargs))
        name = next((leaf.about[0] for leaf in leaves if isinstance(leaf, Hollow)), "?")
        raise ValueError(
            f"{name!r} of the model is read past its layer, where a linearization cannot put its value: a partial, a "
            "list or an attribute holds it, or activations are computed again in the backward pass "
            "(torch.utils.checkpoint): read it as an attribute of its layer, and switch checkpointing off"
        )
