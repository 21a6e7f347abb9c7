from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pl_robust.models import Normalize, PreActResNet, preact_resnet18


def _parameters(width: int, in_channels: int, num_classes: int) -> int:
    """Closed form for two blocks a stage; w, 2w, 4w, 8w channels."""
    w = width
    stem = 9 * in_channels * w
    convolutions = sum(9 * (i * o + 3 * o * o) for i, o in ((w, w), (w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w)))
    shortcuts = w * 2 * w + 2 * w * 4 * w + 4 * w * 8 * w
    norms = sum(2 * (i + 3 * o) for i, o in ((w, w), (w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w)))
    last = 2 * 8 * w + 8 * w * num_classes + num_classes
    return stem + convolutions + shortcuts + norms + last


@pytest.mark.parametrize(("width", "in_channels", "num_classes"), [(64, 3, 10), (4, 1, 7)])
def test_parameter_count_is_the_closed_form(width: int, in_channels: int, num_classes: int) -> None:
    net = preact_resnet18(width, in_channels, num_classes)
    assert sum(p.numel() for p in net.parameters()) == _parameters(width, in_channels, num_classes)


def test_width_64_has_the_published_count() -> None:
    # 11,171,146 is the well-known number of the code without the last batch norm, which has 2 * 512.
    assert sum(p.numel() for p in preact_resnet18().parameters()) == 11_171_146 + 2 * 512


def _reference(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network in eval mode, written out from its parameters."""

    def norm(name: str, h: Tensor) -> Tensor:
        keys = ("running_mean", "running_var", "weight", "bias")
        mean, variance, weight, bias = (state[f"{name}.{key}"][:, None, None] for key in keys)
        return ((h - mean) / (variance + 1e-5).sqrt() * weight + bias).clamp(min=0)

    h = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage in range(1, 5):
        for index in range(2):
            name = f"layer{stage}.{index}"
            stride = 2 if stage > 1 and index == 0 else 1
            projection = state.get(f"{name}.shortcut.0.weight")
            shortcut = h if projection is None else F.conv2d(h, projection, stride=stride)
            h = F.conv2d(norm(f"{name}.bn1", h), state[f"{name}.conv1.weight"], padding=1, stride=stride)
            h = F.conv2d(norm(f"{name}.bn2", h), state[f"{name}.conv2.weight"], padding=1) + shortcut
    pooled = norm("bn", h).flatten(2).mean(2)
    return pooled @ state["linear.weight"].T + state["linear.bias"]


def test_forward_is_the_network_written_out() -> None:
    net = preact_resnet18(width=4).double()
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    net(x)  # moves the running statistics away from 0 and 1
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    net.eval()
    torch.testing.assert_close(net(x), _reference(net.state_dict(), x))


def test_normalization_inside_equals_normalizing_outside() -> None:
    mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    inside = preact_resnet18(width=4, normalization=(mean, std)).eval()
    outside = preact_resnet18(width=4).eval()
    outside.load_state_dict(inside.state_dict())  # the constants are not in the checkpoint
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(inside(x), outside(Normalize(mean, std)(x)))
    assert not torch.allclose(inside(x), outside(x))


@pytest.mark.parametrize("size", [8, 28, 40])
def test_takes_other_sizes_and_layers(size: int) -> None:
    net = PreActResNet((1, 2, 1, 1), width=2, in_channels=1, num_classes=3)
    assert net(torch.rand(2, 1, size, size)).shape == (2, 3)
    assert [len(stage) for stage in (net.layer1, net.layer2, net.layer3, net.layer4)] == [1, 2, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": (2, 2, 2)}, "four positive integers"),
        ({"layers": (2, 2, 0, 2)}, "four positive integers"),
        ({"width": 0}, "`width` must be a positive integer, got 0"),
        ({"num_classes": -1}, "`num_classes` must be a positive integer, got -1"),
        ({"in_channels": 1, "normalization": ((0.5,) * 3, (0.5,) * 3)}, "`in_channels`=1 means"),
    ],
)
def test_refuses_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreActResNet(**arguments)
