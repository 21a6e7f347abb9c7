from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pl_robust.attacks import FGSM, fgsm, nfgsm, pgd
from tests.attacks import models


def linear_model(channels: int = 3) -> tuple[nn.Linear, nn.Module]:
    layer = nn.Linear(channels * 16, 2)
    return layer, nn.Sequential(nn.Flatten(), layer)


def test_on_a_linear_model_fgsm_is_the_exact_worst_case() -> None:
    layer, model = linear_model()
    x, y = torch.rand(50, 3, 4, 4), torch.randint(2, (50,))
    x_adv = fgsm(model, x, y, eps=0.1, bounds=None)
    # The margin of a linear model falls by eps * |w_y - w_other|_1, and nothing in the ball does worse.
    w = layer.weight.detach()
    margin = (x.flatten(1) * (w[y] - w[1 - y])).sum(1)
    margin_adv = (x_adv.flatten(1) * (w[y] - w[1 - y])).sum(1)
    torch.testing.assert_close(margin - margin_adv, torch.full((50,), 0.1) * (w[0] - w[1]).abs().sum())


def test_on_a_linear_model_the_l2_step_is_the_exact_worst_case() -> None:
    layer, model = linear_model()
    x, y = torch.rand(50, 3, 4, 4), torch.randint(2, (50,))
    x_adv = fgsm(model, x, y, eps=0.7, norm="l2", bounds=None)
    w = layer.weight.detach()
    margin = ((x_adv - x).flatten(1) * (w[y] - w[1 - y])).sum(1)
    torch.testing.assert_close(margin, torch.full((50,), -0.7) * (w[0] - w[1]).norm())


@pytest.mark.parametrize("name", list(models.ZOO))
def test_it_equals_torchattacks(name: str) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model = models.ZOO[name]().eval()
    x, y = torch.rand(16, 3, 32, 32), torch.randint(10, (16,))
    expected = torchattacks.FGSM(model, eps=8 / 255)(x, y)
    torch.testing.assert_close(fgsm(model, x, y, eps="8/255"), expected, atol=1e-6, rtol=0)


def test_eps_per_channel_reaches_each_channel() -> None:
    _, model = linear_model()
    x, y = torch.rand(8, 3, 4, 4), torch.randint(2, (8,))
    x_adv = FGSM([0.1, "8/255", 0.0], bounds=None)(model, x, y)
    reached = (x_adv - x).abs().amax((0, 2, 3))
    torch.testing.assert_close(reached, torch.tensor([0.1, 8 / 255, 0.0]))


def test_the_random_start_is_clipped_back_to_the_ball() -> None:
    _, model = linear_model()
    x, y = torch.rand(64, 3, 4, 4), torch.randint(2, (64,))
    delta = FGSM(0.1, step_size=0.125, random_start=True, bounds=None)(model, x, y) - x
    assert delta.abs().max() <= 0.1 + 1e-6
    assert (delta.abs() < 0.099).any()  # wrong if the start were ignored: then every entry stands on the border


def test_normalized_data_gets_the_same_attack_as_a_model_that_normalizes() -> None:
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    _, inner = linear_model()

    def outer(x: Tensor) -> Tensor:
        logits: Tensor = inner((x - shift) / scale)
        return logits

    x, y = torch.rand(16, 3, 4, 4), torch.randint(2, (16,))
    arrays = (np.array(mean), torch.tensor(std))
    assert torch.equal(
        fgsm(inner, (x - shift) / scale, y, eps=0.1, normalization=arrays),  # type: ignore[arg-type]  # common all the same
        fgsm(inner, (x - shift) / scale, y, eps=0.1, normalization=(mean, std)),
    )
    for norm in ("linf", "l2"):
        inside = fgsm(outer, x, y, eps=0.1, norm=norm)
        outside = fgsm(inner, (x - shift) / scale, y, eps=0.1, norm=norm, normalization=(mean, std))
        torch.testing.assert_close(outside * scale + shift, inside)


def test_the_generator_alone_decides_the_noise() -> None:
    _, model = linear_model()
    x, y = torch.rand(8, 3, 4, 4), torch.randint(2, (8,))
    attack = FGSM(0.1, random_start=True)
    state = torch.get_rng_state()
    first = attack(model, x, y, generator=torch.Generator().manual_seed(7))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, attack(model, x, y, generator=torch.Generator().manual_seed(7)))
    assert not torch.equal(first, attack(model, x, y, generator=torch.Generator().manual_seed(8)))


@pytest.mark.parametrize("attack", [fgsm, nfgsm, pgd])
def test_what_float16_cannot_hold_is_refused(attack: Any) -> None:
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="beyond the 65504 that float16 holds: give `bounds`, or inputs in float32"):
        attack(lambda images: model(images.float()), x.half(), y, eps=1e6, bounds=None)
    assert attack(model, x, y, eps=1e6, bounds=None).abs().max() > 1e5
