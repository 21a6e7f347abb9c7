"""Random numbers by counter: what an image draws depends on its own seed, not on its place in a batch."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

# "triple32", the least biased of the integer hashes that a search found (Wellons, github.com/skeeto/hash-prospector).
_MULTIPLIERS = (0xED5AD4BB, 0xAC4C1B51, 0x31848BAB)
_SHIFTS = (17, 11, 15, 14)


class SampleRandom:
    """Random numbers for a batch, row by row: row i is a function of ``seeds[i]``, the stream and the draw's number.

    So an image gets the same numbers whatever the other images are, on every rank; integers and uniform numbers are
    the same bits on every device, normal ones equal to rounding. Everything happens on the seeds' device.

    Args:
        seeds: int64 [B], any values.
        stream: sets the numbers of different purposes apart that use the same seeds.
    """

    def __init__(self, seeds: Tensor, stream: int) -> None:
        self._seeds = seeds
        self._stream = stream
        self._draws = 0

    @property
    def device(self) -> torch.device:
        """Where the numbers are drawn."""
        return self._seeds.device

    @cached_property
    def _keys(self) -> Tensor:
        """Make two words of key for each row, every bit of both seed words and the stream in each: int32 [2, B]."""
        low, high = (_wrap(word) for word in (self._seeds & 0xFFFFFFFF, (self._seeds >> 32) & 0xFFFFFFFF))
        keys = _hash_(torch.stack([low ^ _signed(0x9E3779B9 * word) for word in (1, 2)]))
        return _hash_(_hash_(keys.bitwise_xor_(high)).add_(_signed(0x85EBCA6B * (self._stream + 1))))

    def _words(self, size: int) -> Tensor:
        """Draw 32 random bits for each row and counter: int32 [B, size]."""
        self._draws += 1
        first, second = _hash_(self._keys + _signed(0xC2B2AE35 * self._draws))[..., None]
        counter = torch.arange(size, dtype=torch.int32, device=self.device)
        # The second word enters between the rounds: with one alone two rows would be shifted copies of each other.
        return _hash_(counter ^ first, second)

    def uniform(self, *shape: int) -> Tensor:
        """Draw from [0, 1): float32 [B, *shape], multiples of 2**-24."""
        words = self._words(math.prod(shape))
        return words.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF).float().mul_(2.0**-24).view(-1, *shape)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Draw from low, ..., high - 1: int64 [B, *shape]; ranges far below 2**24 are uniform."""
        return (self.uniform(*shape) * (high - low)).long().clamp_(max=high - low - 1) + low

    def normal(self, *shape: int) -> Tensor:
        """Draw from the normal distribution: float32 [B, *shape], by Box and Muller's transform of uniform pairs."""
        size = math.prod(shape)
        radius, angle = self.uniform(2, (size + 1) // 2).unbind(1)
        radius = radius.neg().log1p_().mul_(-2).sqrt_()
        angle = angle * (2 * math.pi)
        both = torch.stack((angle.cos(), angle.sin_()), 1).mul_(radius[:, None])
        return both.flatten(1)[:, :size].reshape(-1, *shape)


def _hash_(x: Tensor, key: Tensor | int = 0) -> Tensor:
    """Mix the bits of int32 words in place, a second key between the rounds."""
    part = torch.empty_like(x)
    for step, bits in enumerate(_SHIFTS):
        # Shifted right as if the words had no sign.
        torch.bitwise_right_shift(x, bits, out=part)
        x ^= part.bitwise_and_((1 << (32 - bits)) - 1)
        if step == 1:
            x += key
        if step < len(_MULTIPLIERS):
            x *= _signed(_MULTIPLIERS[step])
    return x


def _signed(word: int) -> int:
    """Give the int32 of the same low 32 bits."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >> 31 else word


def _wrap(words: Tensor) -> Tensor:
    """Give the int32 of the same low 32 bits, for int64 words in 0 to 2**32 - 1."""
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()
