"""A model called with other tensors than its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def call_with(model: nn.Module, tensors: Mapping[str, Tensor], x: Tensor, *, tie_weights: bool = True) -> Any:
    """Call a model with other parameters and buffers, and leave it its own.

    Of a layer that stands in two places, torch's ``functional_call`` leaves the others in the model.

    Args:
        model: the model.
        tensors: what takes the place of its parameters and buffers, by their names; those without stay.
        x: what to call it with.
        tie_weights: whether a tensor also takes the places that share its own; False if each place is named.
    """
    own: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (entries, dict(entries)) for part in model.modules() for entries in (part._parameters, part._buffers)
    ]
    lent = {id(tensor) for tensor in tensors.values()}
    try:
        return functional_call(model, dict(tensors), (x,), tie_weights=tie_weights)
    finally:
        for entries, before in own:
            entries.update({name: before[name] for name, now in entries.items() if id(now) in lent and name in before})
