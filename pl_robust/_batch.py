"""Where the inputs and the labels sit in a batch, whatever shape the batch has."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def split_batch(batch: Any, input_key: str | int = 0, label_key: str | int = 1) -> tuple[Tensor, Tensor]:
    """Take inputs and labels out of a batch.

    Args:
        batch: tuple, list or namedtuple (read by position), mapping (read by key), or dataclass (read by field).
        input_key: where the inputs are: a position in sequences, a key in mappings, a field of dataclasses.
        label_key: where the labels are, likewise.

    Returns:
        Inputs and labels, as they stand in the batch.

    Raises:
        TypeError: if the batch is of another kind, or what stands there is no tensor.
        KeyError: if the batch has no such key, position or field.
    """
    return take_entry(batch, input_key, "input_key"), take_entry(batch, label_key, "label_key")


def take_entry(batch: Any, key: str | int, name: str = "input_key") -> Tensor:
    """Take one tensor out of a batch.

    Args:
        batch: as for ``split_batch``.
        key: where the tensor is.
        name: of the argument that says where, for the error.

    Raises:
        TypeError: if the batch is of another kind, or what stands there is no tensor.
        KeyError: if the batch has no such key, position or field.
    """
    present = entry_keys(batch)
    if present is None:
        raise TypeError(
            "a batch must be a tuple, list, namedtuple, dict or dataclass holding inputs and labels, "
            f"got {type(batch).__name__}"
        )
    if key not in present:
        raise KeyError(f"`{name}`={key!r} is not in the batch, which has {present}; set `{name}` to one of them")
    has_items = isinstance(batch, Mapping | Sequence)
    entry: Any = batch[key] if has_items else getattr(batch, str(key))
    if not isinstance(entry, Tensor):
        raise TypeError(f"the batch's entry {key!r} (`{name}`) must be a tensor, got {type(entry).__name__}")
    return entry


def entry_keys(batch: Any) -> list[Any] | None:
    """List a batch's keys, positions or fields; None if it is of a kind that is not known here."""
    if isinstance(batch, Mapping):
        return list(batch)
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return list(range(len(batch)))
    if is_dataclass(batch) and not isinstance(batch, type):
        return [field.name for field in fields(batch)]
    return None


def replace_entry(batch: Any, key: Any, value: Any) -> Any:
    """Copy a batch with one entry replaced; the copy is of the same type."""
    if isinstance(batch, MutableMapping | list):
        batch = copy.copy(batch)
        batch[key] = value
        return batch
    if isinstance(batch, Mapping):
        return type(batch)({**batch, key: value})  # type: ignore[call-arg]
    if isinstance(batch, Sequence):
        items = [value if position == key else item for position, item in enumerate(batch)]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)  # type: ignore[call-arg]
    batch = copy.copy(batch)
    object.__setattr__(batch, key, value)  # a frozen dataclass has only itself frozen
    return batch
