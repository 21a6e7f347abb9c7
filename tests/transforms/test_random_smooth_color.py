from __future__ import annotations

import math

import numpy as np
import torch
from scipy import integrate, stats

from pl_robust.transforms import RandomSmoothColor
from pl_robust.transforms.random_smooth_color import ColorParameters
from tests.transforms.test_primitive import SIZE, from_seed, images, is_distributed


def test_colours_follow_the_sum_of_sines() -> None:
    x, primitive = images(), RandomSmoothColor(100, 0.01)
    coefficients = primitive.draw(x.shape, generator=from_seed()).coefficients
    k = torch.arange(1, 101, dtype=torch.float64)
    waves = torch.sin(math.pi * x.double()[..., None] * k)
    expected = (x + (waves * coefficients.double()[:, :, None, None]).sum(-1)).clamp(0, 1)
    torch.testing.assert_close(primitive.apply(x, ColorParameters(coefficients)).double(), expected, atol=1e-4, rtol=0)


def test_the_ends_of_the_colours_stay() -> None:
    x = torch.tensor([0.0, 1.0]).expand(5, 3, 4, 2)
    torch.testing.assert_close(RandomSmoothColor(50, 0.05)(x), x, atol=1e-5, rtol=0)


def test_strength_and_frequencies_of_colours() -> None:
    coefficients = RandomSmoothColor(10, 0.05).draw(SIZE, generator=from_seed()).coefficients[:, 0]
    highest = (coefficients != 0).sum(1)
    assert stats.chisquare(torch.bincount(highest, minlength=11)[1:].numpy()).pvalue > 0.01
    assert ((coefficients != 0).long().cumprod(1).sum(1) == highest).all()  # they begin at 1
    points = np.linspace(-1, 1, 401)
    density = [integrate.quad(lambda t, b=b: stats.norm.cdf(b / math.sqrt(t)) / 0.05, 1e-9, 0.05)[0] for b in points]
    assert is_distributed(coefficients[:, 0], lambda b: np.interp(b, points, density))


def test_a_band_begins_anywhere_below_the_highest_frequency() -> None:
    coefficients = RandomSmoothColor(12, 0.05, band=4).draw(SIZE, generator=from_seed()).coefficients[:, 0]
    takes_part = coefficients != 0
    first, count = takes_part.long().argmax(1) + 1, takes_part.sum(1)
    assert count.max() == 4
    # P(first = s) = sum over K >= s of 1 / (12 K)
    expected = torch.tensor([sum(1 / (12 * top) for top in range(start, 13)) for start in range(1, 13)])
    observed = torch.bincount(first, minlength=13)[1:].double()
    assert (
        stats.chisquare(observed.numpy(), (expected.double() / expected.double().sum() * len(first)).numpy()).pvalue
        > 0.01
    )
