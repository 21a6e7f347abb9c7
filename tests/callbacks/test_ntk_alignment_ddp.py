"""The alignment logger on two gloo processes: the numbers of one, and no trace in the training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pl_robust.callbacks import NTKAlignmentLogger
from tests._processes import run_ranks
from tests.callbacks.test_detector_ddp import Frozen, ddp
from tests.toys import PlainModule, assert_identical, loader, quiet_trainer, training_state

pytestmark = pytest.mark.lightning

Rows = list[dict[str, float]]


def watch(ranks: int) -> tuple[Rows, Rows, dict[str, float]]:
    logger = NTKAlignmentLogger(eigenvalues=2, per_layer=True, max_samples=256)
    few = NTKAlignmentLogger(max_samples=10, prefix="few")  # one chunk: the second rank has none
    trainer = quiet_trainer(max_epochs=1, callbacks=[logger, few], **ddp(ranks))
    trainer.fit(Frozen(), loader(64), loader(101, seed=1))  # 101: two ranks repeat one sample
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if "loss" not in name}
    return logger.history, few.history, logged


def test_two_ranks_log_what_one_process_logs() -> None:
    alone, few_alone, logged = watch(1)
    assert [row["epoch"] for row in alone] == [-1, 0]
    assert alone[0]["eigenvalue_1"] > alone[0]["eigenvalue_2"] > alone[0]["alignment"] > few_alone[0]["alignment"] > 0
    assert {"ntk/alignment", "ntk/share/net.0", "few/cka"} <= set(logged)
    first, second = run_ranks(watch, 2, 2)
    assert first == second
    for rows, wanted in zip(first[:2], (alone, few_alone), strict=True):
        for row, same in zip(rows, wanted, strict=True):
            assert {**row, "step": 0} == pytest.approx({**same, "step": 0}, rel=1e-5)
    assert first[2] == pytest.approx(logged, rel=1e-5)


def train(ranks: int, watched: bool, accumulate: int) -> dict[str, Any]:
    torch.manual_seed(0)
    callbacks: list[Any] = [NTKAlignmentLogger(every_n_steps=2, per_layer=True)] if watched else []
    module = PlainModule()
    trainer = quiet_trainer(max_epochs=2, callbacks=callbacks, accumulate_grad_batches=accumulate, **ddp(ranks))
    trainer.fit(module, loader(130, shuffle=True), loader(101, seed=1))
    return training_state(trainer, module)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_on_two_ranks_is_bit_identical_with_and_without_it(accumulate: int) -> None:
    watched = run_ranks(train, 2, 2, True, accumulate)
    alone = run_ranks(train, 2, 2, False, accumulate)
    assert_identical(watched, alone)
