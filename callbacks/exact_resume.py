"""Random state in the checkpoint: a run that was killed and resumed ends with the bits of the one that was not."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from pl_robust._dataloaders import flatten_loaders
from pl_robust._generators import Generator, walk
from pl_robust._lightning import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    is_before,
    rank_zero_warn,
)

# Where in an epoch a checkpoint was written. Lightning goes on differently after each.
_INSIDE = "inside"  # somewhere before the last batch's validation is over
_VALIDATED = "validated"  # after the epoch's last validation, before the `on_train_epoch_end` hooks
_ENDED = "ended"  # in the `on_train_epoch_end` hooks or later


class ExactResume(Callback):
    """Resume exactly: on CPU, the resumed run ends bit for bit like the uninterrupted one.

    Lightning's checkpoints hold weights, optimizers and progress, but no random state: after a resume, shuffling,
    dropout and attack noise start anew. This callback adds the state of Python's ``random``, NumPy's global generator,
    torch's CPU generator, the generator of the process's CUDA device, and of each ``torch.Generator`` and
    ``numpy.random.Generator`` found in the attributes of the LightningModule and its submodules, of the datamodule and
    of the training dataloaders (their samplers, datasets and transforms). Under DDP each rank has its own.

    It draws no random number and leaves an uninterrupted run as it is. It moves itself to the front of
    ``trainer.callbacks``, so that the other callbacks' hooks draw the same numbers again.

    What holds:

    * Checkpoints of an epoch's end (``on_train_epoch_end``, or ``on_validation_end`` after the last batch) resume
      exactly. Hooks of that event that come after the checkpoint's are not run again: what they do is missing (the
      LightningModule's ``on_validation_end``; with pytorch-lightning 1.9 its ``on_train_epoch_end``, too, and the step
      of a schedule that it takes there by hand).
    * Checkpoints inside an epoch do so behind an optimizer's step, with Lightning 2.5 or later, if the training
      dataloaders keep their own state (``state_dict`` and ``load_state_dict``), as that of ``SignalDataModule`` does,
      and no ``on_train_start`` draws. With others they do not: Lightning starts the dataloader anew and trains what is
      left of the epoch on other batches. The random state is restored as far as it goes, and a warning says so.
    * A warning names what else stands in the way: persistent workers, dataloaders that are reloaded,
      ``ReduceLROnPlateau`` once an epoch (Lightning saves before it steps), a generator that is gone.
    * On CUDA the same random numbers are drawn; the same bits need deterministic kernels on top.
    * Numbers drawn by generators that nothing above refers to (``random.Random`` objects, closures) are not restored.

    Raises:
        MisconfigurationException: at the start of training, if the checkpoint was written by another number of
            processes than resume from it.

    Example:
        >>> from pl_robust.callbacks import ExactResume
        >>> sorted(ExactResume().state_dict())
        ['position', 'ranks']
    """

    def __init__(self) -> None:
        self._position = _INSIDE
        self._generators: dict[str, Generator] = {}
        self._loaded: dict[str, Any] | None = None  # until it is applied

    def state_dict(self) -> dict[str, Any]:
        """All ranks' random states, as plain numbers and tensors. Under DDP every rank has to call this."""
        if self._loaded is not None:  # a checkpoint written between loading and applying must not lose it
            return self._loaded
        own = _random_state(self._generators)
        ranks: list[Any] = [own]
        if dist.is_available() and dist.is_initialized():
            ranks = [None] * dist.get_world_size()
            dist.all_gather_object(ranks, own)
        return {"position": self._position, "ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state for the start of training: until then, setting up the run draws random numbers."""
        self._loaded = state_dict

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Warn if the checkpoint to resume from was written without this callback."""
        if trainer.state.fn == "fit" and self.state_key not in checkpoint["callbacks"]:
            _warn(["the checkpoint was written without ExactResume and holds no random state"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what an earlier run loaded, and move to the front of the callbacks."""
        self._loaded = None
        if stage == "fit":
            self._position = _INSIDE
            others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
            trainer.callbacks = [self, *others]  # type: ignore[attr-defined]  # the Trainer's connectors set it

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what was loaded.

        Raises:
            MisconfigurationException: if it is the state of another number of processes.
        """
        if self._loaded is None:
            return
        saved = len(self._loaded["ranks"])
        if saved != trainer.world_size:
            raise MisconfigurationException(
                f"ExactResume: the checkpoint holds the random states of {saved} processes, so devices * num_nodes must"
                f" be {saved}, got {trainer.world_size}; resume on as many, or without ExactResume (then not exactly)"
            )
        position = self._loaded["position"]
        _warn(_obstacles(trainer, position))
        if position == _ENDED:
            _finish_epoch(trainer)
        elif position == _INSIDE:
            self._restore(trainer, pl_module, self._loaded)
            self._loaded = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore here what was saved at an epoch's end; before the first batch Lightning may come here twice."""
        if self._loaded is not None and self._loaded["position"] == _ENDED:
            self._restore(trainer, pl_module, self._loaded)
            # Lightning >= 2.6 draws the first resumed epoch's iterator earlier, before `on_train_start`, and not again
            # if this says so. Uninterrupted, it is drawn after the hooks of this event.
            trainer.fit_loop._resuming_from_checkpoint = False
        self._mark(trainer, pl_module, _INSIDE)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """See the first resumed batch go its way."""
        if self._loaded is not None:
            if self._loaded["position"] == _VALIDATED or batch_idx != 0:
                _warn(["Lightning took up the finished epoch again"])
            self._loaded = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note whether the epoch is done but for its ``on_train_epoch_end``."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._mark(trainer, pl_module, _VALIDATED if _is_complete(trainer) else _INSIDE)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore here what was saved between the last validation and this hook."""
        if self._loaded is not None and self._loaded["position"] == _VALIDATED:
            self._restore(trainer, pl_module, self._loaded)
            self._loaded = None
        if not _steps_on_plateaus(trainer):  # whose metric may be lost
            # Before 2.5, Lightning steps the other schedules a second time in an epoch that it has resumed.
            trainer.fit_loop._restarting = False
        self._mark(trainer, pl_module, _ENDED if _is_complete(trainer) else _INSIDE)

    def _mark(self, trainer: Trainer, pl_module: LightningModule, position: str) -> None:
        self._position = position
        self._generators = _find_generators(trainer, pl_module)

    def _restore(self, trainer: Trainer, pl_module: LightningModule, loaded: dict[str, Any]) -> None:
        self._generators = _find_generators(trainer, pl_module)
        _warn(_set_random_state(loaded["ranks"][trainer.global_rank], self._generators))


def _warn(obstacles: list[str]) -> None:
    if obstacles:
        rank_zero_warn(
            f"ExactResume: the resumed run may end unlike the uninterrupted one, since {'; '.join(obstacles)}"
        )


def _is_complete(trainer: Trainer) -> bool:
    return trainer.is_last_batch or trainer.fit_loop.batch_idx + 1 >= trainer.num_training_batches


def _obstacles(trainer: Any, position: str) -> list[str]:
    """What this run does, or did before the checkpoint, that no random state can make up for."""
    obstacles = []
    if position == _INSIDE:
        if not all(hasattr(loader, "load_state_dict") for loader in flatten_loaders(trainer.train_dataloader)):
            obstacles.append(
                "the checkpoint was written inside an epoch, and Lightning trains the rest of it on other batches"
                " (use a checkpoint of an epoch's end)"
            )
        elif is_before("2.5"):
            obstacles.append(
                "the checkpoint was written inside an epoch, and Lightning before 2.5 trains the batch before it again"
                " (use a checkpoint of an epoch's end)"
            )
        if trainer.fit_loop.epoch_loop.batch_progress.current.processed % trainer.accumulate_grad_batches:
            obstacles.append("gradients were being accumulated, which no checkpoint holds")
    loaders = walk({"train": trainer.train_dataloader, "val": trainer.val_dataloaders}, "", 4, {})
    if any(getattr(loader, "persistent_workers", False) for _, loader in loaders):
        obstacles.append(
            "persistent workers carry random numbers from epoch to epoch that no checkpoint holds"
            " (use persistent_workers=False)"
        )
    if trainer.reload_dataloaders_every_n_epochs:
        obstacles.append("dataloaders are reloaded in other epochs (use reload_dataloaders_every_n_epochs=0)")
    if _steps_on_plateaus(trainer):
        obstacles.append(
            "ReduceLROnPlateau misses the step that follows the checkpoint"
            + (", and Lightning before 2.5 steps the other schedules of epochs twice" if is_before("2.5") else "")
        )
    return obstacles


def _steps_on_plateaus(trainer: Any) -> bool:
    return any(config.reduce_on_plateau and config.interval == "epoch" for config in trainer.lr_scheduler_configs)


def _finish_epoch(trainer: Any) -> None:
    """With ``max_steps``, Lightning takes an ended epoch for an interrupted one, and trains a batch too many in it."""
    loop = trainer.fit_loop
    if loop.restarting:
        loop._restarting = False  # the property's setter would put it back
        loop.epoch_loop.restarting = False
        if not is_before("2.5"):
            loop.reset_restart_stage()
        progress = loop.epoch_progress
        for counts in (progress.current, progress.total):
            counts.ready = counts.started = counts.completed = counts.processed = progress.total.processed


def _random_state(generators: dict[str, Generator]) -> dict[str, Any]:
    used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "python": _plain(random.getstate()),
        "numpy": _plain(np.random.get_state(legacy=False)),  # noqa: NPY002  # the one users' code draws from
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if used else None,
        "generators": {
            name: g.get_state() if isinstance(g, torch.Generator) else _plain(g.bit_generator.state)
            for name, g in generators.items()
        },
    }


