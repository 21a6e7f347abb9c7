"""Meta-learning on two gloo processes."""

from __future__ import annotations

import os
from typing import Any

import pytest
from torch import Tensor
from torch.utils.data import DataLoader

from pl_robust.modules import INRMetaLearning
from tests._processes import run_ranks
from tests.modules.test_inr_meta_learning import assert_close, sgd, siren
from tests.toys import assert_identical, loader, quiet_trainer, stripes

pytestmark = pytest.mark.lightning


def fit_on_ranks(ranks: int, method: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
    # Another initialization on the second rank, as without seed_everything: DDP sends the first one's around.
    net = siren(int(os.environ.get("LOCAL_RANK", "0")))
    module = INRMetaLearning(net, method=method, inner_lr=0.1, optimizer=sgd(0.5))
    trainer = quiet_trainer(max_epochs=4, devices=ranks, strategy="ddp" if ranks > 1 else "auto")
    trainer.fit(module, DataLoader(stripes(32), batch_size=32 // ranks))  # all of it at each step
    (metrics,) = trainer.test(module, loader(21, seed=2), verbose=False)  # an odd number: the sampler repeats one
    return {key: value.detach() for key, value in net.state_dict().items()}, dict(metrics)


def fit_both_on_ranks(ranks: int) -> list[tuple[dict[str, Tensor], dict[str, float]]]:
    return [fit_on_ranks(ranks, method) for method in ("maml", "reptile")]


def test_two_ranks_train_as_one_does() -> None:
    first, second = run_ranks(fit_both_on_ranks, 2, 2)
    for (net, metrics), (other, others), (alone, expected) in zip(first, second, fit_both_on_ranks(1), strict=True):
        assert_identical(net, other)
        assert metrics == others
        assert_close(net, alone, rtol=1e-4, atol=1e-6)
        assert metrics == pytest.approx(expected, rel=1e-4)
        assert max(float((value - siren().state_dict()[key]).abs().max()) for key, value in alone.items()) > 0.01
