from __future__ import annotations

import pytest
import torch

from pl_robust.models import NodeMLP
from tests.models.graph_toys import small_graph


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_it_is_a_perceptron_that_sees_no_edges(num_layers: int) -> None:
    x, edges, weight = small_graph()
    net = NodeMLP(5, 3, 7, num_layers).double().eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    expected = x
    for index, layer in enumerate(net.head.layers):
        expected = (expected.relu() if index else expected) @ layer.weight.T + layer.bias  # type: ignore[operator]
    torch.testing.assert_close(net(x, edges, weight), expected, rtol=0, atol=1e-12)
    assert torch.equal(net(x, edges, weight), net(x, edges[:, :0]))


def test_weights_start_as_glorots() -> None:
    net = NodeMLP(300, 100, 200)
    for layer in net.head.layers:
        bound = (6 / sum(layer.weight.shape)) ** 0.5  # type: ignore[arg-type]
        assert 0.99 * bound < layer.weight.abs().max() <= bound  # type: ignore[operator]
        assert not layer.bias.any()  # type: ignore[operator]
