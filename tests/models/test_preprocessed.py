from __future__ import annotations

import pytest
import torch
from torch import nn

from pl_robust.attacks import FGSM
from pl_robust.models import Normalize, Preprocessed, SmallCNN


def test_it_is_the_sequence_of_both() -> None:
    transform, net = Normalize([0.5], [0.2]), SmallCNN(width=4).eval()
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    whole = Preprocessed(transform, net)
    assert torch.equal(whole(x), nn.Sequential(transform, net)(x))
    assert torch.equal(FGSM(0.1)(whole, x, y), FGSM(0.1)(nn.Sequential(transform, net), x, y))
    assert set(whole.state_dict()) == {f"net.{key}" for key in net.state_dict()}


def test_both_must_be_modules() -> None:
    with pytest.raises(TypeError, match=r"`transform` must be an nn.Module, got function"):
        Preprocessed(lambda x: x, SmallCNN())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`net` must be an nn.Module, got str"):
        Preprocessed(nn.Identity(), "SmallCNN")  # type: ignore[arg-type]
