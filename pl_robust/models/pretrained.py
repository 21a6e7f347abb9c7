"""Networks with the weights of a checkpoint, to be asked and not trained: teachers of a distillation, for example."""

from __future__ import annotations

import copy
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# What torch.load raises for a file that is none of its own, is damaged, or would need unpickling.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    OSError,
)
_COMPILED = "_orig_mod."  # what torch.compile puts into the names of parameters


class Pretrained(nn.Module):
    """A network with the weights of a checkpoint, in eval mode and with ``requires_grad`` off.

    The file is a state dict of the network, as ``torch.save(net.state_dict(), path)`` writes it, or a checkpoint of
    Lightning, whose part for the module's network is taken: of ``AdversarialTraining`` that is ``net``, which is found
    by itself, as any other attribute is whose names and no others fit. Names that ``torch.compile`` has changed fit,
    too. Nothing in the file is unpickled (``weights_only=True``).

    Args:
        net: the network, built as it was trained; a copy gets the weights, so that several files may be read for one.
        checkpoint: the file.
        prefix: what the names in the file begin with, ``"net."`` or ``""``; None looks for it.

    Raises:
        TypeError: if ``net`` is no nn.Module.
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no checkpoint, needs unpickling, holds no state dict, or that of another network, or
            nothing says which of several.
    """

    def __init__(self, net: nn.Module, checkpoint: str | os.PathLike[str], prefix: str | None = None) -> None:
        super().__init__()
        _check_net(net)
        self.net = copy.deepcopy(net).requires_grad_(False)
        _load(self.net, Path(checkpoint), prefix)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the network's answer."""
        answer: Tensor = self.net(x)
        return answer


class PretrainedEnsemble(nn.ModuleList):
    """A ``Pretrained`` network for each checkpoint of a folder, in the order of their names.

    Early-stopped teachers, each the best of its run by PGD accuracy, are files that ``ModelCheckpoint`` has written
    with ``monitor="val/acc_pgd", mode="max"``. Its ``save_last=True`` adds a ``last.ckpt`` of the same run, no network
    more: beside others it is refused, and a pattern such as ``"epoch=*.ckpt"`` leaves it out.

    Args:
        net: the network, built as they were trained; each member is a copy of it.
        folder: where the checkpoints are.
        pattern: which of its files, as for ``Path.glob``: ``"**/*.ckpt"`` looks into folders in it, too.
        prefix: as for ``Pretrained``.

    Attributes:
        checkpoints: the files, in the order of the members.

    Raises:
        TypeError: if ``net`` is no nn.Module.
        FileNotFoundError: if there is no such folder, or nothing in it fits the pattern.
        ValueError: if a file is none of ``net``'s, see ``Pretrained``; or if a ``last.ckpt`` is among others.
    """

    def __init__(
        self, net: nn.Module, folder: str | os.PathLike[str], pattern: str = "*.ckpt", prefix: str | None = None
    ) -> None:
        _check_net(net)
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"`folder` must be a folder of checkpoints, and there is none at {str(folder)!r}")
        checkpoints = sorted(path for path in Path(folder).glob(pattern) if path.is_file())
        if not checkpoints:
            there = sorted(path.name for path in Path(folder).iterdir())
            shown = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "") if there else "nothing"
            raise FileNotFoundError(f"no file in {str(folder)!r} fits `pattern`={pattern!r}; it holds {shown}")
        last = [str(path) for path in checkpoints if re.fullmatch(r"last(-v\d+)?\.ckpt", path.name)]
        if 0 < len(last) < len(checkpoints):
            raise ValueError(
                f"`pattern`={pattern!r} finds {last[0]!r} beside others: the last epoch of a run, of which the best "
                "may be there, too, as ModelCheckpoint's save_last=True leaves it, and would have two votes; leave it "
                "out by a pattern such as 'epoch=*.ckpt', or give a list of Pretrained"
            )
        super().__init__(Pretrained(net, path, prefix) for path in checkpoints)
        self.checkpoints = [str(path) for path in checkpoints]
        self.eval()


