from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from pl_robust._batch import split_batch
from pl_robust._number import parse_number

X, Y = torch.rand(2, 3), torch.tensor([0, 1])


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
            "a batch must be a tuple, list, namedtuple or dict holding inputs and labels, got Tensor",
        ),
        ((X,), (0, 1), KeyError, "`label_key`=1 is not in the batch, which has [0]; set `label_key` to one of them"),
        ({"image": X, "label": Y}, (0, 1), KeyError, "`input_key`=0 is not in the batch, which has ['image', 'label']"),
        ((X, [0, 1]), (0, 1), TypeError, "the batch's entry 1 (`label_key`) must be a tensor, got list"),
    ],
)
def test_what_is_not_there_is_named(batch: Any, keys: tuple[Any, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        split_batch(batch, *keys)


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.25", 0.25), (1, 1.0), (" 1 / 4 ", 0.25)])
def test_numbers_are_read_as_written(text: Any, value: float) -> None:
    assert parse_number(text, "eps") == value
