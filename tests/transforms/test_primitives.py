"""PRIME's primitives: what they draw follows the published distributions, what they do is what scipy does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, ndimage, stats
from torch import Tensor

from pl_robust.transforms import RandomDiffeomorphism, RandomFilter, RandomSmoothColor
from pl_robust.transforms.random_smooth_color import ColorParameters

PRIMITIVES: dict[str, Any] = {
    "filter": RandomFilter(),
    "color": RandomSmoothColor(20, 0.05),
    "banded": RandomSmoothColor(50, 0.05, band=5),
    "diffeomorphism": RandomDiffeomorphism(10),
}
IDENTITIES: dict[str, Any] = {
    "filter": RandomFilter(0.0),
    "color": RandomSmoothColor(20, 0.0),
    "diffeomorphism": RandomDiffeomorphism(10, 0.0),
}
SIZE = torch.Size([4000, 1, 8, 8])


def images(*shape: int) -> Tensor:
    return torch.rand(*(shape or (6, 3, 9, 12)), generator=torch.Generator().manual_seed(1))


def from_seed(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def is_distributed(sample: Tensor, cdf: Any) -> bool:
    return bool(stats.kstest(sample.numpy(), cdf).pvalue > 0.01)


@pytest.mark.parametrize("name", list(IDENTITIES))
def test_zero_strength_is_the_identity(name: str) -> None:
    x = images()
    torch.testing.assert_close(IDENTITIES[name](x), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", list(PRIMITIVES))
@pytest.mark.parametrize("shape", [(6, 3, 9, 12), (2, 1, 32, 32), (0, 3, 8, 8)])
def test_shape_and_range_are_kept_and_the_input_is_left_alone(name: str, shape: tuple[int, ...]) -> None:
    x = images(*shape)
    before = x.clone()
    y = PRIMITIVES[name](x)
    assert y.shape == x.shape
    assert torch.equal(x, before)
    assert ((y >= 0) & (y <= 1)).all()


@pytest.mark.parametrize("name", list(PRIMITIVES))
def test_equal_images_come_out_different_and_a_generator_repeats_them(name: str) -> None:
    x = images(1, 3, 9, 12).repeat(4, 1, 1, 1)
    y = PRIMITIVES[name](x, generator=from_seed())
    for one in range(4):
        for other in range(one):
            assert (y[one] - y[other]).abs().max() > 1e-3
    before = torch.get_rng_state()
    assert torch.equal(y, PRIMITIVES[name](x, generator=from_seed()))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", list(PRIMITIVES))
def test_an_image_does_not_see_the_others(name: str) -> None:
    x, primitive = images(), PRIMITIVES[name]
    parameters = primitive.draw(x.shape, generator=from_seed())
    whole = primitive.apply(x, parameters)
    rows = torch.tensor([4, 1])
    part = primitive.apply(x[rows], type(parameters)(*(tensor[rows] for tensor in parameters)))
    torch.testing.assert_close(part, whole[rows], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", list(PRIMITIVES))
def test_it_computes_in_float32_whatever_the_autocast(name: str) -> None:
    x, primitive = images(), PRIMITIVES[name]
    parameters = primitive.draw(x.shape, generator=from_seed())
    expected = primitive.apply(x, parameters)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(primitive.apply(x, parameters), expected)
    half = primitive.apply(x.bfloat16(), parameters)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, primitive.apply(x.bfloat16().float(), parameters).bfloat16())


@pytest.mark.parametrize("name", list(PRIMITIVES))
def test_what_is_no_batch_of_float_images_is_refused(name: str) -> None:
    with pytest.raises(
        TypeError, match=r"floating-point tensor in \[0, 1\], got torch.uint8; divide uint8 images by 255"
    ):
        PRIMITIVES[name](torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"batch \[B, C, H, W\], got shape \[3, 8, 8\]; a single one needs x\[None\]"):
        PRIMITIVES[name](torch.zeros(3, 8, 8))


def test_a_filter_is_scipys_correlation() -> None:
    x, primitive = images(), RandomFilter(1.0)
    parameters = primitive.draw(x.shape, generator=from_seed())
    y = primitive.apply(x, parameters)
    for image, kernel, filtered in zip(x, parameters.kernels, y, strict=True):
        for channel in range(3):
            expected = ndimage.correlate(image[channel].numpy(), kernel.numpy(), mode="constant")
            np.testing.assert_allclose(filtered[channel], expected.clip(0, 1), atol=1e-5)


def test_a_kernel_is_a_centred_delta_with_noise() -> None:
    """The released one has its delta in the corner, and shifts images by a pixel."""
    kernels = RandomFilter(4.0).draw(SIZE, generator=from_seed()).kernels
    assert torch.equal(RandomFilter(0.0).draw(SIZE).kernels[0], torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]))
    points = np.linspace(-20, 20, 401)
    density = [integrate.quad(lambda sigma, t=t: stats.norm.cdf(t / sigma) / 4, 1e-9, 4)[0] for t in points]
    for entry, centre in ((kernels[:, 1, 1], 1.0), (kernels[:, 0, 2], 0.0)):
        assert is_distributed(entry - centre, lambda t: np.interp(t, points, density))


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomFilter(-1), "`sigma` must be finite and at least 0, got -1"),
        (lambda: RandomFilter(1, kernel_size=2), "`kernel_size` must be a positive odd integer.*got 2"),
        (lambda: RandomSmoothColor(0), "`cut` must be at least 1, got 0"),
        (lambda: RandomSmoothColor(5, -1), "`max_strength` must be finite and at least 0, got -1"),
        (lambda: RandomSmoothColor(5, band=0), "`band` must be at least 1, got 0"),
        (lambda: RandomDiffeomorphism(2), "`max_cut` must be an integer of at least 3, got 2"),
        (lambda: RandomDiffeomorphism(5, -1), "`strength` must be finite and at least 0, got -1"),
        (lambda: RandomDiffeomorphism(5)(torch.zeros(1, 1, 2, 8)), "at least 3x3 to be deformed.*got 2x8"),
    ],
)
def test_errors_speak(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