def _set_random_state(state: dict[str, Any], generators: dict[str, Generator]) -> list[str]:
    """Undo ``_random_state``; return what could not be."""
    obstacles = []
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(_arrays(state["numpy"]))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
        else:
            obstacles.append("the checkpoint was written on a CUDA device")
    for name, saved in state["generators"].items():
        generator = generators.get(name)
        if isinstance(generator, torch.Generator) and isinstance(saved, torch.Tensor):
            generator.set_state(saved)
        elif isinstance(generator, np.random.Generator) and isinstance(saved, dict):
            generator.bit_generator.state = _arrays(saved)
        else:
            obstacles.append(f"the generator {name} of the checkpoint is not in this run")
    return obstacles


def _plain(state: Any) -> Any:
    """The same with lists for tuples and arrays, which ``torch.load(weights_only=True)`` reads."""
    if isinstance(state, dict):
        return {key: _plain(part) for key, part in state.items()}
    if isinstance(state, np.ndarray):
        return state.tolist()
    return list(map(_plain, state)) if isinstance(state, tuple) else state


def _arrays(state: dict[str, Any]) -> dict[str, Any]:
    """Undo ``_plain`` for the state of a NumPy bit generator."""
    inner = state["state"]
    return {**state, "state": {k: np.array(v, np.uint64) if isinstance(v, list) else v for k, v in inner.items()}}


def _find_generators(trainer: Any, pl_module: LightningModule) -> dict[str, Generator]:
    modules = dict(pl_module.named_modules())
    seen = {id(thing): 99 for thing in (trainer, *modules.values())}  # walks from one part must not enter another
    parts: list[tuple[str, Any]] = []
    for path, module in modules.items():
        for key, part in vars(module).items():
            parts += walk(part, f"module.{path}.{key}", 4, seen)
    parts += walk(trainer.datamodule, "datamodule", 6, seen)
    parts += walk(trainer.train_dataloader, "train_dataloader", 8, seen)
    return {path: part for path, part in parts if isinstance(part, torch.Generator | np.random.Generator)}
