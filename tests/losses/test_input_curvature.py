from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn import functional as F

from pl_robust.losses.input_curvature import input_hessian_eigenvalues

SIDE = 4
ENTRIES = SIDE * SIDE
DOUBLE = torch.float64


def symmetric(spectrum: Any, seed: int) -> Tensor:
    """A matrix of that spectrum in a random basis, [n, n]."""
    spectrum = torch.as_tensor(spectrum, dtype=DOUBLE)
    basis, _ = torch.linalg.qr(
        torch.randn(len(spectrum), len(spectrum), dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    )
    matrix: Tensor = basis @ torch.diag(spectrum) @ basis.mT
    return matrix


class Quadratic(nn.Module):
    """1/2 x^T H_c x + b_c^T x as the answer for each class c: with ``answer`` as loss, each label has its Hessian."""

    def __init__(self, *hessians: Tensor) -> None:
        super().__init__()
        self.hessians = torch.stack(hessians)
        self.slopes = torch.randn(self.hessians.shape[:2], dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return 0.5 * torch.einsum("bi,cij,bj->bc", flat, self.hessians, flat) + flat @ self.slopes.mT


def answer(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None])[:, 0]


def smooth() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Softplus(), nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)
    )


def images(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 1, SIDE, SIDE, dtype=dtype), torch.arange(count) % 3


