from __future__ import annotations

from typing import Any

import pytest
import torch

from pl_robust.models import GCN
from tests.models.graph_toys import dense_normalized, small_graph


def _truth(net: Any, x: Any, matrix: Any) -> Any:
    for index, layer in enumerate(net.layers):
        x = matrix @ ((x.relu() if index else x) @ layer.lin.weight.T) + layer.bias
    return x


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("weighted", [True, False])
def test_it_is_the_dense_formula(num_layers: int, weighted: bool) -> None:
    x, edges, weight = small_graph()
    net = GCN(5, 3, 7, num_layers).double().eval()
    for layer in net.layers:
        torch.nn.init.normal_(layer.bias)  # type: ignore[arg-type]
    given = weight if weighted else None
    torch.testing.assert_close(
        net(x, edges, given), _truth(net, x, dense_normalized(edges, given, 9)), rtol=0, atol=1e-12
    )


def test_sparse_features_take_another_way_to_the_same_end() -> None:
    """Mostly zeros are multiplied as a sparse matrix: same numbers, and same gradients."""
    _, edges, weight = small_graph()
    x = torch.zeros(9, 50, dtype=torch.float64)
    x[[0, 3, 4, 8], [1, 7, 7, 49]] = torch.tensor([1.0, 2.0, -1.0, 3.0], dtype=torch.float64)
    net = GCN(50, 3).double().eval()
    logits = net(x, edges, weight)
    assert net._first._sparse(x) is not None
    expected = _truth(net, x, dense_normalized(edges, weight, 9))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    parameters = list(net.parameters())
    gradients = torch.autograd.grad(logits.square().sum(), parameters)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.square().sum(), parameters), rtol=0, atol=1e-10)
    assert net._first._sparse(torch.ones(9, 50)) is None


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_dropout_drops_its_share_of_the_features(share: float) -> None:
    """A layer of ones without edges counts what is left of equal nodes, each feature 0 or doubled: binomial."""
    features = (torch.rand(400, generator=torch.Generator().manual_seed(0)) < share).double()
    net = GCN(400, 1, num_layers=1, dropout=0.5).double()
    torch.nn.init.ones_(net.decayed_parameters()[0])
    x = features.repeat(4000, 1)
    left = net(x, torch.zeros(2, 0, dtype=torch.long))[:, 0].detach() / 2
    assert (net._first._sparse(x) is not None) == (share == 0.01)
    count = float(features.sum())
    assert torch.equal(left, left.round())
    assert abs(left.mean() - count / 2) < 5 * (count / 4 / 4000) ** 0.5
    torch.testing.assert_close(left.var(), torch.tensor(count / 4).double(), rtol=0.15, atol=0)


def test_parameters_are_those_of_the_paper() -> None:
    """Kipf and Welling's on Cora: 16 hidden units."""
    assert sum(parameter.numel() for parameter in GCN(1433, 7, 16).parameters()) == 1433 * 16 + 16 + 16 * 7 + 7
    assert [tuple(parameter.shape) for parameter in GCN(1433, 7).decayed_parameters()] == [(64, 1433)]


def test_it_sees_as_far_as_it_has_layers() -> None:
    edges = torch.tensor([[0, 1, 2], [1, 2, 3]])
    x = torch.zeros(4, 2)
    for num_layers in (1, 2, 3):
        torch.manual_seed(0)
        net = GCN(2, 2, num_layers=num_layers).eval()
        moved = x.clone()
        moved[0] = 100.0
        changed = (net(moved, edges) - net(x, edges)).abs().sum(1) > 1e-6
        assert not changed[num_layers + 1 :].any()
        assert changed[0]


def test_what_is_kept_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from pl_robust.models import _graph

    calls: list[int] = []
    original = _graph.normalized_adjacency

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(_graph, "normalized_adjacency", counted)
    x, edges, weight = small_graph()
    net = GCN(5, 3).double()
    for _ in range(3):
        net(x, edges, weight).sum().backward()
    assert len(calls) == 1
    net(x, edges.clone(), weight)
    assert len(calls) == 2
