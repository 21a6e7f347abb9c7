"""Three different networks to attack."""

from __future__ import annotations

from collections.abc import Callable

import torchvision
from torch import nn


def _resnet() -> nn.Module:
    model: nn.Module = torchvision.models.resnet18(num_classes=10)
    return model


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 100), nn.ReLU(), nn.Linear(100, 10))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.GELU(), nn.Conv2d(16, 32, 3, 2), nn.GELU(), nn.Flatten(), nn.Linear(32 * 49, 10)
    )


ZOO: dict[str, Callable[[], nn.Module]] = {"resnet18": _resnet, "mlp": _mlp, "cnn": _cnn}
