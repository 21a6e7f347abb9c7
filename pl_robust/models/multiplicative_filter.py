"""Multiplicative filter networks: products of sines (or Gabor filters) instead of compositions.

Fathony, Sahu, Willmott, Kolter, "Multiplicative filter networks", ICLR 2021, https://openreview.net/forum?id=OmtmcPkkhT.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn

from pl_robust._number import check_count, check_positive
from pl_robust.models._inr import check_coordinates, precise_linear

_FILTERS = ("fourier", "gabor")
_GABOR_CONCENTRATION = 6.0  # of the gamma distribution of the widths, over all filters; its rate is 1


class MultiplicativeFilterNetwork(nn.Module):
    r"""Multiply filters of the coordinates: :math:`z_1 = g_1(x)`, :math:`z_{i+1} = g_{i+1}(x) \circ (W_i z_i + b_i)`.

    With ``filters="fourier"``, :math:`g(x) = \sin(\omega x + \phi)`, the output is exactly a sum of sines with the
    frequencies :math:`\pm\omega_1 \pm \dots \pm \omega_L` and parts of them that start later (theorem 1 of the paper).
    With ``"gabor"``, :math:`g(x) = \exp(-\frac{\gamma}{2} \|x - \mu\|^2) \sin(\omega x + \phi)`, each filter also has a
    place. Initialization and default scales are those of the released code, on coordinates in [-1, 1].

    Filters and last layer work in the precision of their parameters, also under autocast.

    Args:
        in_features: dimension of the coordinates.
        out_features: values at each point.
        hidden_features: number of filters of a layer.
        num_layers: number L of linear layers, the last one included, and of layers of filters.
        filters: ``"fourier"`` or ``"gabor"``.
        input_scale: frequencies start uniform in ±input_scale / sqrt(L · in_features), in radians per unit of
            coordinate, those of Gabor filters times the root of their :math:`\gamma`. The released code takes 256 for
            images of 256x256.
        weight_scale: weights of the hidden layers start uniform in ±sqrt(weight_scale / hidden_features).

    Raises:
        TypeError: if an argument is not of its type; on calling, if coordinates are not floating point.
        ValueError: if a number is not positive or ``filters`` not among those; on calling, if coordinates have another
            dimension.
    """

    def __init__(
        self,
        in_features: int = 2,
        out_features: int = 1,
        hidden_features: int = 256,
        num_layers: int = 4,
        filters: Literal["fourier", "gabor"] = "fourier",
        input_scale: float = 256.0,
        weight_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_count(in_features, "in_features")
        check_count(out_features, "out_features")
        check_count(hidden_features, "hidden_features")
        check_count(num_layers, "num_layers")
        if filters not in _FILTERS:
            raise ValueError(f"`filters` must be one of {_FILTERS}, got {filters!r}")
        self.in_features = in_features
        self.out_features = out_features
        self.weight_scale = check_positive(weight_scale, "weight_scale")
        scale = check_positive(input_scale, "input_scale") / math.sqrt(num_layers)
        concentration = _GABOR_CONCENTRATION / num_layers
        self.filters = nn.ModuleList(
            FourierFilter(in_features, hidden_features, scale)
            if filters == "fourier"
            else GaborFilter(in_features, hidden_features, scale, concentration)
            for _ in range(num_layers)
        )
        self.layers = nn.ModuleList(nn.Linear(hidden_features, hidden_features) for _ in range(num_layers - 1))
        self.layers.append(nn.Linear(hidden_features, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, from torch's global generator."""
        for filters in cast("list[FourierFilter]", list(self.filters)):
            filters.reset_parameters()
        *hidden, last = cast("list[nn.Linear]", list(self.layers))
        last.reset_parameters()
        for layer in hidden:
            layer.reset_parameters()  # the biases
            bound = math.sqrt(self.weight_scale / layer.in_features)
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map coordinates, float [..., in_features] in [-1, 1], to values [..., out_features]."""
        check_coordinates(x, self.in_features, "MultiplicativeFilterNetwork")
        first, *filters = self.filters
        *hidden, last = cast("list[nn.Linear]", list(self.layers))
        out = first(x)
        for layer, modulate in zip(hidden, filters, strict=True):
            out = modulate(x) * layer(out)
        return precise_linear(out, last.weight, last.bias)


class FourierFilter(nn.Module):
    r"""Sines of the coordinates: :math:`\sin(\omega x + \phi)`.

    Args:
        in_features: dimension of the coordinates.
        features: number of filters.
        scale: frequencies start uniform in ±scale / sqrt(in_features), phases in ±π.
    """

    def __init__(self, in_features: int, features: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.linear = nn.Linear(in_features, features)

    def reset_parameters(self) -> None:
        """Draw frequencies and phases anew, from torch's global generator."""
        bound = self.scale / math.sqrt(self.linear.in_features)
        nn.init.uniform_(self.linear.weight, -bound, bound)
        nn.init.uniform_(self.linear.bias, -math.pi, math.pi)

    def forward(self, x: Tensor) -> Tensor:
        """Map coordinates [..., in_features] to [..., features]."""
        return precise_linear(x, self.linear.weight, self.linear.bias).sin()


class GaborFilter(FourierFilter):
    r"""Sines under Gaussians: :math:`\exp(-\frac{\gamma}{2} \|x - \mu\|^2) \sin(\omega x + \phi)`.

    Args:
        in_features: dimension of the coordinates.
        features: number of filters.
        scale: as of ``FourierFilter``, for :math:`\omega / \sqrt{\gamma}`.
        concentration: :math:`\gamma` starts with a gamma distribution of this concentration and rate 1, the centres
            :math:`\mu` uniform in [-1, 1].
    """

    def __init__(self, in_features: int, features: int, scale: float, concentration: float) -> None:
        super().__init__(in_features, features, scale)
        self.concentration = concentration
        self.mu = nn.Parameter(torch.empty(features, in_features))
        self.gamma = nn.Parameter(torch.empty(features))

    def reset_parameters(self) -> None:
        """Draw frequencies, phases, centres and widths anew, from torch's global generator."""
        super().reset_parameters()
        nn.init.uniform_(self.mu, -1.0, 1.0)
        with torch.no_grad():
            concentration = torch.full_like(self.gamma, self.concentration)
            self.gamma.copy_(torch.distributions.Gamma(concentration, torch.ones_like(concentration)).sample())
            self.linear.weight *= self.gamma.sqrt()[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """Map coordinates [..., in_features] to [..., features]."""
        products = precise_linear(x, self.mu)
        points = x.to(self.mu.dtype)
        squares = points.square().sum(-1, keepdim=True) - 2 * products + self.mu.square().sum(-1)
        return super().forward(x) * torch.exp(-0.5 * self.gamma * squares)
