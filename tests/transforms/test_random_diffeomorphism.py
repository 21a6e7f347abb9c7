from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from pl_robust.transforms import RandomDiffeomorphism
from tests.transforms.test_primitive import from_seed, images


def test_a_deformation_is_scipys_sampling() -> None:
    x, primitive = images(), RandomDiffeomorphism(10, 2.0)
    parameters = primitive.draw(x.shape, generator=from_seed())
    y = primitive.apply(x, parameters)
    rows, columns = np.meshgrid(np.arange(9), np.arange(12), indexing="ij")
    for image, (down, right), deformed in zip(x, parameters.displacement, y, strict=True):
        for channel in range(3):
            places = [(rows + down.numpy()).clip(0, 8), (columns + right.numpy()).clip(0, 11)]
            expected = ndimage.map_coordinates(image[channel].numpy(), places, order=1, mode="nearest")
            np.testing.assert_allclose(deformed[channel], expected, atol=1e-5)


def test_the_border_stays_where_it_is() -> None:
    field = RandomDiffeomorphism(100).draw(torch.Size([50, 3, 16, 24])).displacement
    assert field.shape == (50, 2, 16, 24)
    for edge in (field[:, :, 0], field[:, :, -1], field[:, :, :, 0], field[:, :, :, -1]):
        assert edge.abs().max() < 1e-4
    assert field.abs().max() > 0.1


@pytest.mark.parametrize(("height", "width", "max_cut"), [(6, 8, 5), (6, 8, 23), (5, 5, 40)])
def test_folded_frequencies_give_the_same_field_in_distribution(height: int, width: int, max_cut: int) -> None:
    """The covariance of every two pixels equals that of all frequencies up to the cut."""
    cut = torch.tensor([float(max_cut)])
    variance = RandomDiffeomorphism(max_cut)._variance(cut, height, width)[0].double()

    def sines(size: int, count: int) -> Tensor:
        pixels, frequencies = torch.arange(size, dtype=torch.float64), torch.arange(1, count + 1, dtype=torch.float64)
        return torch.sin(math.pi * pixels[:, None] / (size - 1) * frequencies)

    def covariance(spread: Tensor) -> Tensor:
        waves = torch.einsum("pi,qj->pqij", sines(height, spread.shape[0]), sines(width, spread.shape[1]))
        flat = waves.reshape(height * width, -1)
        return (flat * spread.flatten()) @ flat.T

    squares = torch.arange(1, max_cut + 1, dtype=torch.float64) ** 2
    radius = squares[:, None] + squares
    direct = torch.where(radius < (max_cut + 0.5) ** 2, 1 / radius, 0.0)
    torch.testing.assert_close(covariance(variance), covariance(direct), atol=1e-6, rtol=1e-5)


def test_the_energy_of_the_displacement_is_that_of_the_published_law() -> None:
    side, max_cut, count = 12, 9, 4000
    field = RandomDiffeomorphism(max_cut).draw(torch.Size([count, 1, side, side]), generator=from_seed()).displacement
    random = np.random.default_rng(0)
    top = random.integers(3, max_cut + 1, 20_000)
    cut = np.rint(2 + (top - 2) * random.beta(0.5, 0.5, 20_000))
    low = 1 / (np.pi * side**2 * np.log(cut))
    high = np.maximum(low, 4 / (np.pi**3 * cut**2 * np.log(cut)))
    temperature = low + (high - low) * random.beta(0.5, 0.5, 20_000)
    squares = np.arange(1, max_cut + 1) ** 2
    radius = squares[:, None] + squares
    waves = np.sin(np.pi * np.arange(side)[:, None] / (side - 1) * np.arange(1, max_cut + 1)) ** 2
    power = {c: (waves @ np.where(radius < (c + 0.5) ** 2, 1 / radius, 0) @ waves.T).mean() for c in set(cut)}
    expected = np.mean([side**2 * t * power[c] for t, c in zip(temperature, cut, strict=True)])
    assert field.square().mean().item() == pytest.approx(expected, rel=0.06)