SPECTRA = {
    "indefinite": [-9.0, -7, -5, -3, -1, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
    "negative": list(range(-16, 0)),
    "identity": [3.0] * ENTRIES,
    "multiple": [5.0] * 3 + [2.0] * 6 + [-1.0] * 7,
    "low rank": [4.0, -6.0] + [0.0] * 14,
    "zero": [0.0] * ENTRIES,
    "scattered": [10.0**power for power in range(-8, 8)],
    "tiny": [1e-30 * power for power in range(16)],
}


@pytest.mark.parametrize("k", [1, 4, ENTRIES])
def test_each_sample_has_the_spectrum_of_its_own_hessian(k: int) -> None:
    spectra = [torch.tensor(spectrum, dtype=DOUBLE) for spectrum in SPECTRA.values()]
    model = Quadratic(*(symmetric(spectrum, seed) for seed, spectrum in enumerate(spectra)))
    x, _ = images(len(spectra), DOUBLE)
    y = torch.arange(len(spectra))
    found = input_hessian_eigenvalues(model, x, y, k=k, iterations=99, loss=answer)
    for spectrum, values in zip(spectra, found, strict=True):
        assert torch.allclose(
            values, spectrum.sort(descending=True).values[:k], rtol=0, atol=1e-8 * float(spectrum.abs().max())
        )


def dense(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Hessians [B, n, n] of the cross-entropy, entry by entry."""

    def loss(image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(model(image[None]), label[None])

    # Not torch.func's: at its first use it leaves environment variables behind.
    hessian: Any = torch.autograd.functional.hessian
    blocks = [hessian(partial(loss, label=label), image) for image, label in zip(x, y, strict=True)]
    return torch.stack(blocks).reshape(len(x), ENTRIES, ENTRIES)


def test_it_agrees_with_the_dense_hessian_and_with_scipys_lanczos() -> None:
    model = smooth().double().eval()
    x, y = images(5, DOUBLE)
    found = input_hessian_eigenvalues(model, x, y, k=3, iterations=ENTRIES)
    hessians = dense(model, x, y)
    assert torch.allclose(found, torch.linalg.eigvalsh(hessians).flip(1)[:, :3], atol=1e-10)
    assert float(found[:, 0].min()) > 1e-3
    for values, hessian in zip(found, hessians, strict=True):
        operator = LinearOperator(hessian.shape, matvec=partial(np.matmul, hessian.numpy()), dtype=np.float64)
        theirs = eigsh(operator, k=3, which="LA", return_eigenvectors=False)
        assert values.tolist() == pytest.approx(sorted(theirs, reverse=True), abs=1e-10)


def test_few_iterations_find_the_largest_eigenvalue_from_below() -> None:
    hessian = symmetric(torch.cat([torch.linspace(-1, 1, 195, dtype=DOUBLE), torch.tensor([2.0, 4, 8])]), 0)
    x, y = torch.rand(1, 198, dtype=DOUBLE), torch.tensor([0])
    found = [
        float(input_hessian_eigenvalues(Quadratic(hessian), x, y, iterations=count, loss=answer))
        for count in (2, 5, 10, 20)
    ]
    assert found == sorted(found)
    assert found[-1] <= 8 + 1e-12
    assert found[2] == pytest.approx(8, rel=1e-4)


def test_a_piecewise_linear_network_is_curved_by_its_loss_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(ENTRIES, 9), nn.ReLU(), nn.Linear(9, 3))
    x, y = images(4)
    assert input_hessian_eigenvalues(model, x, y, k=2, loss=answer).tolist() == [[0, 0]] * 4
    found = input_hessian_eigenvalues(model, x, y, k=3, iterations=3)  # rank: classes - 1
    assert torch.allclose(found, torch.linalg.eigvalsh(dense(model, x, y)).flip(1)[:, :3], atol=1e-6)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert input_hessian_eigenvalues(model, x, y, k=2, loss=answer).tolist() == [[0, 0]] * 4
    assert torch.equal(input_hessian_eigenvalues(lambda x: torch.ones(4, 3) + 0 * x.sum(), x, y), torch.zeros(4, 1))


def test_no_samples_values_depend_on_the_others() -> None:
    model = smooth().train()  # batch-norm in training mode would mix them
    x, y = images(6)

    def found(rows: list[int]) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return input_hessian_eigenvalues(model, x[rows], y[rows], k=2, iterations=4, generator=generator)

    together = found([0, 1, 2, 3, 4, 5])
    assert torch.allclose(found([4, 1]), together[[4, 1]], rtol=1e-4)
    assert torch.allclose(found([3]), together[[3]], rtol=1e-4)
    assert found([]).shape == (0, 2)


def test_the_model_is_left_as_it_was_in_any_grad_mode() -> None:
    model = smooth().train()
    x, y = images(4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    results = []
    for context in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        with context:
            generator = torch.Generator().manual_seed(0)
            results.append(input_hessian_eigenvalues(model, x.clone(), y.clone(), k=2, generator=generator))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert not results[0].requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(part.training for part in model.modules())


def test_data_normalized_outside_is_measured_in_images() -> None:
    model = smooth().double().eval()
    x, y = images(3, DOUBLE)
    mean, std = 0.3, 0.2
    inside = nn.Sequential(Shift(mean, std), model)
    expected = input_hessian_eigenvalues(inside, x, y, k=2, iterations=ENTRIES)
    found = input_hessian_eigenvalues(
        model, (x - mean) / std, y, k=2, iterations=ENTRIES, normalization=([mean], [std])
    )
    assert torch.allclose(found, expected, rtol=1e-9)
    raw = input_hessian_eigenvalues(model, (x - mean) / std, y, k=2, iterations=ENTRIES, bounds=None)
    assert torch.allclose(found, raw / std**2, rtol=1e-9)


class Shift(nn.Module):
    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Attention(nn.Module):
    """One head over the rows of the image; its fused kernel has no second derivative."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, :1]
        return F.scaled_dot_product_attention(rows, rows, rows).flatten(1)[:, :3]


def test_attention_has_a_curvature() -> None:
    x, y = images(3)
    found = input_hessian_eigenvalues(Attention(), x, y, iterations=ENTRIES)

    def loss(image: Tensor, label: Tensor) -> Tensor:
        scores = (image @ image.mT / SIDE**0.5).softmax(-1)
        return F.cross_entropy((scores @ image).flatten()[:3], label)

    hessian: Any = torch.autograd.functional.hessian
    for value, image, label in zip(found, x, y, strict=True):
        block = hessian(partial(loss, label=label), image[0]).reshape(ENTRIES, ENTRIES)
        assert float(value) == pytest.approx(float(torch.linalg.eigvalsh(block)[-1]), rel=1e-4)


def test_a_sample_whose_loss_is_not_finite_has_no_curvature_and_spoils_no_other() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            return torch.stack([flat.pow(2).sum(1) / (flat[:, 0] > 0.5), flat.sum(1)], dim=1)

    x = torch.full((2, 1, SIDE, SIDE), 0.3)
    x[1] = 0.6
    found = input_hessian_eigenvalues(Broken(), x, torch.tensor([0, 0]))
    assert found.isfinite().flatten().tolist() == [False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, r"`k` must be at least 1, got 0"),
        ({"k": 17, "iterations": 20}, r"`k` must be at most the number of entries of one input, 16, got 17"),
        ({"k": 3, "iterations": 2}, r"`iterations` must be at least `k`=3, because each finds one eigenvalue, got 2"),
        ({"loss": F.cross_entropy}, r"`loss` must give one value per sample \[B\] \(reduction='none'\).*got a scalar"),
    ],
)
def test_what_is_wrong_is_said(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        input_hessian_eigenvalues(smooth().eval(), *images(2), **arguments)


def test_a_model_that_detaches_has_no_curvature() -> None:
    with pytest.raises(ValueError, match="does not depend on its input through autograd"):
        input_hessian_eigenvalues(lambda x: x.detach().flatten(1), *images(2))
