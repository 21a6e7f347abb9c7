"""Pre-activation residual networks for small images.

He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016, https://arxiv.org/abs/1603.05027; in the
form the papers on catastrophic overfitting train: a 3x3 stem without stride, projections that see the block's raw
input, and a batch norm with ReLU after the last block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pl_robust.models.normalize import Normalize


class PreActBlock(nn.Module):
    """``shortcut(x) + conv2(relu(bn2(conv1(relu(bn1(x))))))``: the basic block, activations first.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        stride: of the first convolution; with another stride than 1, or another number of channels, the shortcut is a
            1x1 convolution, else the identity.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        # A Sequential, empty or with one convolution: the parameter names are those of the published checkpoints.
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut.append(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, channels, H / stride, W / stride]."""
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        total: Tensor = out + self.shortcut(x)
        return total


class PreActResNet(nn.Module):
    """A pre-activation ResNet: 3x3 stem, four stages of basic blocks, batch norm, ReLU, global average, linear.

    Stage k has ``width * 2**k`` channels and halves the image from the second stage on. With width 64, two blocks a
    stage, three channels and ten classes it has 11,172,170 parameters (11,171,146 in code that leaves out the last
    batch norm).

    Args:
        layers: number of blocks in each of the four stages.
        width: channels of the first stage.
        in_channels: channels of the images.
        num_classes: number of logits.
        normalization: ``(mean, std)``, one number per channel each, in the units of the input: the network normalizes
            its input itself. ``None``: it takes the input as it is.

    Raises:
        ValueError: if ``layers`` is not four positive integers, another number is not positive, or ``normalization``
            does not fit ``in_channels``.
    """

    def __init__(
        self,
        layers: tuple[int, int, int, int] = (2, 2, 2, 2),
        width: int = 64,
        in_channels: int = 3,
        num_classes: int = 10,
        normalization: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        if len(layers) != 4 or min(layers) < 1:
            raise ValueError(f"`layers` must be four positive integers, got {layers!r}")
        for name, value in (("width", width), ("in_channels", in_channels), ("num_classes", num_classes)):
            if value < 1:
                raise ValueError(f"`{name}` must be a positive integer, got {value!r}")
        if normalization is not None and len(normalization[0]) != in_channels:
            raise ValueError(
                f"`normalization` must hold `in_channels`={in_channels} means and standard deviations, "
                f"got {normalization!r}"
            )
        self.normalize = nn.Identity() if normalization is None else Normalize(*normalization)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.layer1 = _stage(width, width, layers[0], stride=1)
        self.layer2 = _stage(width, 2 * width, layers[1], stride=2)
        self.layer3 = _stage(2 * width, 4 * width, layers[2], stride=2)
        self.layer4 = _stage(4 * width, 8 * width, layers[3], stride=2)
        self.bn = nn.BatchNorm2d(8 * width)
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, float [B, in_channels, H, W] in [0, 1], to logits [B, num_classes]."""
        out = self.conv1(self.normalize(x))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        out = F.relu(self.bn(out)).mean(dim=(2, 3))
        logits: Tensor = self.linear(out)
        return logits


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = PreActBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(PreActBlock(channels, channels) for _ in range(blocks - 1)))


def preact_resnet18(
    width: int = 64,
    in_channels: int = 3,
    num_classes: int = 10,
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
) -> PreActResNet:
    """Build the PreActResNet with two blocks in each stage, the network of the papers on fast adversarial training.

    Args:
        width: channels of the first stage; 64 in the papers.
        in_channels: channels of the images.
        num_classes: number of logits.
        normalization: ``(mean, std)`` in the units of the input, or ``None``; see :class:`PreActResNet`.

    Raises:
        ValueError: as :class:`PreActResNet`.
    """
    return PreActResNet((2, 2, 2, 2), width, in_channels, num_classes, normalization)
