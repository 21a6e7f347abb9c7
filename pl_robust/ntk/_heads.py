"""Which functions of a model's outputs a kernel is made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Head: TypeAlias = Callable[[Tensor], Tensor]
"""Makes of a model's outputs [N, C] one function, [N]."""
Outputs: TypeAlias = Literal["trace", "full"] | int | Head
"""The kernel summed over outputs, of all pairs of outputs, of one output, or of a function of them."""


def heads_of(outputs: Outputs, count: int) -> list[Head | None]:
    """Find the functions whose kernels add up to the one that is wanted; None stands for all outputs as they are.

    Args:
        outputs: as of ``empirical_ntk``.
        count: number C of the model's outputs.

    Raises:
        TypeError: if it is none of the kinds.
        ValueError: for another word, or an output that the model does not have.
    """
    if isinstance(outputs, str):
        if outputs not in ("trace", "full"):
            raise ValueError(
                f'`outputs` must be "trace", "full", the index of an output, or a function, got {outputs!r}'
            )
        return [None] if outputs == "full" else [partial(column, index=index) for index in range(count)]
    if isinstance(outputs, int) and not isinstance(outputs, bool):
        if not 0 <= outputs < count:
            raise ValueError(f"`outputs` must be an output of the model, 0 to {count - 1}, got {outputs}")
        return [partial(column, index=outputs)]
    if callable(outputs):
        return [partial(_checked, head=outputs)]
    raise TypeError(f'`outputs` must be "trace", "full", the index of an output, or a function, got {outputs!r}')


def check_rows(head: Head, few: Tensor) -> None:
    """Refuse a function of the outputs that does not take the samples one by one.

    Args:
        head: the function as the user gave it.
        few: a few of the outputs [n, C].

    Raises:
        ValueError: if it fails on them, makes another shape of them, or mixes the samples.
    """
    try:
        together = _checked(few, head=head)
        alone = torch.cat([_checked(row, head=head) for row in torch.split(few, 1)])
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"`outputs` as a function must take the outputs of any number of samples, but fails for {len(few)} or 1 of "
            f"them: it cannot hold something for each sample, such as targets ({error})"
        ) from error
    difference = (together - alone).abs().max()
    if bool(difference > torch.finfo(few.dtype).eps ** (1 / 3) * together.abs().max()):
        raise ValueError(
            "`outputs` as a function must take the samples one by one, but gives another value for a sample alone than "
            f"among {len(few)}, by {float(difference):.2g}"
        )


def column(outputs: Tensor, *, index: int) -> Tensor:
    """One of the outputs [N, C]: [N]."""
    return outputs[:, index]


def _checked(outputs: Tensor, *, head: Head) -> Tensor:
    values = head(outputs)
    if not isinstance(values, Tensor) or values.shape != outputs.shape[:1]:
        got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"`outputs` as a function must make one value per sample of the model's outputs, [{len(outputs)}] of "
            f"{list(outputs.shape)}, got {got}"
        )
    return values
