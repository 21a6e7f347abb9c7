"""The initialization that flax gives its layers, and so the papers whose code is in JAX their networks."""

from __future__ import annotations

import math

from torch import nn

_STD_OF_TRUNCATED = 0.8796256610342398  # of a standard normal cut at ±2


def lecun_normal_(network: nn.Module) -> None:
    """Draw each linear and convolutional layer's weights, of variance 1 / fan_in, and set its biases to zero.

    Normal, truncated at two standard deviations (LeCun et al. 1998, as in flax); torch's global generator is used.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            std = 1 / math.sqrt(layer.weight[0].numel()) / _STD_OF_TRUNCATED
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
