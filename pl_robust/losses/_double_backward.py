"""What losses need that differentiate a derivative once more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Run forwards so that they have a second derivative.

    Attention by its formula, because the fused kernels have none; and compiled nets eagerly, because what AOT autograd
    makes of them has none.
    """
    stance: Any = getattr(torch.compiler, "set_stance", None)  # torch 2.6 and later
    with _formula_of_attention(), stance("force_eager") if stance is not None else nullcontext():
        yield


def _formula_of_attention() -> AbstractContextManager[None]:
    attention: Any = getattr(torch.nn, "attention", None)
    if not hasattr(attention, "sdpa_kernel"):  # torch 2.3 and later
        return nullcontext()
    formula: AbstractContextManager[None] = attention.sdpa_kernel(attention.SDPBackend.MATH)
    return formula
