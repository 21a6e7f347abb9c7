"""Classifying the nodes of a graph."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam

from pl_robust._lightning import (
    LightningModule,
    LRSchedulerCallable,
    MisconfigurationException,
    OptimizerCallable,
    rank_zero_warn,
    unsavable,
)
from pl_robust._number import check_count
from pl_robust.modules._evaluation import make_accuracy
from pl_robust.modules._node_batch import NodeBatchReader, Split, take_inputs
from pl_robust.modules._node_best import BestWeights
from pl_robust.modules._node_loss import MeanLoss

_STATE = "node_classification"


class NodeClassification(LightningModule):
    r"""Train a network to classify the nodes of a graph, from the labels of some of them.

    The loss is the cross-entropy of the nodes in the batch's ``train_mask``; features and edges of all nodes are seen,
    labels of the others are not. Batches are those of ``GraphDataModule``, or any ``torch_geometric.data.Data`` with x,
    edge_index, y, the masks and, if there are weights, edge_weight. In a batch with ``batch_size``, as PyG's
    NeighborLoader samples them, the first ``batch_size`` nodes stand in place of the masks'.

    By default a network is trained by Adam as published for it, with weight decay (an L2 term in the gradient) where it
    was published: networks of ``pl_robust.models`` say so in ``learning_rate``, ``weight_decay`` and
    ``decayed_parameters()``, which may be given to a network of your own. One that has none of them is trained as GCN
    is, learning rate 0.01 and weight decay 5e-4, on all parameters of two dimensions or more.

    Training stops once the loss on the validation nodes has not fallen for ``patience`` steps, and the weights of the
    lowest one are put back when fit ends. They are kept in memory, so that validating often costs no file. A checkpoint
    holds them too, for a resumed fit, beside those of its own step, which ``load_from_checkpoint`` gives: the best are
    in the file of ``ModelCheckpoint(monitor="val/objective")``. What is watched is val/objective, the loss with the L2
    term, as published. Validation is where the Trainer has it, at the end of each epoch; ``GraphDataModule`` makes one
    of ``steps_per_epoch`` steps, which spares most of what Lightning does at an epoch's ends. With ``patience=None``
    training goes on to the Trainer's end, for EarlyStopping and ModelCheckpoint with ``val/acc``, say; the last weights
    remain.

    Logs train/loss (of the whole graph at an epoch's last step), val/loss, val/objective, val/acc, test/loss and
    test/acc; ``predict`` gives the logits of all nodes, [N, C]. Under DDP all processes train on the same whole graph,
    which gains nothing: use it with sampled batches.

    Args:
        net: ``net(x [N, D], edge_index [2, E], edge_weight [E] or None)`` -> logits [N, C].
        num_classes: C.
        optimizer: parameter groups -> optimizer; its weight decay goes where the network has it decayed. ``None``: Adam
            as published for the network.
        lr_scheduler: ``"constant"``, or optimizer -> scheduler.
        lr_scheduler_interval: whether a scheduler of yours steps per ``"epoch"`` or per ``"step"``.
        patience: in training steps, 50 as by Vignac, Ortiz-Jimenez, Frossard, "On the choice of graph neural network
            architectures" (ICASSP 2020, https://arxiv.org/abs/1911.05384); ``None``: no end, no best weights.

    Raises:
        TypeError: if an argument is of another type; at the first batch, if it is of another kind.
        ValueError: if an argument is not among the allowed ones, or nothing in ``net`` is to be trained; at the first
            batch, if something is missing, no node is to be trained on, a label is no class, or logits have another
            shape; at a validation, if its loss is NaN or infinite before there are weights to go back to.
        MisconfigurationException: at the start of fit, if there is patience and no validation.

    Example:
        >>> from pl_robust.models import SGC
        >>> module = NodeClassification(SGC(in_features=5, out_features=3), num_classes=3)
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        num_classes: int,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: Literal["constant"] | LRSchedulerCallable = "constant",
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        patience: int | None = 50,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=unsavable(net=net, optimizer=optimizer, lr_scheduler=lr_scheduler))
        if not isinstance(net, nn.Module):
            raise TypeError(f"`net` must be an nn.Module, graph -> logits, got {type(net).__name__}")
        check_count(num_classes, "num_classes", least=2)
        if optimizer is not None and not callable(optimizer):
            raise TypeError(f"`optimizer` must be a callable parameters -> optimizer, or None, got {optimizer!r}")
        if not callable(lr_scheduler) and lr_scheduler != "constant":
            raise ValueError(
                f"`lr_scheduler` must be 'constant' or a callable optimizer -> scheduler, got {lr_scheduler!r}"
            )
        if lr_scheduler_interval not in ("epoch", "step"):
            raise ValueError(f"`lr_scheduler_interval` must be 'epoch' or 'step', got {lr_scheduler_interval!r}")
        if patience is not None:
            check_count(patience, "patience")
        if not any(parameter.requires_grad for parameter in net.parameters()):
            raise ValueError("`net` must have a parameter that requires grad, got none: unfreeze what is to be trained")
        classes = getattr(net, "out_features", num_classes)
        if isinstance(classes, int) and classes != num_classes:
            raise ValueError(f"`net` must have an output for each of {num_classes} classes, got out_features={classes}")
        self.net = net
        self.num_classes = num_classes
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.patience = patience
        self.val_loss, self.test_loss = MeanLoss(), MeanLoss()
        self.val_accuracy, self.test_accuracy = make_accuracy(num_classes), make_accuracy(num_classes)
        self._reader = NodeBatchReader(num_classes)
        self._best: BestWeights | None = None
        self._has_warned = False

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Compute the logits [N, C] of a graph with features x [N, D]."""
        logits: Tensor = self.net(x, edge_index, edge_weight)
        return logits

    def setup(self, stage: str) -> None:
        """Forget the best weights of an earlier fit."""
        if stage == "fit":
            self._best = None if self.patience is None else BestWeights(self.patience)

    def on_train_start(self) -> None:
        """Refuse to wait for a validation that does not come."""
        if self._best is not None and not sum(self.trainer.num_val_batches):
            raise MisconfigurationException(
                f"patience={self.patience} watches the loss on validation nodes, and there is no validation: raise the "
                "data's `val_fraction`, or the Trainer's `limit_val_batches`, or set patience=None"
            )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Give the cross-entropy of the training nodes."""
        loss = F.cross_entropy(*self._answer("train", batch))
        is_sampled = "batch_size" in batch
        # Of the whole graph not at each step: for a small network logging costs as much as the step.
        if is_sampled or self.trainer.is_last_batch:
            self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True, batch_size=1)
        if not self._has_warned and self.trainer.world_size > 1 and not is_sampled:
            self._has_warned = True
            rank_zero_warn(
                f"each of the {self.trainer.world_size} processes trains on the whole graph: they do the same, and one "
                "device gives the same result as fast; processes share the work with sampled batches (`neighbors`)"
            )
        return loss

    def on_validation_start(self) -> None:
        """Begin the metrics anew."""
        self._reset("val")

    def on_test_start(self) -> None:
        """Begin the metrics anew."""
        self._reset("test")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate the network on the validation nodes."""
        self._evaluate("val", batch)

    def on_validation_epoch_end(self) -> None:
        """Keep the best weights; stop when patience has run out."""
        if self.trainer.sanity_checking or self.trainer.state.fn != "fit":
            return
        objective = self.val_loss.compute() + self._penalty()
        self.log("val/objective", objective, sync_dist=True, batch_size=1)
        if self._best is None:
            return
        loss = float(objective)
        if not math.isfinite(loss) and self._best.loss == math.inf:
            raise ValueError(
                f"the loss on the validation nodes is {loss} after {self.trainer.global_step} steps: look for NaN "
                "and huge numbers in the features, or lower the learning rate"
            )
        # The same on all ranks: each has the reduced loss and the same weights.
        if self._best.note(loss, self.trainer.global_step, self.net):
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        """Put the best weights back."""
        if self._best is not None:
            self._best.put_back(self.net)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate the network on the test nodes."""
        self._evaluate("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the logits of all nodes of a graph, or of those that a batch was sampled around."""
        logits: Tensor = self(*take_inputs(batch))
        return logits[: batch.batch_size] if "batch_size" in batch else logits

    def configure_optimizers(self) -> Any:
        """Build the optimizer and its schedule."""
        decayed, others = self._split_parameters()
        groups: list[dict[str, Any]] = [{"params": decayed}] if decayed else []
        groups += [{"params": others, "weight_decay": 0.0}] if others else []
        if self.optimizer is not None:
            optimizer = self.optimizer(groups)
        else:
            rate, decay = getattr(self.net, "learning_rate", 0.01), getattr(self.net, "weight_decay", 5e-4)
            optimizer = Adam(groups, lr=rate, weight_decay=decay)
        if not callable(self.lr_scheduler):
            return optimizer
        schedule = {"scheduler": self.lr_scheduler(optimizer), "interval": self.lr_scheduler_interval}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the best weights so far."""
        if self._best is not None:
            checkpoint[_STATE] = self._best.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from the best weights so far."""
        if self._best is not None and _STATE in checkpoint:
            self._best.load_state_dict(checkpoint[_STATE])

    def _split_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters to train: those with weight decay, and the others."""
        find = getattr(self.net, "decayed_parameters", None)
        parameters = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        chosen = {id(parameter) for parameter in (find() if find else parameters) if find or parameter.ndim > 1}
        return (
            [parameter for parameter in parameters if id(parameter) in chosen],
            [parameter for parameter in parameters if id(parameter) not in chosen],
        )

    def _penalty(self) -> Tensor | float:
        """The L2 term whose gradient the optimizer adds to the loss's, if its weight decay is one."""
        (optimizer,) = self.trainer.optimizers
        if not isinstance(optimizer, Adam | SGD) or optimizer.defaults.get("decoupled_weight_decay"):
            return 0.0
        total: Tensor | float = 0.0
        for group in optimizer.param_groups:
            if group["weight_decay"]:
                squares = sum(parameter.detach().square().sum() for parameter in group["params"])
                total = total + 0.5 * group["weight_decay"] * squares
        return total

    def _reset(self, split: Split) -> None:
        # Validation by itself is in inference mode, that of a fit is not, and could not write into tensors made there.
        with torch.inference_mode(False):
            getattr(self, f"{split}_loss").reset()
            getattr(self, f"{split}_accuracy").reset()

    def _answer(self, split: Split, batch: Any) -> tuple[Tensor, Tensor]:
        """Compute the logits of a split's nodes [M, C], in float32 at least; give them with the labels [M]."""
        inputs, nodes, y = self._reader.read(batch, split)
        logits: Tensor = self(*inputs)
        if list(logits.shape) != [len(batch.x), self.num_classes]:
            raise ValueError(
                f"the net must give logits [{len(batch.x)}, {self.num_classes}], for each node and class "
                f"(`num_classes`), got {list(logits.shape)}"
            )
        return logits[nodes].to(torch.promote_types(logits.dtype, torch.float32)), y

    def _evaluate(self, split: Split, batch: Any) -> None:
        logits, y = self._answer(split, batch)
        loss, accuracy = getattr(self, f"{split}_loss"), getattr(self, f"{split}_accuracy")
        loss.update(F.cross_entropy(logits, y, reduction="sum"), len(y))
        accuracy.update(logits, y)
        self.log(f"{split}/loss", loss, batch_size=len(y))
        self.log(f"{split}/acc", accuracy, prog_bar=True, batch_size=len(y))
