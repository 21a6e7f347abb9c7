"""What holds for every public callback, module and datamodule, whoever wrote it: see contracts.py for their runs."""

from __future__ import annotations

import copy
import json
import os
import time
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import yaml
from torch import nn

from pl_robust._lightning import NAMESPACE, Callback, LightningDataModule, LightningModule, Trainer, is_before
from pl_robust.callbacks import ExactResume
from pl_robust.cli import run
from pl_robust.models import SmallCNN
from tests._processes import run_and_kill, run_ranks
from tests.contracts import ALONE, CHANGES_TRAINING, ROOMS, RUNS, TEACHER, public
from tests.toys import assert_identical, training_state

pytestmark = [
    pytest.mark.lightning,
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Using `DistributedSampler` with the dataloaders"),
]

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": 2,
    "limit_train_batches": 3,
    "limit_val_batches": 2,
    "limit_test_batches": 2,
}
EVERY = pytest.mark.parametrize("name", RUNS)


class Parts(NamedTuple):
    """A run before it starts."""

    trainer: Trainer
    module: LightningModule
    data: LightningDataModule


class BreakError(Exception):
    """What a run is broken off with."""


def build(name: str, *callbacks: Callback, **changes: Any) -> Parts:
    """Make the run of a public name from YAML, as ``pl-robust`` does, and do not start it."""
    config = copy.deepcopy(RUNS[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(SmallCNN(width=4).state_dict(), TEACHER)
    config["trainer"] = {**QUIET, **config.get("trainer", {}), **changes}
    Path("run.yaml").write_text(yaml.safe_dump({"seed_everything": 1, **config}))
    lightning_cli = import_module(f"{NAMESPACE}.cli").LightningCLI
    with mock.patch.object(lightning_cli, "_run_subcommand"):
        cli = run(["fit", "--config", "run.yaml"])
    os.environ.pop("PL_GLOBAL_SEED", None)
    cli.trainer.callbacks.extend(callbacks)
    return Parts(cli.trainer, cli.model, cli.datamodule)


def callbacks_of(parts: Parts) -> list[Callback]:
    """The Trainer's callbacks."""
    callbacks: list[Callback] = parts.trainer.callbacks  # type: ignore[attr-defined]  # its connectors set it
    return callbacks


def fit(name: str, *callbacks: Callback, ckpt_path: str | None = None, **changes: Any) -> Parts:
    """Make a run and fit."""
    parts = build(name, *callbacks, **changes)
    parts.trainer.fit(parts.module, parts.data, ckpt_path=ckpt_path)
    return parts


def test_each_of_them_has_a_run() -> None:
    assert set(RUNS) == {name for room in ROOMS for name in public(room)}


@EVERY
def test_it_fits_from_yaml_and_its_checkpoint_is_plain_and_gives_it_back(name: str) -> None:
    parts = fit(name)
    parts.trainer.save_checkpoint("run.ckpt")
    torch.load("run.ckpt", weights_only=True)
    if not is_before("2.4"):
        again = type(parts.module).load_from_checkpoint("run.ckpt")
    else:  # nets and attacks are not in the checkpoint: they are made anew
        again = build(name).module
        again.load_state_dict(torch.load("run.ckpt", weights_only=False)["state_dict"])
    assert_identical(dict(again.state_dict()), dict(parts.module.state_dict()))
    kept = {key: value for key, value in parts.module.hparams.items() if key in again.hparams}
    assert kept
    assert json.dumps(dict(again.hparams), default=repr) == json.dumps(kept, default=repr)  # YAML has lists for tuples


@EVERY
def test_it_evaluates_without_a_fit_and_runs_fast(name: str) -> None:
    parts = build(name)
    before = copy.deepcopy(dict(parts.module.state_dict()))
    parts.trainer.validate(parts.module, parts.data, verbose=False)
    parts.trainer.test(parts.module, parts.data, verbose=False)
    assert_identical(dict(parts.module.state_dict()), before)
    parts.trainer.fit(parts.module, parts.data)  # the same objects go on
    fit(name, fast_dev_run=True)
    assert not list(Path.cwd().glob("*.png"))


class Stop(Callback):
    """Raises in the midst of an epoch."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Raise at the second step."""
        if trainer.global_step == 2:
            raise BreakError


def traces(parts: Parts) -> dict[str, Any]:
    """What could be left behind: hooks on any submodule, methods put over others, what is in force."""
    kinds = [kind for kind in vars(nn.Module()) if kind.endswith("_hooks")]
    return {
        "hooks": {kind: sum(len(getattr(part, kind)) for part in parts.module.modules()) for kind in kinds},
        "over": sorted(
            key for key, value in vars(parts.module).items() if callable(value) and key in dir(type(parts.module))
        ),
        "data": sorted(
            key for key, value in vars(parts.data).items() if callable(value) and key in dir(type(parts.data))
        ),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
    }


@EVERY
def test_it_leaves_nothing_behind_after_an_exception(name: str) -> None:
    parts = build(name, Stop())
    before = traces(parts)
    with pytest.raises(BreakError):
        parts.trainer.fit(parts.module, parts.data)
    assert traces(parts) == before
    fit(name)


@pytest.mark.parametrize("name", sorted(set(public("callbacks")) - CHANGES_TRAINING))
def test_an_observer_leaves_every_bit_alone(name: str) -> None:
    with_it, without = fit(name), fit(name, callbacks=[])
    assert_identical(training_state(with_it.trainer, with_it.module), training_state(without.trainer, without.module))


@pytest.mark.parametrize("name", sorted(set(public("callbacks")) - ALONE))
def test_two_of_a_kind_live_side_by_side(name: str) -> None:
    first = RUNS[name]["trainer"]["callbacks"][0]
    other = callbacks_of(build(name))  # a fresh one
    mine = next(callback for callback in other if type(callback).__name__ == name)
    assert first["class_path"] == name
    parts = fit(name, mine)
    kinds = [callback for callback in callbacks_of(parts) if type(callback).__name__ == name]
    assert len(kinds) == 2
    assert_identical(kinds[0].state_dict(), kinds[1].state_dict())


class Keep(Callback):
    """Writes a checkpoint after the first epoch."""

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Write it."""
        if trainer.current_epoch == 0:
            trainer.save_checkpoint("first.ckpt")


class Wait(Callback):
    """Says when the second epoch has begun, and waits to be killed."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Wait."""
        if trainer.current_epoch == 1:
            Path("killed").touch()
            time.sleep(60)


def last_state(parts: Parts) -> dict[str, Any]:
    """Where a run ended, to the bit."""
    state = training_state(parts.trainer, parts.module)
    state["callbacks"] = {
        callback.state_key: callback.state_dict() for callback in callbacks_of(parts) if callback.state_dict()
    }
    return state


@EVERY
def test_resumed_after_an_epoch_it_ends_as_if_it_had_not_stopped(name: str) -> None:
    whole = fit(name, Keep(), ExactResume())
    resumed = fit(name, ExactResume(), ckpt_path="first.ckpt")
    assert_identical(last_state(resumed), last_state(whole))


@pytest.mark.slow
@EVERY
def test_killed_and_resumed_it_ends_as_if_it_had_not_been(name: str) -> None:
    whole = last_state(fit(name, ExactResume()))
    run_and_kill(_fit_and_wait, Path("killed").exists, name)
    assert Path("killed").exists()
    assert_identical(last_state(fit(name, ExactResume(), ckpt_path="first.ckpt")), whole)


def _fit_and_wait(name: str) -> None:
    fit(name, Keep(), Wait(), ExactResume())


def _evaluate(name: str, devices: int) -> dict[str, float]:
    changes = {
        "devices": devices,
        **({} if devices == 1 else {"strategy": "ddp"}),
        "limit_val_batches": 1.0,
        "limit_test_batches": 1.0,
    }
    parts = build(name, **changes)
    parts.trainer.validate(parts.module, parts.data, verbose=False)
    measured = dict(parts.trainer.callback_metrics)
    parts.trainer.test(parts.module, parts.data, verbose=False)
    return {key: float(value) for key, value in {**measured, **parts.trainer.callback_metrics}.items()}


@EVERY
def test_two_processes_measure_what_one_does(name: str) -> None:
    first, second = run_ranks(_evaluate, 2, name, 2)
    assert first == second
    assert first == pytest.approx(_evaluate(name, 1), rel=1e-5, abs=1e-6)


def _fit_together(name: str) -> tuple[dict[str, Any], dict[str, float]]:
    parts = fit(name, devices=2, strategy="ddp")
    return dict(parts.module.state_dict()), {k: float(v) for k, v in parts.trainer.callback_metrics.items()}


@EVERY
def test_two_processes_fit_and_end_alike(name: str) -> None:
    (weights, metrics), (other_weights, other_metrics) = run_ranks(_fit_together, 2, name)
    parameters = [key for key, _ in build(name).module.named_parameters()]
    assert_identical({key: weights[key] for key in parameters}, {key: other_weights[key] for key in parameters})
    shared = {key for key in metrics if key.startswith(("val/", "co/", "ntk/", "inr/", "curvature/", "corruption/"))}
    assert {key: metrics[key] for key in shared} == {key: other_metrics[key] for key in shared}
