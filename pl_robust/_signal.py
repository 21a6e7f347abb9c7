"""A signal on a regular grid and the coordinates of its points: what is fitted, scored and drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real

import torch
from torch import Tensor

from pl_robust._number import check_positive


def grid_coordinates(
    shape: Sequence[int],
    coordinate_range: tuple[float, float] = (-1.0, 1.0),
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Coordinates of the points of a regular grid, the last axis running fastest.

    Each axis has the points ``low + (high - low) * i / n`` for i = 0 ... n - 1, without ``high``, as published (numpy's
    ``linspace(low, high, n, endpoint=False)``). So a tone of f periods in n points has f periods in the range, and each
    k-th point of the grid is the grid of n / k points.

    Args:
        shape: number of points along each axis; an image's rows, then its columns.
        coordinate_range: (low, high) of every axis. Wider than the range of a fit, it asks a network to extrapolate.
        device: of the result; ``None``: the CPU.

    Returns:
        float32 [prod(shape), len(shape)].

    Raises:
        TypeError: if ``shape`` is no sequence of integers, or the range no pair of numbers.
        ValueError: if an axis has no point, or the range is not finite with low < high.

    Example:
        >>> grid_coordinates((2, 2)).tolist()
        [[-1.0, -1.0], [-1.0, 0.0], [0.0, -1.0], [0.0, 0.0]]
    """
    if not isinstance(shape, Sequence) or not all(isinstance(points, Integral) for points in shape):
        raise TypeError(f"`shape` must be a sequence of integers, such as (256,) or (64, 64), got {shape!r}")
    if not len(shape) or min(shape) < 1:
        raise ValueError(f"`shape` must have at least one axis, each with at least one point, got {tuple(shape)}")
    low, high = check_range(coordinate_range)
    # Rounded once, from float64, which not every device has: coordinates of a fine grid must not drift along its axis.
    axes = [
        (torch.arange(points, dtype=torch.float64, device="cpu") * ((high - low) / points) + low).to(torch.float32)
        for points in shape
    ]
    return torch.stack(torch.meshgrid(*(axis.to(device) for axis in axes), indexing="ij"), dim=-1).flatten(0, -2)


def check_range(coordinate_range: tuple[float, float]) -> tuple[float, float]:
    """Give (low, high) as floats.

    Raises:
        TypeError: if it is no sequence of numbers.
        ValueError: if it is not finite with low < high.
    """
    if not isinstance(coordinate_range, Sequence) or not all(isinstance(end, Real) for end in coordinate_range):
        raise TypeError(f"`coordinate_range` must be (low, high), two numbers, got {coordinate_range!r}")
    if len(coordinate_range) == 2:
        low, high = map(float, coordinate_range)
        if math.isfinite(low) and math.isfinite(high) and low < high:
            return low, high
    raise ValueError(f"`coordinate_range` must be finite (low, high) with low < high, got {coordinate_range!r}")


@dataclass(frozen=True, eq=False)
class Signal:
    """Values on a regular grid: a sound, an image, a volume; or several of one shape.

    Args:
        values: float32 [*shape, c], or [S, *shape, c] with ``stacked=True``; images in [0, 1], sounds in [-1, 1].
        coordinate_range: (low, high) of every axis, inside [-1, 1]: (-1, 1) or (0, 1) as published. Networks' frequency
            scales (``w0``, ``sigma``) are per unit of coordinate; for other ranges scale them instead.
        stacked: whether the first axis counts signals.
        data_range: nominal range of the values, highest less lowest possible: 1 for images, 2 for sounds. The peak of
            the PSNR.

    Raises:
        TypeError: if ``values`` is no float32 tensor, or a number is none.
        ValueError: if ``values`` has too few axes, holds nothing, NaN or infinity, the coordinates leave [-1, 1], or
            ``data_range`` is not positive.
    """

    values: Tensor
    coordinate_range: tuple[float, float] = (-1.0, 1.0)
    stacked: bool = False
    data_range: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.values, Tensor) or self.values.dtype != torch.float32:
            got = self.values.dtype if isinstance(self.values, Tensor) else type(self.values).__name__
            raise TypeError(f"`values` must be a float32 tensor, got {got}")
        axes = "[S, *shape, c]" if self.stacked else "[*shape, c]"
        if self.values.ndim < 2 + self.stacked:
            raise ValueError(f"`values` must be {axes} with at least one grid axis, got {list(self.values.shape)}")
        if not self.values.numel():
            raise ValueError(f"a signal must have at least one value, got {axes} = {list(self.values.shape)}")
        broken = int((~self.values.isfinite()).sum())
        if broken:
            raise ValueError(
                f"a signal must be finite, got {broken} NaN or infinite of {self.values.numel()} values; "
                "cut them out or replace them first"
            )
        low, high = check_range(self.coordinate_range)
        if low < -1 or high > 1:
            raise ValueError(
                f"coordinates must lie in [-1, 1], got `coordinate_range`=({low:g}, {high:g}); published are (-1, 1) "
                "and (0, 1). A network's w0 or sigma is per unit of coordinate: scale that instead"
            )
        check_positive(self.data_range, "data_range")

    @property
    def shape(self) -> tuple[int, ...]:
        """Points along each axis of the grid, without signals and channels."""
        return tuple(self.values.shape[int(self.stacked) : -1])

    @property
    def channels(self) -> int:
        """Values at each point: 1 for gray, 3 for RGB."""
        return int(self.values.shape[-1])

    @property
    def num_signals(self) -> int:
        """S; 1 for one that is not stacked."""
        return int(self.values.shape[0]) if self.stacked else 1

    @cached_property
    def coordinates(self) -> Tensor:
        """Coordinates of all points, float32 [N, d] on the device of the values; one tensor for all signals."""
        with torch.inference_mode(False):  # kept, and a tensor made in inference mode could not be trained on
            return grid_coordinates(self.shape, self.coordinate_range, device=self.values.device)

    @property
    def samples(self) -> Tensor:
        """The values in the order of the coordinates: [N, c], or [S, N, c] if stacked."""
        return self.values.flatten(int(self.stacked), -2)

    def on_grid(self, samples: Tensor) -> Tensor:
        """Bring values in the order of the coordinates back on the grid.

        Args:
            samples: [N, c] or [S, N, c], such as a network's output at ``coordinates``.

        Returns:
            [*shape, c] or [S, *shape, c].
        """
        return samples.reshape(*samples.shape[:-2], *self.shape, samples.shape[-1])
