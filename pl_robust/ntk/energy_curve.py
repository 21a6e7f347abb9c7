"""How much of a target lies on the eigenfunctions of the NTK with large eigenvalues.

Yüce, Ortiz-Jimenez, Besbinar, Frossard, "A structured dictionary perspective on implicit neural representations",
CVPR 2022, https://arxiv.org/abs/2112.01917, figure 4.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pl_robust.ntk.ntk_eigh import NTKEigen

_COMPLETE = 1e-4  # energy that a complete basis may lack in float32


class EnergyCurve(NamedTuple):
    """Cumulative energy of targets on eigenfunctions, against their eigenvalues.

    Attributes:
        values: eigenvalues over the largest one, [k], from 1 down.
        energy: share of a target's energy on the eigenfunctions up to this one, in [0, 1] and rising: [S, k] of S
            targets, [k] of one. With all N eigenfunctions it ends at 1.
    """

    values: Tensor
    energy: Tensor

    def above(self, threshold: float = 0.1) -> Tensor:
        """Share of each target's energy on the eigenfunctions of eigenvalues above ``threshold`` times the largest.

        Args:
            threshold: in (0, 1).

        Returns:
            [S], a scalar for one target.

        Raises:
            ValueError: if ``threshold`` is not in (0, 1), or eigenvalues above it are missing from the curve.
        """
        if not 0 < threshold < 1:
            raise ValueError(f"`threshold` is a share of the largest eigenvalue, in (0, 1), got {threshold!r}")
        count = int((self.values > threshold).sum())
        if count == len(self.values) and bool((self.energy[..., -1] < 1 - _COMPLETE).any()):
            raise ValueError(
                f"`threshold` must not be below the smallest eigenvalue of the curve, {float(self.values[-1]):.3g} of "
                f"the largest, got {threshold!r}: give energy_curve more eigenvalues"
            )
        return self.energy[..., count - 1]


def energy_curve(eigen: NTKEigen, targets: Tensor) -> EnergyCurve:
    r"""Measure the energy of targets on the first eigenfunctions of a kernel, for every number of them.

    :math:`E_k = \sum_{i \leq k} \langle v_i, y\rangle^2 / \|y\|^2`. The linearized network learns the part of y on
    :math:`v_i` at a speed proportional to the eigenvalue :math:`\lambda_i`, so a curve that rises early is that of a
    target which is learned fast. :math:`\sum_i \lambda_i (E_i - E_{i-1})` over all of them is what ``ntk_alignment``
    gives.

    A target counts as it is: take its mean off, as published for images, if that shall not count. Vectors of
    ``method="nystrom"`` are not exactly orthonormal; their energies may sum to more than 1.

    Args:
        eigen: what ``ntk_eigh`` gives at the samples; for images of the kernel of a network on coordinates, at the
            points of the grid.
        targets: one [N] or S of them [S, N], values at the same samples, on the device of ``eigen``; of the kernel of
            all pairs of outputs [N, C] or [S, N, C].

    Returns:
        The relative eigenvalues and the cumulative energy, in the dtype of the vectors; computed in float64.

    Raises:
        TypeError: if ``eigen`` is no pair of tensors, or ``targets`` are no tensor of real numbers.
        ValueError: if shapes do not fit, eigenvalues do not fall from a positive one, or a target is zero or not
            finite.

    Example:
        >>> import torch
        >>> eigen = NTKEigen(torch.tensor([4.0, 1.0]), torch.eye(2))
        >>> energy_curve(eigen, torch.tensor([1.0, 1.0]))
        EnergyCurve(values=tensor([1.0000, 0.2500]), energy=tensor([0.5000, 1.0000]))
    """
    if not isinstance(eigen, tuple) or len(eigen) != 2 or not all(isinstance(one, Tensor) for one in eigen):
        raise TypeError(f"`eigen` must be (values, vectors), as ntk_eigh gives them, got {type(eigen).__name__}")
    if not isinstance(targets, Tensor) or targets.is_complex():
        got = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise TypeError(f"`targets` must be a tensor of real numbers, got {got}")
    values, vectors = eigen
    if vectors.ndim < 2 or not vectors.numel() or list(values.shape) != [vectors.shape[-1]]:
        raise ValueError(
            f"`eigen` must be values [k] and vectors [N, k] or [N, C, k], got {list(values.shape)} and "
            f"{list(vectors.shape)}"
        )
    if not (values[0] > 0 and (values[1:] <= values[:-1]).all()):  # also NaN
        raise ValueError(
            f"the eigenvalues of `eigen` must fall from a positive one, got {values[0]:g} first and {values[-1]:g} last"
        )
    samples = vectors.shape[:-1]
    if targets.shape[-len(samples) :] != samples or targets.ndim > len(samples) + 1:
        one = ", ".join(map(str, samples))
        raise ValueError(f"`targets` must be [{one}] or [S, {one}] for these vectors, got {list(targets.shape)}")
    rows = targets.detach().double().reshape(-1, samples.numel())
    energies = rows.square().sum(1, keepdim=True)
    if not bool(((energies > 0) & energies.isfinite()).all()):
        raise ValueError("`targets` must be finite and not zero everywhere, got one that is not")
    parts = (rows @ vectors.double().reshape(samples.numel(), -1)).square() / energies
    energy = parts.cumsum(1).reshape(*targets.shape[: targets.ndim - len(samples)], len(values))
    return EnergyCurve((values.double() / values[0].double()).to(vectors.dtype), energy.to(vectors.dtype))
