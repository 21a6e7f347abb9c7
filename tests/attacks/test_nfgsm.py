from __future__ import annotations

import torch
from torch import nn

from pl_robust.attacks import NFGSM, fgsm, nfgsm


def model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 10))


def test_without_noise_it_is_fgsm() -> None:
    net, x, y = model(), torch.rand(32, 3, 4, 4), torch.randint(10, (32,))
    assert torch.equal(nfgsm(net, x, y, eps=0.1, k=0.0), fgsm(net, x, y, eps=0.1))


def test_the_perturbation_is_noise_plus_step_and_leaves_the_ball() -> None:
    net, x, y = model(), torch.rand(500, 3, 4, 4), torch.randint(10, (500,))
    x_adv = nfgsm(net, x, y, eps=0.1, k=2.0, bounds=None, generator=torch.Generator().manual_seed(3))
    noise = torch.empty_like(x).uniform_(-1, 1, generator=torch.Generator().manual_seed(3)) * 0.2
    step = x_adv - x - noise
    torch.testing.assert_close(step.abs(), torch.full_like(step, 0.1))
    assert 0.29 < (x_adv - x).abs().max() <= 0.3 + 1e-6


def test_the_result_stays_in_the_box() -> None:
    net, x, y = model(), torch.rand(500, 3, 4, 4), torch.randint(10, (500,))
    x_adv = NFGSM(eps="64/255", k=3.0)(net, x, y)
    assert x_adv.min() == 0
    assert x_adv.max() == 1
