"""The one seam to Lightning: which of its two namespaces this process uses, and the few names we take from it.

``pytorch_lightning`` and ``lightning.pytorch`` hold the same source text and different classes; a module of one is no
module for the Trainer of the other. The namespace is chosen once, when a Lightning-facing class is first used:

1. the environment variable ``PL_ROBUST_LIGHTNING`` (``pytorch_lightning`` or ``lightning``), if set;
2. else the one of the two that the process has already imported, if it is only one;
3. else ``pytorch_lightning`` if installed, else ``lightning.pytorch``.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

from lightning_utilities.core.imports import compare_version
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

_NAMESPACES = {"pytorch_lightning": "pytorch_lightning", "lightning": "lightning.pytorch"}
_VARIABLE = "PL_ROBUST_LIGHTNING"


def _choose() -> str:
    """Name of the Lightning package to use, by the rule in the module's docstring.

    Raises:
        ImportError: if the environment variable holds another value, or neither package is installed.
    """
    wanted = os.environ.get(_VARIABLE)
    if wanted:
        if wanted not in _NAMESPACES:
            raise ImportError(f"{_VARIABLE} must be one of {sorted(_NAMESPACES)}, got {wanted!r}")
        return _NAMESPACES[wanted]
    loaded = [name for name in _NAMESPACES.values() if name in sys.modules]
    if len(loaded) == 1:
        return loaded[0]
    for name in _NAMESPACES:
        if find_spec(name) is not None:
            return _NAMESPACES[name]
    raise ImportError("pl_robust needs Lightning: `pip install pytorch-lightning` (or `lightning`)")


NAMESPACE = _choose()


def is_before(version: str) -> bool:
    """Tell whether the Lightning of this process is older than a version."""
    return compare_version(NAMESPACE, operator.lt, version)


if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
    from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]
    from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn  # type: ignore[attr-defined]
else:
    _package = import_module(NAMESPACE)
    Callback = _package.Callback
    LightningDataModule = _package.LightningDataModule
    LightningModule = _package.LightningModule
    Trainer = _package.Trainer
    MisconfigurationException = import_module(f"{NAMESPACE}.utilities.exceptions").MisconfigurationException
    rank_zero_info = import_module(f"{NAMESPACE}.utilities.rank_zero").rank_zero_info
    rank_zero_warn = import_module(f"{NAMESPACE}.utilities.rank_zero").rank_zero_warn

# The types LightningCLI understands as "a class with its arguments but the first one": see lightning's cli.py.
OptimizerCallable: TypeAlias = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable: TypeAlias = Callable[[Optimizer], LRScheduler]

__all__ = (
    "NAMESPACE",
    "Callback",
    "LRSchedulerCallable",
    "LightningDataModule",
    "LightningModule",
    "MisconfigurationException",
    "OptimizerCallable",
    "Trainer",
    "is_before",
    "rank_zero_info",
    "rank_zero_warn",
    "unsavable",
)


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(part) for part in value.values())
    if isinstance(value, list | tuple):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str)


def unsavable(**arguments: object) -> list[str]:
    """Names of the constructor arguments that ``save_hyperparameters`` must ignore.

    Live objects (nets, attacks, callables) cannot be read back with ``weights_only=True``. LightningCLI passes the
    configuration they were built from instead, which can: then nothing is ignored and ``load_from_checkpoint`` needs no
    further argument.
    """
    given = getattr(import_module(f"{NAMESPACE}.core.mixins.hparams_mixin"), "_given_hyperparameters", None)
    if given is not None and given.get() is not None:  # not in Lightning 1.9 and 2.0
        return []
    return [name for name, value in arguments.items() if not _is_plain(value)]
