"""SGC-MLP: SGC's filter with a multilayer perceptron behind it.

Vignac, Ortiz-Jimenez, Frossard, "On the choice of graph neural network architectures", ICASSP 2020,
https://arxiv.org/abs/1911.05384.
"""

from __future__ import annotations

from pl_robust.models._filter_first import FilterFirst
from pl_robust.models._graph import GraphFilter
from pl_robust.models._perceptron import Perceptron


class SGCMLP(FilterFirst):
    r"""A multilayer perceptron on :math:`\hat A^k X`, :math:`\hat A = D^{-1/2} (A + I) D^{-1/2}`.

    :math:`\hat A^k X` is computed once for a graph that stays the same: as long as the tensors of features and edges
    are the same ones, unchanged. Unlike the released code, dropout is off in evaluation.

    Args:
        in_features: D, features of a node.
        out_features: C, classes.
        hidden_features: width of the hidden layers.
        num_layers: linear layers of the perceptron.
        k: hops; 0 does not look at the graph.
        dropout: probability with which an input of a layer is zero in training, in [0, 1).

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
        hidden_features: int = 64,
        num_layers: int = 2,
        k: int = 2,
        dropout: float = 0.5,
    ) -> None:
        head = Perceptron(in_features, out_features, hidden_features, num_layers, dropout)
        super().__init__(GraphFilter(k, name="k"), head)
