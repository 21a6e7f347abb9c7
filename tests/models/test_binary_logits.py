from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pl_robust.attacks import FGSM
from pl_robust.models import MLP, BinaryLogits


@pytest.mark.parametrize("last", [nn.Identity(), nn.Flatten(0)])  # outputs [B, 1] and [B]
def test_its_cross_entropy_is_the_binary_one_and_its_answer_the_sign(last: nn.Module) -> None:
    net = nn.Sequential(MLP(4, 1, ()), last)
    binary = BinaryLogits(net)
    x, y = 3 * torch.randn(20, 4), torch.arange(20) % 2
    f = net(x).flatten()
    torch.testing.assert_close(
        F.cross_entropy(binary(x), y, reduction="none"),
        F.binary_cross_entropy_with_logits(f, y.float(), reduction="none"),
    )
    assert torch.equal(binary(x).argmax(1), (f > 0).long())
    assert 0 < (f > 0).sum() < 20
    assert binary(x[:0]).shape == (0, 2)
    assert set(binary.state_dict()) == {f"net.{name}" for name in net.state_dict()}


def test_attacks_work_on_it() -> None:
    """FGSM on a linear f moves each entry against the sign of its weight, or with it."""
    net = MLP(4, 1, ())
    x, y = torch.full((2, 4), 0.5), torch.tensor([0, 1])
    (weight, _) = net.parameters()
    torch.testing.assert_close(
        FGSM(0.1)(BinaryLogits(net), x, y), x + 0.1 * weight.sign() * torch.tensor([[1.0], [-1]])
    )


def test_errors_speak() -> None:
    with pytest.raises(TypeError, match=r"`net` must be an nn.Module, got function"):
        BinaryLogits(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"takes a net of one output, \[3, 1\] or \[3\] here, got \[3, 2\]; a net of two"
    ):
        BinaryLogits(MLP(4, 2))(torch.rand(3, 4))
