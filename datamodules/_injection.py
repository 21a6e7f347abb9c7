"""What is done to a batch to inject carriers into its images; pure torch."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from pl_robust._batch import replace_entry, split_batch
from pl_robust.transforms.dct_carrier import dct_carrier

Mode: TypeAlias = Literal["add", "orthogonal", "reverse"]
InjectedSet: TypeAlias = Literal["injected", "carrier_only", "shuffled_carrier"]


class Injection:
    """Inject carriers into a batch; whatever depends on the size of the images is made once for each size.

    Args:
        beta: strength, in the units of the images.
        num_classes: number of carriers.
        carriers: V, [num_classes, 1 or C, H, W]; ``None``: ``dct_carrier(num_classes, (H, W))``.
        mode: ``add``: x + beta V[y]; ``reverse``: x - beta V[y]; ``orthogonal``: x without its component in the span
            of the carriers, + beta V[y].
        which: ``injected``: as ``mode`` says; ``carrier_only``: likewise on x = 0; ``shuffled_carrier``: likewise with
            the carrier of another class than y.
        input_key: where a batch has its images.
        label_key: where a batch has its labels.

    Raises:
        ValueError: if there is no other class to take a carrier from.
    """

    def __init__(
        self,
        beta: float,
        num_classes: int,
        carriers: Tensor | None,
        mode: Mode,
        which: InjectedSet,
        input_key: int | str,
        label_key: int | str,
    ) -> None:
        if which == "shuffled_carrier":
            check_shuffled(num_classes)
        self.beta = -beta if mode == "reverse" else beta
        self.num_classes = num_classes
        self.carriers = carriers
        self.mode = mode
        self.which = which
        self.input_key = input_key
        self.label_key = label_key
        self._made: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    def __call__(self, batch: Any) -> Any:
        """Copy the batch with its images replaced; labels and all else stay."""
        x, y = self._images_and_labels(batch)
        if self.beta == 0 and self.mode != "orthogonal" and self.which != "carrier_only":
            return batch
        scaled, basis = self._for_images_like(x)
        if self.which == "shuffled_carrier":
            y = (y + class_shift(x, self.num_classes)) % self.num_classes
        elif self.which == "carrier_only":
            x = torch.zeros_like(x)
        if self.mode == "orthogonal":
            x = without_span(x, basis)
        return replace_entry(batch, self.input_key, x + scaled[y])

    def _images_and_labels(self, batch: Any) -> tuple[Tensor, Tensor]:
        x, y = split_batch(batch, self.input_key, self.label_key)
        if x.ndim != 4 or not x.is_floating_point():
            raise TypeError(
                "a feature can be injected into float images [B, C, H, W] in the units of `beta`, "
                f"got {x.dtype} of shape {list(x.shape)}; turn them into floats in the data set's transform"
            )
        if y.shape != x.shape[:1] or y.is_floating_point() or y.is_complex():
            raise TypeError(f"labels must be integers of shape {[len(x)]}, got {y.dtype} of shape {list(y.shape)}")
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.num_classes:
            way_out = "`num_classes` sets how many classes get a carrier"
            raise ValueError(
                f"labels must be 0 to {self.num_classes - 1}, got {int(y.min())} to {int(y.max())}; "
                + (way_out if self.carriers is None else "`carriers` must hold one for each class")
            )
        return x, y.long()

    def _for_images_like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``beta * V``, and an orthonormal basis of the span of V if ``mode`` needs one."""
        key = (*x.shape[1:], x.dtype, x.device)
        if key not in self._made:
            carriers = self._carriers(x)
            basis = span(carriers, x.shape[1]) if self.mode == "orthogonal" else carriers.new_empty(0)
            self._made[key] = (self.beta * carriers.to(x), basis.to(x.device))
        return self._made[key]

    def _carriers(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if self.carriers is None:
            try:
                return dct_carrier(self.num_classes, (height, width))
            except ValueError as error:
                raise ValueError(f"{error}, and others can be given as `carriers=`") from error
        if self.carriers.shape[1] not in (1, x.shape[1]) or self.carriers.shape[2:] != x.shape[2:]:
            raise ValueError(
                f"`carriers` must fit images of shape {list(x.shape[1:])}, got {list(self.carriers.shape)}; "
                "they are [num_classes, 1 or C, H, W]"
            )
        return self.carriers


def check_shuffled(num_classes: int) -> None:
    """Refuse to shuffle the carriers of a single class.

    Raises:
        ValueError: if there are fewer than two classes.
    """
    if num_classes < 2:
        raise ValueError(
            f"'shuffled_carrier' takes the carrier of another class and needs `num_classes` of at least 2, "
            f"got {num_classes}; leave it out of `test_sets`"
        )


def span(carriers: Tensor, channels: int) -> Tensor:
    """Compute an orthonormal basis of the span of carriers, as images of so many channels.

    The published carriers are five images and their negatives: of rank five, not ten. A QR decomposition of all ten, as
    in the released code, fills up with five directions that have nothing to do with them and removes those, too.

    Args:
        carriers: [K, 1 or C, H, W].
        channels: C.

    Returns:
        float64 [rank, C * H * W] with orthonormal rows.
    """
    flat = carriers.double().flatten(1)
    _, lengths, directions = torch.linalg.svd(flat, full_matrices=False)
    # The rounding of float32, in which carriers are made: a direction of that length comes of it, and not of them.
    tolerance = lengths.max() * max(flat.shape) * torch.finfo(torch.float32).eps
    images = directions[lengths > tolerance].view(-1, *carriers.shape[1:])
    # The same image in each of several channels is longer by the root of their number.
    basis: Tensor = images.expand(-1, channels, -1, -1).flatten(1) / math.sqrt(channels / carriers.shape[1])
    return basis


def without_span(x: Tensor, basis: Tensor) -> Tensor:
    """Subtract from each image its orthogonal projection on a subspace; computed in float64.

    Args:
        x: float [B, C, H, W].
        basis: float64 [rank, C * H * W] with orthonormal rows.
    """
    flat = x.double().flatten(1)
    return (flat - (flat @ basis.T) @ basis).view(x.shape).to(x.dtype)


def class_shift(x: Tensor, num_classes: int) -> Tensor:
    """Draw for each image how far away the class is whose carrier it gets: 1 to ``num_classes - 1``.

    A hash of the image's own pixels, so that it is the same in any batch, order, rank and worker, and at every call. A
    permutation within the batch would do nothing to data that is sorted by class.

    Args:
        x: float [B, C, H, W].
        num_classes: K, at least 2.

    Returns:
        int64 [B].
    """
    bits = x.float().flatten(1).view(torch.int32).long()
    # A sum of integers modulo 2**64: no rounding, hence the same in any order, on any device.
    mixed = _mix((bits * _mix(torch.arange(1, bits.shape[1] + 1, device=x.device))).sum(1))
    return 1 + mixed % (num_classes - 1)


def _mix(number: Tensor) -> Tensor:
    """Spread what differs between int64 numbers over all their bits (the finalizer of splitmix64)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        number = (number ^ (number >> shift)) * (factor - 2**64)
    return number ^ (number >> 31)
