"""A training state to go back to: weights, optimizers, schedules."""

from __future__ import annotations

import copy
from typing import Any, TypedDict

import torch
from torch import Tensor

from pl_robust._lightning import LightningModule, Trainer


class Snapshot(TypedDict):
    """Plain containers of CPU tensors and numbers, so that a checkpoint can hold it."""

    module: dict[str, Tensor]
    optimizers: list[dict[str, Any]]
    schedulers: list[dict[str, Any]]


def take_snapshot(trainer: Trainer, module: LightningModule) -> Snapshot:
    """Copy the training state to the CPU."""
    return {
        "module": {name: _to_cpu(value) for name, value in module.state_dict().items()},
        "optimizers": [_to_cpu(optimizer.state_dict()) for optimizer in trainer.optimizers],
        "schedulers": [_to_cpu(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
    }


def restore_snapshot(trainer: Trainer, module: LightningModule, snapshot: Snapshot) -> None:
    """Put a training state back where it was taken from; devices are kept."""
    module.load_state_dict(snapshot["module"])
    for optimizer, state in zip(trainer.optimizers, snapshot["optimizers"], strict=True):
        optimizer.load_state_dict(copy.deepcopy(state))
    for config, state in zip(trainer.lr_scheduler_configs, snapshot["schedulers"], strict=True):
        config.scheduler.load_state_dict(copy.deepcopy(state))


def _to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _to_cpu(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_cpu(part) for part in value)
    return copy.deepcopy(value) if not isinstance(value, torch.nn.Module) else value
