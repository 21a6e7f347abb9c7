"""What a fit of signals does beside its training: the PSNR of validation and test, and predictions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pl_robust._dataloaders import count_real, flatten_loaders, loader_names
from pl_robust._lightning import LightningModule, MisconfigurationException
from pl_robust.modules._part_by_part import mean_squared_errors
from pl_robust.modules._signal_batch import split_signals
from pl_robust.modules._signal_psnr import SignalPSNR


class SignalEvaluation(LightningModule):
    """A module that maps coordinates [N, d] to values [N, c], or [S, N, c].

    Args:
        num_signals: S.
        data_range: the peak of the PSNR; ``None``: the datamodule's ``data_range``, else 1.

    Raises:
        MisconfigurationException: at the start of a run, if the datamodule has another ``data_range``.
    """

    def __init__(self, num_signals: int, data_range: float | None) -> None:
        super().__init__()
        self.num_signals = num_signals
        self.data_range = 1.0 if data_range is None else data_range
        self._given_range = data_range
        # One for each dataloader of a split, made when the split starts and its dataloaders are known.
        self.val_psnr = nn.ModuleList()
        self.test_psnr = nn.ModuleList()

    def setup(self, stage: str) -> None:
        """Find the peak of the PSNR."""
        datamodule = getattr(self.trainer, "datamodule", None)
        own, given = getattr(datamodule, "data_range", None), self._given_range
        if isinstance(own, int | float) and given is not None and given != own:
            raise MisconfigurationException(
                f"`data_range`={given:g} contradicts {type(datamodule).__name__}, which has {own:g}: give it to the "
                f"data alone, where {type(self).__name__} finds it"
            )
        self.data_range = float(own) if isinstance(own, int | float) else 1.0 if given is None else given

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure the networks on points held out."""
        self._evaluate("val", batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure the networks on the test's points."""
        self._evaluate("test", batch, batch_idx, dataloader_idx)

    def on_validation_start(self) -> None:
        """Make the metric of each validation dataloader."""
        self._start_evaluation("val")

    def on_test_start(self) -> None:
        """Make the metric of each test dataloader."""
        self._start_evaluation("test")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Give the values at a batch's points: coordinates, alone or in a list, or a pair with values."""
        if isinstance(batch, tuple | list) and len(batch) == 1:
            (batch,) = batch  # as a TensorDataset has them
        values: Tensor = self(batch if isinstance(batch, Tensor) else split_signals(batch, self.num_signals)[0])
        return values

    def _loaders(self, split: str) -> Any:
        return getattr(self.trainer, f"{split}_dataloaders")

    def _start_evaluation(self, split: str) -> None:
        # Validation by itself is in inference mode, that of a fit is not, and could not write into tensors made there.
        with torch.inference_mode(False):
            metrics = [SignalPSNR(self.num_signals, self.data_range) for _ in flatten_loaders(self._loaders(split))]
            setattr(self, f"{split}_psnr", nn.ModuleList(metrics).to(self.device))

    def _evaluate(self, split: str, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        metric: Any = getattr(self, f"{split}_psnr")[dataloader_idx]
        coordinates, values = split_signals(batch, self.num_signals)
        loaders = self._loaders(split)
        real = self._count_real(flatten_loaders(loaders)[dataloader_idx], batch_idx, len(coordinates))
        if real:
            errors = mean_squared_errors(self(coordinates[:real]), values[..., :real, :])
            metric.update(errors.reshape(-1), real)
        name = loader_names(loaders)[dataloader_idx]
        self.log(
            f"{split}/psnr" + ("" if name is None else f"/{name}"),
            metric,
            prog_bar=True,
            on_epoch=True,
            batch_size=real,
            add_dataloader_idx=name is None,
            # Lightning looks metrics up by attribute once, maybe before this one was made.
            metric_attribute=f"{split}_psnr.{dataloader_idx}",
        )

    @staticmethod
    def _count_real(loader: Any, batch_idx: int, points: int) -> int:
        """Count the points that DDP's sampler does not repeat, where a sample is a point."""
        is_sample = points <= (getattr(loader, "batch_size", None) or 0)
        return count_real(loader, batch_idx, points) if is_sample else points
