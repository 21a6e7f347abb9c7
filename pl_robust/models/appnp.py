"""APPNP: propagation by personalized PageRank.

Gasteiger (Klicpera), Bojchevski, Günnemann, "Predict then propagate: graph neural networks meet personalized PageRank",
ICLR 2019, https://arxiv.org/abs/1810.05997; and its linear form in Vignac, Ortiz-Jimenez, Frossard, "On the choice of
graph neural network architectures", ICASSP 2020, https://arxiv.org/abs/1911.05384.
"""

from __future__ import annotations

from torch import Tensor, nn

from pl_robust._number import check_count
from pl_robust.models._graph import GraphFilter, KeptAdjacency, check_graph
from pl_robust.models._perceptron import Perceptron
from pl_robust.models._sparse_input import dropout


class APPNP(nn.Module):
    r""":math:`H_K`, where :math:`H_{i+1} = (1 - \alpha) \hat A H_i + \alpha H_0`, in two forms.

    * Linear, the default: a linear layer on :math:`H_K` with :math:`H_0 = X`, as Vignac et al. compare it. The filtered
      features are computed once for a graph that stays the same: as long as the tensors of features and edges are the
      same ones, unchanged.
    * With ``hidden_features``: :math:`H_0` are the logits of a multilayer perceptron with one hidden layer, as
      Gasteiger et al. have it. Theirs is ``APPNP(D, C, hidden_features=64, steps=10, dropout=0.5)``.

    :math:`\hat A = D^{-1/2} (A + I) D^{-1/2}`. Parallel edges add up; a node without edges sees itself; a loop of the
    graph's own stands for the added one.

    Args:
        in_features: D, features of a node.
        out_features: C, classes.
        hidden_features: width of the hidden layer; ``None``: linear.
        steps: K; 0 does not look at the graph.
        teleport: α, in [0, 1].
        dropout: probability with which an input of a layer is zero in training, in [0, 1); with ``hidden_features``
            also an edge, anew at each step of the propagation.

    Attributes:
        learning_rate, weight_decay: of Adam: for the linear form as published; for the other one those of PyG's
            benchmark, because the authors' 0.005 is for splits of their own, and costs points on the public one.

    Raises:
        TypeError: if an argument is no number, or no integer; on calling, if a tensor is of another type.
        ValueError: if a number lies outside of its range; on calling, if a shape does not fit.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int | None = None,
        steps: int = 4,
        teleport: float = 0.1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if hidden_features is not None:
            check_count(hidden_features, "hidden_features")
        is_linear = hidden_features is None
        self.head = Perceptron(in_features, out_features, hidden_features or 1, 1 if is_linear else 2, dropout)
        self.filter = GraphFilter(steps, teleport)
        self.in_features = in_features
        self.out_features = out_features
        self.is_linear = is_linear
        self.learning_rate = 0.05 if is_linear else 0.01
        self.weight_decay = 5e-4
        if not is_linear:
            from torch_geometric.nn import APPNP as Propagation  # noqa: N811  # its name is ours, too

            self._adjacency = KeptAdjacency()
            self.propagation = Propagation(steps, self.filter.teleport, normalize=False)

    def reset_parameters(self) -> None:
        """Draw the weights anew, from torch's global generator."""
        self.head.reset_parameters()

    def decayed_parameters(self) -> list[nn.Parameter]:
        """The first layer's weight, which alone has weight decay in the paper."""
        return self.head.weights[:1]

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Map features to logits.

        Args:
            x: float [N, D].
            edge_index: int64 [2, E], from the first row to the second; an undirected edge stands there twice.
            edge_weight: float [E], not negative; ``None``: all 1.

        Returns:
            [N, C].
        """
        check_graph(x, edge_index, edge_weight, self.in_features, "APPNP")
        if self.is_linear:
            logits: Tensor = self.head(self.filter(x, edge_index, edge_weight))
        else:
            logits = self._propagated(self.head(x), *self._adjacency(x, edge_index, edge_weight))
        return logits

    def _propagated(self, start: Tensor, edges: Tensor, weight: Tensor) -> Tensor:
        # PyG's own loop drops edges of those that the step before has left: none would be left in the end.
        out, teleport = start, self.filter.teleport
        for _ in range(self.filter.steps):
            left = dropout(weight, self.head.dropout, self.training)
            out = (1 - teleport) * self.propagation.propagate(edges, x=out, edge_weight=left) + teleport * start
        return out
