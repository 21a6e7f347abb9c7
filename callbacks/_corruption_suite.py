"""What the corruption evaluator does with a batch: corrupt it in all ways, and count the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pl_robust._lightning import LightningModule, Trainer
from pl_robust._probe import probe
from pl_robust.attacks._target import Normalization
from pl_robust.attacks._threat_model import per_channel
from pl_robust.metrics import MeanCorruptionError
from pl_robust.metrics._baseline import CLEAN
from pl_robust.transforms._corruptions.tables import TableName
from pl_robust.transforms._primitive import check_images
from pl_robust.transforms.corruption import corrupt, table_for

_SLACK = 1e-2  # of a level of 8 bits: what normalizing and back may have done


@dataclass(frozen=True)
class CorruptionSuite:
    """Corrupts batches in all ways that are asked for, and counts the answers.

    Args:
        corruptions: the types.
        severities: the severities.
        table: whose constants; None means those for the images' size.
        normalization: (mean, std) of data that is normalized before it reaches the module.
    """

    corruptions: tuple[str, ...]
    severities: tuple[int, ...]
    table: TableName | None
    normalization: Normalization | None

    def rehearse(self) -> None:
        """Corrupt a small image in all ways, so that a package that is missing is missed before the first epoch."""
        for name in self.corruptions:
            corrupt(
                torch.zeros(1, 3, 32, 32), name, max(self.severities), table=self.table or "cifar", seeds=_seeds([0])
            )

    def inspect(self, trainer: Trainer, module: LightningModule, x: Tensor, y: Tensor) -> None:
        """Run the module once and check what it takes and gives.

        Raises:
            TypeError: if ``x`` is not floating point, or the module gives no tensor.
            ValueError: if values, labels or logits are not as they must be.
        """
        with probe(module), torch.no_grad():
            self._clean(trainer, module, x, y)

    def count(
        self,
        trainer: Trainer,
        module: LightningModule,
        x: Tensor,
        y: Tensor,
        places: range,
        metric: MeanCorruptionError,
    ) -> None:
        """Count the module's answers to a batch, clean and corrupted in all ways. It leaves no trace in the module.

        Args:
            trainer: the trainer, whose precision the forward passes run in.
            module: its ``forward`` gives logits [B, K].
            x: the batch's first images, as the module takes them, [B, C, H, W].
            y: their labels [B].
            places: where they stand among all, their seeds.
            metric: what counts.

        Raises:
            TypeError: as ``inspect`` does.
            ValueError: likewise.
        """
        table = self.table or table_for(x.shape)
        seeds = _seeds(places).to(x.device)
        with probe(module), torch.no_grad():
            images, logits = self._clean(trainer, module, x, y)
            metric.update(logits, y, CLEAN, 0)
            for name in self.corruptions:
                for severity in self.severities:
                    # Outside the user's precision, which may make half precision the default of new tensors.
                    corrupted = corrupt(images, name, severity, table=table, seeds=seeds)
                    logits = _forward(trainer, module, self._normalize(corrupted).to(x.dtype))
                    metric.update(logits, y, name, severity)

    def _clean(self, trainer: Trainer, module: LightningModule, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The images in [0, 1], float32, and the logits without corruption."""
        check_images(x)
        images = x.float()
        if self.normalization is not None:
            mean, std = (per_channel(torch.as_tensor(part), images, "normalization") for part in self.normalization)
            images = images * std + mean
        logits = _forward(trainer, module, x.clone())  # a first layer that works in place must not reach the batch
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
            got = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the module's forward must give logits [{len(x)}, classes], got {got}")
        # One wait for the device in all, beside the forward passes of the whole suite.
        low, high, first, last = torch.stack([part.float() for part in (*images.aminmax(), *y.aminmax())]).tolist()
        slack = _SLACK / 255 if x.dtype.itemsize >= 4 else 1 / 255
        if not -slack <= low <= high <= 1 + slack:  # NaN is not, either
            raise ValueError(
                f"images must lie in [0, 1] to be corrupted, got values from {low:.4g} to {high:.4g}: pass "
                "`normalization=(mean, std)` if the data was normalized"
            )
        if not 0 <= first <= last < logits.shape[1]:
            raise ValueError(
                f"labels must lie in 0..{logits.shape[1] - 1} for a module of {logits.shape[1]} classes, "
                f"got {first:g}..{last:g}"
            )
        return images.clamp(0, 1), logits

    def _normalize(self, images: Tensor) -> Tensor:
        if self.normalization is None:
            return images
        mean, std = (per_channel(torch.as_tensor(part), images, "normalization") for part in self.normalization)
        return (images - mean) / std


def _forward(trainer: Trainer, module: LightningModule, x: Tensor) -> Tensor:
    with trainer.precision_plugin.forward_context():
        logits: Tensor = module(x)
    return logits


def _seeds(places: Sequence[int]) -> Tensor:
    return torch.tensor(list(places), dtype=torch.long)
