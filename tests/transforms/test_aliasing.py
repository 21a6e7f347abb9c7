from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pl_robust.transforms import Spectrum, find_aliases, fold_frequencies, leaked_components, spectrum


def waves(frequencies: Tensor, rates: Tensor) -> Tensor:
    """exp(2πi f·x) at 12 points along each axis of a grid of the rates, complex [n, points]."""
    axes = [torch.arange(12, dtype=torch.float64) / rate for rate in rates]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    phases = frequencies @ points.T
    return torch.exp(2j * math.pi * phases)


def same_waves(first: Tensor, second: Tensor) -> bool:
    """Whether two frequencies are one on the grid: equal up to the sign of the phase."""
    return bool(torch.allclose(first, second, atol=1e-8) or torch.allclose(first, second.conj(), atol=1e-8))


# folding


def test_the_tone_of_the_paper() -> None:
    """23 cycles, seen at every second of 256 points, are 105 = 128 - 23 as well."""
    assert fold_frequencies([105], 128).tolist() == [23]
    assert fold_frequencies([105], 256).tolist() == [105]
    assert [group.tolist() for group in find_aliases([0, 23, 40, 105], 128)] == [[23, 105]]
    assert find_aliases([0, 23, 40, 105], 256) == []


@pytest.mark.parametrize("rates", [(8.0,), (2.5,), (8.0, 6.0), (7.0, 1.5), (4.0, 4.0, 3.0)])
def test_folded_frequencies_are_the_same_on_the_grid(rates: tuple[float, ...]) -> None:
    rate = torch.tensor(rates, dtype=torch.float64)
    given = torch.cat([20 * torch.randn(40, len(rates), dtype=torch.float64), rate / 2 * torch.randint(-6, 7, (20, 1))])
    folded = fold_frequencies(given, rates)
    assert folded.shape == given.shape
    assert (folded.abs() <= rate / 2 * (1 + 1e-9)).all()
    for one, other in zip(waves(given, rate), waves(folded, rate), strict=True):
        assert same_waves(one, other)
    torch.testing.assert_close(fold_frequencies(folded, rates), folded)
    torch.testing.assert_close(fold_frequencies(-given, rates), folded)
    torch.testing.assert_close(fold_frequencies(given + 3 * rate, rates), folded)


def test_half_the_rate_has_no_sign() -> None:
    rows = torch.tensor([[4.0, 1.0], [-4.0, 1.0], [4.0, -1.0], [12.0, 1.0], [0.0, -4.0], [4.0, 4.0], [-4.0, 4.0]])
    folded = fold_frequencies(rows, 8.0)
    assert folded.tolist() == [[4, 1]] * 4 + [[0, 4]] + [[4, 4]] * 2


def test_shapes_and_kinds() -> None:
    assert fold_frequencies([23.0, 105.0], [128.0]).shape == (2,)
    assert fold_frequencies([[23.0], [105.0]], 128).shape == (2, 1)
    assert fold_frequencies(torch.zeros(0, 2), 8).shape == (0, 2)
    assert fold_frequencies(torch.tensor([105]), 128).dtype == torch.float64


# aliases


@pytest.mark.parametrize("rate", [(4.0,), (4.0, 3.0), (5.0, 4.0)])
def test_groups_are_those_that_the_grid_does_not_tell_apart(rate: tuple[float, ...]) -> None:
    rates = torch.tensor(rate, dtype=torch.float64)
    entries = [range(-5, 6)] * len(rate)
    rows = torch.tensor(list(itertools.product(*entries)), dtype=torch.float64)
    found = find_aliases(rows, rate)
    group_of = {tuple(row.tolist()): number for number, group in enumerate(found) for row in group}
    assert len(group_of) == sum(map(len, found))  # no frequency in two groups
    assert not any(tuple((-torch.tensor(row)).tolist()) in group_of for row in group_of if any(row))  # ±f once
    assert all(len(group) > 1 for group in found)
    halves = [row for row in rows if tuple(row.tolist()) in group_of or not row.any()]
    sampled = waves(torch.stack(halves), rates)
    for (i, one), (j, other) in itertools.combinations(enumerate(halves), 2):
        together = group_of.get(tuple(one.tolist())) == group_of.get(tuple(other.tolist()))
        assert together == same_waves(sampled[i], sampled[j])
    for group in found:
        assert (group.norm(dim=1).diff() >= 0).all()  # the lowest first


def test_nothing_to_find() -> None:
    assert find_aliases([], 8) == []
    assert find_aliases([1, -1, 1, 2], 8) == []


def test_a_support_on_every_second_point() -> None:
    support = torch.arange(0, 10, dtype=torch.float64)
    assert [group.tolist() for group in find_aliases(support, 8)] == [[0, 8], [1, 7, 9], [2, 6], [3, 5]]


@pytest.mark.parametrize(
    ("rate", "error", "message"),
    [
        (0, ValueError, "`sampling_rate` must be positive and finite, got 0"),
        (math.nan, ValueError, "`sampling_rate` must be positive and finite, got nan"),
        ((8.0, -8.0), ValueError, r"`sampling_rate` must be positive and finite, got \(8.0, -8.0\)"),
        ((8.0, 8.0, 8.0), ValueError, r"one number, or one for each of 2 axes, got \(8.0, 8.0, 8.0\)"),
        ("128", TypeError, "`sampling_rate` must be a number, or one for each axis, got '128'"),
    ],
)
@pytest.mark.parametrize("function", [fold_frequencies, find_aliases])
def test_rates_that_cannot_be(function: Any, rate: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function([[1.0, 2.0]], rate)


def test_frequencies_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="frequencies must be finite, got NaN or infinity"):
        fold_frequencies([math.nan], 8)
    with pytest.raises(ValueError, match=r"frequencies must be \[n, d\], or \[n\] for one axis"):
        find_aliases(torch.zeros(2, 2, 2), 8)


