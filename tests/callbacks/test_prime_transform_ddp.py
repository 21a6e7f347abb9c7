"""PRIMETransform on two gloo processes: each rank draws numbers of its own, and so do the ranks of a resumed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pl_robust.callbacks import PRIMETransform
from tests._processes import run_ranks
from tests.callbacks.test_detector_ddp import ddp
from tests.callbacks.test_prime_transform import ModelCheckpoint, Recorder, noise
from tests.toys import PlainModule, assert_identical, loader, needs_exact_middle, quiet_trainer, training_state

pytestmark = pytest.mark.lightning


def drawn(folder: Path, resume: str | None) -> dict[str, list[Tensor]]:
    """What each step is trained on, all of it random numbers; from scratch with a checkpoint after each step."""
    module = Recorder()
    callbacks: list[Any] = [PRIMETransform(noise, seed=3)]
    if resume is None:
        callbacks.append(ModelCheckpoint(str(folder), save_top_k=-1, every_n_train_steps=1, filename="{step}"))
    trainer = quiet_trainer(max_epochs=2, callbacks=callbacks, enable_checkpointing=resume is None, **ddp(2))
    trainer.fit(module, loader(64, batch_size=8), ckpt_path=None if resume is None else str(folder / resume))
    return {"trained": module.trained, "batches": [torch.tensor(callbacks[0].state_dict()["batches"])]}


@needs_exact_middle
def test_ranks_draw_different_numbers_also_after_a_resume(tmp_path: Path) -> None:
    first, second = run_ranks(drawn, 2, tmp_path, None)
    assert len({float(x.flatten()[0]) for x in first["trained"] + second["trained"]}) == 16
    resumed = run_ranks(drawn, 2, tmp_path, "step=4.ckpt")
    for rank, whole in enumerate((first, second)):
        assert_identical(resumed[rank]["trained"], whole["trained"][4:])
        assert_identical(resumed[rank]["batches"], whole["batches"])


def train(accumulate: int) -> dict[str, Any]:
    torch.manual_seed(0)
    module = PlainModule()
    trainer = quiet_trainer(max_epochs=2, callbacks=[PRIMETransform()], accumulate_grad_batches=accumulate, **ddp(2))
    trainer.fit(module, loader(130, shuffle=True), loader(101, seed=1))
    return training_state(trainer, module)


def test_the_ranks_end_with_the_same_weights() -> None:
    first, second = run_ranks(train, 2, 2)
    assert_identical(first["optimizers"], second["optimizers"])
    for name, value in first["module"].items():
        assert torch.equal(value, second["module"][name]) or "running" in name  # batch norm has its own on each rank
