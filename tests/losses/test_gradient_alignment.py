from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_robust.attacks import FGSM, NFGSM, PGD, Attack
from pl_robust.losses import GradAlign, gradient_alignment, gradient_alignment_weight
from pl_robust.models import Normalize


def smooth_net(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(16, 5), nn.Tanh()).to(dtype)


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(6, 2, 4, 4, dtype=dtype, generator=generator), torch.arange(6) % 5


def by_the_authors(net: nn.Module, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    """Their train.py and utils.py, in short: g1 at x and detached, g2 at x + noise with double backprop."""
    gradients = []
    for start, create_graph in ((torch.zeros_like(x), False), (noise, True)):
        delta = start.clone().requires_grad_()
        loss = F.cross_entropy(net(x + delta), y)
        gradients.append(torch.autograd.grad(loss, delta, create_graph=create_graph)[0])
    norms = [(gradient**2).sum((1, 2, 3)) ** 0.5 for gradient in gradients]
    kept = (norms[0] != 0) & (norms[1] != 0)
    units = [g[kept] / norm[kept, None, None, None] for g, norm in zip(gradients, norms, strict=True)]
    return 1 - (units[0] * units[1]).sum((1, 2, 3)).mean()


def noise_of(x: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x).uniform_(-1, 1, generator=torch.Generator().manual_seed(3)) * eps


def test_value_and_parameter_gradients_are_those_of_the_authors_code() -> None:
    net, (x, y) = smooth_net(), batch()
    expected = by_the_authors(net, x, y, noise_of(x, 0.3))
    ours = gradient_alignment(net, x, y, eps=0.3, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=0)
    assert ours.item() > 1e-3  # there is something to align
    for left, right in zip(
        torch.autograd.grad(ours, list(net.parameters())),
        torch.autograd.grad(expected, list(net.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences() -> None:
    net, (x, y) = smooth_net(), batch()
    start = torch.randn_like(x)  # a constant, as the function says

    def value() -> Tensor:
        return gradient_alignment(net, x, y, eps=0.3, start_gradient=start, generator=torch.Generator().manual_seed(3))

    gradients = torch.autograd.grad(value(), list(net.parameters()), allow_unused=True)
    checked = 0
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        assert gradient is not None
        for index in range(0, parameter.numel(), 7):
            with torch.no_grad():
                entry = parameter.view(-1)[index : index + 1]
                entry += 1e-6
                above = value().item()
                entry -= 2e-6
                below = value().item()
                entry += 1e-6
            assert gradient.flatten()[index].item() == pytest.approx((above - below) / 2e-6, rel=1e-5, abs=1e-9)
            checked += 1
    assert checked > 20


def test_a_locally_linear_model_is_aligned() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 2))  # two classes: every gradient is along the same line
    x, y = batch(torch.float32)
    assert gradient_alignment(net, x, y % 2, eps=0.5).item() == pytest.approx(0, abs=1e-6)


def test_samples_without_a_direction_are_left_out() -> None:
    class Dead(nn.Module):
        """A quadratic whose first sample has no gradient at all."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.linspace(0.5, 2, 32, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            alive = (torch.arange(len(x)) > 0).to(x)
            return torch.stack([alive * (self.scale * x.flatten(1) ** 2).sum(1), 0 * x.flatten(1).sum(1)], 1)

    net, (x, y) = Dead(), batch()
    y = torch.zeros_like(y)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return logits[:, 0]

    ours = gradient_alignment(net, x, y, eps=0.3, loss=loss, generator=torch.Generator().manual_seed(3))
    at_x = net.scale * x.flatten(1)
    near = net.scale * (x + noise_of(x, 0.3)).flatten(1)
    expected = 1 - F.cosine_similarity(at_x.detach(), near)[1:].mean()
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, net.scale), torch.autograd.grad(expected, net.scale))
    alone = gradient_alignment(net, x[:1], y[:1], eps=0.3, loss=loss)
    assert alone.item() == 0
    assert torch.equal(torch.autograd.grad(alone, net.scale)[0], torch.zeros(32, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-12, 1e-25, 1e-40])
def test_vanishing_gradients_bring_no_nan(scale: float) -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(16, 5))
    x, y = batch(torch.float32)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, reduction="none") * scale

    value = gradient_alignment(net, x, y, eps=0.3, loss=loss)
    assert value.isfinite()
    for gradient in torch.autograd.grad(value, list(net.parameters()), allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


def test_normalized_data_give_what_a_normalizing_net_gives() -> None:
    net, (x, y) = smooth_net(), batch()
    mean, std = [0.4, 0.5], [0.2, 0.3]
    inside = nn.Sequential(Normalize(mean, std).double(), net)
    expected = gradient_alignment(inside, x, y, eps=0.1, generator=torch.Generator().manual_seed(3))
    z = (x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    ours = gradient_alignment(net, z, y, eps=0.1, normalization=(mean, std), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)


def test_the_gradient_alignment_weight() -> None:
    assert gradient_alignment_weight(8 / 255) == pytest.approx(0.2)
    assert gradient_alignment_weight(16 / 255) == pytest.approx(2.0)
    assert gradient_alignment_weight(0.0) == pytest.approx(0.02)
    with pytest.raises(ValueError, match=r"from 0 to 16/255, got 0\.25: give a `weight`"):
        gradient_alignment_weight(0.25)


@pytest.mark.parametrize("attack", [FGSM("8/255"), FGSM(0.1, random_start=True), NFGSM(0.1), PGD(0.1, steps=2)])
def test_the_regularizer_compares_with_the_gradient_at_the_attacks_start(attack: Attack) -> None:
    """Whatever the start: recomputed here from the noise that the attack drew."""
    net, (x, y) = smooth_net(), batch()
    starts: list[Tensor] = []
    handle = net.register_forward_pre_hook(lambda module, args: starts.append(args[0].detach().clone()))
    torch.manual_seed(5)
    loss, logits = GradAlign(weight=0.7)(net, attack, x, y)
    handle.remove()
    start, near, x_adv = starts[0], starts[-1], starts[-2]
    at_start = torch.autograd.grad(F.cross_entropy(net(leaf := start.requires_grad_()), y, reduction="sum"), leaf)[
        0
    ].flatten(1)
    leaf = near.requires_grad_()
    at_near = torch.autograd.grad(F.cross_entropy(net(leaf), y, reduction="sum"), leaf)[0].flatten(1)
    misalignment = 1 - F.cosine_similarity(at_start, at_near).mean()
    expected = F.cross_entropy(net(x_adv), y) + 0.7 * misalignment
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits, net(x_adv))
    assert (near - x).abs().max() <= attack.eps
    passes = {FGSM: 3, NFGSM: 3, PGD: 4}[type(attack)]
    assert len(starts) == passes  # no pass for the gradient at the start


class Gradientless(Attack):
    """A random attack."""

    def _perturb(self, target, generator):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return self.ball.clip(target.x + self.ball.random(target.x, generator=generator))


@pytest.mark.parametrize(
    ("regularizer", "attack", "message"),
    [
        (GradAlign(1.0), Gradientless(0.1), "Gradientless gives none: take FGSM, NFGSM or PGD"),
        (GradAlign(), FGSM(0.25), r"from 0 to 16/255, got 0.25: give a `weight`"),
        (GradAlign(), FGSM(0.1, norm="l2"), r"norm='linf' with one eps.*got norm='l2'.*give GradAlign a `weight`"),
        (GradAlign(), FGSM([0.1, 0.2]), r"one eps for all channels.*give GradAlign a `weight`"),
    ],
)
def test_what_cannot_be_regularized_is_named(regularizer: GradAlign, attack: Attack, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        regularizer(smooth_net(), attack, *batch())


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_a_weight_must_be_one(weight: float) -> None:
    with pytest.raises(ValueError, match="`weight` must be finite and at least 0, or None"):
        GradAlign(weight)


def test_a_start_gradient_must_fit() -> None:
    x, y = batch()
    with pytest.raises(ValueError, match=r"`start_gradient` must have the shape of `x`.*got \[2, 2\]"):
        gradient_alignment(smooth_net(), x, y, eps=0.1, start_gradient=torch.zeros(2, 2))


def test_attention_is_aligned_too() -> None:
    """The fused kernels of scaled_dot_product_attention have no second derivative."""

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(4, 24)
            self.head = nn.Linear(64, 5)

        def forward(self, x: Tensor) -> Tensor:
            query, key, value = self.project(x.reshape(len(x), 1, 8, 4)).chunk(3, dim=-1)
            attended = F.scaled_dot_product_attention(query, key, value)
            logits: Tensor = self.head(attended.flatten(1))
            return logits

    torch.manual_seed(0)
    net, (x, y) = Attending(), batch(torch.float32)
    loss, _ = GradAlign(1.0)(net, FGSM(0.1), x, y)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


def test_a_network_that_has_diverged_is_not_aligned() -> None:
    value = gradient_alignment(
        lambda x: x.flatten(1)[:, :2] * torch.nan, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), eps=0.1
    )
    assert value.isnan()
