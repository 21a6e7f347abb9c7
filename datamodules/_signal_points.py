"""The points of a signal on the device: all of them, those trained on, those held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pl_robust._signal import Signal, grid_coordinates

Part: TypeAlias = Literal["whole", "train", "val"]


class SignalPoints:
    """Coordinates and values of a signal's points, in parts; each is copied to a device once, and stays there.

    Args:
        signal: on the CPU.
        mask: which points are trained on, bool with the shape of the grid.
        convert: gives a tensor the precision of the run.

    Raises:
        ValueError: if neighbouring coordinates are equal in that precision.
    """

    def __init__(self, signal: Signal, mask: Tensor, convert: Callable[[Tensor], Tensor]) -> None:
        for points in signal.shape:
            axis = convert(grid_coordinates((points,), signal.coordinate_range)).flatten()
            if (axis[1:] == axis[:-1]).any():
                raise ValueError(
                    f"neighbouring coordinates of an axis of {points} points are equal in {axis.dtype}: use the "
                    "Trainer's precision '32-true', or a smaller signal"
                )
        self._signal = signal
        self._mask = mask.flatten()
        self._convert = convert
        self._resident: dict[tuple[Part, torch.device], tuple[Tensor, Tensor]] = {}

    def count(self, part: Part) -> int:
        """Number of points of a part."""
        trained = int(self._mask.sum())
        return {"whole": len(self._mask), "train": trained, "val": len(self._mask) - trained}[part]

    def of(self, part: Part, device: torch.device) -> tuple[Tensor, Tensor]:
        """Coordinates [N, d] and values [N, c] or [S, N, c] of a part, the same memory at each call."""
        if (part, device) not in self._resident:
            with torch.inference_mode(False):
                coordinates, values = self._signal.coordinates, self._signal.samples
                if part != "whole":
                    chosen = (self._mask if part == "train" else ~self._mask).nonzero()[:, 0]
                    coordinates, values = coordinates[chosen], values.index_select(-2, chosen)
                self._resident[part, device] = self._convert(coordinates).to(device), self._convert(values).to(device)
        return self._resident[part, device]

    def draw(self, part: Part, device: torch.device, count: int, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Draw points of a part with replacement; always the same ones for the same numbers and kind of device.

        Args:
            part: which points to draw from.
            device: where they are drawn.
            count: how many.
            seeds: numbers of which each counts; neighbouring ones have nothing in common.
        """
        coordinates, values = self.of(part, device)
        mixed = np.random.SeedSequence(seeds).generate_state(1, np.uint64)
        generator = torch.Generator(device).manual_seed(int(mixed[0]))
        chosen = torch.randint(len(coordinates), (count,), generator=generator, device=device)
        return coordinates.index_select(0, chosen), values.index_select(-2, chosen)
