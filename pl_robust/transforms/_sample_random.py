"""Random numbers by counter: what an image draws depends on its own seed, not on its place in a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from functools import lru_cache

import torch
from torch import Tensor

# "triple32", the least biased of the integer hashes that a search found (Wellons, github.com/skeeto/hash-prospector).
_MULTIPLIERS = (0xED5AD4BB, 0xAC4C1B51, 0x31848BAB)
_SHIFTS = (17, 11, 15, 14)
_KEPT = 2**19  # hashed counters


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
        self._keys: list[Tensor] = []  # one, once it is needed: half of the corruptions draw nothing
        self._rows = slice(None)
        self._draws = 0
        self._drawn: list[Tensor] = []  # the keys of each draw

    @property
    def device(self) -> torch.device:
        """Where the numbers are drawn."""
        return self._seeds.device

    def split(self, rows: int) -> Iterator[SampleRandom]:
        """Cut a new one into parts of so many rows, each of which draws as the whole would."""
        for start in range(0, max(1, len(self._seeds)), rows):  # no row is one part, as of tensors
            part = copy(self)  # what is made of the seeds is made once for all parts, in lists
            part._rows = slice(start, start + rows)
            yield part

    def uniform(self, *shape: int) -> Tensor:
        """Draw from [0, 1): float32 [B, *shape], multiples of 2**-24."""
        numbers = self._words(math.prod(shape)).bitwise_right_shift_(8).float()
        return torch.add(self._half(), numbers, alpha=2.0**-24, out=numbers).view(-1, *shape)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Draw from low, ..., high - 1: int64 [B, *shape]; ranges far below 2**24 are uniform."""
        return (self.uniform(*shape) * (high - low)).long().clamp_(max=high - low - 1) + low

    def normal(self, *shape: int) -> Tensor:
        """Draw from the normal distribution: float32 [B, *shape], by Box and Muller's transform of uniform pairs."""
        size = math.prod(shape)
        half = (size + 1) // 2
        both = self._words(2 * half).float().view(-1, 2, half)
        first, second = both.unbind(1)
        # Of a number up to 1 and above 0, which is why the factor is a little below 2**-32.
        radius = torch.add(self._half(), first, alpha=2.0**-32 - 2.0**-55).log_().mul_(-2).sqrt_()
        torch.cos(second.mul_(2 * math.pi / 2**32), out=first)
        second.sin_()
        return both.mul_(radius[:, None]).flatten(1)[:, :size].reshape(-1, *shape)

    def _half(self) -> Tensor:
        return torch.full((), 0.5, dtype=torch.float32, device=self.device)

    def _key(self) -> Tensor:
        """Make two words for each row, int32 [2, B], with every bit of both seed words and the stream in each."""
        if not self._keys:
            low, high = (_wrap(word) for word in (self._seeds & 0xFFFFFFFF, (self._seeds >> 32) & 0xFFFFFFFF))
            keys = _hash_(torch.stack([low ^ _signed(0x9E3779B9 * word) for word in (1, 2)]))
            keys = _hash_(keys.bitwise_xor_(high)).add_(_signed(0x85EBCA6B * (self._stream + 1)))
            self._keys.append(_hash_(keys))
        return self._keys[0]

    def _words(self, size: int) -> Tensor:
        """Draw 32 random bits for each row and counter: int32 [B, size].

        Each counter is hashed, once for all rows. For a row a lighter mixing by two keys of its own follows: one turns
        bits, one multiplies in the first of three rounds, and the first turns bits again, without which one pair of
        rows in a million shares some.
        """
        if self._draws == len(self._drawn):
            self._drawn.append(_hash_(self._key() + _signed(0xC2B2AE35 * (self._draws + 1))))
        first, second = self._drawn[self._draws][:, self._rows, None].unbind()
        self._draws += 1
        words = torch.bitwise_xor(_counters(size, self.device), first)
        part = torch.bitwise_right_shift(words, 15)
        torch.addcmul(part, words, second | 1, out=words).bitwise_xor_(first)
        for bits, multiplier in ((15, _MULTIPLIERS[2]), (13, _MULTIPLIERS[0])):
            torch.bitwise_right_shift(words, bits, out=part)
            torch.add(part, words, alpha=_signed(multiplier), out=words)
        return words


def _counters(size: int, device: torch.device) -> Tensor:
    """Hash the numbers 0 to size - 1: int32 [size]."""
    if size > _KEPT:
        return _hash_(torch.arange(size, dtype=torch.int32, device=device))
    return _kept_counters(device)[:size]


@lru_cache(maxsize=4)
def _kept_counters(device: torch.device) -> Tensor:
    """Keep as many as most images need, a few megabytes."""
    with torch.inference_mode(False):
        return _hash_(torch.arange(_KEPT, dtype=torch.int32, device=device))


def _hash_(x: Tensor) -> Tensor:
    """Mix the bits of int32 words in place."""
    part = torch.empty_like(x)
    for step, bits in enumerate(_SHIFTS):
        # Shifted right as if the words had no sign.
        torch.bitwise_right_shift(x, bits, out=part)
        x ^= part.bitwise_and_((1 << (32 - bits)) - 1)
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
