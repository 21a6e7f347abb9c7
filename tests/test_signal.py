from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from pl_robust._signal import Signal, grid_coordinates


@pytest.mark.parametrize("points", [1, 2, 3, 7, 64, 100, 333, 100_003])
@pytest.mark.parametrize("span", [(-1.0, 1.0), (0.0, 1.0), (-0.3, 0.9)])
def test_an_axis_is_numpys_without_its_end(points: int, span: tuple[float, float]) -> None:
    expected = np.linspace(*span, points, endpoint=False).astype(np.float32)
    coordinates = grid_coordinates((points,), span)
    assert coordinates.dtype == torch.float32
    # To one rounding of the last place: numpy and torch need not multiply in the same order.
    np.testing.assert_allclose(coordinates[:, 0].numpy(), expected, rtol=0, atol=6e-8)
    assert coordinates[0, 0] == np.float32(span[0])
    assert coordinates[-1, 0] < span[1] or points > 2**24


def test_rows_come_first_and_columns_run_fastest() -> None:
    coordinates = grid_coordinates((2, 3), (0, 1))
    third = np.float32(1 / 3)
    expected = [[0, 0], [0, third], [0, 2 * third], [0.5, 0], [0.5, third], [0.5, 2 * third]]
    torch.testing.assert_close(coordinates, torch.tensor(expected, dtype=torch.float32))
    volume = grid_coordinates((3, 4, 5))
    assert volume.shape == (60, 3)
    mesh = np.meshgrid(*(np.linspace(-1, 1, n, endpoint=False) for n in (3, 4, 5)), indexing="ij")
    np.testing.assert_allclose(volume.numpy(), np.stack(mesh, -1).reshape(-1, 3), atol=1e-7)


@pytest.mark.parametrize("k", [2, 4])
def test_every_kth_point_is_the_smaller_grid(k: int) -> None:
    grid = grid_coordinates((16, 8)).view(16, 8, 2)
    small = grid_coordinates((16 // k, 8 // k))
    assert torch.equal(grid[::k, ::k].reshape(-1, 2), small)


def test_a_tone_has_its_periods_in_the_range() -> None:
    # f periods over [low, high): the discrete spectrum has one line, at f exactly.
    x = grid_coordinates((256,), (0.0, 1.0))[:, 0].double()
    spectrum = torch.fft.rfft(torch.sin(2 * math.pi * 23 * x)).abs() / 128
    assert spectrum[23] == pytest.approx(1.0, abs=1e-5)
    assert spectrum.sum() - spectrum[23] < 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), r"`shape` must have at least one axis, each with at least one point, got \(\)"),
        (((4, 0),), r"at least one point, got \(4, 0\)"),
        (((4,), (1, -1)), r"`coordinate_range` must be finite \(low, high\) with low < high, got \(1, -1\)"),
        (((4,), (0, 0)), "low < high"),
        (((4,), (0, math.inf)), "must be finite"),
        (((4,), (math.nan, 1)), "must be finite"),
        (((4,), (-1, 0, 1)), r"got \(-1, 0, 1\)"),
    ],
)
def test_grid_refuses(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid_coordinates(*arguments)


@pytest.mark.parametrize("shape", [256, (4.5,), "ab", None])
def test_grid_wants_a_shape(shape: Any) -> None:
    with pytest.raises(
        TypeError, match=r"`shape` must be a sequence of integers, such as \(256,\) or \(64, 64\), got "
    ):
        grid_coordinates(shape)


def test_signal_knows_its_grid() -> None:
    image = Signal(torch.rand(4, 6, 3), (0, 1))
    assert (image.shape, image.channels, image.num_signals, image.data_range) == ((4, 6), 3, 1, 1.0)
    assert torch.equal(image.coordinates, grid_coordinates((4, 6), (0, 1)))
    assert image.coordinates is image.coordinates
    assert image.samples.shape == (24, 3)
    assert torch.equal(image.samples[7], image.values[1, 1])
    assert torch.equal(image.on_grid(image.samples), image.values)
    three = Signal(torch.rand(3, 4, 6, 1), stacked=True)
    assert (three.shape, three.channels, three.num_signals) == ((4, 6), 1, 3)
    assert three.coordinates.shape == (24, 2)
    assert three.samples.shape == (3, 24, 1)
    assert torch.equal(three.samples[2, 7], three.values[2, 1, 1])
    assert torch.equal(three.on_grid(three.samples), three.values)
    assert torch.equal(three.on_grid(three.samples[0]), three.values[0])
    sound = Signal(torch.rand(9, 2), data_range=2.0)
    assert (sound.shape, sound.channels, sound.coordinates.shape) == ((9,), 2, (9, 1))


def test_signal_is_frozen_and_its_coordinates_can_be_trained_on_whoever_asks_first() -> None:
    signal = Signal(torch.rand(4, 1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        signal.values = torch.rand(4, 1)  # type: ignore[misc]
    with torch.inference_mode():
        first = signal.coordinates
    assert not first.is_inference()
    weight = torch.ones(1, 1, requires_grad=True)
    (signal.coordinates @ weight).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"values": torch.rand(4)}, ValueError, r"`values` must be \[\*shape, c\] .* got \[4\]"),
        ({"values": torch.rand(4, 1), "stacked": True}, ValueError, r"`values` must be \[S, \*shape, c\]"),
        ({"values": torch.rand(4, 1).double()}, TypeError, "must be a float32 tensor, got torch.float64"),
        ({"values": [[1.0]]}, TypeError, "must be a float32 tensor, got list"),
        ({"values": torch.rand(0, 1)}, ValueError, r"at least one value, got \[\*shape, c\] = \[0, 1\]"),
        ({"values": torch.rand(4, 0)}, ValueError, "at least one value"),
        ({"values": torch.tensor([[1.0], [torch.nan]])}, ValueError, "got 1 NaN or infinite of 2 values"),
        ({"coordinate_range": (-1, 1.5)}, ValueError, r"must lie in \[-1, 1\], got `coordinate_range`=\(-1, 1.5\)"),
        ({"coordinate_range": (0, 256)}, ValueError, "scale that instead"),
        ({"coordinate_range": (1, 0)}, ValueError, "low < high"),
        ({"coordinate_range": 1}, TypeError, r"`coordinate_range` must be \(low, high\), two numbers, got 1"),
        ({"data_range": 0}, ValueError, "`data_range` must be positive, got 0"),
        ({"data_range": math.inf}, ValueError, "`data_range` must be finite, got inf"),
        ({"data_range": "1"}, TypeError, "`data_range` must be a number, got '1'"),
    ],
)
def test_signal_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Signal(**{"values": torch.rand(4, 1), **arguments})
