"""The network that a task is made from, and who makes it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from pl_robust._lightning import LightningDataModule, Trainer, rank_zero_warn

_Result = TypeVar("_Result")


def frozen_copy(model: nn.Module) -> nn.Module:
    """Copy a network in eval mode, so that no training of the original changes the task.

    Raises:
        TypeError: if it is no network.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"`model` must be an nn.Module, or None for the network that is trained, got {type(model).__name__}"
        )
    return copy.deepcopy(getattr(model, "_orig_mod", model)).eval()


def task_net(datamodule: LightningDataModule, model: nn.Module | None) -> nn.Module:
    """Give the network to make the task from, on the trainer's device if there is a trainer.

    Args:
        datamodule: whose task it is.
        model: what ``frozen_copy`` gave; None takes a copy of the network under training, the attribute ``net`` of the
            Trainer's module, or the module itself. It warns if the module trains parameters that ``net`` lacks.

    Raises:
        RuntimeError: if there is neither a ``model`` nor a Trainer.
    """
    trainer = datamodule.trainer
    if model is None:
        if trainer is None:
            raise RuntimeError(
                "`model`=None takes the network that the Trainer trains, and there is no Trainer yet: run "
                "trainer.fit(module, datamodule), or give `model`"
            )
        module = trainer.lightning_module
        net = getattr(module, "net", None)
        if not isinstance(net, nn.Module):
            net = module
        own = {id(parameter) for parameter in net.parameters()}
        outside = [name for name, one in module.named_parameters() if one.requires_grad and id(one) not in own]
        if outside:
            rank_zero_warn(
                f"the task is made from {type(module).__name__}.net, without the parameters {outside[:3]}"
                f"{' and others' if len(outside) > 3 else ''}, which are trained too: if they are part of the network, "
                "give it as `model`"
            )
        return frozen_copy(net).to(trainer.strategy.root_device)
    # A copy of its own: the datamodule's stays where it is, and takes no room on the device.
    return model if trainer is None else copy.deepcopy(model).to(trainer.strategy.root_device)


def on_one_process(trainer: Trainer | None, compute: Callable[[], _Result]) -> _Result:
    """Compute on rank zero and give all ranks the result; a collective call.

    Ranks that computed for themselves would agree in all but the last bits, and a label is a sign.

    Raises:
        Exception: on rank zero what ``compute`` raises; then RuntimeError on the others, which would wait for ever.
    """
    with torch.inference_mode(False):  # in which a loop may ask for its loaders
        return _on_one_process(trainer, compute)


def check_same_task(stored: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse to go on with a checkpoint's task where another one has been asked for.

    Args:
        stored: name -> value of the settings that define the checkpoint's task.
        own: likewise of this one.

    Raises:
        ValueError: naming what differs.
    """
    other = [name for name, value in own.items() if stored.get(name) != value]
    if other:
        theirs, ours, given = (
            ", ".join(form.format(name, values.get(name)) for name in other)
            for form, values in (("`{}`={!r}", stored), ("{1!r}", own), ("{}={!r}", stored))
        )
        raise ValueError(
            f"the checkpoint's task has {theirs}, this one has {ours}: give {given}, or load the weights only "
            "(load_from_checkpoint)"
        )


def _on_one_process(trainer: Trainer | None, compute: Callable[[], _Result]) -> _Result:
    if trainer is None or trainer.world_size == 1:
        return compute()
    result: _Result | None = None
    failure: Exception | None = None
    if trainer.is_global_zero:
        try:
            result = compute()
        except Exception as error:
            failure = error
    message = None if failure is None else f"{type(failure).__name__}: {failure}"
    shared: tuple[_Result, str | None] = trainer.strategy.broadcast((result, message))  # type: ignore[assignment]
    if failure is not None:
        raise failure
    if shared[1] is not None:
        raise RuntimeError(f"rank zero could not make the task: {shared[1]}")
    return shared[0]
