from __future__ import annotations

import torch

from pl_robust.transforms._corruptions.cache import rows_at_once


def test_pieces_are_bounded_on_a_cpu_and_whole_elsewhere() -> None:
    x = torch.empty(1)
    for width in (1, 32, 224, 10_000):
        assert rows_at_once(x, width, 5000) * width <= 2**17
    assert rows_at_once(x, 2**20, 5) == 1  # a row wider than that is still one
    assert rows_at_once(x.to("meta"), 224, 5000) == 5000
    assert rows_at_once(x.to("meta"), 224, 0) == 1
