from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pl_robust._batch import entry_keys, replace_entry, split_batch, take_entry
from pl_robust._number import parse_number

X, Y = torch.rand(2, 3), torch.tensor([0, 1])


@dataclass
class Fields:
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    y: Tensor


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@pytest.mark.parametrize("batch", [(X, Y), [X, Y], (X, Y, "more")])
def test_sequences_are_read_by_position(batch: Any) -> None:
    x, y = split_batch(batch)
    assert x is X
    assert y is Y


@pytest.mark.parametrize(
    ("batch", "keys", "error", "message"),
    [
        (
            X,
            (0, 1),
            TypeError,
            "a batch must be a tuple, list, namedtuple, dict or dataclass holding inputs and labels, got Tensor",
        ),
        ((X,), (0, 1), KeyError, "`label_key`=1 is not in the batch, which has [0]; set `label_key` to one of them"),
        ({"image": X, "label": Y}, (0, 1), KeyError, "`input_key`=0 is not in the batch, which has ['image', 'label']"),
        ((X, [0, 1]), (0, 1), TypeError, "the batch's entry 1 (`label_key`) must be a tensor, got list"),
    ],
)
def test_what_is_not_there_is_named(batch: Any, keys: tuple[Any, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        split_batch(batch, *keys)


BATCHES: list[tuple[Any, Any, Any]] = [
    ((X, Y), 0, 1),
    ([X, Y], 0, 1),
    (Pair(X, Y), 0, 1),
    ({"x": X, "y": Y}, "x", "y"),
    (OrderedDict(y=Y, x=X), "x", "y"),
    (MappingProxyType({"x": X, "y": Y}), "x", "y"),
    (Fields(X, Y), "x", "y"),
    (Frozen(X, Y), "x", "y"),
]


@pytest.mark.parametrize(("batch", "key", "other"), BATCHES)
def test_an_entry_is_replaced_in_a_copy(batch: Any, key: Any, other: Any) -> None:
    views = [X, X + 1]
    replaced = replace_entry(batch, key, X + 1)
    assert type(replaced) is type(batch)
    assert entry_keys(replaced) == entry_keys(batch)
    assert torch.equal(take_entry(replaced, key), X + 1)
    assert take_entry(replaced, other) is Y
    assert split_batch(batch, key, other) == (X, Y)  # by identity: tensors of several elements have no truth value
    entry = vars(replace_entry(batch, key, views))[key] if isinstance(batch, Fields | Frozen) else None
    assert (replace_entry(batch, key, views)[key] if entry is None else entry) is views


def test_a_field_that_is_not_there_is_named() -> None:
    with pytest.raises(KeyError, match=r"`label_key`='label' is not in the batch, which has \['x', 'y'\]"):
        split_batch(Fields(X, Y), "x", "label")


@pytest.mark.parametrize("batch", [X, "xy", 3, None, Fields, object()])
def test_other_things_have_no_entries(batch: Any) -> None:
    assert entry_keys(batch) is None


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.25", 0.25), (1, 1.0), (" 1 / 4 ", 0.25)])
def test_numbers_are_read_as_written(text: Any, value: float) -> None:
    assert parse_number(text, "eps") == value
