"""A multilayer perceptron on the features of single nodes: what is to be had without the graph."""

from __future__ import annotations

from torch import Tensor, nn

from pl_robust.models._graph import check_graph
from pl_robust.models._perceptron import Perceptron


class NodeMLP(nn.Module):
    """The baseline of networks on graphs: called as they are, it does not look at the edges.

    ReLU between the layers, dropout on the input of each.

    Args:
        in_features: D, features of a node.
        out_features: C, classes.
        hidden_features: width of the hidden layers.
        num_layers: linear layers.
        dropout: probability with which an input of a layer is zero in training, in [0, 1).

    Attributes:
        learning_rate, weight_decay: of Adam, those of GCN.

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
        self.head = Perceptron(in_features, out_features, hidden_features, num_layers, dropout)
        self.in_features = in_features
        self.out_features = out_features

    def reset_parameters(self) -> None:
        """Draw the weights anew, from torch's global generator."""
        self.head.reset_parameters()

    def decayed_parameters(self) -> list[nn.Parameter]:
        """The first layer's weight, as with GCN."""
        return self.head.weights[:1]

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Map features to logits.

        Args:
            x: float [N, D].
            edge_index: int64 [2, E], not looked at.
            edge_weight: float [E] or ``None``, not looked at.

        Returns:
            [N, C].
        """
        check_graph(x, edge_index, edge_weight, self.in_features, "NodeMLP")
        logits: Tensor = self.head(x)
        return logits
