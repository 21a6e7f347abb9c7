"""What ``--ckpt_path`` means to the command: Lightning lets the checkpoint's hyperparameters win, and says nothing."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pl_robust._cli_errors import ConfigurationError

_KEYWORDS = ("best", "last", "hpc")  # Lightning's own answers to `ckpt_path`
UNREADABLE = (pickle.UnpicklingError, EOFError, LookupError, RuntimeError, AttributeError)  # of what is no checkpoint

_AS_NET = (
    "to take the weights that it holds, say `net: {class_path: Pretrained, init_args: {net: ..., checkpoint: ...}}` "
    "and leave ckpt_path out"
)
VERSION_KEY = "pytorch-lightning_version"  # Lightning asks each checkpoint for it first
NOT_OF_LIGHTNING = f"ckpt_path: the file was not written by Lightning; {_AS_NET}"
NO_CLASS = f"ckpt_path: the checkpoint was not written by pl-robust, and does not say of which class it is; {_AS_NET}"


def why_unreadable(path: str, error: Exception) -> str:
    """Say of a file that torch refuses to read what is wrong with it."""
    if match := re.search(r"GLOBAL (\S+) was not an allowed global", str(error)):
        return (
            f"ckpt_path: {path!r} holds an object of {match[1]}, which is not read, because unpickling runs code: save "
            "plain values, `save_hyperparameters(ignore=[...])`"
        )
    return f"ckpt_path: {path!r} is no checkpoint that can be read"


def check_checkpoint(path: str | None, *, read: bool) -> None:
    """Refuse a ``ckpt_path`` that is not there, before the data is read and the network made.

    Args:
        path: file, folder of a sharded checkpoint, address of another file system, or a keyword of Lightning's.
        read: whether to look into a file, too, for Lightnings that would unpickle whatever it holds.

    Raises:
        ConfigurationError: if there is no such file, or it holds more than plain values and tensors.
    """
    if not path or path in _KEYWORDS or path.startswith("registry") or "://" in path:
        return
    if not Path(path).exists():
        raise ConfigurationError(f"ckpt_path: there is no file {path!r}")
    if read and Path(path).is_file():
        import torch  # not above, because `--help` and `--version` come at once

        try:
            torch.load(path, weights_only=True, map_location="cpu").keys()
        except UNREADABLE as error:
            raise ConfigurationError(why_unreadable(path, error)) from error


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
    held = {**(found.get("init_args") or {}), **(found.get("dict_kwargs") or {})}
    changed = [f"{key}={theirs!r} (not {ours!r})" for key, ours, theirs in _changes(asked.get("init_args") or {}, held)]
    return f"the checkpoint's own arguments of {theirs} hold: {', '.join(changed)}" if changed else None


def _changes(asked: Mapping[str, Any], held: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Key, value that was asked for, value that holds: of the innermost values that differ."""
    for key in (key for key in asked if key in held):
        ours, theirs = (list(value) if isinstance(value, tuple) else value for value in (asked[key], held[key]))
        known = _class_of(ours) or key == "init_args"  # which a mapping of names is not: it is compared as a whole
        if (
            isinstance(ours, Mapping)
            and isinstance(theirs, Mapping)
            and _class_of(ours) == _class_of(theirs)
            and (known or ours.keys() == theirs.keys())
        ):
            yield from _changes(ours, theirs, f"{prefix}{key}.")
        elif ours != theirs:  # arguments of another class say nothing
            yield prefix + key, _class_of(ours) or ours, _class_of(theirs) or theirs


def _class_of(value: Any) -> Any:
    return value.get("class_path") if isinstance(value, Mapping) else None
