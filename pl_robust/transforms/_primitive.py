"""What PRIME's primitives have in common: parameters drawn per image in one method, applied in another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor

P = TypeVar("P", bound=tuple[Tensor, ...])


class BatchAugmentation(ABC):
    """What augments a batch of images; a common class, so that configurations find all of them by their short names."""

    @abstractmethod
    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augment a batch: float [B, C, H, W] in [0, 1] -> the same, a new tensor.

        Args:
            x: images, float [B, C, H, W] in [0, 1].
            generator: source of randomness, on the CPU whatever the device of ``x``; None takes torch's global one.
        """


class Primitive(BatchAugmentation, Generic[P]):
    """A random transform of images, with parameters of their own for each image.

    ``primitive(x)`` is ``primitive.apply(x, primitive.draw(x.shape, device=x.device))``.
    """

    @abstractmethod
    def draw(
        self, shape: torch.Size, *, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> P:
        """Draw the parameters for a batch.

        Args:
            shape: of the batch, [B, C, H, W].
            device: where the parameters are drawn.
            generator: source of randomness on that device; None takes torch's global one.

        Returns:
            Named tensors, each with B rows: row i belongs to image i, whatever the others are.
        """

    @abstractmethod
    def apply(self, x: Tensor, parameters: P) -> Tensor:
        """Transform a batch: float [B, C, H, W] in [0, 1] -> the same shape, dtype and range, a new tensor."""

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw parameters for a batch and apply them.

        Args:
            x: images, float [B, C, H, W] in [0, 1].
            generator: source of randomness on the device of ``x`` or on the CPU; None takes torch's global one.

        Raises:
            TypeError: if ``x`` is not floating point.
            ValueError: if ``x`` is no batch of images.
        """
        check_images(x)
        if generator is not None and generator.device.type != x.device.type:
            seed = int(torch.randint(2**62, (), generator=generator))
            generator = torch.Generator(x.device)
            generator.manual_seed(seed)
        with in_float32(x):
            return self.apply(x, self.draw(x.shape, device=x.device, generator=generator))


def check_images(x: Tensor) -> None:
    """Refuse what is no batch of float images; values are not looked at, which would wait for an accelerator.

    Raises:
        TypeError: if ``x`` is not floating point.
        ValueError: if ``x`` has not four dimensions, or images of no pixels.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"images must be a floating-point tensor in [0, 1], got {got}; divide uint8 images by 255")
    if x.ndim != 4:
        raise ValueError(f"images must be a batch [B, C, H, W], got shape {list(x.shape)}; a single one needs x[None]")
    if 0 in x.shape[1:]:
        raise ValueError(f"images must have at least one channel and one pixel, got shape {list(x.shape)}")


@contextmanager
def in_float32(x: Tensor) -> Iterator[None]:
    """Switch autocast off and make new tensors float32: half precision has too few levels for images.

    Lightning's ``bf16-true`` makes half precision the default of new tensors inside a module's steps.
    """
    default = torch.get_default_dtype()
    try:
        if default != torch.float32:
            torch.set_default_dtype(torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            yield
    finally:
        if default != torch.float32:
            torch.set_default_dtype(default)
