"""Amplitude spectra of signals on a regular grid, and of networks on coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pl_robust._number import check_count
from pl_robust._signal import check_range, grid_coordinates
from pl_robust.transforms._frequencies import Frequencies, as_rows

_LARGEST = 2**53  # cycles: beyond, float64 does not tell one from the next
_OFF_BIN = 1e-4  # cycles per domain that a frequency may be off a whole number


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Amplitudes of a real signal's frequencies.

    A cosine or sine of amplitude 1 has amplitude 1, at f and at -f, which are one frequency; a constant has its value.

    Args:
        amplitudes: in the shape of the signal, the frequencies of each grid axis in the order of ``torch.fft``:
            ascending from 0, then the negative ones (``torch.fft.fftshift`` brings 0 to the middle).
        frequencies: of each grid axis, float64 [points], in cycles per unit of coordinate.
        dim: the grid axes of ``amplitudes``; the others are signals or channels.
        extent: length of each axis of the domain; 1 if frequencies are in cycles per domain.
    """

    amplitudes: Tensor
    frequencies: tuple[Tensor, ...]
    dim: tuple[int, ...]
    extent: float

    def at(self, frequencies: Frequencies) -> Tensor:
        """Look up amplitudes.

        Args:
            frequencies: [n, d] for d grid axes, or [n] for one, in the unit of ``self.frequencies``.

        Returns:
            [n, ...], behind it the axes that are signals or channels.

        Raises:
            TypeError: if they are no real numbers.
            ValueError: if a frequency is higher than the grid shows, or no whole number of cycles in the domain.
        """
        bins = self._bins(frequencies)
        points = torch.tensor([len(axis) for axis in self.frequencies])
        if (2 * bins.abs() > points).any():
            raise ValueError(
                f"frequencies must be at most {[axis.abs().max().item() for axis in self.frequencies]}, the highest on "
                "this grid, got higher ones; fold_frequencies tells where they appear"
            )
        grid_first = self.amplitudes.movedim(self.dim, tuple(range(len(self.dim))))
        return grid_first[tuple((bins % points).to(grid_first.device).T)]

    def energy_outside(self, support: Frequencies) -> Tensor:
        """Share of a signal's energy at frequencies that are not in a support.

        Args:
            support: frequencies [n, d] or [n], those of ``frequency_support``. One that is higher than the grid can
                show counts where it appears on it.

        Returns:
            Shares in [0, 1] for each signal and channel: a scalar, if there are none. 0 for a signal that is 0, NaN for
            one that is not finite.

        Raises:
            TypeError: if the support is no real numbers.
            ValueError: if it holds a frequency that is no whole number of cycles in the domain, or 2**53 and more.
        """
        points = torch.tensor([len(axis) for axis in self.frequencies])
        inside = torch.zeros([int(count) for count in points], dtype=torch.bool)
        bins = self._bins(support)
        for sign in (1, -1):
            inside[tuple((sign * bins % points).T)] = True
        weights = torch.where(_paired(inside.shape), 0.25, 1.0).to(self.amplitudes)  # both bins of a pair are there
        amplitudes = self.amplitudes.movedim(self.dim, tuple(range(len(self.dim))))
        # By the largest first: squares of small ones underflow, and a weak signal would pass for none.
        largest = amplitudes.amax(tuple(range(len(self.dim))), keepdim=True)
        energies = (amplitudes / torch.where(largest == 0, 1.0, largest)).square()
        energies = energies * weights.reshape(weights.shape + (1,) * (energies.ndim - weights.ndim))
        energies = energies.flatten(0, len(self.dim) - 1)
        outside = energies[~inside.flatten().to(energies.device)].sum(0)
        total = energies.sum(0)
        return torch.where(total == 0, 0.0, outside / total)

    def _bins(self, frequencies: Frequencies) -> Tensor:
        """Whole numbers of cycles in the domain, int64 [n, d]."""
        cycles = as_rows(frequencies, len(self.dim)) * self.extent
        bins = cycles.round()
        if (bins.abs() > _LARGEST).any():
            raise ValueError(
                f"frequencies must be less than 2**53 cycles in the domain, got {float(bins.abs().max()):g}"
            )
        off = (cycles - bins).abs().amax(dim=1) > _OFF_BIN
        if off.any():
            raise ValueError(
                f"frequencies must be whole numbers of cycles in the domain of length {self.extent:g}, multiples of "
                f"{1 / self.extent:g}, got {(cycles[off][0] / self.extent).tolist()}"
            )
        return bins.long()


