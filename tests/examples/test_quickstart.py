"""The quickstart and its controls: the paper's claim in miniature, over three seeds."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from pl_robust.callbacks import CatastrophicOverfittingDetector
from pl_robust.cli import run

pytestmark = pytest.mark.lightning

EXAMPLES = Path(__file__).parents[2] / "examples"
CONTROLS = ["quickstart_no_injection", "quickstart_nfgsm", "quickstart_pgd"]
QUIET = [
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
]


@functools.cache
def final(name: str, seed: int, *extra: str) -> tuple[CatastrophicOverfittingDetector, dict[str, float]]:
    """Fit an example; give its detector and its accuracies on the test set (PGD with 20 steps)."""
    cli: Any = run(["fit", "--config", str(EXAMPLES / f"{name}.yaml"), f"--seed_everything={seed}", *QUIET, *extra])
    (detector,) = (part for part in cli.trainer.callbacks if isinstance(part, CatastrophicOverfittingDetector))
    (metrics,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    print(f"{name}, seed {seed}: " + ", ".join(f"{key} {value:.3f}" for key, value in metrics.items()))
    print(f"  best PGD {detector.best_pgd:.3f}, detected at epochs {[row['epoch'] for row in detector.detections]}")
    return detector, metrics


def check_collapse(seed: int) -> None:
    detector, metrics = final("quickstart", seed)
    assert metrics["test/acc_pgd"] <= 0.5 * detector.best_pgd
    assert metrics["test/acc_adv"] >= 0.9  # the training attack is FGSM
    kept = [
        row["acc_pgd"] <= 0.5 * detector.best_pgd and row["acc_fgsm"] >= detector.best_pgd for row in detector.history
    ]
    peak = max(range(len(kept)), key=lambda check: detector.history[check]["acc_pgd"])
    collapse = next(check for check in range(peak, len(kept)) if kept[check])
    assert 0 <= detector.detections[0]["epoch"] - collapse <= 1


@pytest.mark.filterwarnings("ignore:Catastrophic overfitting at epoch")
def test_the_quickstart_shows_catastrophic_overfitting() -> None:
    check_collapse(0)


@pytest.mark.parametrize("name", ["quickstart", "quickstart_rollback", *CONTROLS])
def test_every_config_runs(name: str) -> None:
    run(["fit", "--config", str(EXAMPLES / f"{name}.yaml"), "--trainer.fast_dev_run=true", *QUIET[1:3]])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Catastrophic overfitting at epoch")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_injected_features_bring_catastrophic_overfitting(seed: int) -> None:
    check_collapse(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", CONTROLS)
def test_the_controls_stay_robust_and_silent(name: str, seed: int) -> None:
    detector, metrics = final(name, seed)
    assert metrics["test/acc_pgd"] >= 0.35
    assert detector.detections == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Catastrophic overfitting at epoch")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rollback_keeps_the_robustness_that_was_reached(seed: int) -> None:
    detector, metrics = final("quickstart", seed, "--trainer.callbacks.action=rollback")
    best_at = max(detector.history, key=lambda row: row["acc_pgd"])
    assert detector.detections
    assert detector.history[-1]["detected"]  # it stopped there
    print(f"  kept {metrics['test/acc_pgd'] / best_at['acc_pgd']:.2f} of the best")
    assert metrics["test/acc_pgd"] >= 0.8 * best_at["acc_pgd"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Catastrophic overfitting at epoch")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_after_rollback_n_fgsm_brings_training_to_a_robust_end(seed: int) -> None:
    detector, metrics = final("quickstart_rollback", seed)
    assert len(detector.detections) == 1
    assert len(detector.history) == 24
    assert metrics["test/acc_pgd"] >= 0.35
