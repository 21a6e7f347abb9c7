"""Random numbers by counter: what an image draws depends on its own seed, not on its place in a batch."""

from __future__ import annotations

import math

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
        low, high = seeds & 0xFFFFFFFF, (seeds >> 32) & 0xFFFFFFFF
        # Two words of key for each row, every bit of both seed words and the stream in each.
        self._keys = []
        for word in (1, 2):
            key = _hash(_wrap(low) ^ _signed(0x9E3779B9 * word))
            key = _hash(key ^ _wrap(high))
            self._keys.append(_hash(key + _signed(0x85EBCA6B * (stream + 1))))
        self._draws = 0

    @property
    def device(self) -> torch.device:
        """Where the numbers are drawn."""
        return self._keys[0].device

    def _words(self, size: int) -> Tensor:
        """Draw 32 random bits for each row and counter: int32 [B, size]."""
        self._draws += 1
        salt = _signed(0xC2B2AE35 * self._draws)
        first, second = (_hash(key + salt)[:, None] for key in self._keys)
        counter = torch.arange(size, dtype=torch.int32, device=self.device)
        # The second word enters between the rounds: with one alone two rows would be shifted copies of each other.
        return _hash(counter ^ first, second)

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
        pairs = self.uniform(2, (size + 1) // 2)
        radius = pairs[:, 0].neg().log1p_().mul_(-2).sqrt_()
        angle = pairs[:, 1] * (2 * math.pi)
        both = torch.cat((radius * angle.cos(), radius * angle.sin()), 1)
        return both[:, :size].reshape(-1, *shape)


def _hash(x: Tensor, key: Tensor | int = 0) -> Tensor:
    """Mix the bits of int32 words, a second key between the rounds."""
    x = x ^ _shift(x, _SHIFTS[0])
    x *= _signed(_MULTIPLIERS[0])
    x ^= _shift(x, _SHIFTS[1])
    x += key
    x *= _signed(_MULTIPLIERS[1])
    x ^= _shift(x, _SHIFTS[2])
    x *= _signed(_MULTIPLIERS[2])
    x ^= _shift(x, _SHIFTS[3])
    return x


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift int32 words right as if they had no sign."""
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def _signed(word: int) -> int:
    """Give the int32 of the same low 32 bits."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >> 31 else word


def _wrap(words: Tensor) -> Tensor:
    """Give the int32 of the same low 32 bits, for int64 words in 0 to 2**32 - 1."""
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()
