"""The quickstart and its controls: the paper's claim in miniature, over three seeds."""

from __future__ import annotations

import csv
import functools
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pl_robust.callbacks import CatastrophicOverfittingDetector
from pl_robust.cli import run
from tests.toys import needs_folders

pytestmark = pytest.mark.lightning

EXAMPLES = Path(__file__).parents[2] / "examples"
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))]
"""Half a minute each: CI has one."""
CONTROLS = ["quickstart_no_injection", "quickstart_nfgsm", "quickstart_pgd"]
QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
]


class Outcome(NamedTuple):
    """How a run went: PGD-20 accuracy on validation by epoch, on test with the others, on validation at the end."""

    detector: CatastrophicOverfittingDetector
    pgd20: list[float]
    test: dict[str, float]
    validated: float


@functools.cache
def outcome(name: str, seed: int, *extra: str) -> Outcome:
    """Fit an example as it stands, and test it."""
    with tempfile.TemporaryDirectory() as folder:
        logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={folder}"]
        config = ["--config", str(EXAMPLES / f"{name}.yaml")]
        cli: Any = run(["fit", *config, f"--seed_everything={seed}", *logger, *QUIET, *extra])
        with (Path(cli.trainer.log_dir) / "metrics.csv").open() as file:
            pgd20 = [float(row["val/acc_pgd"]) for row in csv.DictReader(file) if row["val/acc_pgd"]]
        (detector,) = (part for part in cli.trainer.callbacks if isinstance(part, CatastrophicOverfittingDetector))
        (test,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
        (validated,) = cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
    print(f"{name}, seed {seed}: " + ", ".join(f"{key} {value:.3f}" for key, value in test.items()))
    print(
        f"  validation PGD-20: peak {max(pgd20):.3f}, end {pgd20[-1]:.3f}; probe PGD: best {detector.best_pgd:.3f}; "
        f"detected at epochs {[row['epoch'] for row in detector.detections]}"
    )
    return Outcome(detector, pgd20, dict(test), validated["val/acc_pgd"])


def check_collapse(seed: int) -> None:
    detector, pgd20, test, _ = outcome("quickstart", seed)
    assert pgd20[-1] <= 0.5 * max(pgd20)
    assert test["test/acc_pgd"] <= 0.5 * max(pgd20)
    assert test["test/acc_adv"] >= 0.9  # the training attack is FGSM
    peak = pgd20.index(max(pgd20))
    collapse = next(epoch for epoch in range(peak, len(pgd20)) if pgd20[epoch] <= 0.5 * pgd20[peak])
    assert abs(detector.detections[0]["epoch"] - collapse) <= 1
    last = detector.history[-1]
    assert last["detected"]
    assert last["acc_pgd"] <= pgd20[-1] + 0.1  # the cheap attack tells the truth after the collapse, too


@pytest.mark.filterwarnings("ignore:Catastrophic overfitting at epoch")
@needs_folders
def test_the_quickstart_shows_catastrophic_overfitting() -> None:
    check_collapse(0)


@pytest.mark.parametrize("name", ["quickstart", "quickstart_rollback", "quickstart_gradalign", *CONTROLS])
def test_every_config_runs(name: str) -> None:
    run(
        [
            "fit",
            "--config",
            str(EXAMPLES / f"{name}.yaml"),
            "--trainer.fast_dev_run=true",
            "--trainer.logger=false",
            *QUIET,
        ]
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Catastrophic overfitting at epoch")
@pytest.mark.parametrize("seed", SEEDS)
def test_injected_features_bring_catastrophic_overfitting(seed: int) -> None:
    check_collapse(seed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Catastrophic overfitting at epoch")
@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_found_at_a_coarse_cadence_too(seed: int) -> None:
    detector, _, _, _ = outcome("quickstart", seed, "--trainer.callbacks.every_n_epochs=3")
    assert detector.detections
    assert detector.history[-1]["detected"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CONTROLS)
def test_the_controls_stay_robust_and_silent(name: str, seed: int) -> None:
    detector, pgd20, test, _ = outcome(name, seed)
    assert test["test/acc_pgd"] >= 0.35
    assert pgd20[-1] >= 0.35
    assert detector.detections == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_gradalign_prevents_it(seed: int) -> None:
    detector, pgd20, test, _ = outcome("quickstart_gradalign", seed)
    assert detector.detections == []
    assert test["test/acc_pgd"] >= 0.2
    assert pgd20[-1] >= 0.7 * max(pgd20)
    assert min(row["grad_align"] for row in detector.history) >= 0.7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Catastrophic overfitting at epoch")
@pytest.mark.parametrize("seed", SEEDS)
def test_rollback_keeps_the_robustness_that_was_reached(seed: int) -> None:
    detector, pgd20, _, kept = outcome("quickstart", seed, "--trainer.callbacks.action=rollback")
    assert detector.history[-1]["detected"]  # it stopped there
    print(f"  kept {kept / max(pgd20):.2f} of the best PGD-20 accuracy")
    assert kept >= 0.8 * max(pgd20)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Catastrophic overfitting at epoch")
@pytest.mark.parametrize("seed", SEEDS)
def test_after_rollback_n_fgsm_brings_training_to_a_robust_end(seed: int) -> None:
    detector, _, test, _ = outcome("quickstart_rollback", seed)
    assert len(detector.detections) == 1
    assert len(detector.history) == 24
    assert test["test/acc_pgd"] >= 0.35
