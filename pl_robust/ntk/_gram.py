"""The kernel of many samples from records of few, each of which is made once if all fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TypeAlias

import torch
from torch import Tensor

from pl_robust.ntk._factors import Factors, add_product
from pl_robust.ntk._record import Record

Make: TypeAlias = Callable[[Tensor], Record]


def add_kernel(
    kernel: Tensor, make: Make, first: Sequence[Tensor], second: Sequence[Tensor], *, kept_bytes: int
) -> None:
    """Add the products of the gradients of some samples with those of others to a kernel.

    Args:
        kernel: [N1, N2, C, C] for all pairs of outputs, [N1, N2, 1, 1] for the sum over equal ones.
        make: makes the record of a chunk of samples.
        first: chunks of the rows' samples.
        second: chunks of the columns'.
        kept_bytes: memory for records of rows; the columns' are made once for each set of rows that fits into it.
    """
    outputs = kernel.shape[-1]
    ahead = _spans(first)
    while ahead:
        kept: list[tuple[slice, Record]] = []
        while len(kept) < len(ahead) and _has_space(kept, kept_bytes):
            chunk, span = ahead[len(kept)]
            kept.append((span, make(chunk)))
        for chunk, span in _spans(second):
            record = make(chunk)
            for rows, other in kept:
                kernel[rows, span] += _product(other, record, outputs)
        ahead = ahead[len(kept) :]


def add_symmetric_kernel(kernel: Tensor, make: Make, samples: Sequence[Tensor], *, kept_bytes: int) -> None:
    """Add the products of the gradients of all pairs of samples to a kernel, each pair once; see ``add_kernel``."""
    outputs = kernel.shape[-1]
    ahead = _spans(samples)
    while ahead:
        kept: list[tuple[slice, Record]] = []
        for chunk, span in ahead:
            record = make(chunk)
            if _has_space(kept, kept_bytes):
                kept.append((span, record))
            for rows, other in kept:
                block = _product(other, record, outputs)
                if rows == span:
                    block = _symmetric(block)
                else:
                    kernel[span, rows] += block.permute(1, 0, 3, 2)
                kernel[rows, span] += block
        ahead = ahead[len(kept) :]


def _product(first: Record, second: Record, outputs: int) -> Tensor:
    """The products of n samples' gradients with m samples' [n, m, C, C]; for C = 1 summed over outputs."""
    total = torch.zeros(first.count, outputs, second.count, outputs, dtype=first.dtype, device=first.device)
    matrix = total.view(first.count * outputs, -1)
    for name, one in first.parts.items():
        other = second.parts.get(name)
        if isinstance(one, Factors) and isinstance(other, Factors):
            add_product(total, one, other)
        elif other is not None:
            left, right = (part.jacobian() if isinstance(part, Factors) else part for part in (one, other))
            matrix.addmm_(left.reshape(len(matrix), -1), right.reshape(matrix.shape[1], -1).mT)
    return total.transpose(1, 2)


def _symmetric(block: Tensor) -> Tensor:
    """Both triangles of a block [n, n, C, C] from one, so that it is symmetric to the last bit."""
    count, _, outputs, _ = block.shape
    matrix = block.transpose(1, 2).reshape(count * outputs, -1)
    matrix = matrix.triu() + matrix.triu(1).mT
    return matrix.view(count, outputs, count, outputs).transpose(1, 2)


def _has_space(kept: Sequence[tuple[slice, Record]], limit: int) -> bool:
    sizes = [record.nbytes for _, record in kept]
    return not sizes or sum(sizes) + sizes[-1] <= limit


def _spans(chunks: Sequence[Tensor]) -> list[tuple[Tensor, slice]]:
    ends = list(accumulate(map(len, chunks)))
    return [(chunk, slice(end - len(chunk), end)) for chunk, end in zip(chunks, ends, strict=True)]
