from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import jv
from torch import Tensor, nn

from pl_robust.models import SIREN
from pl_robust.transforms import Spectrum, network_spectrum, spectrum


def wave(shape: tuple[int, ...], cycles: tuple[int, ...], phase: float = 0.0) -> Tensor:
    """cos(2π k·i/n + phase) on a grid, float64."""
    axes = [torch.arange(n, dtype=torch.float64) * k / n for n, k in zip(shape, cycles, strict=True)]
    total = sum(torch.meshgrid(*axes, indexing="ij"), torch.zeros(()))
    return torch.cos(2 * math.pi * total + phase)


# amplitudes


@pytest.mark.parametrize(
    ("shape", "cycles"),
    [((16,), (3,)), ((15,), (7,)), ((8, 12), (2, -5)), ((9, 4), (0, 1)), ((6, 5, 4), (1, -2, 1)), ((8, 8), (4, 1))],
)
@pytest.mark.parametrize("phase", [0.0, -math.pi / 2, 1.0])
def test_a_unit_wave_has_amplitude_one(shape: tuple[int, ...], cycles: tuple[int, ...], phase: float) -> None:
    measured = spectrum(0.5 * wave(shape, cycles, phase) + 3)
    expected = torch.zeros(shape, dtype=torch.float64)
    expected[tuple(cycles)] = 0.5
    expected[tuple(-k for k in cycles)] = 0.5
    expected[(0,) * len(shape)] = 3
    torch.testing.assert_close(measured.amplitudes, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        measured.at([cycles, tuple(-k for k in cycles), (0,) * len(shape)]),
        torch.tensor([0.5, 0.5, 3], dtype=torch.float64),
    )


@pytest.mark.parametrize(("shape", "cycles"), [((8,), (4,)), ((8, 6), (4, 0)), ((8, 6), (4, 3)), ((2,), (1,))])
def test_half_the_sampling_rate(shape: tuple[int, ...], cycles: tuple[int, ...]) -> None:
    """f and -f are one bin there: it holds the whole wave."""
    measured = spectrum(wave(shape, cycles))
    assert measured.amplitudes[cycles].item() == pytest.approx(1)
    assert measured.amplitudes.sum().item() == pytest.approx(1)
    assert measured.at([tuple(-k for k in cycles)]).item() == pytest.approx(1)


@pytest.mark.parametrize("shape", [(7,), (8,), (6, 9), (4, 6, 5)])
def test_it_is_numpys(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, dtype=torch.float64)
    measured = spectrum(values)
    two_sided = np.abs(np.fft.fftn(values.numpy())) / values.numel()
    ratio = measured.amplitudes.numpy() / two_sided
    same = np.array([[np.isclose(f, 0) or np.isclose(f, 0.5) for f in np.abs(np.fft.fftfreq(n))] for n in shape[:1]])
    assert set(np.round(ratio, 9).flatten()) == {1.0, 2.0}
    if len(shape) == 1:
        np.testing.assert_allclose(ratio, np.where(same[0], 1, 2))
    for measured_axis, points in zip(measured.frequencies, shape, strict=True):
        np.testing.assert_allclose(measured_axis.numpy(), np.fft.fftfreq(points, 1 / points))


@pytest.mark.parametrize("shape", [(7,), (8,), (6, 9), (8, 4), (4, 6, 5)])
def test_power_is_that_of_the_signal(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, dtype=torch.float64)
    measured = spectrum(values)
    bins = torch.cartesian_prod(*measured.frequencies).reshape(-1, len(shape))
    points = torch.tensor(shape)
    power = 0.0
    for row in bins:
        alone = bool((2 * row % points == 0).all())  # f = -f
        power += measured.at(row[None]).item() ** 2 * (1 if alone else 0.25)  # else f and -f come by separately
    assert power == pytest.approx(values.square().mean().item())


