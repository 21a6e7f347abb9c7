from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pl_robust.ntk import ntk_alignment
from tests.ntk._dense import as_matrix, jacobian, kernel

DOUBLE = torch.float64


def smooth(outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs)).double().eval()


def data(count: int = 7, outputs: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 6, dtype=DOUBLE), torch.randn(count, outputs, dtype=DOUBLE)


def exact_cka(model: nn.Module, x: Tensor, y: Tensor) -> float:
    gram, flat = as_matrix(kernel(model, x)), y.flatten()
    return float((gram * torch.outer(flat, flat)).sum() / (gram.norm() * torch.outer(flat, flat).norm()))


def test_the_alignments_are_rayleigh_quotients_of_the_dense_kernel() -> None:
    model, (x, y) = smooth(), data()
    rows = jacobian(model, x)
    for chunk_size in (None, 1, 3):
        found = ntk_alignment(model, x, y, cka=True, chunk_size=chunk_size)
        flat = y.flatten()
        assert found.total == pytest.approx(float(flat @ as_matrix(kernel(model, x)) @ flat / (flat @ flat)))
        assert found.per_output is not None
        for c, value in enumerate(found.per_output):
            pulled = rows[:, c].mT @ y[:, c]
            assert float(value) == pytest.approx(float(pulled @ pulled / (y[:, c] @ y[:, c])))
        assert found.cka == pytest.approx(exact_cka(model, x, y))
        assert found.cka_error == 0.0
        assert found.per_layer is None


def test_of_a_linear_model_it_is_known() -> None:
    model = nn.Linear(6, 1, bias=False).double().eval()
    x, _ = data()
    values, vectors = torch.linalg.eigh(x @ x.mT)
    for value, vector in zip(values[-6:], vectors.mT[-6:], strict=True):
        found = ntk_alignment(model, x, vector[:, None], cka=True)
        assert found.total == pytest.approx(float(value))
        assert found.cka == pytest.approx(float(value / values.norm()))
    # One sample, and a target in the kernel's only direction.
    assert ntk_alignment(model, x[:1], torch.ones(1, 1, dtype=DOUBLE), cka=True).cka == pytest.approx(1)


def test_without_the_outputs_own_ones_the_rest_is_the_same() -> None:
    model, (x, y) = smooth(), data()
    found = ntk_alignment(model, x, y, per_output=False, per_layer=True)
    assert found.per_output is None
    assert found.cka is found.cka_error is None
    whole = ntk_alignment(model, x, y, per_layer=True)
    assert found.total == pytest.approx(whole.total)
    assert found.per_layer == pytest.approx(whole.per_layer)


def test_shares_of_the_layers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, dtype=DOUBLE))
            self.body = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh())
            self.head = nn.Linear(5, 3)
            self.frozen = nn.Linear(3, 3).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.frozen(self.head(self.body(x))) * self.scale
            return outputs

    model, (x, y) = Net().double().eval(), data()
    found = ntk_alignment(model, x, y, per_layer=True)
    assert found.per_layer is not None
    owners = {"": ["scale"], "body.0": ["body.0"], "head": ["head.weight", "head.bias"]}
    assert set(found.per_layer) == set(owners)
    assert sum(found.per_layer.values()) == pytest.approx(1)
    energy = found.total * float(y.square().sum())
    loss = (model(x) * y).sum()
    loss.backward()
    for owner, names in owners.items():
        squares = [
            float(parameter.grad.square().sum())
            for name, parameter in model.named_parameters()
            if parameter.grad is not None and any(name.startswith(known) for known in names)
        ]
        assert found.per_layer[owner] == pytest.approx(sum(squares) / energy)


def test_hutchinsons_estimate_states_its_error() -> None:
    model, (x, y) = smooth(), data()
    truth = exact_cka(model, x, y)
    found = [
        ntk_alignment(
            model, x, y, cka=True, per_output=False, samples=40, generator=torch.Generator().manual_seed(seed)
        )
        for seed in range(40)
    ]
    values = torch.tensor([one.cka for one in found], dtype=DOUBLE)
    errors = torch.tensor([one.cka_error for one in found], dtype=DOUBLE)
    assert bool(((values - truth).abs() < 4 * errors).all())
    assert abs(float(values.mean()) - truth) < 4 * float(errors.mean()) / math.sqrt(40) + 0.02 * truth
    assert float(values.std()) == pytest.approx(float(errors.mean()), rel=0.3)
    assert 0 < float(errors.max()) < 1.5 * truth / math.sqrt(2 * 40)  # the bound that the docstring gives


