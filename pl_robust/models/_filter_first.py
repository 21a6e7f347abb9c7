"""Networks that smooth the features over the graph first, and look at single nodes then."""

from __future__ import annotations

from torch import Tensor, nn

from pl_robust.models._graph import GraphFilter, check_graph
from pl_robust.models._perceptron import Perceptron


class FilterFirst(nn.Module):
    """Filtered features, then linear layers: what SGC, SGC-MLP and APPNP-MLP have in common.

    Args:
        smooth: the filter; its result is computed once for a graph that stays the same.
        head: what is trained.
    """

    def __init__(self, smooth: GraphFilter, head: Perceptron) -> None:
        super().__init__()
        self.in_features = head.in_features
        self.out_features = head.out_features
        self.filter = smooth
        self.head = head

    def reset_parameters(self) -> None:
        """Draw the weights anew, from torch's global generator."""
        self.head.reset_parameters()

    def decayed_parameters(self) -> list[nn.Parameter]:
        """The weights, without the biases: what weight decay is for."""
        return self.head.weights

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Map features to logits.

        Args:
            x: float [N, D].
            edge_index: int64 [2, E], from the first row to the second; an undirected edge stands there twice.
            edge_weight: float [E], not negative; ``None``: all 1.

        Returns:
            [N, C].
        """
        check_graph(x, edge_index, edge_weight, self.in_features, type(self).__name__)
        logits: Tensor = self.head(self.filter(x, edge_index, edge_weight))
        return logits
