"""Notice on the device that a loss is no number any more, and say so later with the step it happened at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_NEVER = 2**62


class DivergenceWatch:
    """The first step at which an error was NaN or infinite, kept on the device: nobody waits for it.

    Args:
        hint: what to do about it, the end of the error message.
    """

    def __init__(self, hint: str) -> None:
        self.hint = hint
        self._first: Tensor | None = None
        self._learning_rates: dict[int, Any] = {}  # of the steps since the last check

    def note(self, errors: Tensor, step: int, learning_rate: Any) -> None:
        """Look at the errors [S] of a step.

        Args:
            errors: of each signal, or of all together; as many at each step.
            step: optimizer steps done before.
            learning_rate: that the step is about to use.
        """
        errors = errors.detach()
        if self._first is None or self._first.device != errors.device:
            self._first = torch.full(errors.shape, _NEVER, dtype=torch.int64, device=errors.device)
        self._first = self._first.clamp(max=torch.where(errors.isfinite(), _NEVER, step))
        self._learning_rates[step] = learning_rate

    def check_at_log_steps(self, trainer: Any) -> None:
        """Check every ``log_every_n_steps`` steps.

        Args:
            trainer: the run's.

        Raises:
            ValueError: as ``check``.
        """
        every = trainer.log_every_n_steps
        if every and trainer.global_step % every == 0:
            self.check(trainer.strategy)

    def check(self, strategy: Any) -> None:
        """Stop if there was such a step on any rank; all ranks must come here together.

        Args:
            strategy: the Trainer's, which has ``reduce``.

        Raises:
            ValueError: naming the step, its learning rate and, of several, the signals.
        """
        if self._first is None:
            return
        step = int(strategy.reduce(self._first.min(), reduce_op="min"))
        if step == _NEVER:
            self._learning_rates.clear()
            return
        rate = self._learning_rates.get(step)
        diverged = (self._first == step).nonzero().flatten().tolist()
        which = f" of signals {diverged[:8]}{' ...' if len(diverged) > 8 else ''}" if len(self._first) > 1 else ""
        raise ValueError(
            f"the loss{which} was NaN or infinite at step {step}"
            + (f", at a learning rate of {float(rate):g}: " if rate is not None else ": ")
            + self.hint
        )