def test_probes_are_those_of_the_generator() -> None:
    model, (x, y) = smooth(), data()

    def estimate(generator: torch.Generator | None = None, chunk_size: int | None = None) -> float | None:
        return ntk_alignment(model, x, y, cka=True, samples=3, generator=generator, chunk_size=chunk_size).cka

    first = estimate(torch.Generator().manual_seed(1))
    assert estimate(torch.Generator().manual_seed(1), chunk_size=2) == pytest.approx(first)
    assert estimate(torch.Generator().manual_seed(2)) != pytest.approx(first)
    torch.manual_seed(3)
    drawn = [estimate(), estimate()]
    torch.manual_seed(3)
    assert [estimate(), estimate()] == drawn
    assert drawn[0] != drawn[1]


def test_an_output_without_a_target_has_no_alignment_of_its_own() -> None:
    model, (x, y) = smooth(), data()
    y[:, 1] = 0
    found = ntk_alignment(model, x, y)
    assert found.per_output is not None
    assert found.per_output.isnan().tolist() == [False, True, False]
    assert math.isfinite(found.total)


def test_a_diverged_network_has_none() -> None:
    model, (x, y) = smooth(), data()
    nn.init.constant_(model.get_parameter("0.weight"), torch.nan)
    found = ntk_alignment(model, x, y, cka=True, samples=2, per_layer=True)
    assert math.isnan(found.total)
    assert found.cka is not None
    assert math.isnan(found.cka)
    assert found.per_layer is not None
    assert all(math.isnan(share) for share in found.per_layer.values())


def test_one_output_without_a_dimension() -> None:
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.layer(x)
            return outputs[:, 0]

    model, (x, y) = Scalar().double().eval(), data(5, 1)
    found = ntk_alignment(model, x, y[:, 0], cka=True)
    gram = x @ x.mT + 1
    assert found.total == pytest.approx(float(y[:, 0] @ gram @ y[:, 0] / y.square().sum()))
    assert found.per_output is not None
    assert found.per_output.tolist() == pytest.approx([found.total])


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (ValueError, {"y": torch.zeros(4, 3)}, r"`y` must not be zero everywhere"),
        (
            ValueError,
            {"y": torch.ones(4)},
            r"`y` must have the shape of the model's outputs, \[4, 3\], got \[4\].*one-hot",
        ),
        (TypeError, {"y": torch.tensor([0, 1, 2, 0])}, r"`y` must be a floating-point tensor.*got torch.int64"),
        (
            ValueError,
            {"y": torch.full((4, 3), torch.inf)},
            r"`y` holds NaN or infinite values in samples \[0, 1, 2, 3\]",
        ),
        (ValueError, {"samples": 5}, r"`samples` is the number of probes for the CKA: give cka=True"),
        (
            ValueError,
            {"samples": 1, "cka": True},
            r"`samples` must be at least 2, because their spread gives the error",
        ),
        (TypeError, {"samples": 2.5, "cka": True}, r"`samples` must be an integer, got 2.5"),
    ],
)
def test_what_is_wrong_is_said(error: type[Exception], arguments: dict[str, Any], message: str) -> None:
    model = nn.Linear(6, 3).eval()
    with pytest.raises(error, match=message):
        ntk_alignment(**{"model": model, "x": torch.randn(4, 6), "y": torch.randn(4, 3), **arguments})


def test_a_norm_that_overflows_gives_no_cka() -> None:
    model = nn.Linear(2, 1, bias=False).double().eval()
    x = torch.tensor([[1e90, 0.0], [0.0, 1e80]], dtype=torch.float64)  # the kernel's entries squared are 1e360
    result = ntk_alignment(model, x, torch.ones(2, 1, dtype=torch.float64), cka=True)
    assert result.cka is not None
    assert result.cka_error is not None
    assert math.isnan(result.cka)
    assert math.isnan(result.cka_error)
    assert math.isfinite(result.total)


def test_results_of_inference_mode_are_ordinary() -> None:
    model = nn.Linear(4, 3).eval()
    with torch.inference_mode():
        result = ntk_alignment(model, torch.ones(6, 4), torch.ones(6, 3))
    assert result.per_output is not None
    assert not result.per_output.is_inference()
