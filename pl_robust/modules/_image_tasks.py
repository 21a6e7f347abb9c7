"""Images as tasks for networks on coordinates: one grid for all of a size, and the values on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pl_robust._signal import grid_coordinates


class ImageTasks:
    """Makes coordinates and values of batches of images; keeps the grids.

    Args:
        coordinate_range: (low, high) of the coordinates of rows and columns, without ``high``.

    Raises:
        ValueError: if that is no range.
    """

    def __init__(self, coordinate_range: tuple[float, float]) -> None:
        grid_coordinates((1, 1), coordinate_range)  # refuses what is no range
        self.coordinate_range = coordinate_range
        self.grids: dict[Any, Tensor] = {}

    def __call__(self, images: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Make the tasks of a batch.

        Args:
            images: floating point [B, C, H, W].
            dtype: of the result.

        Returns:
            Coordinates [H * W, 2] and values [B, H * W, C].

        Raises:
            TypeError: if the images are not floating point.
            ValueError: if they are of another shape, or have no pixel.
        """
        if images.ndim != 4 or not images.numel():
            raise ValueError(f"images must be [B, C, H, W] with at least one pixel, got {list(images.shape)}")
        if not images.is_floating_point():
            raise TypeError(f"images must be floating point, in [0, 1], got {images.dtype}; uint8 ones / 255")
        key = (*images.shape[2:], images.device, dtype)
        if key not in self.grids:
            grid = grid_coordinates(images.shape[2:], self.coordinate_range, device=images.device)
            self.grids[key] = grid.to(dtype)
        return self.grids[key], images.flatten(2).transpose(1, 2).to(dtype)


def check_net(net: object) -> nn.Module:
    """Refuse what is no network on the coordinates of images, or has nothing to learn."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"`net` must be an nn.Module, coordinates [N, 2] -> values [N, C], got {type(net).__name__}")
    in_features = getattr(net, "in_features", 2)
    if in_features != 2:
        raise ValueError(f"`net` must take the 2 coordinates of images, got one with in_features={in_features}")
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise ValueError("`net` must have parameters with requires_grad=True, which the inner steps move; got none")
    return net
