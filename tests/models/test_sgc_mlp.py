from __future__ import annotations

import pytest
import torch
from torch import nn

from pl_robust.models import SGC, SGCMLP
from tests.models.graph_toys import dense_normalized, small_graph


@pytest.mark.parametrize("k", [0, 1, 2, 5])
@pytest.mark.parametrize("weighted", [True, False])
def test_it_is_the_dense_formula(k: int, weighted: bool) -> None:
    x, edges, weight = small_graph()
    given = weight if weighted else None
    filtered = torch.linalg.matrix_power(dense_normalized(edges, given, 9), k) @ x
    net = SGCMLP(5, 3, 6, 2, k).double().eval()
    first, last = (layer for layer in net.head.layers if isinstance(layer, nn.Linear))
    expected = (filtered @ first.weight.T + first.bias).relu() @ last.weight.T + last.bias
    torch.testing.assert_close(net(x, edges, given), expected, rtol=0, atol=1e-12)


def test_with_one_layer_it_is_sgc() -> None:
    x, edges, weight = small_graph()
    net, linear = SGCMLP(5, 3, num_layers=1, k=3).double().eval(), SGC(5, 3, 3).double()
    linear.load_state_dict(net.state_dict())
    assert torch.equal(net(x, edges, weight), linear(x, edges, weight))


def test_dropout_is_on_the_filtered_features() -> None:
    """The mean over many masks is the linear layer's own answer: what is left of an input is scaled up."""
    x, edges, weight = small_graph()
    net = SGCMLP(5, 3, num_layers=1, dropout=0.5).double()
    mean = torch.stack([net(x, edges, weight) for _ in range(4000)]).mean(0)
    expected = net.eval()(x, edges, weight)
    assert not torch.equal(mean, expected)
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.1)
