"""SGC: a linear classifier on features that a graph has smoothed.

Wu, Souza, Zhang, Fifty, Yu, Weinberger, "Simplifying graph convolutional networks", ICML 2019,
https://arxiv.org/abs/1902.07153.
"""

from __future__ import annotations

from pl_robust.models._filter_first import FilterFirst
from pl_robust.models._graph import GraphFilter
from pl_robust.models._perceptron import Perceptron


class SGC(FilterFirst):
    r""":math:`\hat A^k X W + b`, :math:`\hat A = D^{-1/2} (A + I) D^{-1/2}`.

    :math:`\hat A^k X` is computed once for a graph that stays the same: as long as the tensors of features and edges
    are the same ones, unchanged. Then a step costs what logistic regression does.

    Args:
        in_features: D, features of a node.
        out_features: C, classes.
        k: hops; 0 does not look at the graph.

    Attributes:
        learning_rate, weight_decay: of Adam, as in Vignac, Ortiz-Jimenez, Frossard, "On the choice of graph neural
            network architectures" (ICASSP 2020, https://arxiv.org/abs/1911.05384).

    Raises:
        TypeError: if an argument is no integer; on calling, if a tensor is of another type.
        ValueError: if a number is too small; on calling, if a shape does not fit.
    """

    learning_rate: float = 0.05
    weight_decay: float = 5e-3

    def __init__(self, in_features: int, out_features: int, k: int = 2) -> None:
        super().__init__(GraphFilter(k, name="k"), Perceptron(in_features, out_features))
