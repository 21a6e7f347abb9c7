"""Autograd wherever one is called, in all versions of torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def autograd_on() -> Iterator[None]:
    """Switch autograd on, also inside ``no_grad``, inference mode and autocast there."""
    if torch.is_inference_mode_enabled():
        # Autocast keeps the weights that it has cast. Torch 2.4 finds those of inference mode here again, and autograd
        # refuses them.
        torch.clear_autocast_cache()
    with torch.inference_mode(False), torch.enable_grad():
        yield