# leaks


def tone(
    points: int, parts: dict[int, float], every: int = 1, coordinate_range: tuple[float, float] = (0, 1)
) -> Spectrum:
    x = torch.arange(points, dtype=torch.float64)[::every] / points
    values = sum((a * torch.sin(2 * math.pi * f * x + f) for f, a in parts.items()), torch.zeros(len(x)))
    return spectrum(values, coordinate_range=coordinate_range)


def test_a_tone_that_leaks_is_found() -> None:
    """0.9 of 23 and 0.1 of 105 in opposite phase: on every second point it is the tone itself."""
    x = torch.arange(256, dtype=torch.float64) / 256
    target = torch.sin(2 * math.pi * 23 * x)
    fitted = 0.9 * target - 0.1 * torch.sin(2 * math.pi * 105 * x)
    torch.testing.assert_close(fitted[::2], target[::2])
    train, full = spectrum(fitted[::2]), spectrum(fitted)
    leaks = leaked_components(train, full)
    assert leaks.frequencies.tolist() == [[105]]
    assert leaks.apparent.tolist() == [[23]]
    torch.testing.assert_close(torch.stack(leaks[2:]).flatten(), torch.tensor([0.1, 0.9, 1.0], dtype=torch.float64))
    assert len(leaked_components(train, full, threshold=0.11).frequencies) == 0
    assert len(leaked_components(spectrum(target[::2]), spectrum(target)).frequencies) == 0
    assert len(leaked_components(full, full).frequencies) == 0


def test_the_strongest_first_in_units_of_coordinate() -> None:
    parts = {10: 1.0, 60: 0.2, 54: 0.5, 32: 0.7}
    train, full = (tone(128, parts, every, (-1, 1)) for every in (2, 1))
    leaks = leaked_components(train, full)
    assert leaks.frequencies.flatten().tolist() == [27, 30]  # 32, half the rate, can be seen
    assert leaks.apparent.flatten().tolist() == [5, 2]
    torch.testing.assert_close(leaks.amplitudes, torch.tensor([0.5, 0.2], dtype=torch.float64))
    torch.testing.assert_close(leaks.apparent_amplitudes, torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert leaks.train_amplitudes[1].item() == pytest.approx(0.2)


@pytest.mark.parametrize("full_shape", [(16, 12), (15, 12), (8, 18)])
def test_images_and_channels(full_shape: tuple[int, int]) -> None:
    values = torch.randn(*full_shape, 3, dtype=torch.float64)
    full = spectrum(values, (0, 1))
    train = spectrum(torch.randn(8, 6, 3, dtype=torch.float64), (0, 1))
    leaks = leaked_components(train, full, threshold=1e-12)
    found = {tuple(row) for row in leaks.frequencies.tolist()}
    assert len(found) == len(leaks.frequencies)
    for row in torch.cartesian_prod(*full.frequencies):
        high = bool((row.abs() > torch.tensor([4, 3])).any())
        # On the full grid, half the rate has no sign: a frequency is there once, in one of its names.
        names = {tuple(fold_frequencies(sign * row[None], full_shape)[0].tolist()) for sign in (1, -1)}
        names |= {tuple(row.tolist()), tuple((-row).tolist())}
        if high:
            assert names & found
    assert (leaks.amplitudes.diff() <= 0).all()
    torch.testing.assert_close(leaks.amplitudes, full.at(leaks.frequencies).amax(1))
    torch.testing.assert_close(leaks.train_amplitudes, train.at(leaks.apparent).amax(1))
    torch.testing.assert_close(leaks.apparent, fold_frequencies(leaks.frequencies, (8, 6)))


def test_spectra_that_do_not_belong_together() -> None:
    full = spectrum(torch.randn(16))
    with pytest.raises(ValueError, match=r"of one domain, got 1 axes of length 2 and 1 of length 1"):
        leaked_components(spectrum(torch.randn(8), coordinate_range=(-1, 1)), full)
    with pytest.raises(ValueError, match=r"of one domain, got 2 axes of length 1 and 1 of length 1"):
        leaked_components(spectrum(torch.randn(8, 8)), full)
    with pytest.raises(ValueError, match=r"`full` must have at least the points of `train`, \[32\], got \[16\]"):
        leaked_components(spectrum(torch.randn(32)), full)
    with pytest.raises(ValueError, match="`threshold` must be positive, got 0"):
        leaked_components(full, full, threshold=0)


def test_what_has_diverged_has_not_kept_its_tone() -> None:
    """NaN is above no threshold, and would have been nothing leaked."""
    fine, diverged = spectrum(torch.rand(8)), spectrum(torch.full((16,), torch.nan))
    with pytest.raises(ValueError, match="the amplitudes of `full` must be finite: the signal or the network has div"):
        leaked_components(fine, diverged)
    values: Any = torch.rand(8)
    with pytest.raises(TypeError, match=r"`train` must be a Spectrum, as spectrum\(\) gives it, got Tensor"):
        leaked_components(values, fine)


def test_a_very_fine_grid_tells_low_frequencies_apart() -> None:
    assert fold_frequencies([1, 2], 1e11).tolist() == [1, 2]
    assert find_aliases([1, 2], 1e11) == []
