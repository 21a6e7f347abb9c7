from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pl_robust.ntk import ntk_eigh
from pl_robust.ntk.ntk_eigh import Method
from tests.ntk._dense import as_matrix, kernel

DOUBLE = torch.float64


def smooth() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()


def inputs(count: int = 12) -> Tensor:
    return torch.randn(count, 6, dtype=DOUBLE)


def sum_of_squares(outputs: Tensor) -> Tensor:
    return outputs.square().sum(1)


class Headed(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return sum_of_squares(self.model(x))


def gram(model: nn.Module, x: Tensor, outputs: Any) -> Tensor:
    """The kernel's matrix, [N, N] or [N C, N C]."""
    if callable(outputs):
        return kernel(Headed(model).eval(), x)[:, :, 0, 0]
    blocks = kernel(model, x)
    if outputs == "full":
        return as_matrix(blocks)
    return blocks.diagonal(dim1=2, dim2=3).sum(-1) if outputs == "trace" else blocks[:, :, outputs, outputs]


OUTPUTS = ["trace", "full", 1, sum_of_squares]


@pytest.mark.parametrize("method", ["dense", "lanczos"])
@pytest.mark.parametrize("outputs", OUTPUTS, ids=["trace", "full", "one", "squares"])
def test_it_is_the_decomposition_of_the_dense_kernel(outputs: Any, method: Any) -> None:
    model, x = smooth(), inputs()
    matrix = gram(model, x, outputs)
    expected, _ = np.linalg.eigh(matrix.numpy())
    for chunk_size in (None, 5):
        values, vectors = ntk_eigh(model, x, 6, method=method, outputs=outputs, chunk_size=chunk_size)
        assert values.tolist() == pytest.approx(expected[::-1][:6].tolist(), rel=1e-9)
        assert vectors.shape == ((12, 3, 6) if outputs == "full" else (12, 6))
        columns = vectors.reshape(-1, 6)
        assert torch.allclose(matrix @ columns, columns * values, atol=1e-9 * float(values[0]))
        assert torch.allclose(columns.mT @ columns, torch.eye(6, dtype=DOUBLE), atol=1e-9)
        heights = columns.gather(0, columns.abs().argmax(0, keepdim=True))
        assert bool((heights > 0).all())


def test_all_of_the_spectrum_is_there_if_none_is_counted() -> None:
    model, x = smooth(), inputs(5)
    values, vectors = ntk_eigh(model, x, outputs="full")
    columns = vectors.reshape(15, 15)
    assert torch.allclose(columns @ torch.diag(values) @ columns.mT, gram(model, x, "full"), atol=1e-10)
    one = ntk_eigh(model, x[:1])
    assert one.values.tolist() == pytest.approx([float(gram(model, x[:1], "trace"))])
    assert one.vectors.tolist() == [[1.0]]


def test_a_linear_models_spectrum_is_that_of_its_inputs() -> None:
    model = nn.Linear(6, 1, bias=False).double().eval()
    x = inputs(20)
    squares = torch.linalg.svdvals(x).square()
    methods: list[Method] = ["dense", "lanczos"]
    for method in methods:
        assert torch.allclose(ntk_eigh(model, x, 6, method=method).values, squares)
    found = ntk_eigh(model, x, 9, method="lanczos")  # beyond its rank
    assert torch.allclose(found.values[:6], squares)
    assert float(found.values[6:].abs().max()) < 1e-10 * float(squares[0])
    with_bias = ntk_eigh(nn.Linear(6, 1).double().eval(), x, 7)
    assert torch.allclose(with_bias.values, torch.linalg.svdvals(torch.cat([x, torch.ones(20, 1)], 1)).square())


def test_lanczos_is_as_exact_as_single_precision_and_repeats_itself() -> None:
    model, x = smooth(), inputs(60)
    exact = ntk_eigh(model, x, 8).values
    model, x = model.float(), x.float()
    torch.manual_seed(0)
    found = [ntk_eigh(model, x, 8, method="lanczos") for _ in range(2)]
    assert found[0].values.dtype == found[0].vectors.dtype == torch.float32
    assert float((found[0].values - exact).abs().max()) < 1e-6 * float(exact[0])
    assert not torch.equal(found[0].vectors, found[1].vectors)  # from another start
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    again = [ntk_eigh(model, x, 8, method="lanczos", generator=generator) for generator in generators]
    assert torch.equal(again[0].vectors, again[1].vectors)
    dense = ntk_eigh(model, x, 8)
    assert float((dense.values - exact).abs().max()) < 1e-6 * float(exact[0])


@pytest.mark.parametrize("outputs", OUTPUTS, ids=["trace", "full", "one", "squares"])
def test_with_every_sample_a_landmark_nystrom_is_the_decomposition(outputs: Any) -> None:
    model, x = smooth(), inputs()
    exact = ntk_eigh(model, x, 6, outputs=outputs)
    for landmarks in (12, torch.randperm(12), list(range(11, -1, -1))):
        found = ntk_eigh(model, x, 6, method="nystrom", outputs=outputs, landmarks=landmarks)
        assert torch.allclose(found.values, exact.values)
        assert torch.allclose(found.vectors, exact.vectors, atol=1e-8)


def test_nystrom_is_the_published_formula() -> None:
    model, x = smooth(), inputs(15)
    matrix, chosen = gram(model, x, "trace").numpy(), [3, 0, 7, 9, 14]
    values, vectors = np.linalg.eigh(matrix[np.ix_(chosen, chosen)])
    found = ntk_eigh(model, x, 4, method="nystrom", landmarks=chosen)
    for index in range(4):
        value, vector = values[::-1][index], vectors[:, ::-1][:, index]
        assert float(found.values[index]) == pytest.approx(15 / 5 * value)
        expected = math.sqrt(5 / 15) * matrix[:, chosen] @ vector / value
        cosine = expected @ found.vectors[:, index].numpy() / (expected @ expected)
        assert abs(cosine) == pytest.approx(1)
        assert np.linalg.norm(expected) == pytest.approx(float(found.vectors[:, index].norm()))


def test_enough_landmarks_recover_a_kernel_of_low_rank() -> None:
    model = nn.Linear(6, 1, bias=False).double().eval()
    x = inputs(40)
    generator = torch.Generator().manual_seed(0)
    values, vectors = ntk_eigh(model, x, method="nystrom", landmarks=9, generator=generator)
    assert len(values) == 6  # those above rounding
    assert torch.allclose(vectors @ torch.diag(values) @ vectors.mT, x @ x.mT, atol=1e-9)
    few, directions = ntk_eigh(model, x, method="nystrom", landmarks=4, generator=generator)
    assert not torch.allclose(directions @ torch.diag(few) @ directions.mT, x @ x.mT, atol=0.1)
    with pytest.raises(ValueError, match=r"`k` must be at most 6.* kernel of the 9 `landmarks`, got 7: take more"):
        ntk_eigh(model, x, 7, method="nystrom", landmarks=9)


def test_landmarks_are_drawn_by_the_generator() -> None:
    model, x = smooth(), inputs(20)

    def values(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return ntk_eigh(model, x, 3, method="nystrom", landmarks=6, generator=generator).values

    assert torch.equal(values(0), values(0))
    assert not torch.equal(values(0), values(1))


def test_it_works_in_any_grad_mode() -> None:
    model, x = smooth(), inputs()
    ways: list[dict[str, Any]] = [{"method": "lanczos"}, {"method": "dense"}, {"method": "nystrom", "landmarks": 9}]
    for options in ways:
        results = []
        for context in (torch.enable_grad(), torch.inference_mode()):
            with context:
                results.append(ntk_eigh(model, x.clone(), 3, generator=torch.Generator().manual_seed(0), **options))
        assert torch.equal(results[0].values, results[1].values)
        assert torch.equal(results[0].vectors, results[1].vectors)
        assert not results[0].vectors.requires_grad


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (ValueError, {"method": "power"}, r"`method` must be one of \('dense', 'lanczos', 'nystrom'\), got 'power'"),
        (ValueError, {"k": 0}, r"`k` must be at least 1, got 0"),
        (ValueError, {"k": 13}, r"`k` must be at most the number of rows of the kernel, 12, got 13"),
        (ValueError, {"k": 37, "outputs": "full"}, r"`k` must be at most the number of rows of the kernel, 36, got 37"),
        (
            ValueError,
            {"k": 12, "method": "lanczos"},
            r"`k` must be less than the 12 rows.*got 12: method='dense' finds",
        ),
        (ValueError, {"method": "lanczos"}, r"`k` must be less than the 12 rows of the kernel, got None"),
        (ValueError, {"method": "nystrom"}, r"`landmarks`, how many samples or which, must come with method='nystrom'"),
        (ValueError, {"landmarks": 5}, r"and with no other, got method='dense', landmarks=5"),
        (ValueError, {"method": "nystrom", "landmarks": 13}, r"`landmarks` must be at most the number of samples, 12"),
        (ValueError, {"method": "nystrom", "landmarks": 0}, r"`landmarks` must be at least 1, got 0"),
        (ValueError, {"method": "nystrom", "landmarks": [0, 12]}, r"different indices from 0 to 11, got \[0, 12\]"),
        (ValueError, {"method": "nystrom", "landmarks": [3, 3]}, r"different indices from 0 to 11, got \[3, 3\]"),
        (ValueError, {"method": "nystrom", "landmarks": []}, r"indices of at least one, got \[\]"),
        (ValueError, {"method": "nystrom", "landmarks": [0.5]}, r"a number of samples, or the indices of at least one"),
        (ValueError, {"method": "nystrom", "landmarks": 4, "k": 5}, r"`k` must be at most 4.*take more landmarks"),
        (ValueError, {"outputs": "sum"}, r'`outputs` must be "trace", "full", the index .* got \'sum\''),
        (ValueError, {"outputs": 3}, r"`outputs` must be an output of the model, 0 to 2, got 3"),
        (TypeError, {"outputs": 1.5}, r'`outputs` must be "trace", .* got 1.5'),
        (ValueError, {"k": 2, "method": "lanczos", "outputs": lambda z: z}, r"one value per sample.*got \[2, 3\]"),
        (ValueError, {"k": 2, "method": "lanczos", "outputs": lambda z: z[:, 0].detach()}, r"through autograd"),
    ],
)
def test_what_is_wrong_is_said(error: type[Exception], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(error, match=message):
        ntk_eigh(**{"model": smooth(), "x": inputs(), **arguments})


@pytest.mark.parametrize("options", [{}, {"method": "lanczos"}, {"method": "nystrom", "landmarks": 9}])
def test_a_kernel_that_is_not_finite_is_refused(options: Any) -> None:
    model, x = smooth(), inputs()
    nn.init.constant_(model.get_parameter("0.weight"), torch.nan)
    with pytest.raises(ValueError, match="the kernel is not finite: the derivatives of `model` overflow, or its"):
        ntk_eigh(model, x, 2, **options)


@pytest.mark.parametrize("method", ["dense", "lanczos"])
@pytest.mark.parametrize(
    ("head", "message"),
    [
        (lambda z: z[:, 0] - z[:, 0].mean(), r"must take the samples one by one, but gives another value"),
        (
            lambda z: (z * torch.ones(12, 3)).sum(1),
            r"cannot hold something for each sample, such as targets \(The size",
        ),
    ],
)
def test_a_head_that_mixes_samples_is_refused(method: Any, head: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ntk_eigh(nn.Linear(4, 3).eval(), torch.randn(12, 4), 2, method=method, outputs=head, chunk_size=3)


@pytest.mark.parametrize("method", ["dense", "lanczos", "nystrom"])
def test_results_of_inference_mode_are_ordinary(method: Any) -> None:
    with torch.inference_mode():
        eigen = ntk_eigh(nn_model(), torch.ones(6, 4), 1, method=method, landmarks=3 if method == "nystrom" else None)
    assert not eigen.values.is_inference()
    assert not eigen.vectors.is_inference()


def nn_model() -> nn.Module:
    with torch.inference_mode(False):
        return nn.Linear(4, 3).eval()
