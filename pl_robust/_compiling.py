"""Whether torch.compile is reading the code that asks, in all versions of torch."""

from __future__ import annotations

from collections.abc import Callable

import torch

is_compiling: Callable[[], bool] = getattr(torch.compiler, "is_compiling", bool)  # torch 2.2 cannot tell
"""Tell whether the call is being compiled. Never where torch cannot tell: what asks may not compile there."""
