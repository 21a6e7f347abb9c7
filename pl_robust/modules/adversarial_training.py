"""Adversarial training: each batch is replaced by its adversarial twin before the usual training step."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import Optimizer
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from pl_robust._batch import split_batch
from pl_robust._dataloaders import count_real, flatten_loaders
from pl_robust._lightning import (
    LightningModule,
    LRSchedulerCallable,
    MisconfigurationException,
    OptimizerCallable,
    unsavable,
)
from pl_robust.attacks import PGD, Attack
from pl_robust.modules._net import resolve_net


def published_sgd(parameters: Any) -> Optimizer:
    """SGD with the CO papers' settings: peak learning rate 0.2, momentum 0.9, weight decay 5e-4."""
    return SGD(parameters, lr=0.2, momentum=0.9, weight_decay=5e-4)


class AdversarialTraining(LightningModule):
    r"""Train a classifier on adversarial examples (Madry et al. 2018, eq. 2.1; Wong et al. 2020; de Jorge et al. 2022).

    Minimizes :math:`\mathbb{E}\,\ell(f_\theta(x_{adv}), y)`, :math:`x_{adv}` from ``attack``. ``FGSM``, RS-FGSM
    (``FGSM`` with a random start), ``NFGSM`` and ``PGD`` adversarial training differ in the attack only. The defaults
    are those of the catastrophic-overfitting papers: SGD, learning rate 0 -> 0.2 -> 0 per step, cross-entropy.

    Logs train/loss and train/acc_adv; and for each of val and test: loss and acc on clean inputs, acc_adv under the
    training attack, acc_<name> under each of ``eval_attacks``. Validation and test run in eval mode, with noise that
    depends on the batch only, so that two evaluations of one network agree; samples that a DistributedSampler repeats
    are not counted. Both work with the Trainer's defaults (inference mode on).

    Args:
        net: the network, images [B, C, H, W] -> logits [B, num_classes]; or a name of ``pl_robust.models``, built for
            ``num_classes``; in YAML also any class_path.
        attack: the training attack; its forwards run on the bare net, with batch-norm as its ``batch_norm`` says.
        eval_attacks: name -> attack for validation and test; None means ``{"pgd": PGD}`` with the training attack's
            ball and 10 steps.
        num_classes: number of classes.
        optimizer: parameters -> optimizer; with the triangular schedule its learning rate is the peak.
        lr_scheduler: ``"triangular"`` (0 -> lr -> 0 over the whole run, peak half way, per step), ``"constant"``, or
            optimizer -> scheduler.
        lr_scheduler_interval: whether a scheduler of yours steps per ``"epoch"`` or per ``"step"``.
        input_key: where a batch holds its inputs: position in tuples and lists, key in dicts.
        label_key: where a batch holds its labels.

    Raises:
        TypeError: if ``net`` or an attack is of another type.
        ValueError: if an argument is not among the allowed ones.
        MisconfigurationException: at the start of fit, if the triangular schedule meets a run without an end.
    """

    def __init__(
        self,
        net: nn.Module | str,
        attack: Attack,
        *,
        eval_attacks: dict[str, Attack] | None = None,
        num_classes: int = 10,
        optimizer: OptimizerCallable = published_sgd,
        lr_scheduler: Literal["triangular", "constant"] | LRSchedulerCallable = "triangular",
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        input_key: str | int = 0,
        label_key: str | int = 1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(
            ignore=unsavable(
                net=net, attack=attack, eval_attacks=eval_attacks, optimizer=optimizer, lr_scheduler=lr_scheduler
            )
        )
        if not isinstance(attack, Attack):
            raise TypeError(f"`attack` must be an attack such as FGSM(eps=8/255), got {attack!r}")
        if not callable(lr_scheduler) and lr_scheduler not in ("triangular", "constant"):
            raise ValueError(
                f"`lr_scheduler` must be 'triangular', 'constant' or a callable optimizer -> scheduler, "
                f"got {lr_scheduler!r}"
            )
        if not callable(optimizer):
            raise TypeError(f"`optimizer` must be a callable parameters -> optimizer, got {optimizer!r}")
        if lr_scheduler_interval not in ("epoch", "step"):
            raise ValueError(f"`lr_scheduler_interval` must be 'epoch' or 'step', got {lr_scheduler_interval!r}")
        if num_classes < 2:
            raise ValueError(f"`num_classes` must be at least 2, got {num_classes}")
        self.net = resolve_net(net, num_classes)
        self.attack = attack
        self.num_classes = num_classes
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.input_key = input_key
        self.label_key = label_key
        self.eval_attacks = _eval_attacks(eval_attacks, attack)
        self.train_accuracy = self._accuracy()
        # One set for each dataloader of a split, made when the split starts and its dataloaders are known.
        self.val_metrics = nn.ModuleList()
        self.test_metrics = nn.ModuleList()

    def _accuracy(self) -> MulticlassAccuracy:
        return MulticlassAccuracy(self.num_classes, average="micro", validate_args=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B, num_classes] of images [B, C, H, W]."""
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Attack the batch and give the loss on the adversarial examples."""
        x, y = split_batch(batch, self.input_key, self.label_key)
        logits = self(self.attack(self.net, x, y))
        loss = F.cross_entropy(logits, y)
        self.train_accuracy(logits, y)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(y))
        self.log("train/acc_adv", self.train_accuracy, on_step=False, on_epoch=True, batch_size=len(y))
        return loss

    def on_validation_start(self) -> None:
        """Make the metrics of each validation dataloader."""
        self._make_metrics(self.val_metrics, flatten_loaders(self.trainer.val_dataloaders), "val")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluate clean and adversarial accuracy on a validation batch."""
        loader = flatten_loaders(self.trainer.val_dataloaders)[dataloader_idx]
        self._evaluate("val", batch, batch_idx, dataloader_idx, loader)

    def on_test_start(self) -> None:
        """Make the metrics of each test dataloader."""
        self._make_metrics(self.test_metrics, flatten_loaders(self.trainer.test_dataloaders), "test")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluate clean and adversarial accuracy on a test batch."""
        loader = flatten_loaders(self.trainer.test_dataloaders)[dataloader_idx]
        self._evaluate("test", batch, batch_idx, dataloader_idx, loader)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Compute the logits of a batch: bare images, or a batch that holds them at ``input_key``."""
        logits: Tensor = self(batch if isinstance(batch, Tensor) else batch[self.input_key])
        return logits

    def _make_metrics(self, metrics: nn.ModuleList, loaders: list[Any], split: str) -> None:
        while len(metrics) < len(loaders):
            accuracies = {
                f"acc{suffix}": self._accuracy() for suffix in ("", "_adv", *(f"_{n}" for n in self.eval_attacks))
            }
            collection = MetricCollection({"loss": MeanMetric(), **accuracies}, compute_groups=False)
            metrics.append(collection.to(self.device))

    def _evaluate(self, split: str, batch: Any, batch_idx: int, dataloader_idx: int, loader: Any) -> None:
        metrics: Any = getattr(self, f"{split}_metrics")[dataloader_idx]
        x, y = split_batch(batch, self.input_key, self.label_key)
        real = count_real(loader, batch_idx, len(y))
        x, y = x[:real], y[:real]
        if real:
            logits = self(x)
            metrics["loss"].update(F.cross_entropy(logits, y), weight=real)
            metrics["acc"].update(logits, y)
            for name, attack in {"adv": self.attack.for_evaluation(), **self.eval_attacks}.items():
                generator = torch.Generator(x.device)
                generator.manual_seed(batch_idx * self.trainer.world_size + self.trainer.global_rank)
                metrics[f"acc_{name}"].update(self(attack(self.net, x, y, generator=generator)), y)
        for name, metric in metrics.items():
            self.log(
                f"{split}/{name}",
                metric,
                prog_bar=name == "acc_pgd",
                batch_size=real,
                # Lightning looks metrics up by attribute once, maybe before this one was made.
                metric_attribute=f"{split}_metrics.{dataloader_idx}.{name}",
            )

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
                "lr_scheduler='triangular' needs to know where the run ends: set the Trainer's `max_epochs` or "
                "`max_steps`, or take lr_scheduler='constant'"
            )
        triangular = LambdaLR(optimizer, partial(_triangle, steps=int(steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": triangular, "interval": "step"}}


def _triangle(step: int, steps: int) -> float:
    """Height at ``step`` of the triangle 0 -> 1 -> 0; its feet stand one step outside the run, where they cost none."""
    return max(0.0, 1 - abs(2 * (step + 1) / (steps + 1) - 1))


def _eval_attacks(given: dict[str, Attack] | None, attack: Attack) -> dict[str, Attack]:
    """The attacks of validation and test beside the training attack, in their form for evaluation.

    Raises:
        ValueError: if a name is taken or cannot stand in a metric's name.
        TypeError: if a value is no attack.
    """
    if given is None:
        given = {"pgd": PGD(attack.eps, norm=attack.norm, bounds=attack.bounds, normalization=attack.normalization)}
    for name, other in given.items():
        if name == "adv" or not name.isidentifier():
            raise ValueError(
                f"a name in `eval_attacks` becomes the metric acc_<name>: it must be an identifier other than 'adv', "
                f"which is the training attack, got {name!r}"
            )
        if not isinstance(other, Attack):
            raise TypeError(f"`eval_attacks`[{name!r}] must be an attack such as PGD(eps=8/255), got {other!r}")
    return {name: other.for_evaluation() for name, other in given.items()}
