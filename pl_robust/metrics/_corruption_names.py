"""Which corruptions are meant, and whether there are such."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Literal, TypeAlias

from pl_robust.metrics.mean_corruption_error import check_corruptions
from pl_robust.transforms.corruption import CORRUPTIONS, EXTRA_CORRUPTIONS

Corruptions: TypeAlias = Literal["benchmark", "all"] | Sequence[str]


def corruption_names(corruptions: Corruptions, must_be_known: bool = True) -> tuple[str, ...]:
    """List the names of the corruptions.

    Args:
        corruptions: ``benchmark``: the 15; ``all``: those and the 4 extra ones; or names.
        must_be_known: whether each must be one that can be made; files may hold others.

    Raises:
        TypeError: if it is no sequence of names.
        ValueError: if there is no such corruption, none at all, or one twice.
    """
    known = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
    if isinstance(corruptions, str):
        if corruptions not in ("benchmark", "all"):
            raise ValueError(f"`corruptions` must be 'benchmark', 'all' or a list of names, got {corruptions!r}")
        return CORRUPTIONS if corruptions == "benchmark" else known
    names = check_corruptions(corruptions)
    unknown = [name for name in names if name not in known] if must_be_known else []
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"`corruptions` must be among {', '.join(known)}, got {unknown[0]!r}{hint}")
    return names
