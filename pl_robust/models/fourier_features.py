"""Fourier features: a fixed mapping to sines and cosines before a ReLU network, for signals on coordinates.

Tancik, Srinivasan, Mildenhall, Fridovich-Keil, Raghavan, Singhal, Ramamoorthi, Barron, Ng, "Fourier features let
networks learn high frequency functions in low dimensional domains", NeurIPS 2020, https://arxiv.org/abs/2006.10739.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from pl_robust._number import check_count, check_positive
from pl_robust.models._initialization import lecun_normal_
from pl_robust.models._inr import check_coordinates, precise_linear


class FourierFeatureNetwork(nn.Module):
    r"""Map coordinates to :math:`[\sin(2\pi B x), \cos(2\pi B x)]`, then apply linear layers with ReLU between them.

    In the form of Yüce, Ortiz-Jimenez, Besbinar, Frossard, "A structured dictionary perspective on implicit neural
    representations", CVPR 2022, https://arxiv.org/abs/2112.01917, whose theory tells which frequencies it can hold (see
    ``transforms.frequency_support``). Their "depth 5" is ``num_layers=4``: the mapping stands for the first layer.
    Weights start as in their flax code: normal, truncated at two standard deviations, with variance 1 / fan_in, and no
    biases; PyTorch's own have a third of the variance and train slower.

    B is a buffer, ``frequencies``: it is saved with the network and never trained. Mapping and last layer work in the
    precision of their parameters, also under autocast.

    Args:
        in_features: dimension of the coordinates.
        out_features: values at each point.
        num_frequencies: number m of rows of B, drawn from torch's global generator.
        sigma: standard deviation of the normal distribution of B, in cycles per unit of coordinate: over [-1, 1] a
            frequency of 10 has 20 cycles.
        frequencies: B itself, [m, in_features] in cycles per unit of coordinate, in place of ``num_frequencies`` and
            ``sigma``. The paper's single-frequency mapping is ``[[f0, 0], [0, f0]]``, ``f0 * torch.eye(2)``.
        hidden_features: width of the hidden layers.
        num_layers: number of linear layers after the mapping, the last one included. 1 is linear in the features.
        activation: module between the linear layers, each gets a copy; None means ReLU. The theory is exact for
            polynomials.

    Raises:
        TypeError: if an argument is not of its type; on calling, if coordinates are not floating point.
        ValueError: if a number is not positive, or ``frequencies`` are not finite [m, in_features]; on calling, if
            coordinates have another dimension.
    """

    frequencies: Tensor

    def __init__(
        self,
        in_features: int = 2,
        out_features: int = 1,
        num_frequencies: int = 256,
        sigma: float = 10.0,
        frequencies: Tensor | Sequence[Sequence[float]] | None = None,
        hidden_features: int = 256,
        num_layers: int = 4,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_count(in_features, "in_features")
        check_count(out_features, "out_features")
        check_count(num_frequencies, "num_frequencies")
        check_positive(sigma, "sigma")
        check_count(hidden_features, "hidden_features")
        check_count(num_layers, "num_layers")
        if activation is not None and not isinstance(activation, nn.Module):
            raise TypeError(f"`activation` must be an nn.Module such as nn.GELU(), or None, got {activation!r}")
        self.in_features = in_features
        self.out_features = out_features
        if frequencies is None:
            mapping = sigma * torch.randn(num_frequencies, in_features)
        else:
            mapping = _check_frequencies(frequencies, in_features)
        self.register_buffer("frequencies", mapping)
        widths = (2 * len(mapping), *[hidden_features] * (num_layers - 1), out_features)
        self.layers = nn.Sequential()
        for before, after in pairwise(widths):
            if len(self.layers):
                self.layers.append(nn.ReLU() if activation is None else copy.deepcopy(activation))
            self.layers.append(nn.Linear(before, after))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights anew, from torch's global generator; the frequencies stay."""
        lecun_normal_(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map coordinates, float [..., in_features] in [-1, 1] or [0, 1], to values [..., out_features]."""
        check_coordinates(x, self.in_features, "FourierFeatureNetwork")
        phases = precise_linear(x, 2 * math.pi * self.frequencies)
        out = torch.cat([phases.sin(), phases.cos()], dim=-1)
        out = self.layers[:-1](out)
        last = cast(nn.Linear, self.layers[-1])
        return precise_linear(out, last.weight, last.bias)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"frequencies={list(self.frequencies.shape)}"


def _check_frequencies(frequencies: Tensor | Sequence[Sequence[float]], in_features: int) -> Tensor:
    """Give a new tensor [m, in_features] of the default dtype."""
    try:
        given = torch.as_tensor(frequencies).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"`frequencies` must be a tensor or lists of numbers, got {frequencies!r}") from error
    if given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"`frequencies` must be real numbers, got {given.dtype}")
    mapping = given.to(torch.get_default_dtype(), copy=True)
    if mapping.ndim != 2 or mapping.shape[1] != in_features or not len(mapping):
        raise ValueError(
            f"`frequencies` must be [m, in_features={in_features}], a row for each, got shape {list(mapping.shape)}"
        )
    if not mapping.isfinite().all():
        raise ValueError("`frequencies` must be finite, got NaN or infinity")
    return mapping
