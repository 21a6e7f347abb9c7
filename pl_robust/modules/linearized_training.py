"""Training a network or its linearization, on the same data with the same recipe."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.optimizer import Optimizer

from pl_robust._batch import split_batch
from pl_robust._lightning import LRSchedulerCallable, OptimizerCallable, unsavable
from pl_robust.modules._classifier import Classifier
from pl_robust.modules._schedules import linear
from pl_robust.ntk import linearize


def published_sgd(parameters: Any) -> Optimizer:
    """SGD as for the published comparisons: learning rate 0.05, momentum 0.9, no weight decay."""
    return SGD(parameters, lr=0.05, momentum=0.9)


class LinearizedTraining(Classifier):
    r"""Train a network, or its linearization, with cross-entropy (Ortiz-Jimenez, Moosavi-Dezfooli, Frossard 2021).

    What regression with a network's tangent kernel can learn of a task, and what the network can: run it twice from one
    initialization, with ``linearized`` true and false. The defaults are those of the paper's code, which trains for 100
    epochs on batches of 128, on data standardized per channel. Its binary tasks have nets of one output and the binary
    cross-entropy, which is ``LinearizedTraining(BinaryLogits(net), num_classes=2)`` here.

    A linearization is of the network in eval mode, around the values that its parameters have when it is given; only
    the displacement from these is trained. So a trained network, such as ``net`` of an earlier run with
    ``linearized=False``, gives the kernel after training in place of that at initialization. ``centered=True`` leaves
    its own answers out of that comparison, as published; the paper's code also resets its batch-norm statistics.

    Logs train/loss, train/acc, and loss and acc for each of val and test. Dataloaders in a dict (Lightning 2) have its
    keys behind these names (test/acc/clean), and test prints a table of them. Samples that a DistributedSampler repeats
    are not counted. A checkpoint holds the point of linearization, too: ``load_from_checkpoint(path, net=net)`` takes a
    net of the same architecture, however initialized.

    Args:
        net: the network, inputs [B, ...] -> logits [B, num_classes]; or a name of ``pl_robust.models``, built for
            ``num_classes``; in YAML also any class_path. It is trained itself, or copied to be linearized.
        linearized: whether to train the linearization.
        centered: whether the linearization leaves out the network's own outputs, so that it is zero at first.
        num_classes: number of classes.
        optimizer: parameters -> optimizer.
        lr_scheduler: ``"linear"`` (lr -> 0 over the whole run, per step), ``"constant"``, or optimizer -> scheduler.
        lr_scheduler_interval: whether a scheduler of yours steps per ``"epoch"`` or per ``"step"``.
        input_key: where a batch holds its inputs: position in tuples and lists, key in dicts.
        label_key: where a batch holds its labels.

    Attributes:
        net: what is trained, the given network or its ``LinearizedModel``.

    Raises:
        TypeError: if ``net`` or a flag is of another type.
        ValueError: if an argument is not among the allowed ones, if a network that is not linearized shall be centered,
            or no parameter requires grad; at the first training batch, if the logits have another shape.
        MisconfigurationException: at the start of fit, if the linear schedule meets a run without an end.
    """

    schedules: ClassVar = {"linear": linear}

    def __init__(
        self,
        net: nn.Module | str,
        *,
        linearized: bool = True,
        centered: bool = False,
        num_classes: int = 10,
        optimizer: OptimizerCallable = published_sgd,
        lr_scheduler: Literal["linear", "constant"] | LRSchedulerCallable = "linear",
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        input_key: str | int = 0,
        label_key: str | int = 1,
    ) -> None:
        super().__init__(
            net,
            num_classes=num_classes,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_peak=0.5,  # which a line has not
            lr_scheduler_interval=lr_scheduler_interval,
            input_key=input_key,
            label_key=label_key,
        )
        self.save_hyperparameters(ignore=unsavable(net=net, optimizer=optimizer, lr_scheduler=lr_scheduler))
        for name, flag in (("linearized", linearized), ("centered", centered)):
            if not isinstance(flag, bool):
                raise TypeError(f"`{name}` must be true or false, got {flag!r}")
        if centered and not linearized:
            raise ValueError(
                "`centered` must be false for a network that is not linearized, got centered=True with linearized=False"
            )
        self.linearized = linearized
        if linearized:
            self.net = linearize(self.net, centered=centered)
        elif not any(parameter.requires_grad for parameter in self.net.parameters()):
            raise ValueError(
                "`net` must have parameters with requires_grad=True to be trained, got none: unfreeze some"
            )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Give the cross-entropy of the batch."""
        x, y = split_batch(batch, self.input_key, self.label_key)
        logits = self(x)
        if list(logits.shape) != [len(y), self.num_classes]:
            raise ValueError(
                f"the net must give logits [{len(y)}, {self.num_classes}] (`num_classes`), got {list(logits.shape)}; "
                "one of a single output for two classes goes into BinaryLogits"
            )
        loss = F.cross_entropy(logits, y)
        self.train_accuracy(logits, y)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(y))
        self.log("train/acc", self.train_accuracy, on_step=False, on_epoch=True, batch_size=len(y))
        return loss
