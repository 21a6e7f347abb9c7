"""PyG's graph attention with weights of edges. Imported when a network is built: PyG takes seconds to import."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch_geometric.nn import GATConv
from torch_geometric.utils import softmax

from pl_robust.models._sparse_input import dropout


class WeightedGATConv(GATConv):  # type: ignore[misc]  # PyG ships no types
    """Attention in proportion to ``weight * exp(score)``: an edge of weight 2 is two edges, one of weight 0 none.

    Takes the logarithms of the weights, [E, 1], as ``edge_attr``.
    """

    def edge_update(
        self, alpha_j: Tensor, alpha_i: Any, edge_attr: Any, index: Tensor, ptr: Any, dim_size: Any
    ) -> Tensor:
        """Give the attention of each edge, [E, heads], from the scores of its ends."""
        alpha = F.leaky_relu(alpha_j + alpha_i, self.negative_slope)
        if edge_attr is not None:
            alpha = alpha + edge_attr
        return dropout(softmax(alpha, index, ptr, dim_size), self.dropout, self.training)
