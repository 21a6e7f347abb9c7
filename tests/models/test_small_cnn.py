from __future__ import annotations

import pytest
import torch
from torch import nn

from pl_robust.models import SmallCNN


@pytest.mark.parametrize(("width", "in_channels", "num_classes"), [(16, 1, 10), (3, 2, 5)])
def test_parameter_count_is_the_closed_form(width: int, in_channels: int, num_classes: int) -> None:
    w = width
    convolutions = 9 * (in_channels * w + w * 2 * w + 2 * w * 2 * w + 2 * w * 4 * w)
    norms = 2 * (w + 2 * w + 2 * w + 4 * w)
    net = SmallCNN(width, in_channels, num_classes)
    assert sum(p.numel() for p in net.parameters()) == convolutions + norms + 4 * w * 4 * num_classes + num_classes


def test_pooling_is_the_identity_on_8x8() -> None:
    net = SmallCNN(width=4).eval()
    x = torch.rand(3, 1, 8, 8)
    features = net.features(x)
    assert features.shape == (3, 16, 2, 2)
    assert torch.equal(net(x), net.linear(features.flatten(1)))


def test_linear_layer_sees_where_things_are() -> None:
    net = SmallCNN(width=4).eval()
    x = torch.zeros(2, 1, 8, 8)
    x[0, 0, 1, 1] = x[1, 0, 6, 6] = 1.0
    assert not torch.allclose(*net(x))


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (28, 28)])
def test_takes_sizes_up_to_mnist(size: tuple[int, int]) -> None:
    net = SmallCNN(width=2, in_channels=3, num_classes=4)
    assert net(torch.rand(2, 3, *size)).shape == (2, 4)


def test_strides_and_channels_are_as_described() -> None:
    layers = [m for m in SmallCNN(width=5).modules() if isinstance(m, nn.Conv2d)]
    assert [(m.out_channels, m.stride[0], m.kernel_size[0]) for m in layers] == [
        (5, 1, 3),
        (10, 2, 3),
        (10, 1, 3),
        (20, 2, 3),
    ]


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 7, 8), (1, 8, 8)])
def test_refuses_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[B, 1, H, W\] with H and W at least 8, got"):
        SmallCNN()(torch.rand(shape))


@pytest.mark.parametrize("name", ["width", "in_channels", "num_classes"])
def test_refuses_numbers(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer, got 0"):
        SmallCNN(**{name: 0})
