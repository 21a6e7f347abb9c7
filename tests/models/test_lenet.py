from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pl_robust.models import LeNet


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_it_has_as_many_parameters_as_the_published_one() -> None:
    """The neural anisotropy directions of a LeNet on 32x32x1 come from a matrix of 1,024 x 135,821."""
    assert count(LeNet(num_classes=1)) == 135_821


@pytest.mark.parametrize(("channels", "classes", "size"), [(3, 10, 32), (1, 7, 28), (2, 3, 9), (1, 1, 4)])
def test_parameter_count_is_the_closed_form(channels: int, classes: int, size: int) -> None:
    convolutions = (25 * channels + 1) * 6 + (25 * 6 + 1) * 16
    linear = (16 * (size // 4) ** 2 + 1) * 120 + 121 * 84 + 85 * classes
    net = LeNet(channels, classes, size)
    assert count(net) == convolutions + linear
    assert net(torch.rand(2, channels, size, size)).shape == (2, classes)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_it_computes_what_is_described(activation: Any) -> None:
    net = LeNet(3, 5, 12, activation=activation)
    weights = dict(net.named_parameters())
    bend = getattr(F, activation)
    x = torch.rand(4, 3, 12, 12)
    out = x
    for name in ("conv1", "conv2"):
        same = F.conv2d(out, weights[f"{name}.weight"], weights[f"{name}.bias"], padding="same")
        out = bend(same).unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    out = out.flatten(1)
    for name in ("fc1", "fc2", "fc3"):
        out = out @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        out = out if name == "fc3" else bend(out)
    torch.testing.assert_close(net(x), out)


def test_gelu_is_curved_and_relu_is_not() -> None:
    bends = []
    for activation in ("relu", "gelu"):
        torch.manual_seed(0)
        net = LeNet(1, 1, 8, activation=activation)
        x = torch.zeros(1, 1, 8, 8, requires_grad=True)
        (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), x, allow_unused=True, materialize_grads=True)
        bends.append(second.abs().max().item())
    assert bends[0] == 0
    assert bends[1] > 0


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 28, 28), (2, 1, 32, 28), (1, 32, 32), (2, 1024)])
def test_refuses_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"this LeNet takes images \[B, 1, 32, 32\], got .*`in_channels` and `image_s"):
        LeNet()(torch.rand(shape))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"in_channels": 0}, ValueError, "`in_channels` must be at least 1, got 0"),
        ({"num_classes": -1}, ValueError, "`num_classes` must be at least 1, got -1"),
        ({"image_size": 3}, ValueError, "`image_size` must be at least 4, because it is halved twice, got 3"),
        ({"image_size": (32, 32)}, TypeError, r"`image_size` must be an integer, got \(32, 32\)"),
        ({"activation": "tanh"}, ValueError, r"`activation` must be one of \('relu', 'gelu'\), got 'tanh'"),
    ],
)
def test_errors_speak(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LeNet(**arguments)


def test_weights_start_as_published() -> None:
    net = LeNet()
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            scaled = layer.weight.detach().flatten() * layer.weight[0].numel() ** 0.5
            assert float(scaled.abs().max()) <= 2 / 0.8796
            assert float(scaled.square().mean()) == pytest.approx(1, abs=4 / scaled.numel() ** 0.5)
            assert layer.bias is not None
            assert not layer.bias.any()