def spectrum(
    values: Tensor,
    dim: int | Sequence[int] | None = None,
    coordinate_range: tuple[float, float] | None = None,
) -> Spectrum:
    """Measure the amplitudes of a signal's frequencies.

    Args:
        values: real and floating point, on a regular grid without its last point: [*shape], with signals and channels
            before or behind. Their average power is the sum of amplitude² / 2 over the frequencies; the mean, and those
            at half the sampling rate in each of their entries that is not 0, count amplitude².
        dim: axes of the grid; None means all. For a ``Signal``'s values [*shape, c]: ``range(len(shape))``.
        coordinate_range: (low, high) of the grid's axes: frequencies are then in cycles per unit of coordinate, as
            those of networks. None: in cycles per domain, whole numbers.

    Returns:
        Amplitudes, in float32 or better, and their frequencies.

    Raises:
        TypeError: if ``values`` are no tensor, or not real and floating point, or an axis is no integer.
        ValueError: if there are no such axes or no values, or the range is not finite with low < high.

    Example:
        >>> tone = 0.5 * torch.sin(2 * torch.pi * 3 * torch.arange(16) / 16)
        >>> round(spectrum(tone, coordinate_range=(0, 1)).at([3.0]).item(), 6)
        0.5
    """
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"`values` must be a tensor, real and floating point, got {got}")
    given = range(values.ndim) if dim is None else dim if isinstance(dim, Sequence) else (dim,)
    axes = tuple(given)
    if not all(isinstance(axis, int) and not isinstance(axis, bool) for axis in axes):
        raise TypeError(f"`dim` must be an axis or several, integers, got {dim!r}")
    if not axes or not all(-values.ndim <= axis < values.ndim for axis in axes):
        raise ValueError(f"`dim` must name axes of values of shape {list(values.shape)}, got {dim!r}")
    axes = tuple(axis % values.ndim for axis in axes)
    if len(set(axes)) < len(axes):
        raise ValueError(f"`dim` must name each axis once, got {dim!r}")
    shape = [values.shape[axis] for axis in axes]
    if min(shape) < 1:
        raise ValueError(f"`values` must have points along each grid axis, got {list(values.shape)} with dim={axes}")
    low, high = (0.0, 1.0) if coordinate_range is None else check_range(coordinate_range)
    extent = high - low
    precise = values.to(torch.promote_types(values.dtype, torch.float32))
    amplitudes = torch.fft.fftn(precise, dim=axes, norm="forward").abs()
    factors = torch.where(_paired(shape), 2.0, 1.0).to(amplitudes)
    factors = factors.reshape(factors.shape + (1,) * (values.ndim - len(axes)))
    amplitudes = amplitudes * factors.movedim(tuple(range(len(axes))), axes)
    frequencies = tuple(torch.fft.fftfreq(points, extent / points, dtype=torch.float64) for points in shape)
    return Spectrum(amplitudes, frequencies, axes, extent)


def network_spectrum(
    net: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    coordinate_range: tuple[float, float] = (-1.0, 1.0),
    *,
    chunk_size: int = 65_536,
) -> Spectrum:
    """Measure the amplitudes of the frequencies that a network on coordinates holds.

    Args:
        net: coordinates [N, d] -> values [N, c]; each point by itself. A module is asked as it is, in train or eval
            mode, with coordinates on the device and in the precision of its first floating-point parameter or buffer;
            a function with float32 ones on the CPU.
        shape: points along each grid axis. Frequencies above half of their number appear as lower ones, see
            ``fold_frequencies``; so take many.
        coordinate_range: (low, high) of each axis; of periodic networks a whole number of periods, or each frequency
            spreads over others.
        chunk_size: points that the network sees at once.

    Returns:
        Amplitudes [*shape, c] and their frequencies, in cycles per unit of coordinate.

    Raises:
        TypeError: if ``chunk_size`` is no integer, or the network's values are no floating-point tensor.
        ValueError: if ``shape`` or the range cannot be, ``chunk_size`` is less than 1, or the network gives no [N, c].
    """
    check_count(chunk_size, "chunk_size")
    coordinates = grid_coordinates(shape, coordinate_range)
    if isinstance(net, nn.Module):
        like = next((t for t in (*net.parameters(), *net.buffers()) if t.is_floating_point()), coordinates)
        coordinates = coordinates.to(like)
    with torch.no_grad():
        parts = [net(part) for part in torch.split(coordinates, chunk_size)]
    if not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(f"`net` must give a tensor of values [N, c], got {type(parts[0]).__name__}")
    values = torch.cat(parts)
    if values.ndim != 2 or len(values) != len(coordinates):
        raise ValueError(
            f"`net` must map coordinates {list(coordinates.shape)} to values [{len(coordinates)}, c], "
            f"got {list(values.shape)}"
        )
    return spectrum(values.reshape(*shape, values.shape[1]), range(len(shape)), coordinate_range)


def _paired(shape: Sequence[int]) -> Tensor:
    """Tell which frequencies f of a grid differ from -f, bool [*shape]: not those of 0 and half the rate alone."""
    alone = torch.ones(tuple(shape), dtype=torch.bool)
    for axis, points in enumerate(shape):
        bins = torch.arange(points)
        entries = 2 * bins % points == 0
        alone &= entries.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return ~alone
