"""GAT: graph attention.

Veličković, Cucurull, Casanova, Romero, Liò, Bengio, "Graph attention networks", ICLR 2018,
https://arxiv.org/abs/1710.10903.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from pl_robust._number import check_count
from pl_robust.models._graph import check_graph, check_share
from pl_robust.models._sparse_input import dropout


class GAT(nn.Module):
    """Layers whose every head averages the neighbours by a learned attention, with ELU between them.

    The heads of a hidden layer are concatenated, those of the last one averaged. Each node is its own neighbour, with
    a loop of weight 1 in place of the graph's own. Weights of edges multiply the attention before it is normalized:
    an edge of weight 2 counts as two, one of weight 0 not at all. Dropout is on the input of each layer and on the
    attention.

    Args:
        in_features: D, features of a node.
        out_features: C, classes.
        hidden_features: width of a head.
        heads: of each hidden layer.
        num_layers: attention layers.
        output_heads: of the last layer; the paper has 1 for Cora and CiteSeer, 8 for PubMed.
        dropout: probability with which an input of a layer, or an edge, is zero in training, in [0, 1).

    Attributes:
        learning_rate, weight_decay: of Adam, as published.

    Raises:
        TypeError: if an argument is no number, or no integer; on calling, if a tensor is of another type.
        ValueError: if a number lies outside of its range; on calling, if a shape does not fit.
    """

    learning_rate: float = 0.005
    weight_decay: float = 5e-4

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int = 8,
        heads: int = 8,
        num_layers: int = 2,
        output_heads: int = 1,
        dropout: float = 0.6,
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_features", in_features),
            ("out_features", out_features),
            ("hidden_features", hidden_features),
            ("heads", heads),
            ("num_layers", num_layers),
            ("output_heads", output_heads),
        ):
            check_count(value, name)
        self.in_features = in_features
        self.out_features = out_features
        self.dropout = check_share(dropout, "dropout")
        from pl_robust.models._graph_attention import WeightedGATConv

        widths = (in_features, *[heads * hidden_features] * (num_layers - 1))
        settings: Any = {"dropout": self.dropout, "fill_value": 0.0}  # a loop's weight is 1, its logarithm 0
        hidden = (WeightedGATConv(before, hidden_features, heads, **settings) for before, _ in pairwise(widths))
        last = WeightedGATConv(widths[-1], out_features, output_heads, concat=False, **settings)
        self.layers = nn.ModuleList([*hidden, last])

    def reset_parameters(self) -> None:
        """Draw the weights anew, from torch's global generator."""
        for layer in self.layers:
            cast("Any", layer).reset_parameters()

    def decayed_parameters(self) -> list[nn.Parameter]:
        """All but the biases, as in the authors' code."""
        return [parameter for name, parameter in self.named_parameters() if not name.endswith("bias")]

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Map features to logits.

        Args:
            x: float [N, D].
            edge_index: int64 [2, E], from the first row to the second; an undirected edge stands there twice.
            edge_weight: float [E], not negative; ``None``: all 1.

        Returns:
            [N, C].
        """
        check_graph(x, edge_index, edge_weight, self.in_features, "GAT")
        logs = None if edge_weight is None else edge_weight.log()[:, None].to(x.dtype)
        for index, layer in enumerate(self.layers):
            x = layer(dropout(F.elu(x) if index else x, self.dropout, self.training), edge_index, logs)
        return x
