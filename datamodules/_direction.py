"""A direction of input space, from a tensor or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def read_direction(path: str, index: int) -> Tensor:
    """Read one direction from a .npy or .pt file, as ``pick_direction`` gives it.

    Raises:
        ValueError: if the file is of another kind, or holds something else.
        FileNotFoundError: if there is none.
    """
    kind = Path(path).suffix
    if kind not in (".npy", ".pt"):
        raise ValueError(f"`direction` must be a .npy or .pt file, got {path!r}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"`direction`={path!r} is no file")
    try:
        stored = _from_numpy(path) if kind == ".npy" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any kind, for damaged bytes
        wanted = "an array of numbers, as numpy.save" if kind == ".npy" else "a tensor and no module, as torch.save"
        raise ValueError(
            f"`direction`={path!r} cannot be read ({type(error).__name__}): it must hold {wanted} writes it"
        ) from error
    if not isinstance(stored, Tensor):
        raise ValueError(f"`direction`={path!r} must hold one tensor, got {type(stored).__name__}")
    return pick_direction(stored, index)


def _from_numpy(path: str) -> Any:
    array = np.load(path, allow_pickle=False)
    if array.dtype.kind == "f":
        array = array.astype(np.float64)  # torch knows no other byte order, and no long double
    return torch.from_numpy(array)


def pick_direction(direction: Tensor, index: int) -> Tensor:
    """Take one direction as a unit vector, float32 [C, H, W] on the CPU.

    Args:
        direction: floating point, [C, H, W] or [K, C, H, W].
        index: which of them.

    Raises:
        ValueError: if it is of another kind, there are fewer, or it is zero or not finite.
    """
    if direction.dim() not in (3, 4) or not direction.is_floating_point():
        raise ValueError(
            "`direction` must be floating point, [C, H, W], or [K, C, H, W] of which `index` picks one, got "
            f"{direction.dtype} {list(direction.shape)}"
        )
    several = direction if direction.dim() == 4 else direction[None]
    if index >= len(several):
        raise ValueError(f"`index` must be one of the directions, 0 to {len(several) - 1}, got {index}")
    chosen = several[index].detach().cpu().double()
    length = chosen.norm()
    if not (length.isfinite() and length > 0):
        raise ValueError(f"`direction` must be finite and not zero, got one of length {float(length)}")
    unit: Tensor = (chosen / length).float()
    return unit
