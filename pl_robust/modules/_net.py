"""The lookup of a net by its name; the only place in the room that knows ``pl_robust.models``."""

from __future__ import annotations

import inspect

from torch import nn

from pl_robust import models


def resolve_net(net: nn.Module | str, num_classes: int) -> nn.Module:
    """Give the net itself, or the one of ``pl_robust.models`` that the name says, built for ``num_classes``.

    Raises:
        TypeError: if ``net`` is neither a module nor a name.
        ValueError: if there is no classifier of that name.
    """
    if isinstance(net, nn.Module):
        return net
    if not isinstance(net, str):
        raise TypeError(f"`net` must be an nn.Module or a name of pl_robust.models, got {type(net).__name__}")
    builders = {name: getattr(models, name) for name in models.__all__}
    builders = {name: build for name, build in builders.items() if "num_classes" in inspect.signature(build).parameters}
    if net not in builders:
        ours = f"; {net} has arguments of its own: class_path: pl_robust.models.{net}" if net in models.__all__ else ""
        raise ValueError(
            f"`net` must be an nn.Module, a class_path, or one of the names {sorted(builders)}, got {net!r}{ours}"
        )
    built = builders[net](num_classes=num_classes)
    if not isinstance(built, nn.Module):
        raise TypeError(f"pl_robust.models.{net} gave {type(built).__name__}, no nn.Module")
    return built
