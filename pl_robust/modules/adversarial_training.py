"""Adversarial training: each batch is replaced by its adversarial twin before the usual training step."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import Optimizer

from pl_robust._batch import split_batch
from pl_robust._dataloaders import count_real, flatten_loaders, loader_names
from pl_robust._lightning import (
    LightningModule,
    LRSchedulerCallable,
    MisconfigurationException,
    OptimizerCallable,
    rank_zero_warn,
    unsavable,
)
from pl_robust._number import parse_number
from pl_robust.attacks import PGD, Attack
from pl_robust.losses import Regularizer
from pl_robust.modules._evaluation import Evaluation, find_masking, make_accuracy, summarize
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
    training attack, acc_<name> under each of ``eval_attacks``. Dataloaders in a dict (Lightning 2) have its keys behind
    these names (test/acc/clean), and test prints a table of them. Validation and test run in eval mode, with noise that
    depends on the batch only, so that two evaluations of one network agree; samples that a DistributedSampler repeats
    are not counted. Both work with the Trainer's defaults (inference mode on). A network whose gradients are masked
    draws a warning.

    Args:
        net: the network, images [B, C, H, W] -> logits [B, num_classes]; or a name of ``pl_robust.models``, built for
            ``num_classes``; in YAML also any class_path.
        attack: the training attack; its forwards run on the bare net, with batch-norm as its ``batch_norm`` says.
        eval_attacks: name -> attack for validation and test; None means ``{"pgd": PGD}`` with the training attack's
            ball and 10 steps.
        regularizer: how the training loss is made, ``GradAlign`` or ``TRADES`` for example; None means cross-entropy on
            the adversarial examples.
        num_classes: number of classes.
        optimizer: parameters -> optimizer; with the triangular schedule its learning rate is the peak.
        lr_scheduler: ``"triangular"`` (0 -> lr -> 0 over the whole run, per step), ``"constant"``, or optimizer ->
            scheduler.
        lr_peak: where in the run the triangle has its peak, between 0 and 1.
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
        regularizer: Regularizer | None = None,
        num_classes: int = 10,
        optimizer: OptimizerCallable = published_sgd,
        lr_scheduler: Literal["triangular", "constant"] | LRSchedulerCallable = "triangular",
        lr_peak: float | str = 0.5,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        input_key: str | int = 0,
        label_key: str | int = 1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(
            ignore=unsavable(
                net=net,
                attack=attack,
                eval_attacks=eval_attacks,
                regularizer=regularizer,
                optimizer=optimizer,
                lr_scheduler=lr_scheduler,
            )
        )
        if not isinstance(attack, Attack):
            raise TypeError(f"`attack` must be an attack such as FGSM(eps=8/255), got {attack!r}")
        if regularizer is not None and not isinstance(regularizer, Regularizer):
            raise TypeError(f"`regularizer` must be a regularizer such as GradAlign(), or None, got {regularizer!r}")
        if regularizer is not None:
            regularizer.check(attack)
        if not callable(lr_scheduler) and lr_scheduler not in ("triangular", "constant"):
            raise ValueError(
                f"`lr_scheduler` must be 'triangular', 'constant' or a callable optimizer -> scheduler, "
                f"got {lr_scheduler!r}"
            )
        if not 0 < parse_number(lr_peak, "lr_peak") < 1:
            raise ValueError(f"`lr_peak` must lie between 0 and 1, a share of the run, got {lr_peak!r}")
        if not callable(optimizer):
            raise TypeError(f"`optimizer` must be a callable parameters -> optimizer, got {optimizer!r}")
        if lr_scheduler_interval not in ("epoch", "step"):
            raise ValueError(f"`lr_scheduler_interval` must be 'epoch' or 'step', got {lr_scheduler_interval!r}")
        if num_classes < 2:
            raise ValueError(f"`num_classes` must be at least 2, got {num_classes}")
        self.net = resolve_net(net, num_classes)
        self.attack = attack
        self.regularizer = regularizer
        self.num_classes = num_classes
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_peak = parse_number(lr_peak, "lr_peak")
        self.lr_scheduler_interval = lr_scheduler_interval
        self.input_key = input_key
        self.label_key = label_key
        self.eval_attacks = _eval_attacks(eval_attacks, attack)
        self.train_accuracy = make_accuracy(num_classes)
        # One for each dataloader of a split, made when the split starts and its dataloaders are known.
        self.val_metrics = nn.ModuleList()
        self.test_metrics = nn.ModuleList()
        self._has_warned = False  # of masked gradients, in this fit

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B, num_classes] of images [B, C, H, W]."""
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Attack the batch and give the loss, on the adversarial examples or as the regularizer has it."""
        x, y = split_batch(batch, self.input_key, self.label_key)
        if self.regularizer is None:
            logits = self(self.attack(self.net, x, y))
            loss = F.cross_entropy(logits, y)
        else:
            loss, logits = self.regularizer(self.net, self.attack, x, y)
        self.train_accuracy(logits, y)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(y))
        self.log("train/acc_adv", self.train_accuracy, on_step=False, on_epoch=True, batch_size=len(y))
        return loss

    def on_fit_start(self) -> None:
        """Start a new run."""
        self._has_warned = False

    def on_validation_start(self) -> None:
        """Make the metrics of each validation dataloader."""
        self._start_evaluation("val")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluate clean and adversarial accuracy on a validation batch."""
        self._evaluate("val", batch, batch_idx, dataloader_idx)

    def on_validation_end(self) -> None:
        """Warn of masked gradients."""
        self._end_evaluation("val")

    def on_test_start(self) -> None:
        """Make the metrics of each test dataloader."""
        self._start_evaluation("test")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluate clean and adversarial accuracy on a test batch."""
        self._evaluate("test", batch, batch_idx, dataloader_idx)

    def on_test_end(self) -> None:
        """Warn of masked gradients."""
        self._end_evaluation("test")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Compute the logits of a batch: bare images, or a batch that holds them at ``input_key``."""
        logits: Tensor = self(batch if isinstance(batch, Tensor) else batch[self.input_key])
        return logits

    def _loaders(self, split: str) -> Any:
        return getattr(self.trainer, f"{split}_dataloaders")

    def _attacks(self) -> dict[str, Attack]:
        return {"adv": self.attack.for_evaluation(), **self.eval_attacks}

    def _start_evaluation(self, split: str) -> None:
        evaluations: Any = getattr(self, f"{split}_metrics")
        attacks = list(self._attacks())
        if any(evaluation.attacks != attacks for evaluation in evaluations):  # `eval_attacks` has been changed
            evaluations = nn.ModuleList()
            setattr(self, f"{split}_metrics", evaluations)
        while len(evaluations) < len(flatten_loaders(self._loaders(split))):
            evaluations.append(Evaluation(self.num_classes, attacks).to(self.device))
        for evaluation in evaluations:
            evaluation.counts.zero_()

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
                prog_bar=metric_name == "acc_pgd",
                batch_size=real,
                add_dataloader_idx=name is None,
                # Lightning looks metrics up by attribute once, maybe before this one was made.
                metric_attribute=f"{split}_metrics.{dataloader_idx}.metrics.{metric_name}",
            )

    def _end_evaluation(self, split: str) -> None:
        evaluations: Any = getattr(self, f"{split}_metrics")
        names = loader_names(self._loaders(split))
        logged = self.trainer.callback_metrics  # the same on every rank already
        table: dict[str, dict[str, float]] = {}
        has_warned = self._has_warned
        for index, name in enumerate(names):
            end = f"/{name}" if name is not None else f"/dataloader_idx_{index}" if len(names) > 1 else ""
            keys = {key: f"{split}/{key}{end}" for key in evaluations[index].metrics if key.startswith("acc")}
            accuracies = {key: float(logged[logged_as]) for key, logged_as in keys.items() if logged_as in logged}
            counts = self.trainer.strategy.reduce(evaluations[index].counts, reduce_op="sum")
            symptom = find_masking(self._attacks(), accuracies, counts)
            if symptom is not None and not self._has_warned and not self.trainer.sanity_checking:
                rank_zero_warn(f"{split}{end}: {symptom}")
                has_warned = self.trainer.state.fn == "fit"
            if name is not None and accuracies:
                table[name] = accuracies
        self._has_warned = has_warned
        if split == "test" and table:
            self.print(summarize(table))  # Lightning's own table cuts the names off

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
        triangular = LambdaLR(optimizer, partial(_triangle, steps=int(steps), peak=self.lr_peak))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": triangular, "interval": "step"}}


def _triangle(step: int, steps: int, peak: float) -> float:
    """Height at ``step`` of the triangle 0 -> 1 -> 0; its feet stand one step outside the run, where they cost none."""
    at = (step + 1) / (steps + 1)
    return max(0.0, 1 - abs(at / peak - 1 if at < peak else (at - peak) / (1 - peak)))


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
