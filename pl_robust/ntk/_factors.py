"""Per-sample gradients as sums of outer products, and the products of two samples' gradients from them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

_SCRATCH = 2**24  # entries of the products that are made at a time
_OVERHEAD = 8  # multiply-adds that an entry which goes through memory costs


@dataclass
class Factors:
    r"""The gradient of one parameter, :math:`J_{nc} = \sum_t` right[g, n, t, c] left[g, n, t]ᵀ for each group g.

    Attributes:
        left: [G, n, T, K]; or integers [1, n, T, 1], the places of the ones in one-hot vectors.
        right: [G, n, T, C, O].
        left_first: whether the parameter is [G K, O], not [G O, K].
        size: number of the parameter's entries.
    """

    left: Tensor
    right: Tensor
    left_first: bool
    size: int

    @property
    def is_lookup(self) -> bool:
        """Whether the left factors are one-hot."""
        return not self.left.is_floating_point()

    def fits(self, other: Factors) -> bool:
        """Tell whether another's outer products are of the same shape, so that they can be summed as one."""
        return (
            (self.is_lookup, self.left_first) == (other.is_lookup, other.left_first)
            and self.left.shape[::3] == other.left.shape[::3]
            and self.right.shape[-1] == other.right.shape[-1]
        )

    def jacobian(self) -> Tensor:
        """The gradients themselves, [n, C, P]."""
        if self.is_lookup:
            places, right = self.left[0], self.right[0]
            count, _, outputs, width = right.shape
            rows = right.new_zeros(count, self.size // width, outputs, width)
            rows.scatter_add_(1, places[..., None].expand_as(right), right)
            return rows.transpose(1, 2).flatten(2)
        # The operand whose index comes first goes first, so that the result lies in memory as it is wanted.
        if self.left_first:
            return torch.einsum("gntk,gntco->ncgko", self.left, self.right).flatten(2)
        return torch.einsum("gntco,gntk->ncgok", self.right, self.left).flatten(2)

    def packed(self, dtype: torch.dtype) -> Factors:
        """The same in a dtype, in the order of memory in which they are multiplied."""
        left = self.left if self.is_lookup else self.left.to(dtype)
        return Factors(left.contiguous(), self.right.to(dtype).contiguous(), self.left_first, self.size)

    def prefers_jacobian(self, outputs: int, partners: int, joint: bool) -> bool:
        """Tell whether it takes fewer multiply-adds to multiply gradients than to multiply factors.

        Args:
            outputs: the number of outputs.
            partners: the number of samples that each sample meets.
            joint: whether all pairs of outputs count, not only equal ones.
        """
        groups, _, places, width = self.left.shape
        rest = self.right.shape[-1]
        pairs = outputs**2 if joint else outputs
        making = 0 if self.is_lookup else outputs * self.size * places / partners
        overhead = _OVERHEAD * (pairs if joint else 1)
        return pairs * self.size + making < groups * places**2 * (width + pairs * rest + overhead)


def merged(parts: list[Factors]) -> list[Factors]:
    """Make one of all that fit the first: a layer that is used several times has so many more places."""
    fitting = [part for part in parts if part.fits(parts[0])]
    if len(fitting) < 2:
        return parts
    left, right = (torch.cat([getattr(part, side) for part in fitting], dim=2) for side in ("left", "right"))
    rest = [part for part in parts if not part.fits(parts[0])]
    return [Factors(left, right, parts[0].left_first, parts[0].size), *rest]


def add_product(total: Tensor, first: Factors, second: Factors) -> None:
    """Add the inner products of two sets of samples' gradients in one parameter.

    Args:
        total: where to, [n, C, m, C] for all pairs of outputs, [n, 1, m, 1] for the sum over equal ones.
        first: gradients of n samples.
        second: gradients of m samples.
    """
    rights = [part.right if total.shape[1] > 1 else part.right.flatten(3)[..., None, :] for part in (first, second)]
    groups, count, places, outputs, _ = rights[0].shape
    _, others, other_places, _, _ = rights[1].shape
    step = max(1, math.isqrt(_SCRATCH // (groups * places * other_places * outputs**2)))
    for start, begin in itertools.product(range(0, count, step), range(0, others, step)):
        rows, columns = slice(start, start + step), slice(begin, begin + step)
        left, other_left = first.left[:, rows].flatten(1, 2), second.left[:, columns].flatten(1, 2)
        matches = left == other_left.mT if first.is_lookup else left @ other_left.mT
        products = rights[0][:, rows].flatten(1, 3) @ rights[1][:, columns].flatten(1, 3).mT
        products = products.view(groups, -1, places, outputs, min(step, others - begin), other_places, outputs)
        products.mul_(matches.view(groups, -1, places, 1, products.shape[4], other_places, 1))
        total[rows, :, columns] += products.sum((0, 2, 5))
