"""A teacher that keeps a record, a student with batch-norm, an attack written out, and KL in plain NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_robust.losses import Progress
from tests.losses.test_gradient_alignment import batch, smooth_net

FIRST = Progress(epoch=0, epochs=10)
Array = np.ndarray[Any, np.dtype[np.float64]]


class Asked:
    """A teacher, in float64, that keeps what it was asked: inputs, temperature and whether they were clean."""

    def __init__(self, net: nn.Module | None = None) -> None:
        torch.manual_seed(7)
        self.net = net if net is not None else nn.Sequential(nn.Flatten(), nn.Linear(32, 5)).double()
        self.questions: list[tuple[Tensor, float, bool]] = []

    def __call__(self, inputs: Tensor, temperature: float = 1.0, *, clean: bool) -> Tensor:
        self.questions.append((inputs, temperature, clean))
        with torch.no_grad():
            return F.log_softmax(self.net(inputs) / temperature, dim=1)

    @property
    def asked(self) -> list[tuple[float, bool]]:
        return [(temperature, clean) for _, temperature, clean in self.questions]


def nobody(inputs: Tensor, temperature: float = 1.0, *, clean: bool) -> Tensor:
    """A teacher that must not be asked."""
    raise AssertionError("the teacher was asked")


def norm_net() -> tuple[nn.Module, nn.BatchNorm2d, list[tuple[bool, bool]]]:
    """A student with batch-norm, that layer, and a list of (is it training, is grad on) of its forwards."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.Softplus(), nn.Flatten(), nn.Linear(16, 5)).double()
    forwards: list[tuple[bool, bool]] = []
    norm.register_forward_hook(lambda layer, args, out: forwards.append((layer.training, torch.is_grad_enabled())))
    return net, norm, forwards


def ascend(net: nn.Module, x: Tensor, objective: Callable[[Tensor], Tensor], *, eps: float, steps: int) -> Tensor:
    """PGD written out: uniform start from the global generator, steps of 2.5 eps / steps."""
    x_adv = (x + torch.empty_like(x).uniform_(-1, 1) * eps).clamp(0, 1)
    for _ in range(steps):
        leaf = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(net(leaf)), leaf)
        x_adv = (x + (leaf + 2.5 * eps / steps * gradient.sign() - x).clamp(-eps, eps)).clamp(0, 1).detach()
    return x_adv


def some_logits(*, count: int = 4, requires_grad: bool = True) -> list[Tensor]:
    """Logits [6, 5] in float64, no two alike."""
    generator = torch.Generator().manual_seed(11)
    return [
        torch.randn(6, 5, dtype=torch.float64, generator=generator).mul(3).requires_grad_(requires_grad)
        for _ in range(count)
    ]


def softmax(logits: Tensor, temperature: float = 1.0) -> Array:
    exponentials = np.exp(logits.detach().numpy() / temperature)
    quotient: Array = exponentials / exponentials.sum(1, keepdims=True)
    return quotient


def kl(p: Array, q: Array) -> Array:
    """KL(p || q) of each row."""
    divergence: Array = (p * np.log(p / q)).sum(1)
    return divergence


__all__ = ("FIRST", "Array", "Asked", "ascend", "batch", "kl", "nobody", "norm_net", "smooth_net", "softmax")
