"""APPNP-MLP: the filter of personalized PageRank with a multilayer perceptron behind it.

Vignac, Ortiz-Jimenez, Frossard, "On the choice of graph neural network architectures", ICASSP 2020,
https://arxiv.org/abs/1911.05384.
"""

from __future__ import annotations

from pl_robust.models._filter_first import FilterFirst
from pl_robust.models._graph import GraphFilter
from pl_robust.models._perceptron import Perceptron


class APPNPMLP(FilterFirst):
    r"""A multilayer perceptron on :math:`H_K`, where :math:`H_{i+1} = (1 - \alpha) \hat A H_i + \alpha X`.

    :math:`H_0 = X`, :math:`\hat A = D^{-1/2} (A + I) D^{-1/2}`. :math:`H_K` is computed once for a graph that stays the
    same: as long as the tensors of features and edges are the same ones, unchanged. Unlike the released code, dropout
    is off in evaluation, and the perceptron's depth does not follow the steps.

    Args:
        in_features: D, features of a node.
        out_features: C, classes.
        hidden_features: width of the hidden layers.
        num_layers: linear layers of the perceptron.
        steps: K; 0 does not look at the graph.
        teleport: α, in [0, 1].
        dropout: probability with which an input of a layer is zero in training, in [0, 1).

    Attributes:
        learning_rate, weight_decay: of Adam, as published.

    Raises:
        TypeError: if an argument is no number, or no integer; on calling, if a tensor is of another type.
        ValueError: if a number lies outside of its range; on calling, if a shape does not fit.
    """

    learning_rate: float = 0.005
    weight_decay: float = 1e-3

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int = 64,
        num_layers: int = 2,
        steps: int = 4,
        teleport: float = 0.1,
        dropout: float = 0.5,
    ) -> None:
        head = Perceptron(in_features, out_features, hidden_features, num_layers, dropout)
        super().__init__(GraphFilter(steps, teleport), head)
