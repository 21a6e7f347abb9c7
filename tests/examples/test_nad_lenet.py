"""Accuracy falls with the index of the direction that separates the classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pl_robust.cli import run
from tests.examples.test_quickstart import QUIET

pytestmark = pytest.mark.lightning

LENET = str(Path(__file__).parents[2] / "examples" / "nad_lenet.yaml")


def accuracy(*extra: str) -> float:
    quiet = [*QUIET, "--trainer.logger=false", "--trainer.limit_val_batches=0"]
    cli: Any = run(["fit", "--config", LENET, *quiet, *extra])
    (tested,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    assert tuple(cli.datamodule.direction.shape) == (1, 32, 32)
    return float(tested["test/acc"])


def test_it_runs() -> None:
    short = ["--data.init_args.train_size=256", "--data.init_args.test_size=64", "--trainer.max_epochs=1"]
    assert 0 <= accuracy(*short) <= 1


@pytest.mark.slow  # four trainings of ten seconds
@pytest.mark.parametrize("seed", [0, 1])
def test_the_first_direction_is_learned_and_the_300th_is_not(seed: int) -> None:
    first, later = (accuracy(f"--seed_everything={seed}", f"--data.init_args.index={index}") for index in (0, 300))
    assert first >= 0.97
    assert first - later >= 0.3
