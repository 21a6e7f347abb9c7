"""Linear layers on the features of single nodes, with ReLU between them and dropout before each."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from pl_robust._number import check_count
from pl_robust.models._graph import check_share
from pl_robust.models._sparse_input import SparseInput, dropout


class Perceptron(nn.Module):
    """The part of a network on graphs that sees one node at a time.

    Weights start uniform in ±sqrt(6 / (fan_in + fan_out)) (Glorot, Bengio 2010), biases at zero, as in the graph
    convolutions that it is compared to.

    Args:
        in_features: D.
        out_features: C.
        hidden_features: width of the hidden layers.
        num_layers: number of linear layers; 1: a linear map.
        dropout: probability with which an input of a layer is zero in training, in [0, 1).

    Raises:
        TypeError: if a number is none.
        ValueError: if a number lies outside of its range.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int = 1,
        num_layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_count(in_features, "in_features")
        check_count(out_features, "out_features")
        check_count(hidden_features, "hidden_features")
        check_count(num_layers, "num_layers")
        self.in_features = in_features
        self.out_features = out_features
        self.dropout = check_share(dropout, "dropout")
        widths = (in_features, *[hidden_features] * (num_layers - 1), out_features)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self._first = SparseInput()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, from torch's global generator."""
        for layer in self._linear_layers():
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [N, D] to outputs [N, C]."""
        first, *others = self._linear_layers()
        x = self._first(x, first.weight, self.dropout, self.training) + first.bias
        for layer in others:
            x = layer(dropout(x.relu(), self.dropout, self.training))
        return x

    @property
    def weights(self) -> list[nn.Parameter]:
        """The layers' weights, without the biases."""
        return [cast("nn.Parameter", layer.weight) for layer in self._linear_layers()]

    def _linear_layers(self) -> list[nn.Linear]:
        return cast("list[nn.Linear]", list(self.layers))
