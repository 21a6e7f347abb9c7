"""The calibration logger on two gloo processes: the numbers of one, and no trace in the training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pl_robust.attacks import PGD
from pl_robust.callbacks import CalibrationLogger
from tests._processes import run_ranks
from tests.callbacks.test_detector_ddp import Frozen, ddp
from tests.toys import PlainModule, assert_identical, loader, quiet_trainer, training_state

pytestmark = pytest.mark.lightning


def watch(ranks: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Fit and test on 101 images, of which two ranks repeat one, and on 1, of which one rank has none."""
    logger = CalibrationLogger(PGD(0.05, steps=3, random_start=False))
    trainer = quiet_trainer(max_epochs=2, callbacks=[logger, CalibrationLogger(None, bins=4)], **ddp(ranks))
    module = Frozen()
    trainer.fit(module, loader(64), loader(101, seed=1))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if "loss" not in name}
    for count in (101, 1):
        trainer.test(module, loader(count, seed=1, batch_size=20), verbose=False)
        logged |= {
            f"{count} {name}": float(value) for name, value in trainer.callback_metrics.items() if "loss" not in name
        }
    return logger.history, logged


def test_two_ranks_log_what_one_process_logs() -> None:
    alone, logged = watch(1)
    assert [row["samples"] for row in alone] == [101, 101, 101, 1]
    assert 0 < alone[0]["acc_adv"] < alone[0]["acc"] < 1
    assert {"val/ece", "val/ece_adv", "val/robust_gap", "101 test/brier_adv", "1 test/nll_2"} <= set(logged)
    for history, metrics in run_ranks(watch, 2, 2):
        assert metrics == pytest.approx(logged, rel=1e-5, abs=1e-6)
        for found, expected in zip(history, alone, strict=True):
            assert found["samples"] == expected["samples"]
            for ending in ("", "_adv"):
                assert found[f"acc{ending}"] == expected[f"acc{ending}"]
                assert found[f"bins{ending}"]["counts"] == expected[f"bins{ending}"]["counts"]


def train(ranks: int, watched: bool, accumulate: int) -> dict[str, Any]:
    torch.manual_seed(0)
    callbacks: list[Any] = [CalibrationLogger(PGD(0.1, steps=2))] if watched else []
    module = PlainModule()
    trainer = quiet_trainer(max_epochs=2, callbacks=callbacks, accumulate_grad_batches=accumulate, **ddp(ranks))
    trainer.fit(module, loader(130, shuffle=True), loader(101, seed=1))
    return training_state(trainer, module)


def test_training_on_two_ranks_is_bit_identical_with_and_without_it() -> None:
    watched = run_ranks(train, 2, 2, True, 2)
    alone = run_ranks(train, 2, 2, False, 2)
    assert_identical(watched, alone)
