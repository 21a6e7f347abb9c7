"""What all attacks have in common: they touch nothing but the input, and work wherever they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_robust.attacks import FGSM, NFGSM, PGD, Attack

ATTACKS: dict[str, Callable[..., Attack]] = {"fgsm": FGSM, "nfgsm": NFGSM, "pgd": PGD}


def net_with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10))


def batch() -> tuple[Tensor, Tensor]:
    return torch.rand(8, 3, 4, 4), torch.randint(10, (8,))


@pytest.mark.parametrize("name", list(ATTACKS))
def test_no_parameter_gradient_moves_or_is_computed(name: str) -> None:
    net, (x, y) = net_with_batch_norm(), batch()
    F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
    before = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    computed: list[Tensor] = []
    for parameter in net.parameters():
        parameter.register_hook(computed.append)  # type: ignore[no-untyped-call]  # fires when this gradient is computed
    ATTACKS[name](0.1)(net, x, y)
    assert computed == []
    assert all(torch.equal(old, p.grad) for old, p in zip(before, net.parameters(), strict=True) if p.grad is not None)


@pytest.mark.parametrize("name", list(ATTACKS))
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(name: str, context: Callable[[], torch.no_grad]) -> None:
    net, (x, y) = net_with_batch_norm().eval(), batch()
    expected = ATTACKS[name](0.1)(net, x, y, generator=torch.Generator().manual_seed(0))
    with context():
        x_inside, y_inside = x + 0, y + 0  # made inside, as a dataloader's batch is
        net(x_inside)
        x_adv = ATTACKS[name](0.1)(net, x_inside, y_inside, generator=torch.Generator().manual_seed(0))
    assert torch.equal(x_adv, expected)
    assert not x_adv.requires_grad


@pytest.mark.parametrize("mode", ["train", "eval", "batch_stats"])
@pytest.mark.parametrize("name", list(ATTACKS))
def test_batch_norm_behaves_as_asked(name: str, mode: str) -> None:
    net, (x, y) = net_with_batch_norm(), batch()
    norm = net[1]  # type: ignore[index]
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    seen = []
    norm.register_forward_hook(lambda layer, args, out: seen.append(out.mean((0, 2, 3)).abs().max().item()))
    ATTACKS[name](0.1, batch_norm=mode)(net, x, y)
    uses_batch_statistics = all(value < 1e-5 for value in seen)
    assert uses_batch_statistics == (mode != "eval")
    moved = any(not torch.equal(before[key], value) for key, value in norm.state_dict().items())
    assert moved == (mode == "train")
    assert norm.training
    assert norm.track_running_stats


def test_batch_norm_is_put_back_after_an_error() -> None:
    net = net_with_batch_norm()
    with pytest.raises(ValueError, match="NaN"):
        PGD(0.1, batch_norm="eval")(net, torch.full((2, 3, 4, 4), torch.nan), torch.zeros(2, dtype=torch.long))
    assert net[1].training  # type: ignore[index]


@pytest.mark.parametrize("name", list(ATTACKS))
@pytest.mark.parametrize("mode", ["train", "eval", "batch_stats"])
def test_a_net_in_eval_mode_stays_as_it_is(name: str, mode: str) -> None:
    net, (x, y) = net_with_batch_norm().eval(), batch()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    ATTACKS[name](0.1, batch_norm=mode)(net, x, y)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(ATTACKS))
def test_dtype_and_shape_are_kept(name: str, dtype: torch.dtype) -> None:
    net, (x, y) = net_with_batch_norm().to(dtype), batch()
    x_adv = ATTACKS[name]("8/255")(net, x.to(dtype), y)
    assert x_adv.dtype == dtype
    assert x_adv.shape == x.shape


@pytest.mark.parametrize("name", list(ATTACKS))
def test_eps_zero_without_noise_changes_nothing(name: str) -> None:
    net, (x, y) = net_with_batch_norm(), batch()
    assert torch.equal(ATTACKS[name](0.0)(net, x, y), x)


def test_a_custom_loss_is_ascended() -> None:
    net, (x, y) = net_with_batch_norm().eval(), batch()

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return -logits[:, 0]  # says nothing of the labels

    x_adv = PGD(0.2, loss=loss)(net, x, y)
    assert (net(x_adv)[:, 0] < net(x)[:, 0]).all()


def test_an_attack_shows_its_parameters() -> None:
    assert repr(PGD("8/255", steps=20)).startswith("PGD(eps=0.0313725")
    assert "steps=20" in repr(PGD("8/255", steps=20))


@pytest.mark.parametrize(
    ("attack", "fewest"),
    [
        (FGSM(1e-3, bounds=None), 8),
        (PGD(1e-3, bounds=None, restarts=3), 8),
        (PGD(1e-3, bounds=None, early_stop=True), 5),
    ],
)
def test_each_sample_keeps_its_target_when_few_are_left(attack: Attack, fewest: int) -> None:
    """The logits of sample i are i and 2.5: those from 3 on are right and stay in the attack, the others fall."""
    x = torch.arange(8.0).view(8, 1)
    seen: list[int] = []

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        assert torch.equal(logits[:, 0].detach().round(), targets)
        seen.append(len(targets))
        return logits[:, 0]

    def model(x: Tensor) -> Tensor:
        return torch.cat([x, 0 * x + 2.5], 1)

    attack(model, x, torch.zeros(8, dtype=torch.long), loss=loss, targets=torch.arange(8.0))
    assert min(seen) == fewest


def test_targets_need_a_loss_that_takes_them() -> None:
    net, (x, y) = net_with_batch_norm(), batch()
    with pytest.raises(ValueError, match=r"`targets` must come with a `loss`.*got shape \[8, 10\] and loss=None"):
        FGSM(0.1)(net, x, y, targets=torch.rand(8, 10))
    with pytest.raises(ValueError, match=r"one for each of the 8 samples, got shape \[3\]"):
        FGSM(0.1)(net, x, y, loss=nn.functional.mse_loss, targets=torch.rand(3))


@pytest.mark.parametrize("name", list(ATTACKS))
def test_the_start_gradient_is_the_one_at_the_start(name: str) -> None:
    net, (x, y) = net_with_batch_norm().eval(), batch()
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    attack = ATTACKS[name](0.1)
    x_adv, gradient = attack.with_start_gradient(net, x, y, generator=torch.Generator().manual_seed(0))
    start = seen[0].requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(net(start), y, reduction="sum"), start)
    torch.testing.assert_close(gradient, expected)
    assert torch.equal(x_adv, attack(net, x, y, generator=torch.Generator().manual_seed(0)))


class Own(PGD):
    """A user's attack that goes its own way, and gives the clean images."""

    def __call__(self, model: Any, x: Tensor, y: Tensor, **arguments: Any) -> Tensor:
        return x


def test_an_attack_with_a_call_of_its_own_is_not_passed_by() -> None:
    net, (x, y) = net_with_batch_norm(), batch()
    x_adv, gradient = Own(0.1).with_start_gradient(net, x, y)
    assert torch.equal(x_adv, x)
    assert gradient is None


def test_scaled_attacks_keep_their_shape() -> None:
    attack = PGD([0.1, 0.2], step_size="1/50", steps=7)
    half = attack.scaled(0.5)
    assert isinstance(half, PGD)
    assert isinstance(half.eps, Tensor)
    torch.testing.assert_close(half.eps, torch.tensor([0.05, 0.1]))
    assert (half.step_size, half.steps, attack.step_size) == (0.01, 7, 0.02)
    assert FGSM(0.1).scaled(0.0).eps == 0
    with pytest.raises(ValueError, match=r"`factor` must be finite and at least 0, got -1"):
        attack.scaled(-1)
    with pytest.raises(ValueError, match=r"must not be larger than the width of bounds"):
        attack.scaled(6)


def test_a_factor_that_is_no_number_is_refused() -> None:
    with pytest.raises(TypeError, match="`factor` must be a number, got None"):
        FGSM(0.1).scaled(None)  # type: ignore[arg-type]
