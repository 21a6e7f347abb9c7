"""The learning dynamics on two gloo processes: the rows of one, each sample counted once, no trace in the training."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch

from pl_robust._lightning import Callback
from pl_robust.attacks import FGSM
from pl_robust.callbacks import LearningDynamics
from pl_robust.datamodules import IndexedDataModule
from tests._processes import run_ranks
from tests.callbacks.test_detector_ddp import Frozen, ddp
from tests.callbacks.test_learning_dynamics import Data, csv_logger
from tests.toys import PlainModule, assert_identical, loader, needs_folders, quiet_trainer, training_state

pytestmark = pytest.mark.lightning

SAMPLES = 37  # odd: two ranks repeat one sample


class InsideAnEpoch(Callback):
    """Asks for the state, as a checkpoint does, after the second batch of the last epoch."""

    def __init__(self, dynamics: LearningDynamics) -> None:
        self.dynamics = dynamics
        self.state: dict[str, Any] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.state = self.dynamics.state_dict()


class Blinking(Frozen):
    """Its weights are those of two networks by turns: samples are forgotten and learned anew."""

    def on_train_epoch_start(self) -> None:
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.neg_()


def train(watched: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    callbacks = [LearningDynamics(FGSM(0.1))] if watched else []
    module = PlainModule()
    trainer = quiet_trainer(max_epochs=2, callbacks=callbacks, accumulate_grad_batches=2, **ddp(2))
    trainer.fit(module, datamodule=IndexedDataModule(Data(loader(50, shuffle=True))))
    return training_state(trainer, module)


def watch(ranks: int) -> Any:
    dynamics = LearningDynamics(FGSM(0.05))
    inside = InsideAnEpoch(dynamics)
    # Two ranks have two batches of 10 each, one process four; the weights are the same throughout an epoch.
    trainer = quiet_trainer(max_epochs=4, callbacks=[dynamics, inside], logger=csv_logger("."), **ddp(ranks))
    trainer.fit(Blinking(), datamodule=IndexedDataModule(Data(loader(SAMPLES, batch_size=10, shuffle=True))))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("dynamics/")}
    state = dynamics.state_dict()
    path = state.pop("path")
    if ranks > 1:
        assert_identical(train(watched=True), train(watched=False))
    return dynamics.history, state, logged, inside.state["looks"], path


@needs_folders
def test_two_ranks_see_what_one_process_sees() -> None:
    history, state, logged, looks, path = watch(1)
    alone = LearningDynamics.load(path)
    assert alone.statistics().forgetting.max() > 0
    assert not np.array_equal(np.asarray(alone.correct_adv), alone.correct)
    assert len(looks["index"]) == 20
    ranks = run_ranks(watch, 2, 2)
    together = LearningDynamics.load(ranks[0][4])
    assert os.path.dirname(path) != os.path.dirname(ranks[0][4])
    for one, other in zip(map(np.asarray, alone), map(np.asarray, together), strict=True):
        if one.dtype == np.float32:
            np.testing.assert_allclose(one, other, rtol=1e-5)  # other batches round differently
        else:
            np.testing.assert_array_equal(one, other)
    assert not np.isnan(together.confidence).any()
    for other_history, other_state, metrics, other_looks, other_path in ranks:
        assert [row["samples"] for row in other_history] == [SAMPLES] * 4
        for row, other_row in zip(history, other_history, strict=True):
            assert {**row, "step": 0} == pytest.approx({**other_row, "step": 0}, rel=1e-5)
        assert metrics == pytest.approx(logged, rel=1e-5)
        assert metrics == {f"dynamics/{name}": pytest.approx(value) for name, value in _last(other_history).items()}
        for view, statistics in state["statistics"].items():
            for name in ("looks", "right", "first_learned", "forgetting", "is_right"):
                assert torch.equal(other_state["statistics"][view][name], statistics[name])
        assert len(other_looks["index"]) == SAMPLES + 1  # both ranks' looks, in each rank's state
        assert len(other_looks["index"].unique()) == SAMPLES
        assert other_path == ranks[0][4]
    assert_identical(ranks[0][1:3], ranks[1][1:3])


def _last(history: list[dict[str, float]]) -> dict[str, float]:
    return {name: value for name, value in history[-1].items() if name not in ("epoch", "step", "samples")}