@pytest.mark.parametrize("dim", [(1, 2), (2, 1), (-3, -2), [1, 2]])
def test_signals_and_channels(dim: Any) -> None:
    values = torch.randn(5, 6, 8, 3)
    measured = spectrum(values, dim)
    assert measured.amplitudes.shape == values.shape
    for index in range(5):
        for channel in range(3):
            one = spectrum(values[index, ..., channel])
            torch.testing.assert_close(measured.amplitudes[index, ..., channel], one.amplitudes)
    rows = [(2, 3), (-1, 0)] if tuple(dim) != (2, 1) else [(3, 2), (0, -1)]
    looked_up = measured.at(rows)
    assert looked_up.shape == (2, 5, 3)
    torch.testing.assert_close(looked_up[0], measured.amplitudes[:, 2, 3])
    torch.testing.assert_close(looked_up[1], measured.amplitudes[:, -1, 0])


def test_one_axis_of_many() -> None:
    values = torch.randn(4, 16)
    torch.testing.assert_close(spectrum(values, 1).amplitudes[2], spectrum(values[2]).amplitudes)
    torch.testing.assert_close(spectrum(values, 0).at([1.0]), spectrum(values, 0).amplitudes[1:2])


@pytest.mark.parametrize("coordinate_range", [(-1.0, 1.0), (0.0, 1.0), (0.0, 0.5)])
def test_frequencies_in_cycles_per_unit_of_coordinate(coordinate_range: tuple[float, float]) -> None:
    low, high = coordinate_range
    x = low + (high - low) * torch.arange(64, dtype=torch.float64) / 64
    measured = spectrum(torch.cos(2 * math.pi * 6 * x), coordinate_range=coordinate_range)
    assert measured.at([6.0]).item() == pytest.approx(1)
    assert measured.frequencies[0].abs().max().item() == pytest.approx(32 / (high - low))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_precision(dtype: torch.dtype) -> None:
    measured = spectrum(wave((16,), (4,)).round().to(dtype))
    assert measured.amplitudes.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert measured.at([4.0]).item() == pytest.approx(1)


def test_one_point() -> None:
    assert spectrum(torch.tensor([-2.0])).amplitudes.tolist() == [2.0]
    assert spectrum(torch.randn(0, 4, 3), 1).amplitudes.shape == (0, 4, 3)  # no signal at all


