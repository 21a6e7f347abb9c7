from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pl_robust.ntk import NTKEigen, energy_curve, ntk_alignment, ntk_eigh

DOUBLE = torch.float64


def smooth(outputs: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs)).double().eval()


def eigen(values: tuple[float, ...] = (4.0, 2.0, 1.0, 0.1)) -> NTKEigen:
    return NTKEigen(torch.tensor(values), torch.eye(4)[:, : len(values)])


def test_an_eigenvector_makes_a_step() -> None:
    decomposed = ntk_eigh(smooth(), torch.randn(7, 6, dtype=DOUBLE))
    curve = energy_curve(decomposed, -3 * decomposed.vectors.mT)
    torch.testing.assert_close(curve.energy, torch.ones(7, 7, dtype=DOUBLE).triu())
    torch.testing.assert_close(curve.values, decomposed.values / decomposed.values[0])


def test_a_known_mixture() -> None:
    curve = energy_curve(eigen(), torch.tensor([[1.0, 0.0, -2.0, 0.0], [0.0, 3.0, 0.0, 4.0]]))
    torch.testing.assert_close(curve.energy, torch.tensor([[0.2, 0.2, 1.0, 1.0], [0.0, 0.36, 0.36, 1.0]]))
    torch.testing.assert_close(curve.values, torch.tensor([1.0, 0.5, 0.25, 0.025]))
    torch.testing.assert_close(curve.above(), torch.tensor([1.0, 0.36]))
    torch.testing.assert_close(curve.above(0.25), torch.tensor([0.2, 0.36]))  # above, not at
    torch.testing.assert_close(curve.above(0.9), torch.tensor([0.2, 0.0]))


@pytest.mark.parametrize("outputs", [1, 3])
def test_weighted_by_eigenvalues_it_is_the_alignment(outputs: int) -> None:
    model, x = smooth(outputs), torch.randn(7, 6, dtype=DOUBLE)
    targets = torch.randn(5, 7, outputs, dtype=DOUBLE)
    decomposed = ntk_eigh(model, x, outputs="full")
    curve = energy_curve(decomposed, targets)
    torch.testing.assert_close(curve.energy[:, -1], torch.ones(5, dtype=DOUBLE))
    parts = curve.energy.diff(dim=1, prepend=torch.zeros(5, 1, dtype=DOUBLE))
    found = torch.tensor([ntk_alignment(model, x, target).total for target in targets], dtype=DOUBLE)
    torch.testing.assert_close(parts @ decomposed.values, found)


def test_one_target_is_a_row_of_many_and_few_eigenvalues_its_beginning() -> None:
    model, x = smooth(), torch.randn(7, 6, dtype=DOUBLE)
    targets = torch.randn(3, 7, dtype=DOUBLE)
    whole = energy_curve(ntk_eigh(model, x), targets)
    first = energy_curve(ntk_eigh(model, x, 4), targets[1])
    torch.testing.assert_close(first.energy, whole.energy[1, :4])
    assert first.above(0.9).ndim == 0
    assert energy_curve(ntk_eigh(model, x), targets[:0]).energy.shape == (0, 7)


def test_small_and_whole_numbers_lose_nothing() -> None:
    tiny = energy_curve(eigen(), torch.tensor([1e-30, 0.0, 0.0, 1e-30]))  # squares underflow in float32
    torch.testing.assert_close(tiny.energy, torch.tensor([0.5, 0.5, 0.5, 1.0]))
    assert energy_curve(eigen(), torch.tensor([0, 0, 1, 0])).energy.tolist() == [0, 0, 1, 1]
    assert energy_curve(eigen(), torch.ones(4, requires_grad=True)).energy.requires_grad is False


def test_a_threshold_below_what_is_known_is_refused() -> None:
    short = eigen((4.0, 2.0))
    assert energy_curve(short, torch.tensor([1.0, 1.0, 0.0, 0.0])).above(0.1) == 1  # nothing is left for others
    with pytest.raises(ValueError, match=r"smallest eigenvalue of the curve, 0\.5 of the largest, got 0\.1"):
        energy_curve(short, torch.ones(4)).above(0.1)
    for threshold in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"`threshold` is a share .* in \(0, 1\), got"):
            energy_curve(eigen(), torch.ones(4)).above(threshold)


@pytest.mark.parametrize(
    ("given", "targets", "error", "message"),
    [
        (torch.eye(4), torch.ones(4), TypeError, r"`eigen` must be \(values, vectors\), .* got Tensor"),
        (eigen(), [1.0] * 4, TypeError, "`targets` must be a tensor of real numbers, got list"),
        (eigen(), torch.ones(4, dtype=torch.complex64), TypeError, "real numbers, got torch.complex64"),
        (eigen(), torch.ones(5), ValueError, r"must be \[4\] or \[S, 4\] for these vectors, got \[5\]"),
        (eigen(), torch.ones(2, 2, 4), ValueError, r"got \[2, 2, 4\]"),
        (eigen(), torch.tensor(1.0), ValueError, r"got \[\]"),
        (eigen(), torch.zeros(4), ValueError, "finite and not zero"),
        (eigen(), torch.full((4,), torch.nan), ValueError, "finite and not zero"),
        (eigen((1.0, 2.0)), torch.ones(4), ValueError, "must fall from a positive one, got 1 first and 2 last"),
        (eigen((0.0, 0.0)), torch.ones(4), ValueError, "must fall from a positive one"),
        (NTKEigen(torch.ones(3), torch.eye(4)), torch.ones(4), ValueError, r"got \[3\] and \[4, 4\]"),
    ],
)
def test_what_it_refuses(given: Any, targets: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        energy_curve(given, targets)
