"""The detector on two gloo processes: same numbers and same decisions as on one, and no trace in the training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pl_robust.attacks import FGSM, PGD
from pl_robust.callbacks import CatastrophicOverfittingDetector
from pl_robust.modules import AdversarialTraining
from tests._processes import run_ranks
from tests.callbacks.test_catastrophic_overfitting import Drifting
from tests.toys import PlainModule, assert_identical, loader, quiet_trainer, stripes, training_state

pytestmark = pytest.mark.lightning


def ddp(ranks: int) -> dict[str, Any]:
    return {"strategy": "ddp", "devices": ranks} if ranks > 1 else {}


class Frozen(PlainModule):
    """Weights that stay put, so that runs on other numbers of ranks look at the same network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def watch(ranks: int) -> tuple[list[dict[str, float]], dict[str, float]]:
    detector = CatastrophicOverfittingDetector(eps=0.05)
    trainer = quiet_trainer(max_epochs=2, callbacks=[detector], **ddp(ranks))
    trainer.fit(Frozen(), loader(64), loader(301, seed=1))  # 301: two ranks repeat one sample
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("co/")}
    return detector.history, logged


def test_two_ranks_log_what_one_process_logs() -> None:
    alone, logged = watch(1)
    assert 0 < alone[0]["acc_pgd"] < alone[0]["acc"] < 1
    for history, metrics in run_ranks(watch, 2, 2):
        assert [{**row, "step": 0} for row in history] == [{**row, "step": 0} for row in alone]
        assert metrics == logged


def collapse(ranks: int, action: str) -> tuple[int, list[Any], float]:
    import warnings

    warnings.simplefilter("ignore")
    y = torch.arange(130) % 2
    x = (0.4 * y - 0.2).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    data = DataLoader(TensorDataset(x, y), batch_size=32)
    detector = CatastrophicOverfittingDetector(
        eps=0.18,
        bounds=None,
        strong_attack=PGD(0.18, steps=40, bounds=None),
        action=action,  # type: ignore[arg-type]
    )
    trainer = quiet_trainer(max_epochs=6, callbacks=[detector], **ddp(ranks))
    module = Drifting(2)
    trainer.fit(module, data, data)
    return trainer.current_epoch, [row["epoch"] for row in detector.detections], float(module.weight)


@pytest.mark.parametrize("action", ["stop", "rollback"])
def test_all_ranks_stop_together(action: str) -> None:
    first, second = run_ranks(collapse, 2, 2, action)
    assert first == second
    assert first[:2] == (3, [2])


def train(ranks: int, watched: bool, accumulate: int) -> dict[str, Any]:
    torch.manual_seed(0)
    callbacks: list[Any] = [CatastrophicOverfittingDetector(eps=0.1, every_n_steps=1)] if watched else []
    module = PlainModule()
    trainer = quiet_trainer(max_epochs=2, callbacks=callbacks, accumulate_grad_batches=accumulate, **ddp(ranks))
    trainer.fit(module, loader(130, shuffle=True), loader(101, seed=1))
    return training_state(trainer, module)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_on_two_ranks_is_bit_identical_with_and_without_it(accumulate: int) -> None:
    watched = run_ranks(train, 2, 2, True, accumulate)
    alone = run_ranks(train, 2, 2, False, accumulate)
    assert_identical(watched, alone)


def evaluate(ranks: int) -> dict[str, float]:
    module = AdversarialTraining(
        Frozen().net, FGSM(0.05), num_classes=3, eval_attacks={"pgd": PGD(0.05, random_start=False)}
    )
    (metrics,) = quiet_trainer(**ddp(ranks)).test(module, loader(101, seed=1, batch_size=20), verbose=False)
    return dict(metrics)


@pytest.mark.filterwarnings("ignore:Using `DistributedSampler` with the dataloaders")
def test_evaluation_on_two_ranks_counts_no_sample_twice() -> None:
    alone = evaluate(1)
    with torch.no_grad():
        x, y = stripes(101, seed=1).tensors
        assert alone["test/acc"] == pytest.approx((Frozen().net(x).argmax(1) == y).float().mean().item())
    for metrics in run_ranks(evaluate, 2, 2):
        assert metrics == pytest.approx(alone, abs=1e-6)
