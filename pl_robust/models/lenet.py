"""LeNet in the form that the papers on linearized networks and neural anisotropy directions train."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pl_robust._number import check_count
from pl_robust.models._initialization import lecun_normal_

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


class LeNet(nn.Module):
    """Two 5x5 convolutions (6 and 16 channels), each averaged down by 2, then linear layers to 120, 84 and the logits.

    The architecture is that of Ortiz-Jimenez, Moosavi-Dezfooli, Frossard, "What can linearized neural networks actually
    say about generalization?" (NeurIPS 2021, https://arxiv.org/abs/2106.06770): convolutions that keep the size,
    average pools, ReLU, or GELU where its neural anisotropy directions are taken. It has 135,821 parameters for one
    channel of 32x32 and one logit. Weights start as theirs do in flax: normal, truncated at two standard deviations,
    with variance 1 / fan_in, and no biases. It matters: with PyTorch's own, a third of the variance, their recipe of
    three epochs learns none of the directions.

    Args:
        in_channels: channels of the images.
        num_classes: number of logits.
        image_size: height and width of the images, at least 4: the first linear layer needs to know it.
        activation: ``"relu"`` or ``"gelu"``.

    Raises:
        TypeError: if a number is no integer.
        ValueError: if a number is too small or ``activation`` is not among those; on calling, if the images have
            another shape.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        image_size: int = 32,
        activation: Literal["relu", "gelu"] = "relu",
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("num_classes", num_classes), ("image_size", image_size)):
            check_count(value, name)
        if image_size < 4:
            raise ValueError(f"`image_size` must be at least 4, because it is halved twice, got {image_size}")
        if activation not in _ACTIVATIONS:
            raise ValueError(f"`activation` must be one of {tuple(_ACTIVATIONS)}, got {activation!r}")
        self.in_channels = in_channels
        self.image_size = image_size
        self.conv1 = nn.Conv2d(in_channels, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5, padding=2)
        self.fc1 = nn.Linear(16 * (image_size // 4) ** 2, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)
        self.activation = _ACTIVATIONS[activation]()
        self.pool = nn.AvgPool2d(2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, from torch's global generator."""
        lecun_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, float [B, in_channels, image_size, image_size], to logits [B, num_classes]."""
        expected = [self.in_channels, self.image_size, self.image_size]
        if x.ndim != 4 or list(x.shape[1:]) != expected:
            raise ValueError(
                f"this LeNet takes images [B, {', '.join(map(str, expected))}], got {list(x.shape)}; "
                "`in_channels` and `image_size` set what it takes"
            )
        out = self.pool(self.activation(self.conv1(x)))
        out = self.pool(self.activation(self.conv2(out)))
        out = self.activation(self.fc1(out.flatten(1)))
        logits: Tensor = self.fc3(self.activation(self.fc2(out)))
        return logits
