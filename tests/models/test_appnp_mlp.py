from __future__ import annotations

import pytest
import torch
from torch import nn

from pl_robust.models import APPNP, APPNPMLP
from tests.models.graph_toys import dense_normalized, page_rank, small_graph


@pytest.mark.parametrize(("steps", "teleport"), [(0, 0.1), (1, 0.1), (4, 0.1), (10, 0.3), (3, 1.0), (3, 0.0)])
@pytest.mark.parametrize("weighted", [True, False])
def test_it_is_the_dense_formula(steps: int, teleport: float, weighted: bool) -> None:
    x, edges, weight = small_graph()
    given = weight if weighted else None
    filtered = page_rank(dense_normalized(edges, given, 9), x, steps, teleport)
    net = APPNPMLP(5, 3, 6, 2, steps, teleport).double().eval()
    first, last = (layer for layer in net.head.layers if isinstance(layer, nn.Linear))
    expected = (filtered @ first.weight.T + first.bias).relu() @ last.weight.T + last.bias
    torch.testing.assert_close(net(x, edges, given), expected, rtol=0, atol=1e-12)


def test_the_filter_comes_first() -> None:
    """Unlike in APPNP with hidden features, whose perceptron comes before: with the same weights they differ."""
    x, edges, weight = small_graph()
    early, late = APPNPMLP(5, 3, 6).double().eval(), APPNP(5, 3, 6, dropout=0.5).double().eval()
    late.head.load_state_dict(early.head.state_dict())
    assert (early(x, edges, weight) - late(x, edges, weight)).abs().max() > 1e-3


def test_with_one_layer_it_is_linear_appnp() -> None:
    x, edges, weight = small_graph()
    net, linear = APPNPMLP(5, 3, num_layers=1).double().eval(), APPNP(5, 3).double().eval()
    linear.load_state_dict(net.state_dict())
    assert torch.equal(net(x, edges, weight), linear(x, edges, weight))
