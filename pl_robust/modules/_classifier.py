"""What the modules that train a classifier share: all but the training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from pl_robust._batch import split_batch
from pl_robust._dataloaders import count_real, flatten_loaders, loader_names
from pl_robust._lightning import LightningModule, LRSchedulerCallable, MisconfigurationException, OptimizerCallable
from pl_robust._number import parse_number
from pl_robust.attacks import Attack
from pl_robust.modules._evaluation import Evaluation, make_accuracy, summarize
from pl_robust.modules._net import resolve_net


class Outcome(NamedTuple):
    """How an evaluation of one dataloader ended.

    Attributes:
        end: what stands behind the names of its metrics, ``""`` or ``"/..."``.
        name: of the dataloader, if it has one.
        accuracies: acc and acc_<name> -> share in [0, 1], where it is known.
        evaluation: the metrics.
    """

    end: str
    name: str | None
    accuracies: dict[str, float]
    evaluation: Evaluation


class Classifier(LightningModule):
    """A network with optimizer, schedule, validation, test and predict; a subclass brings ``training_step``.

    Validation and test log loss and acc, and acc_<name> for each of ``_attacks()``; for dataloaders in a dict with its
    keys behind these names, and test prints a table of them. Samples that a DistributedSampler repeats are not counted.
    Arguments are those of the subclasses, which document them.

    Attributes:
        schedules: name -> optimizer, steps of the run, share of them before the peak -> scheduler per step.
        shown: the metric that validation shows in the progress bar.
    """

    schedules: ClassVar[Mapping[str, Callable[[Optimizer, int, float], LRScheduler]]] = {}
    shown: ClassVar[str] = "acc"

    def __init__(
        self,
        net: nn.Module | str,
        *,
        num_classes: int,
        optimizer: OptimizerCallable,
        lr_scheduler: str | LRSchedulerCallable,
        lr_peak: float | str,
        lr_scheduler_interval: str,
        input_key: str | int,
        label_key: str | int,
    ) -> None:
        super().__init__()
        if not callable(lr_scheduler) and lr_scheduler not in (*self.schedules, "constant"):
            names = ", ".join(repr(name) for name in (*self.schedules, "constant"))
            raise ValueError(
                f"`lr_scheduler` must be {names} or a callable optimizer -> scheduler, got {lr_scheduler!r}"
            )
        if not 0 < parse_number(lr_peak, "lr_peak") < 1:
            raise ValueError(f"`lr_peak` must lie between 0 and 1, a share of the run, got {lr_peak!r}")
        if not callable(optimizer):
            raise TypeError(f"`optimizer` must be a callable parameters -> optimizer, got {optimizer!r}")
        if lr_scheduler_interval not in ("epoch", "step"):
            raise ValueError(f"`lr_scheduler_interval` must be 'epoch' or 'step', got {lr_scheduler_interval!r}")
        if isinstance(num_classes, bool) or not isinstance(num_classes, int):
            raise TypeError(f"`num_classes` must be an integer, got {num_classes!r}")
        if num_classes < 2:
            raise ValueError(f"`num_classes` must be at least 2, got {num_classes}")
        self.net = resolve_net(net, num_classes)
        self.num_classes = num_classes
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_peak = parse_number(lr_peak, "lr_peak")
        self.lr_scheduler_interval = lr_scheduler_interval
        self.input_key = input_key
        self.label_key = label_key
        self.train_accuracy = make_accuracy(num_classes)
        # One for each dataloader of a split, made when the split starts and its dataloaders are known.
        self.val_metrics = nn.ModuleList()
        self.test_metrics = nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B, num_classes] of images [B, C, H, W]."""
        logits: Tensor = self.net(x)
        return logits

    def on_validation_start(self) -> None:
        """Make the metrics of each validation dataloader."""
        self._start_evaluation("val")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluate the network on a validation batch."""
        self._evaluate("val", batch, batch_idx, dataloader_idx)

    def on_validation_end(self) -> None:
        """Look at what validation gave."""
        self._end_evaluation("val")

    def on_test_start(self) -> None:
        """Make the metrics of each test dataloader."""
        self._start_evaluation("test")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluate the network on a test batch."""
        self._evaluate("test", batch, batch_idx, dataloader_idx)

    def on_test_end(self) -> None:
        """Look at what the test gave; print a table of dataloaders that have names."""
        self._end_evaluation("test")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Compute the logits of a batch: bare images, or a batch that holds them at ``input_key``."""
        logits: Tensor = self(batch if isinstance(batch, Tensor) else batch[self.input_key])
        return logits

    def configure_optimizers(self) -> Any:
        """Build the optimizer and its schedule."""
        optimizer = self.optimizer(parameter for parameter in self.parameters() if parameter.requires_grad)
        if self.lr_scheduler == "constant":
            return optimizer
        if callable(self.lr_scheduler):
            schedule = {"scheduler": self.lr_scheduler(optimizer), "interval": self.lr_scheduler_interval}
            return {"optimizer": optimizer, "lr_scheduler": schedule}
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise MisconfigurationException(
                f"lr_scheduler={self.lr_scheduler!r} needs to know where the run ends: set the Trainer's `max_epochs` "
                "or `max_steps`, or take lr_scheduler='constant'"
            )
        scheduler = self.schedules[self.lr_scheduler](optimizer, int(steps), self.lr_peak)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _attacks(self) -> dict[str, Attack]:
        """Name -> attack, in its form for evaluation, of validation and test."""
        return {}

    def _loaders(self, split: str) -> Any:
        return getattr(self.trainer, f"{split}_dataloaders")

    def _start_evaluation(self, split: str) -> None:
        evaluations: Any = getattr(self, f"{split}_metrics")
        attacks = list(self._attacks())
        if any(evaluation.attacks != attacks for evaluation in evaluations):  # they have been changed
            evaluations = nn.ModuleList()
            setattr(self, f"{split}_metrics", evaluations)
        # Validation by itself is in inference mode, that of a fit is not, and could not write into tensors made there.
        with torch.inference_mode(False):
            while len(evaluations) < len(flatten_loaders(self._loaders(split))):
                evaluations.append(Evaluation(self.num_classes, attacks).to(self.device))
            for evaluation in evaluations:
                evaluation.counts.zero_()
                for metric in evaluation.metrics.values():
                    metric.reset()

    def _evaluate(self, split: str, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        evaluation: Any = getattr(self, f"{split}_metrics")[dataloader_idx]
        x, y = split_batch(batch, self.input_key, self.label_key)
        loaders = self._loaders(split)
        real = count_real(flatten_loaders(loaders)[dataloader_idx], batch_idx, len(y))
        if real:
            seed = batch_idx * self.trainer.world_size + self.trainer.global_rank
            evaluation.update(self.net, self._attacks(), x[:real], y[:real], seed)
        name = loader_names(loaders)[dataloader_idx]
        for metric_name, metric in evaluation.metrics.items():
            self.log(
                f"{split}/{metric_name}" + ("" if name is None else f"/{name}"),
                metric,
                prog_bar=metric_name == self.shown,
                batch_size=real,
                add_dataloader_idx=name is None,
                # Lightning looks metrics up by attribute once, maybe before this one was made.
                metric_attribute=f"{split}_metrics.{dataloader_idx}.metrics.{metric_name}",
            )

    def _end_evaluation(self, split: str) -> None:
        outcomes = {one.name: one.accuracies for one in self._outcomes(split) if one.name is not None}
        table = {name: accuracies for name, accuracies in outcomes.items() if accuracies}
        if split == "test" and table:
            self.print(summarize(table))  # Lightning's own table cuts the names off

    def _outcomes(self, split: str) -> list[Outcome]:
        evaluations: Any = getattr(self, f"{split}_metrics")
        names = loader_names(self._loaders(split))
        logged = self.trainer.callback_metrics  # the same on every rank already
        outcomes = []
        for index, name in enumerate(names):
            end = f"/{name}" if name is not None else f"/dataloader_idx_{index}" if len(names) > 1 else ""
            keys = {key: f"{split}/{key}{end}" for key in evaluations[index].metrics if key.startswith("acc")}
            accuracies = {key: float(logged[logged_as]) for key, logged_as in keys.items() if logged_as in logged}
            outcomes.append(Outcome(end, name, accuracies, evaluations[index]))
        return outcomes
