from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_robust.losses.local_linearity import local_linearity_error

CURVATURES = torch.tensor([0.5, 1.0, 3.0, 7.0])
X = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
Y = torch.zeros(5, dtype=torch.long)


def answer(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None])[:, 0]


class Quadratic(nn.Module):
    """sum_i h_i x_i^2 / 2 + x_i, as both classes' answer."""

    def forward(self, x: Tensor) -> Tensor:
        value = (0.5 * CURVATURES.to(x) * x**2 + x).sum(1)
        return torch.stack([value, value], dim=1)


def smooth() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3)).eval()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_loss_has_no_error(norm: Any) -> None:
    error = local_linearity_error(nn.Linear(4, 2), X, Y, eps=0.1, norm=norm, loss=answer)
    assert error.shape == (5,)
    assert float(error.abs().max()) < 1e-6


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("sign", [1, -1])
def test_of_a_quadratic_loss_it_finds_the_corner(steps: int, sign: int) -> None:
    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return sign * answer(logits, y)

    x = X.double()
    error = local_linearity_error(Quadratic(), x, Y, eps=0.1, steps=steps, bounds=None, loss=loss)
    assert error.tolist() == pytest.approx([0.1**2 / 2 * float(CURVATURES.sum())] * 5, rel=1e-6)


def test_in_l2_it_nears_the_direction_of_the_largest_curvature() -> None:
    largest = 0.1**2 / 2 * float(CURVATURES.max())
    error = local_linearity_error(Quadratic(), X, Y, eps=0.1, steps=10, norm="l2", bounds=None, loss=answer)
    assert float(error.max()) <= largest * (1 + 1e-4)
    assert float(error.mean()) > 0.8 * largest


def test_it_looks_inside_ball_and_box_only() -> None:
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return torch.stack([(x**2).sum(1), x.sum(1)], dim=1)

    local_linearity_error(model, X, Y, eps=0.3)
    points = torch.stack(seen)
    assert float(points.min()) == 0
    assert float(points.max()) == 1
    assert float((points - X).abs().max()) == pytest.approx(0.3)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_never_below_the_value_at_the_start(seed: int) -> None:
    model = smooth()
    y = torch.arange(5) % 3
    noise = torch.empty(5, 4).uniform_(-1, 1, generator=torch.Generator().manual_seed(seed)) * 0.5
    start = (X + noise).clamp(0, 1)
    x = X.clone().requires_grad_()
    losses = F.cross_entropy(model(x), y, reduction="none")
    (slope,) = torch.autograd.grad(losses.sum(), x)
    at_start = F.cross_entropy(model(start), y, reduction="none") - losses - ((start - X) * slope).sum(1)
    at_start = at_start.detach().abs()
    found = [
        local_linearity_error(model, X, y, eps=0.5, steps=steps, generator=torch.Generator().manual_seed(seed))
        for steps in (1, 5, 20)
    ]
    for error in found:
        assert bool((error >= at_start - 1e-6).all())
    assert float(found[2].mean()) > float(at_start.mean())


def test_data_normalized_outside_gives_the_same() -> None:
    model = smooth().double()
    x = X.double()
    inside = nn.Sequential(Shift(), model)
    normalization = ([0.3] * 4, [0.2] * 4)
    expected = local_linearity_error(inside, x, Y, eps=0.1, generator=torch.Generator().manual_seed(0))
    found = local_linearity_error(
        model,
        (x - 0.3) / 0.2,
        Y,
        eps=0.1,
        normalization=normalization,
        generator=torch.Generator().manual_seed(0),
    )
    assert torch.allclose(found, expected, rtol=1e-6)


class Shift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.3) / 0.2


def test_the_model_is_left_as_it_was_in_any_grad_mode() -> None:
    model = smooth().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    results = []
    for context in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        with context:
            generator = torch.Generator().manual_seed(0)
            results.append(local_linearity_error(model, X.clone(), Y.clone(), eps=0.1, generator=generator))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert not results[0].requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, r"`steps` must be at least 1, got 0"),
        ({"eps": -1}, r"`eps` must be finite and at least 0.*got -1"),
        ({"loss": F.cross_entropy}, r"`loss` must give one value per sample \[B\] \(reduction='none'\).*got a scalar"),
    ],
)
def test_what_is_wrong_is_said(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        local_linearity_error(smooth(), X, Y, **{"eps": 0.1, **arguments})
