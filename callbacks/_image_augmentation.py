"""A batch augmentation as a callback needs it: named or given, for images of any float type and normalization."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from pl_robust.attacks._target import Normalization, check_choices
from pl_robust.attacks._threat_model import per_channel
from pl_robust.transforms import PRIME
from pl_robust.transforms._primitive import BatchAugmentation, in_float32

# Classes of the common base a configuration may give by their short names.
Augmentation: TypeAlias = Literal["cifar", "imagenet"] | BatchAugmentation | Callable[..., Any]


class ImageAugmentation:
    """An augmentation of images in [0, 1] around which the images' dtype, normalization and autocast do not matter.

    Args:
        transform: ``"cifar"`` or ``"imagenet"`` for PRIME's settings, or ``transform(x, generator=...)``: float32
            images [B, C, H, W] in [0, 1] -> images of the same shape, a new tensor.
        normalization: (mean, std) per channel of images that come normalized.

    Attributes:
        name: of the transform, the same in every process.

    Raises:
        TypeError: if the transform is none.
        ValueError: if the transform has an unknown name, or the normalization is none.
    """

    def __init__(self, transform: Augmentation, normalization: Normalization | None) -> None:
        check_choices(normalization, "train")
        self.transform = _find_transform(transform)
        self.normalization = normalization
        self.name: str = transform if isinstance(transform, str) else _name(transform)
        self._has_checked = False
        self._statistics: Tensor | None = None

    def start(self) -> None:
        """Look at the values of the next batch, as at those of the first."""
        self._has_checked = False

    def views(self, x: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
        """Augment a batch several times.

        Args:
            x: images, float [B, C, H, W]; in [0, 1] before their normalization.
            count: how many views to make.
            generator: source of all randomness, on the CPU.

        Returns:
            The views, each of the shape and dtype of ``x``.

        Raises:
            ValueError: if values of the first batch leave [0, 1], or the transform gives something else than images of
                the same shape, or changes those that it takes.
        """
        with torch.no_grad(), in_float32(x):
            images = x.float()
            if self.normalization is None:
                self._check_range(images, x.dtype)
                return [self._view(images, generator).to(x.dtype) for _ in range(count)]
            mean, std = self._mean_and_std(images)
            images = images * std + mean
            self._check_range(images, x.dtype)
            return [((self._view(images, generator) - mean) / std).to(x.dtype) for _ in range(count)]

    def _mean_and_std(self, x: Tensor) -> list[Tensor]:
        if self._statistics is None or self._statistics.device != x.device:
            # Kept: to copy them anew for each batch would be to wait for an accelerator.
            parts = [torch.as_tensor(part, dtype=torch.float32) for part in self.normalization or ()]
            self._statistics = torch.stack(parts).to(x.device)
        return [torch.as_tensor(per_channel(part, x, "normalization")) for part in self._statistics]

    def _check_range(self, images: Tensor, dtype: torch.dtype) -> None:
        # Of the first batch only: to look at values is to wait for an accelerator.
        if self._has_checked or images.numel() == 0:
            return
        low, high = torch.stack(images.aminmax()).tolist()
        slack = 4 * max(torch.finfo(kind).eps for kind in (dtype, torch.float32))  # what rounding can have done
        if not -slack <= low <= high <= 1 + slack:  # nor is NaN
            way_out = (
                "divide them by 255, pass `normalization=(mean, std)` if the data was normalized, or normalize inside "
                "the network (pl_robust.models.Normalize)"
                if self.normalization is None
                else f"`normalization`={self.normalization!r} is not what the data was normalized with"
            )
            raise ValueError(
                f"images to augment must lie in [0, 1], got values from {low:.4g} to {high:.4g}: {way_out}"
            )
        self._has_checked = True

    def _view(self, images: Tensor, generator: torch.Generator) -> Tensor:
        version = images._version
        view = self.transform(images, generator=generator)
        if not isinstance(view, Tensor) or view.shape != images.shape:
            got = f"shape {list(view.shape)}" if isinstance(view, Tensor) else type(view).__name__
            raise ValueError(f"`transform` must give images of the shape {list(images.shape)} that it takes, got {got}")
        if images._version != version:  # on the CPU they may be the data set's own
            raise ValueError(f"`transform` must not change the images it takes in place, and {self.name} does")
        return view


def _find_transform(transform: Augmentation) -> Callable[..., Any]:
    if isinstance(transform, str):
        presets = {"cifar": PRIME.cifar, "imagenet": PRIME.imagenet}
        if transform not in presets:
            raise ValueError(
                f"`transform` must be 'cifar', 'imagenet' or a batch augmentation such as AugMix(), got {transform!r}"
            )
        return presets[transform]()
    if isinstance(transform, type) or not callable(transform):
        raise TypeError(
            f"`transform` must be 'cifar', 'imagenet' or a batch augmentation such as AugMix(), got {transform!r}"
        )
    try:
        inspect.signature(transform.forward if isinstance(transform, nn.Module) else transform).bind(0, generator=0)
    except TypeError:
        raise TypeError(
            "`transform` must take images and `generator`, a torch.Generator on the CPU to draw all its random numbers "
            f"from, and {_name(transform)} does not: wrap it in a function that does"
        ) from None
    except ValueError:  # what is written in C may not tell
        pass
    return transform


def _name(transform: object) -> str:
    return str(getattr(transform, "__qualname__", type(transform).__qualname__))
