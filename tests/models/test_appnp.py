from __future__ import annotations

import pytest
import torch

from pl_robust.models import APPNP
from tests.models.graph_toys import dense_normalized, page_rank, small_graph


@pytest.mark.parametrize(("steps", "teleport"), [(0, 0.1), (1, 0.1), (4, 0.1), (10, 0.3), (3, 1.0), (3, 0.0)])
@pytest.mark.parametrize("weighted", [True, False])
def test_it_is_the_dense_formula(steps: int, teleport: float, weighted: bool) -> None:
    x, edges, weight = small_graph()
    given = weight if weighted else None
    matrix = dense_normalized(edges, given, 9)
    filtered = page_rank(matrix, x, steps, teleport)
    linear = APPNP(5, 3, steps=steps, teleport=teleport).double()
    assert len(linear.head.layers) == 1
    torch.testing.assert_close(linear(x, edges, given), linear.head(filtered), rtol=0, atol=1e-12)
    late = APPNP(5, 3, 6, steps, teleport, 0.5).double().eval()
    expected = page_rank(matrix, late.head(x), steps, teleport)
    torch.testing.assert_close(late(x, edges, given), expected, rtol=0, atol=1e-12)


def test_many_steps_are_personalized_pagerank() -> None:
    """Closed form of the paper, equation 4: alpha (I - (1 - alpha) A)^-1 H."""
    x, edges, weight = small_graph()
    net = APPNP(5, 3, 6, steps=200, teleport=0.2).double().eval()
    inverse = torch.linalg.inv(torch.eye(9).double() - 0.8 * dense_normalized(edges, weight, 9))
    torch.testing.assert_close(net(x, edges, weight), 0.2 * inverse @ net.head(x), rtol=0, atol=1e-12)


def test_edges_are_dropped_anew_at_each_step() -> None:
    """Of pairs of nodes, with alpha = 0, after 8 steps: dropping among what is left would leave nothing nearly always.

    All four weights of a pair are 1/2, times 1.25 with probability 0.8 at each step, else 0. So values have mean 1. How
    many nodes of a pair are not zero is a Markov chain: each stays at zero if all it hears of is dropped, or zero.
    """
    first = torch.arange(0, 4000, 2)
    edges = torch.stack([torch.cat([first, first + 1]), torch.cat([first + 1, first])])
    net = APPNP(1, 1, 1, steps=8, teleport=0.0, dropout=0.2)
    start = torch.ones(4000, 1)
    drawn = net._propagated(start, *net._adjacency(start, edges, None)).detach()
    assert abs(drawn.mean() - 1) < 0.05
    chain = torch.tensor([[1, 0, 0], [0.2**2, 2 * 0.2 * 0.8, 0.8**2], [0.04**2, 2 * 0.04 * 0.96, 0.96**2]])
    state = torch.linalg.matrix_power(chain, 8)[2]
    torch.testing.assert_close((drawn == 0).float().mean(), state[0] + state[1] / 2, rtol=0, atol=0.015)
    net.eval()
    torch.testing.assert_close(net._propagated(start, *net._adjacency(start, edges, None)), start)


def test_both_forms_have_their_settings() -> None:
    linear, late = APPNP(5, 3), APPNP(5, 3, 64, 10, dropout=0.5)
    assert (linear.learning_rate, late.learning_rate) == (0.05, 0.01)
    assert [tuple(parameter.shape) for parameter in late.decayed_parameters()] == [(64, 5)]
    assert len(list(linear.parameters())) == 2
