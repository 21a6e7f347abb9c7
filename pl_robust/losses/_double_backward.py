"""What losses need that differentiate a derivative once more."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def twice_differentiable() -> AbstractContextManager[None]:
    """Attention by its formula: the fused kernels have no second derivative."""
    attention: Any = getattr(torch.nn, "attention", None)
    if not hasattr(attention, "sdpa_kernel"):  # torch 2.3 and later
        return nullcontext()
    formula: AbstractContextManager[None] = attention.sdpa_kernel(attention.SDPBackend.MATH)
    return formula
