"""The batches that fits of signals take, and what is wrong with others."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def split_signals(batch: Any, num_signals: int) -> tuple[Tensor, Tensor]:
    """Take coordinates and values out of a batch.

    Args:
        batch: (coordinates [N, d], values [N, c]), or with S > 1 signals values [S, N, c].
        num_signals: S.

    Raises:
        TypeError: if it is no pair of tensors, or one of them is not floating point.
        ValueError: if the shapes do not fit, or there are no points.
    """
    wanted = "(coordinates [N, d], values [N, c])"
    if num_signals > 1:
        wanted = f"(coordinates [N, d], values [S, N, c]) with `num_signals`={num_signals} signals"
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(one, Tensor) for one in batch):
        got = [type(one).__name__ for one in batch] if isinstance(batch, tuple | list) else type(batch).__name__
        raise TypeError(f"a batch must be {wanted}, got {got}; SignalDataModule makes such batches")
    coordinates, values = batch
    signals = list(values.shape[:-2])
    expected = [num_signals] if num_signals > 1 else []
    if coordinates.ndim != 2 or values.ndim < 2 or signals != expected or len(coordinates) != values.shape[-2]:
        fitting = signals[0] if len(signals) == 1 else 1
        is_other = len(signals) < 2 and fitting not in (0, num_signals) and signals != [1]
        hint = f"; for these set num_signals={fitting}" if is_other else ""
        raise ValueError(
            f"a batch must be {wanted}, got shapes {list(coordinates.shape)} and {list(values.shape)}{hint}"
        )
    if not len(coordinates):
        raise ValueError(f"a batch must have points, got shapes {list(coordinates.shape)}, {list(values.shape)}")
    if not (coordinates.is_floating_point() and values.is_floating_point()):
        raise TypeError(
            f"a batch must be floating point, got {coordinates.dtype} and {values.dtype}; bring coordinates to [-1, 1] "
            "and values to [0, 1] or [-1, 1], uint8 ones / 255"
        )
    return coordinates, values


def check_range(coordinates: Tensor) -> None:
    """Refuse coordinates in pixels or seconds; looks at each of them, so not for every step.

    Args:
        coordinates: [N, d].

    Raises:
        ValueError: if they leave [-1, 1] or are NaN.
    """
    low, high = coordinates.aminmax()
    if not (low >= -1 and high <= 1):
        raise ValueError(
            f"coordinates must lie in [-1, 1], got {low:g} to {high:g}: scale them. A network's w0 or sigma is per "
            "unit of coordinate: for finer detail raise that instead"
        )
