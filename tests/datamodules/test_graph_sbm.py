from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pl_robust.datamodules import GraphDataModule
from pl_robust.datamodules._graph_sbm import _subset, _triangle, contextual_sbm
from tests.datamodules import graph_toys  # noqa: F401  # imports PyG
from tests.toys import assert_identical


def test_edges_are_as_many_as_said_within_communities_and_between() -> None:
    graph = contextual_sbm(2003, 3, 8, degree=12.0, homophily=0.7)
    first, second = graph.community[graph.edge_index]
    count = graph.edge_index.shape[1]
    # Half as many draws as ends of edges; 5 standard deviations.
    assert abs(count / 2003 - 12) < 5 * math.sqrt(2 * 12 / 2003)
    assert abs((first == second).float().mean() - 0.7) < 5 * math.sqrt(2 * 0.21 / count)
    sizes = torch.bincount(graph.community)
    assert len(sizes) == 6
    assert sizes.max() - sizes.min() <= 1
    assert torch.equal(graph.y, graph.community // 2)
    degrees = torch.bincount(graph.edge_index[0], minlength=2003).double()
    assert 0.85 < degrees.var() / degrees.mean() < 1.15  # nearly Poisson


def test_each_pair_of_nodes_is_an_edge_at_most_once_and_both_ways() -> None:
    edges = contextual_sbm(200, 2, 8, degree=30.0).edge_index
    keys = edges[0] * 200 + edges[1]
    assert len(torch.unique(keys)) == len(keys)
    assert torch.equal(keys.sort()[0], (edges[1] * 200 + edges[0]).sort()[0])
    assert (edges[0] != edges[1]).all()


@pytest.mark.parametrize("nonlinearity", [0.0, 0.4, 1.0])
def test_features_have_the_means_and_the_noise_of_the_formula(nonlinearity: float) -> None:
    graph = contextual_sbm(40000, 2, 6, degree=0.0, signal=3.0, nonlinearity=nonlinearity)
    means = torch.stack([graph.x[graph.community == index].mean(0) for index in range(4)]).double()
    error = 5 / 100  # 10,000 nodes each
    assert (means.norm(dim=1) - 3).abs().max() < 3 * error
    u, v = (means[1::2] + means[::2]) / 2, (means[1::2] - means[::2]) / 2
    assert (u.norm(dim=1) - 3 * math.sqrt(1 - nonlinearity)).abs().max() < 3 * error
    assert (v.norm(dim=1) - 3 * math.sqrt(nonlinearity)).abs().max() < 3 * error
    directions = torch.cat([u, v])
    products = directions @ directions.T
    assert (products - products.diag().diag()).abs().max() < 6 * error  # orthogonal
    noise = graph.x.double() - means[graph.community]
    assert (noise.T @ noise / len(noise) - torch.eye(6)).abs().max() < error


def test_with_full_nonlinearity_a_linear_classifier_of_the_features_is_blind() -> None:
    """One of their squares is not."""
    from sklearn.linear_model import LogisticRegression

    for nonlinearity, blind in ((1.0, True), (0.0, False)):
        graph = contextual_sbm(4000, 2, 5, degree=0.0, signal=4.0, nonlinearity=nonlinearity)
        x, y = graph.x.numpy(), graph.y.numpy()
        linear = LogisticRegression(max_iter=1000).fit(x[:2000], y[:2000]).score(x[2000:], y[2000:])
        assert (linear < 0.6) == blind
        products = (graph.x[:, :, None] * graph.x[:, None]).flatten(1).numpy()
        square = (
            LogisticRegression(max_iter=1000, C=0.1).fit(products[:2000], y[:2000]).score(products[2000:], y[2000:])
        )
        assert square > 0.9 or not blind


def test_the_seed_is_all_and_the_graph_does_not_depend_on_the_features() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    some = contextual_sbm(100, 2, 8, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = contextual_sbm(100, 2, 8, seed=3), contextual_sbm(100, 2, 8, seed=4)
    assert_identical(dict(some), dict(again))
    assert not torch.equal(some.edge_index[:, :5], other.edge_index[:, :5])
    richer = contextual_sbm(100, 2, 30, signal=9.0, nonlinearity=0.1, seed=3)
    assert torch.equal(richer.edge_index, some.edge_index)
    assert torch.equal(richer.y, some.y)


def test_pairs_have_numbers() -> None:
    first, second = _triangle(torch.arange(45))
    assert sorted(zip(second.tolist(), first.tolist(), strict=True)) == [(j, i) for j in range(10) for i in range(j)]
    for corner in (2**20, 2**25, 2**26 + 1):  # sums of squares beyond the precision of float32
        number = corner * (corner - 1) // 2
        first, second = _triangle(torch.tensor([number - 1, number, number + corner - 1]))
        assert first.tolist() == [corner - 2, 0, corner - 1]
        assert second.tolist() == [corner - 1, corner, corner]


@pytest.mark.parametrize("chance", [0.0, 0.15, 0.8, 1.0])
def test_each_number_is_taken_with_its_chance(chance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    taken = [_subset(20, chance, generator) for _ in range(2000)]
    assert all(len(torch.unique(part)) == len(part) for part in taken)
    share = torch.bincount(torch.cat(taken), minlength=20) / 2000
    assert (share - chance).abs().max() <= 5 * math.sqrt(chance * (1 - chance) / 2000)
    sizes = torch.tensor([float(len(part)) for part in taken])
    assert abs(sizes.var() - 20 * chance * (1 - chance)) <= 0.3 * 20 * chance * (1 - chance)  # binomial
    assert _subset(0, chance, generator).tolist() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nodes": 15}, "`sbm_nodes` must be at least 16, two for each community, got 15"),
        (
            {"nodes": 40},
            "`sbm_degree`=6 and `sbm_homophily`=0.8 ask for more edges within a community than there are pairs",
        ),
        ({"degree": 950.0, "homophily": 0.0}, "ask for more edges between communities than"),
    ],
)
def test_refuses_what_is_not_as_described(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contextual_sbm(**arguments)


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("sbm_classes", 1, ValueError, "must be at least 2, got 1"),
        ("sbm_features", 2.5, TypeError, "must be an integer, got 2.5"),
        ("sbm_seed", -1, ValueError, "must be at least 0, got -1"),
        ("sbm_degree", -1.0, ValueError, "must be 0 or more, got -1.0"),
        ("sbm_degree", "6", TypeError, "must be a number, got '6'"),
        ("sbm_signal", math.nan, ValueError, "must be finite, got nan"),
        ("sbm_homophily", 1.5, ValueError, r"must be in \[0, 1\], got 1.5"),
        ("sbm_nonlinearity", -0.1, ValueError, "must be 0 or more, got -0.1"),
    ],
)
def test_the_datamodule_refuses_them_by_its_own_names_when_it_is_built(
    argument: str, value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"`{argument}` {message}"):
        GraphDataModule(**{argument: value})
