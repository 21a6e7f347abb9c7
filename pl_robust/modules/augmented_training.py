"""Training on images or on several views of each, kept consistent by the Jensen-Shannon divergence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.optimizer import Optimizer

from pl_robust._batch import entry_keys, replace_entry, split_batch
from pl_robust._lightning import LRSchedulerCallable, OptimizerCallable, unsavable
from pl_robust._number import parse_number
from pl_robust.losses import jsd_consistency
from pl_robust.modules._classifier import Classifier
from pl_robust.modules._schedules import one_cycle


def published_sgd(parameters: Any) -> Optimizer:
    """SGD with PRIME's settings for CIFAR: peak learning rate 0.2, Nesterov momentum 0.9, weight decay 5e-4."""
    return SGD(parameters, lr=0.2, momentum=0.9, weight_decay=5e-4, nesterov=True)


class AugmentedTraining(Classifier):
    r"""Train a classifier on PRIME's or AugMix's views (Hendrycks et al. 2020, section 3; Modas et al. 2022).

    A batch whose entry for the images is a list [clean, augmented, ...] is trained on with
    :math:`\ell_{CE}(f(x_{clean}), y) + \lambda\, \mathrm{JSD}(f(x_{clean}), f(x_1), \dots)`, all views in one forward
    pass as published. ``PRIMETransform(views=3)`` makes such batches of any datamodule's; a data set may, too. A batch
    of plain images, augmented before or not, is trained on with its cross-entropy: standard training.

    Without weight the views are left out and only the clean images seen. The module then says that it takes no views
    (``accepts_views`` is false), so that ``PRIMETransform`` gives it the single augmented view that the released code
    of both papers trains on without JSD. The defaults are PRIME's for CIFAR; beside them it clips gradients, to a norm
    of 0.5, which is the Trainer's ``gradient_clip_val``.

    Logs train/loss and train/acc (on the clean images, or those there are), and loss and acc for each of val and test.
    Dataloaders in a dict (Lightning 2) have its keys behind these names (test/acc/clean), and test prints a table of
    them. Samples that a DistributedSampler repeats are not counted.

    Args:
        net: the network, images [B, C, H, W] -> logits [B, num_classes]; or a name of ``pl_robust.models``, built for
            ``num_classes``; in YAML also any class_path.
        jsd_weight: weight of the divergence; 12 as published.
        num_classes: number of classes.
        optimizer: parameters -> optimizer; with the one-cycle schedule its learning rate is the peak.
        lr_scheduler: ``"one_cycle"`` (lr / 25 -> lr -> lr / 250,000 over the whole run, per step; a momentum goes
            0.95 -> 0.85 -> 0.95 meanwhile, whatever it was, as torch's defaults have it), ``"constant"``, or optimizer
            -> scheduler.
        lr_peak: where in the run the cycle has its peak, between 0 and 1.
        lr_scheduler_interval: whether a scheduler of yours steps per ``"epoch"`` or per ``"step"``.
        input_key: where a batch holds its inputs: position in tuples and lists, key in dicts.
        label_key: where a batch holds its labels.

    Attributes:
        accepts_views: whether ``PRIMETransform(views=3)`` shall give all its views.

    Raises:
        TypeError: if ``net`` is of another type; at the first batch, if its images are neither a tensor nor views.
        ValueError: if an argument is not among the allowed ones; at the first batch, if views differ in shape.
        MisconfigurationException: at the start of fit, if the one-cycle schedule meets a run without an end.
    """

    schedules: ClassVar = {"one_cycle": one_cycle}
    accepts_views: bool = True

    def __init__(
        self,
        net: nn.Module | str,
        *,
        jsd_weight: float = 12.0,
        num_classes: int = 10,
        optimizer: OptimizerCallable = published_sgd,
        lr_scheduler: Literal["one_cycle", "constant"] | LRSchedulerCallable = "one_cycle",
        lr_peak: float | str = 0.25,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        input_key: str | int = 0,
        label_key: str | int = 1,
    ) -> None:
        super().__init__(
            net,
            num_classes=num_classes,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_peak=lr_peak,
            lr_scheduler_interval=lr_scheduler_interval,
            input_key=input_key,
            label_key=label_key,
        )
        self.save_hyperparameters(ignore=unsavable(net=net, optimizer=optimizer, lr_scheduler=lr_scheduler))
        self.jsd_weight = parse_number(jsd_weight, "jsd_weight")
        if not 0 <= self.jsd_weight < math.inf:
            raise ValueError(f"`jsd_weight` must be finite and at least 0, got {jsd_weight!r}")
        self.accepts_views = self.jsd_weight > 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Give the cross-entropy on the images, and with views the weighted divergence."""
        views, y = split_views(batch, self.input_key, self.label_key)
        if len(views) == 1 or self.jsd_weight == 0:
            logits = self(views[0])
            loss = F.cross_entropy(logits, y)
        else:
            logits, *others = self(torch.cat(views)).chunk(len(views))
            loss = F.cross_entropy(logits, y) + self.jsd_weight * jsd_consistency(logits, *others)
        self.train_accuracy(logits, y)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(y))
        self.log("train/acc", self.train_accuracy, on_step=False, on_epoch=True, batch_size=len(y))
        return loss


def split_views(batch: Any, input_key: str | int, label_key: str | int) -> tuple[list[Tensor], Tensor]:
    """Take the views of the images and the labels out of a batch.

    Args:
        batch: as for ``split_batch``; or with a list or tuple of images of one shape, the clean ones first, in the
            images' place.
        input_key: where the images are.
        label_key: where the labels are.

    Returns:
        The views, a single one of plain images, and the labels.

    Raises:
        TypeError: if there is neither a tensor nor a list of tensors.
        ValueError: if the views differ in shape.
        KeyError: if the batch has no such key, position or field.
    """
    views: Any = None
    if input_key in (entry_keys(batch) or ()):
        is_indexed = isinstance(batch, Mapping | Sequence)
        views = batch[input_key] if is_indexed else getattr(batch, str(input_key))
    if not isinstance(views, list | tuple) or not views:
        x, y = split_batch(batch, input_key, label_key)
        return [x], y
    shapes = [list(view.shape) if isinstance(view, Tensor) else type(view).__name__ for view in views]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"views must be images of one shape, [clean, augmented, ...], got {shapes} in the batch's entry "
            f"{input_key!r} (`input_key`)"
        )
    _, y = split_batch(replace_entry(batch, input_key, views[0]), input_key, label_key)
    return list(views), y