def _check_net(net: object) -> None:
    if not isinstance(net, nn.Module):
        raise TypeError(f"`net` must be an nn.Module, built as it was trained, got {type(net).__name__}")


def _load(net: nn.Module, path: Path, prefix: str | None) -> None:
    state = _read_state(path)
    target = getattr(net, _COMPILED[:-1], net)
    wanted = {name.replace(_COMPILED, ""): name for name in target.state_dict()}
    if prefix is None:
        prefix = _find_prefix(state, set(wanted), path)
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    _check_fit(found, {name: target.state_dict()[own] for name, own in wanted.items()}, path, prefix, state)
    target.load_state_dict({wanted[name]: value for name, value in found.items()})


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a file, names free of what ``torch.compile`` adds."""
    if not path.is_file():
        raise FileNotFoundError(f"`checkpoint` must be a file, and there is none at {str(path)!r}")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        # torch's own advice is to unpickle, which runs whatever code the file names.
        named = re.search(r"Unsupported \w+: GLOBAL (\S+)", str(error))
        if named is not None or "Unsupported class" in str(error):
            what = named[1] if named is not None else "a class"
            raise ValueError(
                f"`checkpoint`={str(path)!r} holds objects beside tensors ({what}), which only unpickling could read, "
                "and that runs whatever the file says: if you trust it, read it once with torch.load(path, "
                "weights_only=False), write nothing but its state dict with torch.save, and give that file"
            ) from error
        reason = str(error).partition(". ")[0] if isinstance(error, RuntimeError) else type(error).__name__
        raise ValueError(
            f"`checkpoint`={str(path)!r} is no file of torch.save, or is damaged ({reason}): give one that "
            "torch.save(net.state_dict(), path) or Lightning has written"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state or not all(isinstance(part, Tensor) for part in state.values()):
        kind = f"a dict with {list(content)[:8]}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise ValueError(
            f"`checkpoint`={str(path)!r} must hold a state dict, or one at 'state_dict' as Lightning's do, got {kind}; "
            "write net.state_dict() itself to a file"
        )
    return {str(name).replace(_COMPILED, ""): value for name, value in state.items()}


def _find_prefix(state: dict[str, Tensor], wanted: set[str], path: Path) -> str:
    """Find the attribute of a checkpointed module that has just the wanted names; ``""`` for a plain state dict."""
    # One attribute deep only: deeper in, a net inside another one would lose what stands around it.
    attributes = sorted({f"{name.partition('.')[0]}." for name in state})
    fitting = [
        prefix
        for prefix in ("", "net.", *attributes)
        if {name.removeprefix(prefix) for name in state if name.startswith(prefix)} == wanted
    ]
    if fitting and fitting[0] not in ("", "net.") and len(fitting) > 1:
        raise ValueError(
            f"several networks in `checkpoint`={str(path)!r} have the names of `net`: "
            f"set `prefix` to one of {', '.join(map(repr, fitting))}"
        )
    return fitting[0] if fitting else "net." if "net." in attributes else ""


def _check_fit(
    found: dict[str, Tensor], wanted: dict[str, Tensor], path: Path, prefix: str, state: dict[str, Tensor]
) -> None:
    missing, unknown = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or unknown:
        first = next(iter(wanted), "")
        elsewhere = sorted({name[: -len(first)] for name in state if first and name.endswith(f".{first}")} - {prefix})
        hint = f"; `prefix` may be one of {elsewhere}" if elsewhere and set(found).isdisjoint(wanted) else ""
        raise ValueError(
            f"`checkpoint`={str(path)!r} is none of this net (names that begin with {prefix!r}): missing "
            f"{_some(missing)}, unknown {_some(unknown)}; build `net` as it was trained{hint}"
        )
    other = [
        f"{name} {list(found[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if found[name].shape != wanted[name].shape
    ]
    if other:
        raise ValueError(
            f"`checkpoint`={str(path)!r} is of a net of other sizes: it has {_some(other)}; build `net` as it was "
            "trained (width, channels, num_classes)"
        )


def _some(names: list[str]) -> str:
    return (", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")) if names else "none"
