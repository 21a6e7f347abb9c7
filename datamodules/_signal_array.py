"""Arrays as signals: which of their axes are the grid's, and what their numbers stand for."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_MOST_CHANNELS = 4
_AMBIGUOUS = {
    2: "a sound [N, c] (grid_dims=1) or a picture [H, W] (grid_dims=2)",
    3: "a picture [C, H, W], whose channels belong last (permute them), or a thin volume (grid_dims=3)",
    4: "a volume [D, H, W, c] of many channels (grid_dims=3), or four grid axes (grid_dims=4)",
}


class Reading(NamedTuple):
    """A signal as read: values float32 [*shape, c], and their nominal range, highest less lowest possible."""

    values: Tensor
    data_range: float

    @property
    def dims(self) -> int:
        """Number of grid axes: 1 for sounds, 2 for pictures, 3 for volumes."""
        return self.values.ndim - 1


def from_array(given: Tensor | np.ndarray[Any, Any], grid_dims: int | None, name: str) -> Reading:
    """Bring an array into the form of a reading: channels last, float32, unsigned integers scaled to [0, 1].

    Args:
        given: [*shape] or [*shape, c], of floats, uint8, uint16 or bool.
        grid_dims: number of axes in ``shape``; None: to be guessed.
        name: of the signal, for the error.

    Raises:
        ValueError: for another dtype, axes that do not fit or cannot be guessed, NaN or infinity.
    """
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        array: np.ndarray[Any, Any] = (given.float() if given.is_floating_point() else given).numpy()
    else:
        array = given
    # Of either byte order.
    if array.dtype.newbyteorder("=") not in (np.bool_, np.uint8, np.uint16) and array.dtype.kind != "f":
        raise ValueError(
            f"{name} must hold floats, uint8, uint16 or bool, whose range is known, got {array.dtype}: "
            "scale it to floats in [0, 1] or [-1, 1]"
        )
    dims = _guess_dims(array.shape, name) if grid_dims is None else grid_dims
    if array.ndim - dims not in (0, 1):
        raise ValueError(
            f"{name} must have {dims} grid axes and perhaps one of channels behind them, got shape {list(array.shape)}"
        )
    if not array.size:
        raise ValueError(f"{name} is empty: its shape is {list(array.shape)}")
    if array.ndim == dims:
        array = array[..., None]
    with np.errstate(over="ignore"):  # an error below
        values = torch.from_numpy(np.array(array, dtype=np.float32))  # a copy: the user's array may change
    if array.dtype.kind == "u":
        values /= np.iinfo(array.dtype).max
    if not values.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinite values: cut them out or replace them")
    low, high = values.min().item(), values.max().item()
    return Reading(values, high - low if low < -1 or high > 1 else 2.0 if low < 0 else 1.0)


def _guess_dims(shape: tuple[int, ...], name: str) -> int:
    """Tell grid axes from channels where it is plain: a picture or volume has no axis of 4 points or fewer."""
    few_first, few_last = shape[:1] <= (_MOST_CHANNELS,), shape[-1:] <= (_MOST_CHANNELS,)
    if len(shape) == 1:
        return 1
    if (len(shape) == 2 and not few_last) or (len(shape) == 3 and few_last):
        return 2
    if (len(shape) == 3 and not few_first) or (len(shape) == 4 and few_last):
        return 3
    raise ValueError(
        f"{name} of shape {list(shape)} may be {_AMBIGUOUS.get(len(shape), 'anything')}: say by `grid_dims` how many "
        "of its axes are the grid's; one of channels may stand behind them"
    )
