"""The mean loss of an evaluation."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanLoss(Metric):
    """Mean over samples of several batches and processes; torchmetrics' own leaves NaN out, which is to be seen here.

    Attributes:
        total: sum of the losses.
        count: number of samples.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, count: int) -> None:
        """Take a batch into account.

        Args:
            loss: the sum over its samples.
            count: how many these are.
        """
        self.total += loss
        self.count += count

    def compute(self) -> Tensor:
        """Give the mean."""
        return self.total / self.count
