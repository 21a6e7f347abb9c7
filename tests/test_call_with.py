from __future__ import annotations

import torch
from torch import nn
from torch.func import grad, vmap

from pl_robust._call_with import call_with


def twice() -> tuple[nn.Module, nn.Linear]:
    """A layer in two places, with a buffer of its own."""
    layer = nn.Linear(3, 3)
    layer.register_buffer("offset", torch.zeros(3))
    return nn.Sequential(layer, nn.Tanh(), layer), layer


def test_a_layer_in_two_places_keeps_its_tensors() -> None:
    model, layer = twice()
    own = dict(layer.named_parameters()) | dict(layer.named_buffers())
    others = {f"0.{name}": torch.randn_like(tensor) for name, tensor in own.items()}
    x = torch.rand(2, 3)
    given = call_with(model, others, x)
    hidden = nn.functional.linear(x, others["0.weight"], others["0.bias"]).tanh()
    torch.testing.assert_close(given, nn.functional.linear(hidden, others["0.weight"], others["0.bias"]))
    assert all(getattr(layer, name) is tensor for name, tensor in own.items())
    assert all(isinstance(parameter, nn.Parameter) for parameter in model.parameters())


def test_also_inside_transforms() -> None:
    model, layer = twice()
    own = dict(layer.named_parameters())

    def value(weight: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = call_with(model, {"0.weight": weight}, torch.ones(1, 3)).sum()
        return total

    vmap(grad(value))(torch.randn(4, 3, 3))
    assert all(getattr(layer, name) is tensor for name, tensor in own.items())


def test_what_a_forward_puts_into_its_buffers_stays() -> None:
    norm = nn.BatchNorm1d(3)
    before = norm.num_batches_tracked
    call_with(norm, {"weight": torch.ones(3)}, torch.rand(4, 3))
    assert norm.num_batches_tracked is before
    assert norm.num_batches_tracked == 1