def test_the_signal_may_need_gradients() -> None:
    values = torch.randn(8, requires_grad=True)
    (gradient,) = torch.autograd.grad(spectrum(values).amplitudes.sum(), values)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"values": torch.ones(4, dtype=torch.int64)}, TypeError, "a tensor, real and floating point, got torch.int64"),
        ({"values": [1.0, 2.0]}, TypeError, "`values` must be a tensor, real and floating point, got list"),
        ({"coordinate_range": (0, 1, 2)}, ValueError, r"finite \(low, high\) with low < high, got \(0, 1, 2\)"),
        ({"values": torch.ones(4, dtype=torch.complex64)}, TypeError, "and floating point, got torch.complex64"),
        ({"values": torch.ones(())}, ValueError, r"`dim` must name axes of values of shape \[\], got None"),
        ({"values": torch.ones(0)}, ValueError, r"must have points along each grid axis, got \[0\] with dim=\(0,\)"),
        ({"dim": 2}, ValueError, r"`dim` must name axes of values of shape \[4, 4\], got 2"),
        ({"dim": ()}, ValueError, r"`dim` must name axes of values of shape \[4, 4\], got \(\)"),
        ({"dim": (0, -2)}, ValueError, r"`dim` must name each axis once, got \(0, -2\)"),
        ({"coordinate_range": (1.0, -1.0)}, ValueError, r"finite \(low, high\) with low < high, got \(1.0, -1.0\)"),
        ({"coordinate_range": (0.0, math.inf)}, ValueError, r"finite \(low, high\) with low < high"),
    ],
)
def test_errors_speak(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        spectrum(**{"values": torch.ones(4, 4), **arguments})


@pytest.mark.parametrize(
    ("frequencies", "message"),
    [
        ([5.0], r"frequencies must be at most \[4.0\], the highest on this grid.*fold_frequencies tells"),
        ([2.3], r"must be whole numbers of cycles in the domain of length 1, multiples of 1, got \[2.3\]"),
        ([[1.0, 2.0]], r"frequencies must be \[n, 1\], or \[n\], one in each row, got \[1, 2\]"),
    ],
)
def test_frequencies_that_are_not_there(frequencies: Any, message: str) -> None:
    measured = spectrum(torch.randn(8))
    with pytest.raises(ValueError, match=message):
        measured.at(frequencies)
    with pytest.raises(ValueError, match=r"at most \[3.0\]"):
        spectrum(torch.randn(7)).at([4])
    with pytest.raises(ValueError, match=r"multiples of 0.5, got \[0.25\]"):
        spectrum(torch.randn(8), coordinate_range=(-1, 1)).at([0.25])


# energy


def test_energy_outside_is_the_share_of_the_other_waves() -> None:
    shape = (8, 10)
    values = 2 + 3 * wave(shape, (1, -2), 0.3) + 0.5 * wave(shape, (2, 2)) + 0.7 * wave(shape, (4, 0))
    measured = spectrum(values)
    powers = {(0, 0): 4, (1, -2): 4.5, (2, 2): 0.125, (4, 0): 0.49}
    total = sum(powers.values())
    assert measured.energy_outside(list(powers)).item() == pytest.approx(0, abs=1e-20)
    for left_out, power in powers.items():
        support = [row for row in powers if row != left_out]
        assert measured.energy_outside(support).item() == pytest.approx(power / total)
        support = [(-k, -m) for k, m in support]  # the same frequencies
        assert measured.energy_outside(support).item() == pytest.approx(power / total)
    assert measured.energy_outside(torch.zeros(0, 2)).item() == pytest.approx(1)


def test_energy_of_several_signals() -> None:
    values = torch.stack([wave((16,), (3,)), wave((16,), (5,)), torch.zeros(16), torch.full((16,), torch.nan)])
    shares = spectrum(values, 1).energy_outside([3.0])
    torch.testing.assert_close(
        shares, torch.tensor([0, 1, 0, torch.nan], dtype=torch.float64), equal_nan=True, atol=1e-20, rtol=0
    )
    shares = spectrum(values.T[..., None], 0).energy_outside([19.0])  # 19 of 16 points is 3
    assert shares.shape == (4, 1)
    assert shares[0].item() < 1e-20


# networks


@pytest.mark.parametrize("cycles", [1, 3])
@pytest.mark.parametrize("a", [0.5, 4.0])
def test_a_sine_of_a_sine_has_bessel_amplitudes(cycles: int, a: float) -> None:
    """sin(a sin t) = 2 sum_k J_(2k+1)(a) sin((2k+1) t): a SIREN of one unit a layer."""
    net = SIREN(1, 1, 1, 3, w0=1.0, hidden_w0=1.0).double()
    layers: Any = net.layers
    for layer, weight in zip(layers, (2 * math.pi * cycles, a, 5.0), strict=True):
        layer.weight.data.fill_(weight)
        layer.bias.data.zero_()
    measured = network_spectrum(net, (128,), (0.0, 1.0))
    expected = torch.zeros(128, 1, dtype=torch.float64)
    for order in range(1, 64 // cycles, 2):
        expected[cycles * order] = expected[-cycles * order] = 5 * abs(2 * jv(order, a))
    torch.testing.assert_close(measured.amplitudes, expected, rtol=0, atol=1e-12)


def test_of_a_network_is_that_of_its_values() -> None:
    net = SIREN(2, 3, 16)
    whole = network_spectrum(net, (12, 8))
    rows, columns = -1 + torch.arange(12) / 6, -1 + torch.arange(8) / 4
    values = net(torch.cartesian_prod(rows, columns)).detach().unflatten(0, (12, 8))
    expected = spectrum(values, (0, 1), (-1.0, 1.0))
    assert isinstance(whole, Spectrum)
    assert whole.dim == (0, 1)
    torch.testing.assert_close(whole.amplitudes, expected.amplitudes)
    for one, other in zip(whole.frequencies, expected.frequencies, strict=True):
        assert torch.equal(one, other)
    parts = network_spectrum(net, (12, 8), chunk_size=7)
    torch.testing.assert_close(parts.amplitudes, whole.amplitudes, rtol=0, atol=1e-6)


def test_the_network_is_left_as_it_is() -> None:
    net = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.0), nn.Linear(4, 1))
    net[0].requires_grad_(False)
    net.train()
    before = {name: values.clone() for name, values in net.state_dict().items()}
    measured = network_spectrum(net, (16,))
    assert not measured.amplitudes.requires_grad
    assert all(layer.training for layer in net.modules())
    assert all(torch.equal(values, before[name]) for name, values in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.is_grad_enabled()


def test_of_a_function() -> None:
    measured = network_spectrum(lambda x: torch.cos(2 * math.pi * 5 * x), (32,), (0, 1))
    assert measured.at([5.0]).item() == pytest.approx(1, abs=1e-5)
    assert measured.amplitudes.sum().item() == pytest.approx(2, abs=1e-4)


def test_networks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"`net` must map coordinates \[16, 1\] to values \[16, c\], got \[16\]"):
        network_spectrum(lambda x: x[:, 0], (16,))
    with pytest.raises(ValueError, match=r"to values \[16, c\], got \[1, 1\]"):
        network_spectrum(lambda x: x.mean(0, keepdim=True), (16,))
    with pytest.raises(ValueError, match=r"this SIREN takes coordinates \[..., 2\], got \[16, 1\]"):
        network_spectrum(SIREN(2, 1, 4), (16,))
    with pytest.raises(ValueError, match="`chunk_size` must be at least 1, got 0"):
        network_spectrum(SIREN(1, 1, 4), (16,), chunk_size=0)
    with pytest.raises(ValueError, match=r"`shape` must have at least one axis"):
        network_spectrum(SIREN(1, 1, 4), ())
    with pytest.raises(ValueError, match=r"`coordinate_range` must be finite \(low, high\)"):
        network_spectrum(SIREN(1, 1, 4), (16,), (1.0, 0.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    net = SIREN(2, 1, 16)
    expected = network_spectrum(net, (16, 16))
    measured = network_spectrum(net.cuda(), (16, 16))
    assert measured.amplitudes.is_cuda
    torch.testing.assert_close(measured.amplitudes.cpu(), expected.amplitudes, rtol=0, atol=1e-5)
    torch.testing.assert_close(measured.at([[1.0, 2.0]]).cpu(), expected.at([[1.0, 2.0]]), rtol=0, atol=1e-5)
    support = [[0.0, 0.0], [1.0, 2.0]]
    torch.testing.assert_close(measured.energy_outside(support).cpu(), expected.energy_outside(support))


def test_frequencies_beyond_whole_numbers_are_refused() -> None:
    """As integers they would have come round to some other bin."""
    measured = spectrum(torch.rand(8))
    for look in (measured.at, measured.energy_outside):
        with pytest.raises(ValueError, match=r"frequencies must be less than 2\*\*53 cycles in the domain, got 1e\+30"):
            look([1e30])


def test_a_network_without_values_is_refused() -> None:
    net: Any = lambda x: None  # noqa: E731
    with pytest.raises(TypeError, match=r"`net` must give a tensor of values \[N, c\], got NoneType"):
        network_spectrum(net, (4,))


def test_a_weak_signal_is_not_none() -> None:
    values = torch.tensor([1.0, -1.0, 1.0, -1.0]) * 1e-30
    assert spectrum(values).energy_outside([0]).item() == pytest.approx(1)
