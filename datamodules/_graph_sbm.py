"""A generated graph: the contextual stochastic block model, with classes that a linear classifier may not tell apart.

Deshpande, Sen, Montanari, Mossel, "Contextual stochastic block models", NeurIPS 2018,
https://arxiv.org/abs/1807.09596: two communities, and features with a mean of ±u. This is their model with more
classes, and with communities that share a class.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pl_robust._number import check_count, check_finite
from pl_robust.datamodules._graph_seed import seeded

if TYPE_CHECKING:
    from torch_geometric.data import Data


def check_recipe(recipe: dict[str, Any]) -> None:
    """Refuse arguments of ``contextual_sbm``, which for users of ``GraphDataModule`` begin with ``sbm_``.

    Raises:
        TypeError: if one is no number, or no integer.
        ValueError: if one is out of range.
    """
    for key, value in recipe.items():
        name = f"sbm_{key}"
        if key in ("nodes", "classes", "features", "seed"):
            check_count(value, name, least={"classes": 2, "seed": 0}.get(key, 1))
        elif check_finite(value, name) < 0:
            raise ValueError(f"`{name}` must be 0 or more, got {value!r}")
        elif key in ("homophily", "nonlinearity") and value > 1:
            raise ValueError(f"`{name}` must be in [0, 1], got {value!r}")


def contextual_sbm(
    nodes: int = 1000,
    classes: int = 4,
    features: int = 100,
    degree: float = 6.0,
    homophily: float = 0.8,
    signal: float = 2.0,
    nonlinearity: float = 0.7,
    seed: int = 0,
) -> Data:
    r"""Draw a graph with features and labels.

    Each class c consists of two communities s = ±1, all 2C of them of equal size, up to one node. An edge stands
    between two nodes at random, more often between those of one community. The features of a node are Gaussian, of unit
    variance in each direction, around

    .. math:: m\,\bigl(\sqrt{1 - \nu}\; u_c + s \sqrt{\nu}\; v_c\bigr)

    with the signal's strength m and its nonlinearity ν; u_c and v_c are random unit vectors, orthogonal to each other
    where there are 2C dimensions. With ν = 0 classes differ by their means; with ν = 1 all classes have mean 0, and no
    linear classifier tells them apart, of the features or of averages over neighbours.

    With the defaults, SGC and GCN are about equal with 24 labels of all 100 features, at 78 % or so; with half of the
    labels and 20 projected features GCN is far ahead.

    Args:
        nodes: N, at least two for each community.
        classes: C, at least 2.
        features: D.
        degree: neighbours that a node has on average.
        homophily: share of them in its own community, in [0, 1]; 1 / (2C) or so: edges tell nothing.
        signal: m, distance of a community's features from zero, in standard deviations of the noise in any direction.
        nonlinearity: ν, in [0, 1].
        seed: of everything. Edges and noise have streams of their own: the graph does not depend on the features.

    Returns:
        ``x`` float32 [N, D], ``edge_index`` int64 [2, E], each edge in both directions, ``y`` int64 [N], and
        ``community`` int64 [N], 2c + (s + 1) / 2.

    Raises:
        ValueError: if an argument is not as described, or so many edges have no place within a community, or between.
    """
    from torch_geometric.data import Data  # takes seconds, which no other datamodule should wait for

    communities = 2 * classes
    if nodes < 2 * communities:
        raise ValueError(f"`sbm_nodes` must be at least {2 * communities}, two for each community, got {nodes}")
    community = torch.arange(nodes) % communities
    community = community[torch.randperm(nodes, generator=seeded(seed, "communities"))]
    own = nodes / communities
    within, between = homophily * degree / (own - 1), (1 - homophily) * degree / (nodes - own)
    if max(within, between) > 1:
        place = "within a community" if within > 1 else "between communities"
        raise ValueError(
            f"`sbm_degree`={degree:g} and `sbm_homophily`={homophily:g} ask for more edges {place} than there are "
            f"pairs of its {nodes} nodes in {communities} communities: lower `sbm_degree`, or raise `sbm_nodes`"
        )
    edges = _edges(community, within, between, seeded(seed, "edges"))
    y, sign = community // 2, (community % 2) * 2 - 1
    directions = _directions(communities, features, seeded(seed, "directions"))
    mean = math.sqrt(1 - nonlinearity) * directions[y]
    mean += math.sqrt(nonlinearity) * sign[:, None] * directions[classes + y]
    x = signal * mean + torch.randn(nodes, features, generator=seeded(seed, "noise"))
    return Data(x=x, edge_index=torch.cat([edges, edges.flip(0)], dim=1), y=y, community=community)


def _edges(community: Tensor, within: float, between: float, generator: torch.Generator) -> Tensor:
    """Draw each pair of nodes for itself, [2, E]: for two communities how many at once, and then which."""
    members = [(community == index).nonzero()[:, 0] for index in range(int(community.max()) + 1)]
    parts = []
    for index, some in enumerate(members):
        count = len(some)
        first, second = _triangle(_subset(count * (count - 1) // 2, within, generator))
        parts.append(torch.stack([some[first], some[second]]))
        for others in members[:index]:
            pairs = _subset(count * len(others), between, generator)
            parts.append(torch.stack([others[pairs % len(others)], some[pairs // len(others)]]))
    return torch.cat(parts, dim=1)


def _subset(size: int, chance: float, generator: torch.Generator) -> Tensor:
    """Take each of the numbers below ``size`` with a chance, in time and memory of those taken."""
    trials = torch.tensor(float(size), dtype=torch.float64)
    count = int(torch.binomial(trials, torch.tensor(chance, dtype=torch.float64), generator=generator))
    if 4 * count > size:
        return torch.randperm(size, generator=generator)[:count]
    taken = torch.zeros(0, dtype=torch.int64)
    while len(taken) < count:  # all subsets of this size are as likely as each other
        drawn = torch.randint(max(1, size), (count - len(taken),), generator=generator)
        taken = torch.unique(torch.cat([taken, drawn]))
    return taken


def _triangle(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Number k is the pair i < j with k = j (j - 1) / 2 + i."""
    second = ((1 + (1 + 8 * pairs.double()).sqrt()) / 2).long()
    second += (second * (second + 1) // 2 <= pairs).long() - (second * (second - 1) // 2 > pairs).long()  # rounding
    return pairs - second * (second - 1) // 2, second


def _directions(count: int, features: int, generator: torch.Generator) -> Tensor:
    """Draw unit vectors [count, features], orthogonal where there is room."""
    drawn = torch.randn(count, features, generator=generator)
    if features >= count:
        basis: Tensor = torch.linalg.qr(drawn.T)[0].T
        return basis
    return torch.nn.functional.normalize(drawn)
