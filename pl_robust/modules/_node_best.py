"""The weights of the lowest validation loss, kept in memory, and the patience with a loss that does not fall."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class BestWeights:
    """Remembers the best state of a network; what EarlyStopping and ModelCheckpoint do with a file at each of them.

    Args:
        patience: steps without a lower loss after which to stop.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.loss = math.inf
        self.step = 0
        self._weights: dict[str, Tensor] = {}

    def note(self, loss: float, step: int, net: nn.Module) -> bool:
        """Take a validation into account, and tell whether patience has run out.

        Args:
            loss: of the validation; NaN is higher than any other.
            step: how many steps have been trained.
            net: the network in its present state.
        """
        if loss < self.loss:
            self.loss, self.step = loss, step
            self._weights = {name: value.detach().clone() for name, value in net.state_dict().items()}
        return step - self.step >= self.patience

    @torch.no_grad()
    def put_back(self, net: nn.Module) -> None:
        """Give the network its best state, if there was one."""
        if self._weights:
            net.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, plain numbers and tensors."""
        return {"loss": self.loss, "step": self.step, "weights": dict(self._weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.loss, self.step = state["loss"], state["step"]
        self._weights = dict(state["weights"])
