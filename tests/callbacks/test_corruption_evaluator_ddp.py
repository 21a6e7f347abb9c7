"""The corruption evaluator on two gloo processes: the counts of one, and no trace in the training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from tests._processes import run_ranks
from tests.callbacks.test_corruption_evaluator import Classifier, evaluator, loader, pictures
from tests.callbacks.test_detector_ddp import ddp
from tests.toys import assert_identical, quiet_trainer, training_state

pytestmark = pytest.mark.lightning


class Frozen(Classifier):
    """Weights that stay put, so that runs on other numbers of ranks look at the same network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Sevens(BatchSampler):
    """Batches as a user's own sampler makes them; Lightning puts its DistributedSampler inside."""

    def __init__(self, sampler: Any, batch_size: int = 7, drop_last: bool = False) -> None:
        super().__init__(sampler, batch_size, drop_last)


def watch(ranks: int, kind: str) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Fit and test on 101 images: two ranks repeat one."""
    data = loader(101, batch_size=16)
    if kind == "batch sampler":
        data = DataLoader(pictures(101), batch_sampler=Sevens(SequentialSampler(range(101))))
    few = evaluator(every_n_epochs=1, max_samples=1, prefix="few")
    callbacks = [evaluator(every_n_epochs=1), few, evaluator(every_n_epochs=1, max_samples=33)]
    trainer = quiet_trainer(max_epochs=1, callbacks=callbacks, **ddp(ranks))
    module = Frozen()
    trainer.fit(module, loader(64), data)
    fitted = {name: float(value) for name, value in trainer.callback_metrics.items() if "/loss" not in name}
    trainer.test(module, data, verbose=False)
    tested = {f"test {name}": float(value) for name, value in trainer.callback_metrics.items() if "/loss" not in name}
    return [row for callback in callbacks for row in callback.history], fitted | tested


@pytest.mark.parametrize("kind", ["batches", "batch sampler"])
def test_two_ranks_count_and_log_what_one_process_does(kind: str) -> None:
    alone, logged = watch(1, kind)
    assert [row["samples"] for row in alone] == [101, 101, 1, 1, 33, 33]
    assert 0 < logged["corruption/mean_acc"] < 1
    assert "test corruption_2/mce" in logged
    for history, metrics in run_ranks(watch, 2, 2, kind):
        assert [{**row, "step": 0} for row in history] == [{**row, "step": 0} for row in alone]
        assert metrics == logged


def train(ranks: int, watched: bool, accumulate: int) -> dict[str, Any]:
    torch.manual_seed(0)
    callbacks: list[Any] = [evaluator(every_n_epochs=1)] if watched else []
    module = Classifier()
    trainer = quiet_trainer(max_epochs=2, callbacks=callbacks, accumulate_grad_batches=accumulate, **ddp(ranks))
    trainer.fit(module, loader(130, shuffle=True), loader(101))
    return training_state(trainer, module)


def test_training_on_two_ranks_is_bit_identical_with_and_without_it() -> None:
    watched = run_ranks(train, 2, 2, True, 2)
    alone = run_ranks(train, 2, 2, False, 2)
    assert_identical(watched, alone)
