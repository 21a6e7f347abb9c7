from __future__ import annotations

import pytest
import torch
from torch import nn

from pl_robust.ntk import _chunks
from pl_robust.ntk._chunks import split_samples


def test_the_memory_decides_about_the_size_if_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(1000, 500), nn.Tanh(), nn.Linear(500, 1000), nn.ReLU(), nn.Linear(1000, 10)).eval()
    kept = 4 * (1000 + 500 + 1000)  # inputs and activations, each of them once, and no weights
    monkeypatch.setattr(_chunks, "_CPU_BUDGET", 8 * kept)
    assert [len(chunk) for chunk in split_samples(model, torch.rand(20, 1000), None)] == [8, 8, 4]
    monkeypatch.setattr(_chunks, "_CPU_BUDGET", kept // 2)  # a sample must be allowed
    assert [len(chunk) for chunk in split_samples(model, torch.rand(3, 1000), None)] == [1, 1, 1]


def test_a_given_size_is_kept() -> None:
    x = torch.rand(10, 2)
    chunks = split_samples(nn.Linear(2, 2).eval(), x, 4)
    assert torch.equal(torch.cat(chunks), x)
    assert [len(chunk) for chunk in chunks] == [4, 4, 2]
