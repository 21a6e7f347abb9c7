"""Streams of random numbers of their own, for each purpose."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def seeded(seed: int, purpose: str, *more: int) -> torch.Generator:
    """Make the generator of one purpose; those of others, and of other seeds, have nothing in common with it.

    Args:
        seed: of the user.
        purpose: what is drawn.
        more: what else sets it apart, such as the number of an epoch.
    """
    words = (seed, zlib.crc32(purpose.encode()), *more)
    return torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]))
