"""A model as foreign attacks may have it: gradients end at the images, and randomness comes from one seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class InputGradientModel(nn.Module):
    """What torchattacks takes for the model: [n, C, H, W] in [0, 1] -> logits [n, K], with gradients to images only.

    It switches the modes of this module, which has no parts, and finds its device on a parameter, which has no entries.
    """

    def __init__(self, give_logits: Callable[[Tensor], Tensor], device: torch.device) -> None:
        super().__init__()
        self.give_logits = give_logits
        self.place = nn.Parameter(torch.empty(0, device=device), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            logits: Tensor = _InputGradient.apply(images, self.give_logits)
            return logits
        with torch.no_grad():
            return self.give_logits(images)


class _InputGradient(torch.autograd.Function):
    """Logits whose backward pass ends at the images.

    Half of torchattacks calls ``backward()``, which would compute and add up the gradients of the weights, too, and set
    off DDP's hooks. This holds for every model and leaves ``requires_grad`` alone.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, give_logits: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            logits = give_logits(images)
        if not logits.requires_grad:
            raise ValueError(
                "the model's output does not depend on its input through autograd: a gradient attack cannot work on a "
                "model that detaches, rounds or runs under no_grad inside; Square can"
            )
        ctx.save_for_backward(images, logits)
        return logits.detach().clone()  # theirs to write into

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        images, logits = ctx.saved_tensors
        # Kept, because some go back more than once; it is freed with the graph that this function is part of.
        (gradient,) = torch.autograd.grad(logits, images, gradient, retain_graph=True)
        return gradient, None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch on all devices, as torchattacks itself does inside; put all back afterwards."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002  # the legacy generator is the one that torchattacks draws from
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=devices):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
