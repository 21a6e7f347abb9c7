"""The curvature logger on two gloo processes: the numbers of one, and no trace in the training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pl_robust.callbacks import CurvatureLogger
from tests._processes import run_ranks
from tests.callbacks.test_detector_ddp import Frozen, ddp
from tests.toys import PlainModule, assert_identical, loader, quiet_trainer, training_state

pytestmark = pytest.mark.lightning


def watch(ranks: int) -> tuple[list[dict[str, float]], dict[str, float]]:
    logger = CurvatureLogger(eps=0.05, k=2, max_samples=256)
    trainer = quiet_trainer(max_epochs=2, callbacks=[logger], **ddp(ranks))
    trainer.fit(Frozen(), loader(64), loader(101, seed=1))  # 101: two ranks repeat one sample
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("curvature/")}
    return logger.history, logged


def test_two_ranks_log_what_one_process_logs() -> None:
    alone, logged = watch(1)
    assert alone[0]["eigenvalue_1"] > alone[0]["eigenvalue_2"] > 0
    for history, metrics in run_ranks(watch, 2, 2):
        assert [{**row, "step": 0} for row in history] == [{**row, "step": 0} for row in alone]
        assert metrics == logged


def train(ranks: int, watched: bool, accumulate: int) -> dict[str, Any]:
    torch.manual_seed(0)
    callbacks: list[Any] = [CurvatureLogger(eps=0.1, every_n_steps=1)] if watched else []
    module = PlainModule()
    trainer = quiet_trainer(max_epochs=2, callbacks=callbacks, accumulate_grad_batches=accumulate, **ddp(ranks))
    trainer.fit(module, loader(130, shuffle=True), loader(101, seed=1))
    return training_state(trainer, module)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_on_two_ranks_is_bit_identical_with_and_without_it(accumulate: int) -> None:
    watched = run_ranks(train, 2, 2, True, accumulate)
    alone = run_ranks(train, 2, 2, False, accumulate)
    assert_identical(watched, alone)
