from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pl_robust.models import GAT
from tests.models.graph_toys import dense_adjacency, small_graph


def _truth(layer: Any, x: Tensor, matrix: Tensor) -> Tensor:
    """A layer of dense matrices: matrix[i, j] is the weight of the edge from j to i, loops included."""
    heads = []
    values = layer.lin(x).view(len(x), layer.heads, layer.out_channels)
    for head in range(layer.heads):
        here = values[:, head]
        source, target = here @ layer.att_src[0, head], here @ layer.att_dst[0, head]
        score = matrix * F.leaky_relu(target[:, None] + source[None, :], 0.2).exp()
        heads.append(score / score.sum(1, keepdim=True) @ here)
    bias: Tensor = layer.bias
    return (torch.cat(heads, 1) if layer.concat else torch.stack(heads).mean(0)) + bias


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("num_layers", "output_heads"), [(1, 1), (2, 1), (3, 4)])
def test_it_is_the_dense_formula(num_layers: int, output_heads: int, weighted: bool) -> None:
    x, edges, weight = small_graph()
    net = GAT(5, 3, 4, 2, num_layers, output_heads).double().eval()
    given = weight if weighted else None
    matrix = dense_adjacency(edges, given, 9) + torch.eye(9)
    expected = x
    for index, layer in enumerate(net.layers):
        expected = _truth(layer, F.elu(expected) if index else expected, matrix)
    torch.testing.assert_close(net(x, edges, given), expected, rtol=0, atol=1e-12)


def test_without_weights_it_is_pygs() -> None:
    from torch_geometric.nn import GATConv

    x, edges, _ = small_graph()
    net = GAT(5, 3, 4, 2, num_layers=1).double().eval()
    theirs = GATConv(5, 3, 1, concat=False).double()
    theirs.load_state_dict(net.layers[0].state_dict())
    assert torch.equal(net(x, edges), theirs(x, edges))


def test_an_edge_of_weight_two_is_two_edges() -> None:
    x, edges, _ = small_graph()
    net = GAT(5, 3).double().eval()
    twice = torch.cat([edges, edges[:, [3, 11]]], dim=1)
    weight = torch.ones(16, dtype=torch.float64)
    weight[[3, 11]] = 2
    torch.testing.assert_close(net(x, edges, weight), net(x, twice), rtol=0, atol=1e-12)


def test_parameters_are_those_of_the_paper() -> None:
    """8 heads of 8 on Cora, then one of 7; weight decay on all but the biases."""
    net = GAT(1433, 7)
    expected = 1433 * 64 + 2 * 64 + 64 + 64 * 7 + 2 * 7 + 7
    assert sum(parameter.numel() for parameter in net.parameters()) == expected
    assert sum(parameter.numel() for parameter in net.decayed_parameters()) == expected - 64 - 7
