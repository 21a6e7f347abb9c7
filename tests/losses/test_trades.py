from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_robust.attacks import FGSM, NFGSM, PGD
from pl_robust.losses import TRADES, distillation_loss, trades_loss
from tests.losses.test_gradient_alignment import batch, smooth_net


def divergence_by_the_authors(logits_adv: Tensor, logits: Tensor) -> Tensor:
    criterion = nn.KLDivLoss(reduction="sum")
    value: Tensor = criterion(F.log_softmax(logits_adv, dim=1), F.softmax(logits, dim=1))
    return value


def test_value_and_gradients_are_those_of_the_authors_code() -> None:
    torch.manual_seed(0)
    logits, logits_adv = (torch.randn(7, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y = torch.arange(7) % 4
    ours = trades_loss(logits, logits_adv, y, beta=6.0)
    expected = F.cross_entropy(logits, y) + 6.0 / 7 * divergence_by_the_authors(logits_adv, logits)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(
        torch.autograd.grad(ours, [logits, logits_adv]), torch.autograd.grad(expected, [logits, logits_adv])
    )


def test_the_divergence_of_two_coins() -> None:
    """KL((1/2, 1/2) || (p, 1 - p)) = -log(4 p (1 - p)) / 2, in pencil; the cross-entropy of a coin is log 2."""
    p = 0.9
    logits_adv = torch.tensor([[p, 1 - p]]).log()
    ours = trades_loss(torch.zeros(1, 2), logits_adv, torch.tensor([0]), beta=3.0)
    assert ours.item() == pytest.approx(math.log(2) - 3.0 * math.log(4 * p * (1 - p)) / 2)


def test_its_adversarial_examples_maximize_the_divergence() -> None:
    """Pgd written out, from the same start, against KL and not against the labels."""
    net, (x, y) = smooth_net(), batch()
    torch.manual_seed(5)
    loss, logits_adv = TRADES(beta=3.0)(net, PGD(0.2, steps=4), x, y)
    torch.manual_seed(5)
    logits = net(x)
    x_adv = (x + torch.empty_like(x).uniform_(-1, 1) * 0.2).clamp(0, 1)
    for _ in range(4):
        leaf = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(divergence_by_the_authors(net(leaf), logits.detach()), leaf)
        x_adv = (x + (leaf + 0.125 * gradient.sign() - x).clamp(-0.2, 0.2)).clamp(0, 1).detach()
    torch.testing.assert_close(logits_adv, net(x_adv))
    torch.testing.assert_close(loss, trades_loss(logits, net(x_adv), y, beta=3.0))


def test_in_eval_mode_the_reference_is_the_net_in_eval_mode() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(), nn.Linear(16, 5)).double()
    x, y = batch()
    norm: nn.BatchNorm2d = net[1]  # type: ignore[assignment]
    modes: list[bool] = []
    norm.register_forward_hook(lambda layer, args, out: modes.append(layer.training))
    TRADES()(net, PGD(0.1, steps=2, batch_norm="eval"), x, y)
    assert modes == [True, False, False, False, True]  # clean, reference, two steps, adversarial
    assert norm.num_batches_tracked == 2
    modes.clear()
    TRADES()(net, PGD(0.1, steps=2), x, y)
    assert modes == [True] * 4  # the clean forward is the reference


def test_an_attack_that_starts_at_x_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs random_start=True, got FGSM\(eps=0.1"):
        TRADES()(smooth_net(), FGSM(0.1), *batch())
    for attack in (FGSM(0.1, random_start=True), NFGSM(0.1)):
        loss, _ = TRADES()(smooth_net(), attack, *batch())
        assert loss.isfinite()


def test_beta_must_be_a_weight() -> None:
    with pytest.raises(ValueError, match="`beta` must be finite and at least 0, got -1"):
        TRADES(-1)


@pytest.mark.parametrize("label", [3, -1, -100])
def test_labels_out_of_range_are_refused(label: int) -> None:
    with pytest.raises(ValueError, match=rf"`y` must be labels in 0..2 for 3 classes, got {label}..{label}"):
        trades_loss(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([label]))
    with pytest.raises(ValueError, match="at least one sample"):
        trades_loss(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_it_is_mapped_and_compiled_as_cross_entropy_is() -> None:
    """Checks that look at values stay out of transforms, which cannot, and of graphs, which they would break."""
    torch.manual_seed(0)
    logits, logits_adv, y = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.tensor([[0, 1, 2], [3, 0, 1]])
    expected = [trades_loss(*one).item() for one in zip(logits, logits_adv, y, strict=True)]
    assert torch.vmap(trades_loss)(logits, logits_adv, y).tolist() == pytest.approx(expected)
    log_teacher = logits_adv.log_softmax(2)
    distil = partial(distillation_loss, teacher_weight=0.5)
    expected_distil = [distil(*one).item() for one in zip(logits, y, log_teacher, strict=True)]
    assert torch.vmap(distil)(logits, y, log_teacher).tolist() == pytest.approx(expected_distil)
    whole = torch.compile(trades_loss, backend="eager", fullgraph=True)
    assert whole(logits[0], logits_adv[0], y[0]).item() == pytest.approx(expected[0])
