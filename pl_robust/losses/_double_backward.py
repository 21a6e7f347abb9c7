"""What losses need that differentiate a derivative once more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Run forwards so that they have a second derivative.

    Attention by its formula, because the fused kernels have none; and compiled nets eagerly, because what AOT autograd
    makes of them has none.
    """
    stance: Any = getattr(torch.compiler, "set_stance", None)  # torch 2.6 and later
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if stance is not None:
            with suppress(RuntimeError):  # in a module that is compiled as a whole it cannot be changed
                stack.enter_context(stance("force_eager"))
        yield
