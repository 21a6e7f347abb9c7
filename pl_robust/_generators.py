"""Find the random number generators that a run holds on to: in its modules, data sets and dataloaders."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, TypeAlias
from weakref import ProxyTypes

import numpy as np
import torch

Generator: TypeAlias = torch.Generator | np.random.Generator
# Lightning before 2.1 hands its Trainer to modules as a proxy, under another id: what is held weakly is another's.
_NOT_FOLLOWED: tuple[type, ...] = (torch.Tensor, type, ModuleType, *ProxyTypes)
_LONGEST_LIST = 100  # longer ones hold samples, not generators


def walk(thing: Any, path: str, depth: int, seen: dict[int, int]) -> Iterator[tuple[str, Any]]:
    """A thing and what its attributes and items lead to; ``seen`` tells how deep it has been followed already."""
    if isinstance(thing, torch.Generator | np.random.Generator):
        yield path, thing
    elif depth > seen.get(id(thing), 0) and not isinstance(thing, _NOT_FOLLOWED):
        seen[id(thing)] = depth
        yield path, thing
        if isinstance(thing, list | tuple | dict) and len(thing) > _LONGEST_LIST:
            return
        parts = dict(enumerate(thing)) if isinstance(thing, list | tuple) else thing
        if not isinstance(parts, dict):
            parts = getattr(thing, "__dict__", {})
        for key, part in list(parts.items()):
            yield from walk(part, f"{path}.{key}", depth - 1, seen)


@contextmanager
def kept_generators(things: Iterable[Any], depth: int = 8) -> Iterator[None]:
    """Put the generators that things lead to back afterwards, whatever has been drawn from them."""
    seen: dict[int, int] = {}
    undo: list[Callable[[], Any]] = []
    for thing in things:
        for _, part in walk(thing, "", depth, seen):
            if isinstance(part, torch.Generator):
                undo.append(partial(part.set_state, part.get_state()))
            elif isinstance(part, np.random.Generator):
                undo.append(partial(setattr, part.bit_generator, "state", part.bit_generator.state))
            elif isinstance(part, np.random.RandomState):
                undo.append(partial(part.set_state, part.get_state()))
            elif isinstance(part, random.Random):
                undo.append(partial(part.setstate, part.getstate()))
    try:
        yield
    finally:
        for put_back in undo:
            put_back()
