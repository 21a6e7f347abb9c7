"""Training a linearization on two gloo processes."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pl_robust.modules import LinearizedTraining
from tests._processes import run_ranks
from tests.modules.test_linearized_training import mlp
from tests.toys import assert_identical, loader, quiet_trainer, stripes

pytestmark = pytest.mark.lightning


def fit(ranks: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    # Another initialization on the second rank, as without seed_everything: DDP sends the first one's around.
    module = LinearizedTraining(mlp(seed=int(os.environ.get("LOCAL_RANK", "0"))), num_classes=3)
    trainer = quiet_trainer(max_epochs=4, devices=ranks, strategy="ddp" if ranks > 1 else "auto")
    trainer.fit(module, DataLoader(stripes(64), batch_size=64 // ranks))  # all of it at each step
    (metrics,) = trainer.test(module, loader(41, seed=2), verbose=False)  # an odd number: the sampler repeats one
    return {key: value.detach() for key, value in module.net.state_dict().items()}, dict(metrics)


def test_two_ranks_train_as_one_does() -> None:
    (first, metrics), (second, others) = run_ranks(fit, 2, 2)
    assert_identical(first, second)
    assert metrics == others
    alone, alone_metrics = fit(1)
    for key, value in alone.items():
        torch.testing.assert_close(first[key], value, rtol=1e-4, atol=1e-6)
    assert alone["displacement.layers.2.weight"].abs().max() > 0.01
    assert metrics == pytest.approx(alone_metrics, rel=1e-4)
