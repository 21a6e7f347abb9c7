"""GCN: graph convolutions.

Kipf, Welling, "Semi-supervised classification with graph convolutional networks", ICLR 2017,
https://arxiv.org/abs/1609.02907.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

from torch import Tensor, nn

from pl_robust._number import check_count
from pl_robust.models._graph import KeptAdjacency, check_graph, check_share
from pl_robust.models._sparse_input import SparseInput, dropout


class GCN(nn.Module):
    r"""Layers :math:`\hat A H W + b` with ReLU between them, :math:`\hat A = D^{-1/2} (A + I) D^{-1/2}`.

    Dropout is on the input of each layer, the features included. :math:`\hat A` is computed once for a graph that stays
    the same: as long as the tensors of the edges are the same ones, unchanged. Parallel edges add up; a node without
    edges sees itself; a loop of the graph's own stands for the added one.

    Args:
        in_features: D, features of a node.
        out_features: C, classes.
        hidden_features: width of the hidden layers; Kipf and Welling have 16.
        num_layers: graph convolutions.
        dropout: probability with which an input of a layer is zero in training, in [0, 1).

    Attributes:
        learning_rate, weight_decay: of Adam, as published.

    Raises:
        TypeError: if an argument is no number, or no integer; on calling, if a tensor is of another type.
        ValueError: if a number lies outside of its range; on calling, if a shape does not fit.
    """

    learning_rate: float = 0.01
    weight_decay: float = 5e-4

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int = 64,
        num_layers: int = 2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_count(in_features, "in_features")
        check_count(out_features, "out_features")
        check_count(hidden_features, "hidden_features")
        check_count(num_layers, "num_layers")
        self.in_features = in_features
        self.out_features = out_features
        self.dropout = check_share(dropout, "dropout")
        from torch_geometric.nn import GCNConv  # takes seconds, which no other network should wait for

        widths = (in_features, *[hidden_features] * (num_layers - 1), out_features)
        self.layers = nn.ModuleList(GCNConv(before, after, normalize=False) for before, after in pairwise(widths))
        self._adjacency = KeptAdjacency()
        self._first = SparseInput()

    def reset_parameters(self) -> None:
        """Draw the weights anew, from torch's global generator."""
        for layer in self.layers:
            cast("Any", layer).reset_parameters()

    def decayed_parameters(self) -> list[nn.Parameter]:
        """The first layer's weight, which alone has weight decay in the paper."""
        return [cast("Any", self.layers[0]).lin.weight]

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Map features to logits.

        Args:
            x: float [N, D].
            edge_index: int64 [2, E], from the first row to the second; an undirected edge stands there twice.
            edge_weight: float [E], not negative; ``None``: all 1.

        Returns:
            [N, C].
        """
        check_graph(x, edge_index, edge_weight, self.in_features, "GCN")
        edges, weight = self._adjacency(x, edge_index, edge_weight)
        layers: list[Any] = list(self.layers)
        first, *others = layers
        # The layer itself, but for zeros among the features.
        product = self._first(x, first.lin.weight, self.dropout, self.training)
        x = first.propagate(edges, x=product, edge_weight=weight) + first.bias
        for layer in others:
            x = layer(dropout(x.relu(), self.dropout, self.training), edges, weight)
        return x
