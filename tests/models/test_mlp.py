from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pl_robust.models import MLP


@pytest.mark.parametrize("hidden", [(), (7,), (100, 100), [3, 4, 5]])
def test_parameter_count_is_the_closed_form(hidden: Any) -> None:
    widths = [12, *hidden, 3]
    expected = sum((before + 1) * after for before, after in pairwise(widths))
    assert sum(parameter.numel() for parameter in MLP(12, 3, hidden).parameters()) == expected


def test_the_published_one() -> None:
    """On 28x28 digits: [100, 100, 1]."""
    assert sum(parameter.numel() for parameter in MLP(784, 1).parameters()) == 785 * 100 + 101 * 100 + 101


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_it_computes_what_is_described(activation: Any) -> None:
    net = MLP(12, 3, (5, 4), activation)
    bends: dict[str, Any] = {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh}
    bend = bends[activation]
    (w1, b1), (w2, b2), (w3, b3) = zip(*[iter(net.parameters())] * 2, strict=True)
    x = torch.randn(6, 3, 2, 2)
    torch.testing.assert_close(net(x), bend(bend(x.flatten(1) @ w1.T + b1) @ w2.T + b2) @ w3.T + b3)


def test_without_hidden_layers_it_is_linear() -> None:
    net = MLP(4, 2, ())
    x, z = torch.randn(2, 5, 4)
    torch.testing.assert_close(net(x) + net(z), net(x + z) + net(torch.zeros(1, 4)))


@pytest.mark.parametrize("shape", [(5, 4), (5, 1, 2, 2), (0, 4)])
def test_takes_inputs_of_any_shape(shape: tuple[int, ...]) -> None:
    assert MLP(4, 2)(torch.rand(shape)).shape == (shape[0], 2)


@pytest.mark.parametrize("shape", [(4,), (2, 5), (2, 2, 4), ()])
def test_refuses_inputs(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"this MLP takes inputs \[B, ...\] of 4 entries each, got .*`in_features` sets"
    ):
        MLP(4)(torch.rand(shape))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"in_features": 0}, ValueError, "`in_features` must be at least 1, got 0"),
        ({"in_features": 2.5}, TypeError, "`in_features` must be an integer, got 2.5"),
        ({"out_features": 0}, ValueError, "`out_features` must be at least 1, got 0"),
        ({"hidden": (3, 0)}, ValueError, r"`hidden\[1\]` must be at least 1, got 0"),
        ({"hidden": 100}, TypeError, r"`hidden` must be a sequence of widths such as \(100, 100\), got 100"),
        ({"hidden": "100"}, TypeError, r"`hidden\[0\]` must be an integer, got '1'"),
        ({"activation": "silu"}, ValueError, r"`activation` must be one of \('relu', 'gelu', 'tanh'\), got 'silu'"),
    ],
)
def test_errors_speak(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MLP(**{"in_features": 4, **arguments})


def test_weights_start_as_published() -> None:
    net = MLP(64, 200, (400,))
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            scaled = layer.weight.detach().flatten() * layer.weight[0].numel() ** 0.5
            assert float(scaled.abs().max()) <= 2 / 0.8796
            assert float(scaled.square().mean()) == pytest.approx(1, abs=4 / scaled.numel() ** 0.5)
            assert layer.bias is not None
            assert not layer.bias.any()
