"""The values of which a record holds the derivatives: functions of a network's outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from pl_robust.ntk._heads import Head


class Readout:
    """Some of a network's outputs, or a function of them.

    Where the sum of the kernels is wanted, outputs are turned by an orthogonal matrix, which leaves the sum as it is:
    then the first value depends on all of them, and what its gradients show of the network holds for all values.

    Args:
        columns: the outputs.
        head: the function, instead of these.
        joint: whether products of different outputs' gradients are wanted, not only the sum over equal ones.
        stands_for: of how many outputs the work is to be judged, if these are an example of more; None means of these.
    """

    def __init__(
        self, columns: range, head: Head | None = None, *, joint: bool = False, stands_for: int | None = None
    ) -> None:
        self.width = len(columns) if head is None else 1
        self.joint = joint
        self.stands_for = self.width if stands_for is None else stands_for
        self.first_shows_all = self.width == 1 or not joint
        self._columns = slice(columns.start, columns.stop)
        self._head = head
        self._turn = None if self.width == 1 or joint else _reflection(self.width)

    def __call__(self, outputs: Tensor) -> Tensor:
        """Give the values [n, C] of outputs [n, D]."""
        values = outputs[:, self._columns] if self._head is None else self._head(outputs)[:, None]
        return values if self._turn is None else values @ self._turn.to(values)

    def part(self, start: int, stop: int, stands_for: int | None = None) -> Readout:
        """Some of the values alone; all of them, if they belong together."""
        if self.joint or self._head is not None:
            return self
        first = self._columns.start
        return Readout(range(first + start, first + min(stop, self.width)), stands_for=stands_for)


def mixture(width: int) -> Tensor:
    """Weights that no network knows, all of the same order; always the same ones, in float64."""
    return torch.rand(width, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5


def _reflection(width: int) -> Tensor:
    """The matrix that exchanges the first unit vector and the direction of the mixture."""
    weights = mixture(width)
    difference = torch.eye(width, dtype=torch.float64)[0] - weights / torch.linalg.vector_norm(weights)
    unit = difference / torch.linalg.vector_norm(difference)
    return torch.eye(width, dtype=torch.float64) - torch.outer(2 * unit, unit)
