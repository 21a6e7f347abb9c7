"""A multilayer perceptron for inputs of any shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from pl_robust._number import check_count
from pl_robust.models._initialization import lecun_normal_

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class MLP(nn.Module):
    """Linear layers with an activation between them, on the flattened input.

    Two hidden layers of 100 are those of Ortiz-Jimenez, Moosavi-Dezfooli, Frossard, "What can linearized neural
    networks actually say about generalization?" (NeurIPS 2021, https://arxiv.org/abs/2106.06770). Weights start as
    theirs do in flax: normal, truncated at two standard deviations, with variance 1 / fan_in, and no biases; PyTorch's
    own have a third of the variance. In a configuration it goes by ``pl_robust.models.MLP``, because torchvision has an
    MLP, too.

    Args:
        in_features: number of entries of one input.
        out_features: number of outputs: classes, or the entries of a value.
        hidden: widths of the hidden layers; without any it is a linear map.
        activation: ``"relu"``, ``"gelu"`` or ``"tanh"``.

    Raises:
        TypeError: if a number is no integer.
        ValueError: if a number is not positive or ``activation`` is not among those; on calling, if the inputs have
            another number of entries.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int = 10,
        hidden: Sequence[int] = (100, 100),
        activation: Literal["relu", "gelu", "tanh"] = "relu",
    ) -> None:
        super().__init__()
        if not isinstance(hidden, Sequence):
            raise TypeError(f"`hidden` must be a sequence of widths such as (100, 100), got {hidden!r}")
        check_count(in_features, "in_features")
        for index, width in enumerate(hidden):
            check_count(width, f"hidden[{index}]")
        check_count(out_features, "out_features")
        if activation not in _ACTIVATIONS:
            raise ValueError(f"`activation` must be one of {tuple(_ACTIVATIONS)}, got {activation!r}")
        self.in_features = in_features
        self.out_features = out_features
        self.layers = nn.Sequential()
        for before, width in pairwise((in_features, *hidden)):
            self.layers.append(nn.Linear(before, width))
            self.layers.append(_ACTIVATIONS[activation]())
        self.layers.append(nn.Linear((in_features, *hidden)[-1], out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, from torch's global generator."""
        lecun_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs, float [B, ...] with in_features entries each, to outputs [B, out_features]."""
        if x.ndim < 2 or math.prod(x.shape[1:]) != self.in_features:
            raise ValueError(
                f"this MLP takes inputs [B, ...] of {self.in_features} entries each, got {list(x.shape)}; "
                "`in_features` sets their number"
            )
        outputs: Tensor = self.layers(x.flatten(1))
        return outputs
