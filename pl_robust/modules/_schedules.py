"""Learning-rate schedules over a whole run: the optimizer's learning rate is their peak."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.optimizer import Optimizer


def triangular(optimizer: Optimizer, steps: int, peak: float) -> LRScheduler:
    """Go 0 -> lr -> 0, with the peak at this share of the steps."""
    return LambdaLR(optimizer, partial(_triangle, steps=steps, peak=peak))


def _triangle(step: int, steps: int, peak: float) -> float:
    """Height at ``step`` of the triangle 0 -> 1 -> 0; its feet stand one step outside the run, where they cost none."""
    at = (step + 1) / (steps + 1)
    return max(0.0, 1 - abs(at / peak - 1 if at < peak else (at - peak) / (1 - peak)))


def linear(optimizer: Optimizer, steps: int, peak: float) -> LRScheduler:
    """Go lr -> 0 along a line, whose foot is one step behind the last; there is no peak to place."""
    return LambdaLR(optimizer, partial(_line, steps=steps))


def _line(step: int, steps: int) -> float:
    return max(0.0, 1 - step / max(1, steps))  # a run of no steps has a schedule, too


def cosine(optimizer: Optimizer, steps: int) -> LRScheduler:
    """Go lr -> 0 along half a cosine, whose foot is one step behind the last."""
    return LambdaLR(optimizer, partial(_half_cosine, steps=steps))


def _half_cosine(step: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))


def one_cycle(optimizer: Optimizer, steps: int, peak: float) -> LRScheduler:
    """Go lr / 25 -> lr -> lr / 250,000 along cosines, with the peak at this share of the steps (Smith, Topin 2018).

    With torch's other defaults: a momentum that is there goes .95 -> .85 -> .95, whatever it was.
    """
    # torch divides by the number of steps before the peak, less one: a shorter run sees the beginning of a longer one.
    steps = max(steps, math.ceil(2 / peak))
    has_momentum = all("betas" in group or group.get("momentum") for group in optimizer.param_groups)
    largest = [float(group["lr"]) for group in optimizer.param_groups]
    return _OneCycle(optimizer, largest, total_steps=steps, pct_start=peak, cycle_momentum=has_momentum)


class _OneCycle(OneCycleLR):
    """One that a resumed run may make longer: its length is the new run's, not the checkpoint's."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = {key: self.__dict__[key] for key in ("total_steps", "_schedule_phases")}
        super().load_state_dict({**state_dict, **own})
