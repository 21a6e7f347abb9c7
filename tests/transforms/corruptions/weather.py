"""What the tests of fog, frost, snow and spatter share: the oracle fed with our own random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from pl_robust.transforms._corruptions.tables import TABLES, TableName
from pl_robust.transforms._sample_random import SampleRandom
from tests.transforms.corruptions.oracle import Uint8, _package, photos

STREAM = 7


class Scripted:
    """Stands in for numpy's random functions in the oracle, and hands out given numbers in order.

    Args:
        monkeypatch: puts the oracle's own functions back.
        uniform: numbers in [0, 1), for ``uniform`` and, scaled, for ``randint``.
        normal: numbers of mean 0 and standard deviation 1.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, uniform: Tensor, normal: Tensor | None = None) -> None:
        self._uniform = uniform.flatten().numpy()
        self._normal = None if normal is None else normal.double().numpy()
        monkeypatch.setattr(_package()[0], "random", self)

    def seed(self, seed: int) -> None:
        pass

    def uniform(self, low: float, high: float, size: tuple[int, ...] = ()) -> npt.NDArray[np.float64]:
        count = int(np.prod(size))
        taken, self._uniform = self._uniform[:count], self._uniform[count:]
        return low + (high - low) * taken.astype(np.float64).reshape(size)

    def randint(self, low: int, high: int | None = None) -> int:
        low, high = (0, low) if high is None else (low, high)
        return int(self.uniform(low, high))

    def normal(self, size: tuple[int, ...], loc: float, scale: float) -> npt.NDArray[np.float64]:
        assert self._normal is not None
        assert self._normal.shape == size
        return loc + scale * self._normal


def cut(kind: str, number: int = 0) -> Uint8:
    """Give a photo in one of three kinds: "square", "wide" (just above a power of two) or "gray"."""
    image = photos(360)[number][:180, :] if kind == "wide" else photos(180)[number]
    return image[..., 1] if kind == "gray" else image


def batch_of(image: Uint8) -> Tensor:
    """Make a batch of one image, uint8 [H, W, 3] or [H, W]: float32 [1, C, H, W]."""
    return torch.tensor(image.reshape(*image.shape[:2], -1)).permute(2, 0, 1)[None].float() / 255


def levels_above(y: Tensor, truth: Uint8) -> npt.NDArray[np.float64]:
    """Tell by how many levels of 1/255 an image exceeds the oracle's, which truncates: between 0 and 1 if equal."""
    levels = (y[0].clamp(0, 1).double() * 255).permute(1, 2, 0).numpy()
    difference: npt.NDArray[np.float64] = levels.reshape(truth.shape) - truth
    return difference


def assert_image_counts_alone(name: str, effect: Callable[..., Tensor], table: TableName, channels: int) -> None:
    """An image has the same bits alone, in another order and on two threads, and other ones with another seed."""
    x = torch.rand(7, channels, 37, 61)
    seeds = torch.tensor([3, -1, 2**40, 3, 12, 5, 8])

    def run(rows: slice | list[int], constants: tuple[Any, ...]) -> Tensor:
        return effect(x[rows], SampleRandom(seeds[rows], STREAM), *constants)

    for constants in TABLES[name][table]:
        whole = run(slice(None), constants)
        before = x.clone()
        assert whole.shape == x.shape
        assert whole.isfinite().all()
        for row in range(7):
            assert torch.equal(run(slice(row, row + 1), constants)[0], whole[row])
        order = [6, 2, 3, 0]
        assert torch.equal(run(order, constants), whole[order])
        torch.set_num_threads(2)
        try:
            assert torch.equal(run(slice(None), constants), whole)
        finally:
            torch.set_num_threads(1)
        assert torch.equal(x, before)
    same = x[:1].expand(2, -1, -1, -1).contiguous()
    one, two = effect(same, SampleRandom(torch.tensor([1, 2]), STREAM), *TABLES[name][table][-1])
    assert not torch.equal(one, two)
