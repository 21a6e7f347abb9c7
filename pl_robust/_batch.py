"""Where the inputs and the labels sit in a batch, whatever shape the batch has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def split_batch(batch: Any, input_key: str | int = 0, label_key: str | int = 1) -> tuple[Tensor, Tensor]:
    """Take inputs and labels out of a batch.

    Args:
        batch: tuple, list or namedtuple (read by position), or mapping (read by key).
        input_key: where the inputs are: a position in sequences, a key in mappings.
        label_key: where the labels are, likewise.

    Returns:
        Inputs and labels, as they stand in the batch.

    Raises:
        TypeError: if the batch is of another kind, or what stands there is no tensor.
        KeyError: if the batch has no such key or position.
    """
    if isinstance(batch, Mapping):
        present: list[Any] = list(batch)
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        present = list(range(len(batch)))
    else:
        raise TypeError(
            f"a batch must be a tuple, list, namedtuple or dict holding inputs and labels, got {type(batch).__name__}"
        )
    for name, key in (("input_key", input_key), ("label_key", label_key)):
        if key not in present:
            raise KeyError(f"`{name}`={key!r} is not in the batch, which has {present}; set `{name}` to one of them")
        if not isinstance(batch[key], Tensor):
            raise TypeError(f"the batch's entry {key!r} (`{name}`) must be a tensor, got {type(batch[key]).__name__}")
    return batch[input_key], batch[label_key]
