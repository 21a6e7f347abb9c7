"""Classifying nodes on two gloo processes."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pl_robust.modules import NodeClassification
from tests._processes import run_ranks
from tests.modules.test_node_classification import CLASSES, gcn, graph, sample
from tests.toys import assert_identical, quiet_trainer

pytestmark = pytest.mark.lightning


def fit(ranks: int) -> tuple[dict[str, Tensor], dict[str, float], int, list[str]]:
    # Another initialization on the second rank, as without seed_everything: DDP sends the first one's around.
    net = gcn(int(os.environ.get("LOCAL_RANK", "0")), dropout=0.0, hidden_features=32)
    module = NodeClassification(
        net, num_classes=CLASSES, patience=9, optimizer=lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=5e-4)
    )
    trainer = quiet_trainer(max_epochs=200, devices=ranks, strategy="ddp" if ranks > 1 else "auto")
    data = graph(sbm_signal=0.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, data)
    said = [str(one.message) for one in caught if "trains on the whole graph" in str(one.message)]
    steps = trainer.global_step
    (metrics,) = trainer.test(module, data, verbose=False)
    return {key: value.detach() for key, value in net.state_dict().items()}, dict(metrics), steps, said


def test_two_ranks_train_and_stop_as_one_does_and_say_that_it_gains_nothing() -> None:
    (first, metrics, steps, said), (second, others, other_steps, nothing) = run_ranks(fit, 2, 2)
    assert_identical(first, second)
    assert metrics == others
    assert len(said) == 1
    assert "each of the 2 processes trains on the whole graph" in said[0]
    assert nothing == []
    alone, alone_metrics, alone_steps, unsaid = fit(1)
    assert unsaid == []
    assert steps == other_steps == alone_steps < 600
    for key, value in alone.items():
        torch.testing.assert_close(first[key], value, rtol=1e-4, atol=1e-5)
    assert metrics == pytest.approx(alone_metrics, rel=1e-4)


def evaluate_shares(ranks: int) -> dict[str, float]:
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    batch = graph().batch()
    seeds = batch.test_mask.nonzero()[:, 0]
    parts = (seeds[:7], seeds[7:])[rank : rank + 1] if ranks > 1 else (seeds,)
    loader: Any = DataLoader([sample(batch, part) for part in parts], batch_size=None)  # type: ignore[arg-type]
    strategy = "ddp" if ranks > 1 else "auto"
    trainer = quiet_trainer(devices=ranks, strategy=strategy, use_distributed_sampler=False)
    (metrics,) = trainer.test(NodeClassification(gcn(), num_classes=CLASSES), loader, verbose=False)
    return dict(metrics)


def test_shares_of_different_size_add_up() -> None:
    first, second = run_ranks(evaluate_shares, 2, 2)
    assert first == second
    assert first == pytest.approx(evaluate_shares(1), rel=1e-5)
