"""PEP 562 faces for the rooms: a name is imported when somebody first asks for it.

Eager faces would import Lightning before ``_lightning`` can see which of its two namespaces the user's script takes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def attach(room: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the module-level ``__getattr__`` and ``__dir__`` of a room.

    Args:
        room: the room's ``__name__``.
        homes: public name -> stem of the file in the room that defines it.

    Returns:
        ``__getattr__`` and ``__dir__``, to be bound at module level under those names.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name not in homes:
            raise AttributeError(f"module {room!r} has no attribute {name!r}; it offers {', '.join(sorted(homes))}")
        value = getattr(import_module(f"{room}.{homes[name]}"), name)
        setattr(sys.modules[room], name, value)
        return value

    def __dir__() -> list[str]:  # noqa: N807
        return sorted(homes)

    return __getattr__, __dir__
