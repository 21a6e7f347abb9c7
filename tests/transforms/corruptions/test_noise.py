from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pl_robust.transforms._corruptions.noise import (
    _alias_tables,
    _draw_small,
    gaussian_noise,
    impulse_noise,
    shot_noise,
    speckle_noise,
)
from pl_robust.transforms._corruptions.tables import TABLES
from pl_robust.transforms._sample_random import SampleRandom

RATES = sorted({row[0] for rows in TABLES["shot_noise"].values() for row in rows})


def random(batch: int = 4, seed: int = 0) -> SampleRandom:
    return SampleRandom(torch.arange(batch) + 1000 * seed, 0)


def constant(value: float, batch: int = 4, side: int = 128) -> Tensor:
    return torch.full((batch, 3, side, side), value)


def test_gaussian_noise_is_normal_whatever_the_value() -> None:
    x = torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    noise = (gaussian_noise(x, random(), 0.08) - x).double()
    assert stats.kstest(noise.flatten().numpy(), stats.norm(0, 0.08).cdf).pvalue > 1e-3
    assert abs(torch.corrcoef(torch.stack((noise.flatten(), x.flatten().double())))[0, 1]) < 0.01


def test_speckle_noise_is_normal_in_proportion_to_the_value() -> None:
    assert torch.equal(speckle_noise(constant(0.0), random(), 0.3), constant(0.0))
    for value in (0.2, 1.0):
        noise = (speckle_noise(constant(value), random(), 0.3) / value - 1).double()
        assert stats.kstest(noise.flatten().numpy(), stats.norm(0, 0.3).cdf).pvalue > 1e-3


@pytest.mark.parametrize("amount", [0.01, 0.27])
def test_impulse_noise_is_salt_and_pepper_half_each_and_leaves_the_rest(amount: float) -> None:
    x = constant(0.4)
    y = impulse_noise(x, random(), amount)
    salt, pepper = int((y == 1).sum()), int((y == 0).sum())
    assert int((y == x).sum()) + salt + pepper == x.numel()
    assert stats.binomtest(salt + pepper, x.numel(), amount).pvalue > 1e-3
    assert stats.binomtest(salt, salt + pepper, 0.5).pvalue > 1e-3
    channels = (y != x).double().transpose(0, 1).flatten(1)
    assert (torch.corrcoef(channels) - torch.eye(3)).abs().max() < 0.02  # each value on its own


@pytest.mark.parametrize("rate", RATES)
def test_the_tables_of_shot_noise_hold_poissons_law_at_every_level(rate: float) -> None:
    thresholds, numbers, bits = _alias_tables(rate, torch.device("cpu"))
    cells, full = 1 << bits, 1 << (24 - bits)
    law = torch.zeros(256, 1000, dtype=torch.long)
    number = numbers.long().view(256, cells, 2)
    threshold = thresholds.long().view(256, cells)
    law.scatter_add_(1, number[..., 0], threshold).scatter_add_(1, number[..., 1], full - threshold)
    truth = stats.poisson.pmf(np.arange(1000), np.arange(256)[:, None] * rate / 255)
    assert (law.sum(1) == 2**24).all()
    assert np.abs(law.numpy() - truth * 2**24).max() < 1.5  # two roundings


# On a level of 1/255 and between two; the last's table has as many cells as any.
@pytest.mark.parametrize(
    ("value", "rate"), [(51 / 255, 12), (0.3, 60), (0.5019, 3), (1.0, 500), (0.999, 500), (0.002, 500)]
)
def test_shot_noise_is_poisson_for_any_value(value: float, rate: float) -> None:
    counts = (shot_noise(constant(value), random(), rate).double() * rate).flatten().numpy()
    numbers = counts.round()
    assert np.abs(counts - numbers).max() < 1e-3
    law = stats.poisson(value * rate)
    low, high = int(law.ppf(1e-3)), int(law.ppf(1 - 1e-3))
    expected = np.append(law.pmf(np.arange(low + 1, high)), law.sf(high - 1))
    expected = np.insert(expected, 0, law.cdf(low)) * numbers.size
    observed = np.bincount(np.clip(numbers, low, high).astype(int) - low, minlength=len(expected))
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_small_poisson_numbers_have_their_law_and_are_0_without_a_rate() -> None:
    uniform = (torch.arange(2**20) + 0.5) / 2**20
    for largest in (500 / 255, 3 / 255):
        for rate in (largest, largest / 7):
            numbers = _draw_small(torch.full_like(uniform, rate), uniform, largest).long()
            law = torch.bincount(numbers, minlength=20) / 2**20
            assert np.abs(law.numpy() - stats.poisson.pmf(np.arange(len(law)), rate)).max() < 3e-6
    assert _draw_small(torch.zeros(4), torch.tensor([0.0, 0.5, 1 - 2**-24, 0.9]), 2.0).tolist() == [0.0] * 4


def test_levels_as_float32_has_them_have_no_rest() -> None:
    # Else every stored image would draw twice.
    levels = torch.arange(256.0).view(1, 1, 16, 16) / 255
    asked = random(1)
    shot_noise(levels, asked, 60)
    assert asked._draws == 1
    shot_noise(levels * 0.999, asked, 60)
    assert asked._draws == 3
