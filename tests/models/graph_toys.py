"""Small graphs, and dense matrices as their truth."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

with warnings.catch_warnings():  # of torch.jit on the newest torch; it sets an environment variable, too
    warnings.simplefilter("ignore")
    import torch_geometric.nn  # noqa: F401


def small_graph(nodes: int = 9, features: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features, edges and weights in float64: parallel edges (0, 1), and a last node and a next to last without any."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 0], [1, 2, 3, 4, 5, 6, 1, 4]])
    weight = 0.5 + torch.rand(8, generator=generator, dtype=torch.float64)
    x = torch.randn(nodes, features, generator=generator, dtype=torch.float64)
    return x, torch.cat([edges, edges.flip(0)], dim=1), weight.repeat(2)


def dense_adjacency(edge_index: Tensor, edge_weight: Tensor | None, nodes: int) -> Tensor:
    """The matrix A, row i the edges into node i, in float64."""
    weight = torch.ones(edge_index.shape[1], dtype=torch.float64) if edge_weight is None else edge_weight.double()
    matrix = torch.zeros(nodes, nodes, dtype=torch.float64)
    return matrix.index_put((edge_index[1], edge_index[0]), weight, accumulate=True)


def dense_normalized(edge_index: Tensor, edge_weight: Tensor | None, nodes: int) -> Tensor:
    """D^-1/2 (A + I) D^-1/2 of an undirected graph without loops."""
    matrix = dense_adjacency(edge_index, edge_weight, nodes) + torch.eye(nodes, dtype=torch.float64)
    root = matrix.sum(1).rsqrt()
    return root[:, None] * matrix * root


def page_rank(matrix: Tensor, start: Tensor, steps: int, teleport: float) -> Tensor:
    """The steps of APPNP's propagation with a dense matrix."""
    out = start
    for _ in range(steps):
        out = (1 - teleport) * matrix @ out + teleport * start
    return out
