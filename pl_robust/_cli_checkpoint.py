"""What ``--ckpt_path`` means to the command: Lightning lets the checkpoint's hyperparameters win, and says nothing."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pl_robust._cli_errors import ConfigurationError

_KEYWORDS = ("best", "last", "hpc")  # Lightning's own answers to `ckpt_path`
UNREADABLE = (pickle.UnpicklingError, EOFError, KeyError, RuntimeError, AttributeError)  # what is no checkpoint raises


def check_checkpoint(path: str | None) -> None:
    """Refuse a ``ckpt_path`` that is not there, before the data is read and the network made.

    Args:
        path: file, folder of a sharded checkpoint, address of another file system, or a keyword of Lightning's.

    Raises:
        ConfigurationError: if there is no such file.
    """
    if not path or path in _KEYWORDS or path.startswith("registry") or "://" in path:
        return
    if not Path(path).exists():
        raise ConfigurationError(f"ckpt_path: there is no file {path!r}")


def check_replaced(asked: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """Compare the model that the configuration asks for with the one that the checkpoint has put in its place.

    Args:
        asked: ``model`` of the configuration.
        found: the same after the checkpoint's hyperparameters have been merged into it.

    Returns:
        A sentence that names the arguments the checkpoint has changed, or None if there are none.

    Raises:
        ConfigurationError: if the checkpoint holds a module of another class.
    """
    ours, theirs = (str(model.get("class_path", "")).rpartition(".")[2] for model in (asked, found))
    if ours != theirs:
        raise ConfigurationError(
            f"ckpt_path: the checkpoint was written by {theirs}, and the configuration asks for {ours}: give the "
            "configuration that it was trained with"
        )
    wanted = dict(_leaves(asked.get("init_args") or {}))
    held = dict(_leaves({**(found.get("init_args") or {}), **(found.get("dict_kwargs") or {})}))
    changed = [
        f"{key}={held[key]!r} (not {wanted[key]!r})" for key in wanted if key in held and held[key] != wanted[key]
    ]
    return f"the checkpoint's own arguments of {theirs} hold: {', '.join(changed)}" if changed else None


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, list(value) if isinstance(value, tuple) else value
