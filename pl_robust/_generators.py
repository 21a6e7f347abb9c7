"""Find the random number generators that a run holds on to: in its modules, data sets and dataloaders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch

Generator: TypeAlias = torch.Generator | np.random.Generator
_LONGEST_LIST = 100  # longer ones hold samples, not generators


def walk(thing: Any, path: str, depth: int, seen: dict[int, int]) -> Iterator[tuple[str, Any]]:
    """A thing and what its attributes and items lead to; ``seen`` tells how deep it has been followed already."""
    if isinstance(thing, torch.Generator | np.random.Generator):
        yield path, thing
    elif depth > seen.get(id(thing), 0) and not isinstance(thing, torch.Tensor | type):
        seen[id(thing)] = depth
        yield path, thing
        parts = dict(enumerate(thing)) if isinstance(thing, list | tuple) else thing
        if not isinstance(parts, dict):
            parts = getattr(thing, "__dict__", {})
        elif len(parts) > _LONGEST_LIST:
            return
        for key, part in list(parts.items()):
            yield from walk(part, f"{path}.{key}", depth - 1, seen)


def generators_in(thing: Any, depth: int = 8) -> list[Generator]:
    """The generators that the attributes and items of a thing lead to."""
    return [part for _, part in walk(thing, "", depth, {}) if isinstance(part, torch.Generator | np.random.Generator)]


@contextmanager
def kept_generators(thing: Any) -> Iterator[None]:
    """Put the generators that a thing leads to back afterwards, whatever has been drawn from them."""
    torch_states = [(part, part.get_state()) for part in generators_in(thing) if isinstance(part, torch.Generator)]
    numpy_states = [
        (part, part.bit_generator.state) for part in generators_in(thing) if isinstance(part, np.random.Generator)
    ]
    try:
        yield
    finally:
        for generator, state in torch_states:
            generator.set_state(state)
        for array_generator, array_state in numpy_states:
            array_generator.bit_generator.state = array_state
