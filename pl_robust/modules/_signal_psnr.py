"""The peak signal-to-noise ratio of one signal or the mean over several, of points that come in pieces."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class SignalPSNR(Metric):
    """Mean over S signals of their PSNR, in dB; of a single one, torchmetrics' ``PeakSignalNoiseRatio``.

    Args:
        num_signals: S.
        data_range: the peak, highest less lowest possible value.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    squared_error: Tensor
    points: Tensor

    def __init__(self, num_signals: int, data_range: float) -> None:
        super().__init__()
        self.data_range = data_range
        self.add_state("squared_error", torch.zeros(num_signals), dist_reduce_fx="sum")
        self.add_state("points", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, errors: Tensor, points: int) -> None:
        """Add a piece.

        Args:
            errors: mean squared error of each signal over it, [S].
            points: number of its points.
        """
        self.squared_error += errors.detach().to(self.squared_error.dtype) * points
        self.points += points

    def compute(self) -> Tensor:
        """Give the mean PSNR."""
        return psnr(self.squared_error / self.points, self.data_range)


def psnr(errors: Tensor, data_range: float) -> Tensor:
    """Mean of the PSNRs, in dB, that belong to mean squared errors [S]."""
    return (10 * torch.log10(data_range**2 / errors.detach())).mean()
