from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_robust.attacks import PGD, pgd
from tests.attacks import models


class Counting(nn.Module):
    """Counts the samples that pass through a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.samples = 0

    def forward(self, x: Tensor) -> Tensor:
        self.samples += len(x)
        logits: Tensor = self.model(x)
        return logits


def trained_cnn() -> tuple[nn.Module, Tensor, Tensor]:
    """A small net that has learned to tell stripes apart, quickly: accurate, partly robust."""
    y = torch.randint(4, (600,))
    x = torch.rand(600, 1, 8, 8) * 0.6
    x[torch.arange(600), 0, y * 2] += 0.25
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval(), x, y


def robust_accuracy(model: nn.Module, x_adv: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x_adv).argmax(1) == y).float().mean())


@pytest.mark.parametrize("name", list(models.ZOO))
def test_without_random_start_it_equals_torchattacks(name: str) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model = models.ZOO[name]().eval()
    x, y = torch.rand(16, 3, 32, 32), torch.randint(10, (16,))
    expected = torchattacks.PGD(model, eps=8 / 255, alpha=2 / 255, steps=10, random_start=False)(x, y)
    x_adv = pgd(model, x, y, eps=8 / 255, step_size=2 / 255, steps=10, random_start=False)
    torch.testing.assert_close(x_adv, expected, atol=1e-6, rtol=0)
    expected = torchattacks.PGDL2(model, eps=1.0, alpha=0.2, steps=10, random_start=False)(x, y)
    x_adv = pgd(model, x, y, eps=1.0, step_size=0.2, steps=10, random_start=False, norm="l2")
    torch.testing.assert_close(x_adv, expected, atol=1e-6, rtol=0)


def test_with_random_start_it_is_as_strong_as_torchattacks() -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = trained_cnn()
    for seed in range(5):
        torch.manual_seed(seed)
        theirs = torchattacks.PGD(model, eps=0.05, alpha=0.0125, steps=10)(x, y)
        ours = PGD(eps=0.05, step_size=0.0125, steps=10)(model, x, y)
        accuracy = robust_accuracy(model, ours, y)
        assert 0.05 < accuracy < 0.95  # else the comparison says nothing
        assert abs(accuracy - robust_accuracy(model, theirs, y)) <= 0.01


def test_early_stop_gives_the_same_robust_accuracy_with_a_third_of_the_work() -> None:
    model, x, y = trained_cnn()
    settings = {"eps": 0.08, "step_size": 0.02, "steps": 10, "restarts": 10}
    accuracies, samples = {}, {}
    for early_stop in (False, True):
        counting = Counting(model)
        generator = torch.Generator().manual_seed(0)
        x_adv = PGD(**settings, early_stop=early_stop)(counting, x, y, generator=generator)  # type: ignore[arg-type]
        accuracies[early_stop] = robust_accuracy(model, x_adv, y)
        samples[early_stop] = counting.samples
    assert samples[False] == 600 * 10 * 11
    assert 0.02 < accuracies[False] <= 0.5
    assert accuracies[True] == accuracies[False]
    print(f"robust accuracy {accuracies[True]:.3f}, passes saved {samples[False] / samples[True]:.2f}x")
    assert samples[False] >= 3 * samples[True]


def test_each_sample_gets_its_worst_restart() -> None:
    model, x, y = trained_cnn()
    generator = torch.Generator().manual_seed(1)
    worst = pgd(model, x, y, eps=0.05, steps=5, restarts=4, generator=generator)
    lost = robust_accuracy(model, worst, y)
    generator = torch.Generator().manual_seed(1)
    singles = [pgd(model, x, y, eps=0.05, steps=5, generator=generator) for _ in range(4)]
    with torch.no_grad():
        wrong = torch.stack([model(x_adv).argmax(1) != y for x_adv in singles])
        losses = torch.stack([F.cross_entropy(model(x_adv), y, reduction="none") for x_adv in singles])
        worst_loss = F.cross_entropy(model(worst), y, reduction="none")
        is_wrong = model(worst).argmax(1) != y
    assert (is_wrong >= wrong.any(0)).all()
    assert lost <= min(1 - row.float().mean().item() for row in wrong)
    never = ~is_wrong
    assert (worst_loss[never] >= losses.max(0).values[never] - 1e-6).all()


def test_the_noise_does_not_depend_on_early_stop() -> None:
    model, x, y = trained_cnn()
    states = []
    for early_stop in (False, True):
        generator = torch.Generator().manual_seed(5)
        pgd(model, x, y, eps=0.5, steps=2, restarts=3, early_stop=early_stop, generator=generator)
        states.append(generator.get_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_sample_of_a_hundred_thousand_leaves_the_ball_or_the_box(norm: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))
    x, y = torch.rand(100_000, 3, 2, 2), torch.randint(3, (100_000,))
    x_adv = pgd(model, x, y, eps=0.3, step_size=0.2, steps=3, restarts=2, norm=norm)  # type: ignore[arg-type]
    delta = (x_adv - x).flatten(1)
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    assert size.max() <= 0.3 + 1e-6
    assert size.median() > 0.1
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_fill_the_ball(norm: str) -> None:
    flat = nn.Linear(4, 2)
    nn.init.zeros_(flat.weight)  # no gradient, so that the start is the result
    x, y = torch.zeros(20_000, 4), torch.zeros(20_000, dtype=torch.long)
    delta = pgd(flat, x, y, eps=0.5, steps=1, bounds=None, norm=norm)  # type: ignore[arg-type]
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    # Uniform in a ball of dimension 4: the radius has the distribution function (r / eps)^4.
    share = ((size / 0.5) ** 4).sort().values
    uniform = torch.linspace(0, 1, len(share))
    assert (share - uniform).abs().max() < 1.63 / len(share) ** 0.5  # Kolmogorov-Smirnov at 1 %
