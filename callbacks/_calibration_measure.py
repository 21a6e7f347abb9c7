"""What the calibration logger does with a batch: answers on clean and on adversarial inputs, sorted by confidence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pl_robust._lightning import LightningModule, Trainer
from pl_robust._probe import probe
from pl_robust.attacks import Attack
from pl_robust.metrics import Calibration, CalibrationSummary


class CalibrationGauge:
    """Calibration on one dataloader, clean and, with an attack, adversarial.

    Args:
        bins: number of bins of confidence.
        attack: the attack; None means clean inputs only.
        device: where the module is.
    """

    def __init__(self, bins: int, attack: Attack | None, device: torch.device) -> None:
        self.attack = attack
        # Validation by itself is in inference mode, the probe is not, and could not write into tensors made there.
        with torch.inference_mode(False):
            self._metrics = {ending: Calibration(bins) for ending in ("", *(["_adv"] if attack is not None else []))}
            for metric in self._metrics.values():
                if device.type == "mps":
                    metric.set_dtype(torch.float32)  # these devices have no float64
                metric.to(device)

    def update(self, trainer: Trainer, module: LightningModule, x: Tensor, y: Tensor, seed: int) -> None:
        """Take a batch into account. It leaves no trace in the module.

        Args:
            trainer: the trainer, whose precision the passes run in.
            module: its ``forward`` gives logits [B, K].
            x: inputs as the module takes them, [B, ...].
            y: labels [B].
            seed: of the attack's noise.

        Raises:
            TypeError: if the module gives no tensor, or labels are no integers.
            ValueError: if logits or labels are not as they must be, or the attack refuses the inputs.
        """
        with probe(module):
            self._metrics[""].update(_logits(trainer, module, x), y)
            if self.attack is None:
                return
            generator = torch.Generator(x.device)
            generator.manual_seed(seed)
            with trainer.precision_plugin.forward_context():
                x_adv = self.attack(module, x, y, generator=generator)
            self._metrics["_adv"].update(_logits(trainer, module, x_adv), y)

    def summaries(self) -> dict[str, CalibrationSummary]:
        """Give what all ranks have found, ``""`` and ``"_adv"``. A collective call."""
        return {ending: metric.summary() for ending, metric in self._metrics.items()}


@torch.no_grad()
def _logits(trainer: Trainer, module: LightningModule, x: Tensor) -> Tensor:
    with trainer.precision_plugin.forward_context():
        logits: Any = module(x.clone())  # a first layer that works in place must not reach the batch
    if not isinstance(logits, Tensor):
        raise TypeError(f"the module's forward must give logits [{len(x)}, classes], got {type(logits).__name__}")
    return logits
