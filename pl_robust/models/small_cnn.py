"""A convolutional network for images of 8x8 to 28x28 pixels that trains on a CPU in seconds."""

from __future__ import annotations

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Four 3x3 convolutions with batch norm and ReLU, then a linear layer on a 2x2 grid.

    Channels are (w, 2w, 2w, 4w) for width w; the second and the fourth convolution have stride 2. An 8x8 image arrives
    at 2x2 by itself; larger ones are averaged down to 2x2. With width 16 to 24 this network shows catastrophic
    overfitting on scikit-learn's 8x8 digits, as PreActResNet18 does on CIFAR-10.

    Args:
        width: channels of the first convolution.
        in_channels: channels of the images.
        num_classes: number of logits.

    Raises:
        ValueError: if a number is not positive; on calling, if the images have another number of channels or are
            smaller than 8x8.
    """

    def __init__(self, width: int = 16, in_channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        for name, value in (("width", width), ("in_channels", in_channels), ("num_classes", num_classes)):
            if value < 1:
                raise ValueError(f"`{name}` must be a positive integer, got {value!r}")
        self.in_channels = in_channels
        self.features = nn.Sequential(
            *_conv(in_channels, width, stride=1),
            *_conv(width, 2 * width, stride=2),
            *_conv(2 * width, 2 * width, stride=1),
            *_conv(2 * width, 4 * width, stride=2),
        )
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.linear = nn.Linear(16 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, float [B, in_channels, H, W] with H, W >= 8, to logits [B, num_classes]."""
        if x.ndim != 4 or x.shape[1] != self.in_channels or min(x.shape[2:]) < 8:
            raise ValueError(
                f"SmallCNN takes images [B, {self.in_channels}, H, W] with H and W at least 8, got {list(x.shape)}; "
                "`in_channels` sets the number of channels"
            )
        logits: Tensor = self.linear(self.pool(self.features(x)).flatten(1))
        return logits


def _conv(in_channels: int, channels: int, stride: int) -> tuple[nn.Module, ...]:
    # No bias: the batch norm behind it would subtract it again.
    return (
        nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )
