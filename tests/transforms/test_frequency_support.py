from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pl_robust.models import FourierFeatureNetwork
from pl_robust.transforms import Spectrum, frequency_support, network_spectrum, polynomial_order


class Power(nn.Module):
    def __init__(self, degree: int) -> None:
        super().__init__()
        self.degree = degree

    def forward(self, x: Tensor) -> Tensor:
        return x**self.degree


def brute_force(frequencies: list[tuple[float, ...]], order: int) -> set[tuple[float, ...]]:
    """All integer combinations, one of each pair ±f, to nine decimals."""
    found = set()
    for s in itertools.product(range(-order, order + 1), repeat=len(frequencies)):
        if sum(map(abs, s)) <= order:
            total = tuple(round(float(entry), 9) + 0.0 for entry in np.array(s) @ np.array(frequencies))
            found.add(max(total, tuple(-entry + 0.0 for entry in total)))
    return found


# the list


@pytest.mark.parametrize(
    ("frequencies", "order"),
    [
        ([(3.0,), (10.0,)], 4),
        ([(0.1,), (0.3,), (0.7,)], 5),
        ([(-2.0,), (5.0,), (5.0,), (0.0,)], 3),
        ([(1.0, 0.0), (0.0, 1.0)], 9),
        ([(1.0, 2.0), (3.0, -1.0), (-4.0, 4.0)], 4),
        ([(math.pi, 0.0), (1.0, math.e), (0.0, -0.5)], 5),
        ([(1.0, 0.0, -2.0), (0.0, 3.0, 1.0)], 6),
        ([(0.0, 0.0)], 3),
    ],
)
def test_it_is_all_integer_combinations(frequencies: list[tuple[float, ...]], order: int) -> None:
    support = frequency_support(frequencies, order)
    rows = [tuple(round(entry, 9) + 0.0 for entry in row) for row in support.tolist()]
    assert len(set(rows)) == len(rows)
    assert set(rows) == brute_force(frequencies, order)
    assert rows == sorted(rows)
    assert support.dtype == torch.float64


def test_single_frequency_mapping_holds_the_harmonics() -> None:
    assert frequency_support([0.5], order=4).tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    support = frequency_support(0.5 * torch.eye(2), order=2)
    assert support.tolist() == [[0, 0], [0, 0.5], [0, 1], [0.5, -0.5], [0.5, 0], [0.5, 0.5], [1, 0]]


@pytest.mark.parametrize(
    "frequencies",
    [
        [3, 10],
        (3.0, 10.0),
        np.array([3, 10]),
        torch.tensor([3, 10]),
        torch.tensor([3.0, 10.0], dtype=torch.bfloat16),
        torch.tensor([3.0, 10.0], requires_grad=True),
        torch.tensor([-10.0, 3.0, 0.0, 10.0]),
    ],
)
def test_takes_numbers_of_any_kind(frequencies: Any) -> None:
    assert frequency_support(frequencies, 2).tolist() == [0, 3, 6, 7, 10, 13, 20]


def test_decimal_fractions() -> None:
    """0.1 + 0.1 + 0.1 is not 0.3 in floating point; in float32 they are really different numbers."""
    assert len(frequency_support([0.1, 0.3], 4)) == 12
    assert len(frequency_support(torch.tensor([0.1, 0.3], dtype=torch.float64), 4)) == 12
    assert len(frequency_support(torch.tensor([0.1, 0.3]), 4)) == len(frequency_support([math.pi, math.e], 4))


@pytest.mark.parametrize(("count", "order"), [(1, 50), (3, 4), (12, 3), (40, 2)])
@pytest.mark.parametrize("axes", [1, 2])
def test_unrelated_frequencies_have_as_many_as_there_are_combinations(count: int, order: int, axes: int) -> None:
    support = frequency_support(torch.randn(count, axes, dtype=torch.float64), order)
    combinations = sum(2**k * math.comb(count, k) * math.comb(order, k) for k in range(min(count, order) + 1))
    assert len(support) == (combinations + 1) // 2


def test_lattices_do_not_blow_up() -> None:
    """64 frequencies of order 27 have about 1e39 combinations, on a lattice of 2 x 108 points."""
    frequencies = torch.randint(-4, 5, (64, 1))
    assert frequency_support(frequencies, 27).flatten().tolist() == list(range(4 * 27 + 1))


def test_too_many_are_refused_with_their_number_and_the_way_out() -> None:
    frequencies = torch.randn(256, 2)
    message = (
        "256 frequencies have about 1e17 combinations of order 8, and up to order 2 already more than "
        r"`max_count`=20000 different frequencies: lower `order`, give fewer frequencies, or raise `max_count`"
    )
    with pytest.raises(ValueError, match=message):
        frequency_support(frequencies, 8, max_count=20_000)
    with pytest.raises(ValueError, match="2 frequencies have 25 combinations of order 3"):
        frequency_support([1.0, math.pi], 3, max_count=12)
    assert len(frequency_support([1.0, math.pi], 3, max_count=13)) == 13
    with pytest.raises(ValueError, match="256 frequencies have about 1e17"):
        frequency_support(frequencies[:, :1], 8, max_count=1000)


def test_no_frequencies_hold_a_constant() -> None:
    assert frequency_support(torch.zeros(0, 2), 3).tolist() == [[0, 0]]
    assert frequency_support([], 3).tolist() == [0]


def test_polynomial_order() -> None:
    assert [polynomial_order(2, layers) for layers in (1, 2, 3, 4)] == [1, 2, 4, 8]
    assert polynomial_order(3, 4) == 27


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"order": 0}, ValueError, "`order` must be at least 1, got 0"),
        ({"order": 2.0}, TypeError, "`order` must be an integer, got 2.0"),
        ({"max_count": 0}, ValueError, "`max_count` must be at least 1, got 0"),
        ({"frequencies": [[[1.0]]]}, ValueError, r"frequencies must be \[n, d\], or \[n\] for one axis, .*\[1, 1, 1\]"),
        ({"frequencies": 3.0}, ValueError, r"one in each row, got \[\]"),
        ({"frequencies": torch.zeros(3, 0)}, ValueError, r"one in each row, got \[3, 0\]"),
        ({"frequencies": [1.0, math.inf]}, ValueError, "frequencies must be finite, got NaN or infinity"),
        ({"frequencies": "23"}, ValueError, "frequencies must be"),
        ({"frequencies": ["a"]}, TypeError, r"frequencies must be a tensor or lists of numbers, got \['a'\]"),
        ({"frequencies": None}, ValueError, "frequencies must be"),
        ({"frequencies": [1 + 2j]}, TypeError, "frequencies must be"),
        ({"frequencies": torch.ones(2, dtype=torch.complex64)}, TypeError, "must be real numbers, got torch.complex64"),
        ({"frequencies": torch.ones(2, dtype=torch.bool)}, TypeError, "must be real numbers, got torch.bool"),
    ],
)
def test_errors_speak(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        frequency_support(**{"frequencies": [1.0], "order": 2, **arguments})
    with pytest.raises(ValueError, match="`degree` must be at least 1, got 0"):
        polynomial_order(0, 3)
    with pytest.raises(TypeError, match=r"`num_layers` must be an integer, got 3\.5"):
        polynomial_order(2, 3.5)  # type: ignore[arg-type]


# the theorem


def polynomial_network(frequencies: list[list[float]], degree: int, num_layers: int) -> FourierFeatureNetwork:
    net = FourierFeatureNetwork(
        len(frequencies[0]),
        2,
        frequencies=frequencies,
        hidden_features=16,
        num_layers=num_layers,
        activation=Power(degree),
    )
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):  # so that lower powers appear, too
            nn.init.normal_(parameter, std=0.1)
    return net.double()


def used(measured: Spectrum, support: Tensor) -> Tensor:
    """Relative amplitudes of a support's frequencies, the smaller one of the two outputs."""
    amplitudes = measured.at(support)
    return (amplitudes / amplitudes.amax(0)).amin(1)


LATTICES = [
    ([[3.0], [7.0]], 2, 3, 128),
    ([[3.0], [7.0]], 2, 4, 128),
    ([[2.0], [5.0]], 3, 3, 128),
    ([[1.0, 2.0], [3.0, -1.0]], 2, 3, 32),
    ([[1.0, 0.0], [0.0, 1.0]], 3, 3, 32),
    ([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]], 3, 2, 16),
]


@pytest.mark.parametrize(("frequencies", "degree", "num_layers", "points"), LATTICES)
def test_a_network_with_polynomial_activations_has_this_support(
    frequencies: list[list[float]], degree: int, num_layers: int, points: int
) -> None:
    net = polynomial_network(frequencies, degree, num_layers)
    order = polynomial_order(degree, num_layers)
    measured = network_spectrum(net, (points,) * len(frequencies[0]), (0.0, 1.0))
    support = frequency_support(frequencies, order)
    assert 2 * len(support) - 1 < 0.9 * measured.amplitudes[..., 0].numel()  # not everything
    assert support.abs().max() < points / 2  # nothing folds
    assert measured.energy_outside(support).max() <= 1e-6
    assert measured.energy_outside(support).max() <= 1e-24  # the theorem is exact
    assert used(measured, support).min() > 1e-8  # nothing too much: what the theorem allows, appears
    assert measured.energy_outside(frequency_support(frequencies, order - 1)).max() > 1e-6


def test_without_biases_even_powers_hold_even_orders_only() -> None:
    """A finer prediction than the theorem's, to show that the measurement sees single frequencies."""
    net = polynomial_network([[1.0]], 2, 3)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    measured = network_spectrum(net, (32,), (0.0, 1.0))
    assert measured.energy_outside([0.0, 2.0, 4.0]).max() < 1e-24
    assert used(measured, torch.tensor([0.0, 2.0, 4.0])).min() > 1e-8


def test_on_another_domain_frequencies_are_per_unit_of_coordinate() -> None:
    """Over [-1, 1] the mapping f0 = 0.5 has one cycle, f0 = 1 two: the picture is there twice."""
    for f0, expected in ((0.5, 1), (1.0, 2)):
        net = polynomial_network([[f0, 0.0], [0.0, f0]], 2, 3)
        measured = network_spectrum(net, (32, 32))
        assert measured.energy_outside(frequency_support(f0 * torch.eye(2), 4)).max() < 1e-24
        cycles = (measured.frequencies[0] * 2)[measured.amplitudes.amax((1, 2)) > 1e-9]
        assert sorted({abs(int(c)) for c in cycles}) == [expected * k for k in range(5)]


def test_relu_holds_more() -> None:
    """No polynomial: its harmonics go on, and even a large order leaves energy outside."""
    net = FourierFeatureNetwork(1, 1, frequencies=[[3.0], [7.0]], hidden_features=16, num_layers=3).double()
    measured = network_spectrum(net, (1024,), (0.0, 1.0))
    assert measured.energy_outside(frequency_support([3.0, 7.0], 4)).min() > 1e-6
