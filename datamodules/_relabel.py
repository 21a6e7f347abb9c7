"""Batches whose labels are looked up by the index of the sample; at module level, so that workers can unpickle them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pl_robust._batch import entry_keys, replace_entry, take_entry


class Standardize:
    """Shift and scale the inputs of a batch."""

    def __init__(self, mean: Tensor | None, std: Tensor | None, input_key: int | str) -> None:
        self.mean = mean
        self.std = std
        self.input_key = input_key

    def __call__(self, batch: Any) -> Any:
        if self.mean is None or self.std is None:
            return batch
        x = batch if isinstance(batch, Tensor) else take_entry(batch, self.input_key)
        shape = (1, -1, *[1] * (x.dim() - 2))
        scaled = (x - self.mean.to(x).view(shape)) / self.std.to(x).view(shape)
        return scaled if isinstance(batch, Tensor) else replace_entry(batch, self.input_key, scaled)


class Relabel:
    """Replace the labels of an indexed batch by those of its samples."""

    def __init__(self, labels: Tensor, standardize: Standardize, label_key: int | str) -> None:
        self.labels = labels
        self.standardize = standardize
        self.label_key = label_key

    def __call__(self, indexed: tuple[Tensor, Any]) -> Any:
        index, batch = indexed
        present = entry_keys(batch)
        if present is None or self.label_key not in present:
            raise KeyError(
                f"`label_key`={self.label_key!r} is not in the batch, which has {present}; set `label_key` to the "
                "entry that is to be replaced"
            )
        return replace_entry(self.standardize(batch), self.label_key, self.labels[index])


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of inputs [N, C, ...], float32 [C]; 1 for one that is constant.

    Raises:
        TypeError: if they are of another kind.
    """
    if x.dim() < 2 or not x.is_floating_point():
        raise TypeError(
            f"`standardize` needs floating-point inputs [N, C, ...], got {x.dtype} of shape {list(x.shape)}"
        )
    channels = x.double().transpose(0, 1).flatten(1)
    mean, std = channels.mean(1), channels.std(1, correction=0)
    is_constant = channels.amin(1) == channels.amax(1)
    return mean.float(), torch.where(is_constant, 1.0, std).float()
