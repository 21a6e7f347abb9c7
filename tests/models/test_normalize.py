from __future__ import annotations

import pytest
import torch
from torch import nn

from pl_robust.models import Normalize


def test_is_the_formula_channel_by_channel() -> None:
    x = torch.rand(4, 3, 5, 6)
    mean, std = (0.5, 0.1, 0.25), (0.25, 2.0, 0.5)
    out = Normalize(mean, std)(x)
    for channel in range(3):
        expected = (x[:, channel] - mean[channel]) / std[channel]
        torch.testing.assert_close(out[:, channel], expected, rtol=1e-6, atol=1e-7)


def test_undoes_itself_and_lets_gradients_through() -> None:
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    out = Normalize([0.25], [0.5])(x)
    assert out.dtype == torch.float64
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 2.0))


def test_constants_move_with_the_module_and_stay_out_of_checkpoints() -> None:
    module = Normalize([0.5], [0.5]).to(torch.float64)
    assert module.mean.dtype == torch.float64
    assert module.state_dict() == {}
    plain = nn.Sequential(nn.Identity(), nn.Conv2d(1, 1, 1))
    nn.Sequential(Normalize([0.5], [0.5]), nn.Conv2d(1, 1, 1)).load_state_dict(plain.state_dict())


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5, 0.5], [0.5], "one number per channel"),
        ([], [], "one number per channel"),
        ([0.5], [0.0], "`std` must be positive"),
        ([0.5, 0.5], [0.5, -1.0], "`std` must be positive"),
        ([float("nan")], [1.0], "must be finite"),
        ([0.0], [float("inf")], "must be finite"),
    ],
)
def test_refuses_constants(mean: list[float], std: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Normalize(mean, std)


def test_refuses_other_channels_instead_of_broadcasting() -> None:
    with pytest.raises(ValueError, match=r"3 channels, got an input of shape \[2, 1, 4, 4\]"):
        Normalize([0.5] * 3, [0.5] * 3)(torch.rand(2, 1, 4, 4))
