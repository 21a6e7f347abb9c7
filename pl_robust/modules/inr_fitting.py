"""Fitting signals by networks on their coordinates: implicit neural representations."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.optimizer import Optimizer

from pl_robust._lightning import LRSchedulerCallable, MisconfigurationException, OptimizerCallable, unsavable
from pl_robust._number import check_count, parse_number
from pl_robust.modules._divergence import DivergenceWatch
from pl_robust.modules._net_group import NetGroup, clip_each_norm
from pl_robust.modules._part_by_part import mean_squared_errors
from pl_robust.modules._schedules import cosine
from pl_robust.modules._signal_batch import check_range, split_signals
from pl_robust.modules._signal_evaluation import SignalEvaluation
from pl_robust.modules._signal_psnr import psnr


def published_adam(parameters: Any) -> Optimizer:
    """Adam as published: learning rate 1e-4, nothing else."""
    return Adam(parameters, lr=1e-4)


_HINT = (
    "start again with a lower `lr` of the `optimizer` (1e-4 is published), clip gradients with the Trainer's "
    "`gradient_clip_val`, use precision '32-true' or 'bf16-mixed' instead of '16-true', or look for NaN in the signal "
    "and the net's initialization"
)


class INRFitting(SignalEvaluation):
    r"""Fit a network to a signal, :math:`\frac{1}{2}` mean squared error, full batch or random points.

    The defaults are those of Yüce, Ortiz-Jimenez, Besbinar, Frossard, "A structured dictionary perspective on implicit
    neural representations" (CVPR 2022, https://arxiv.org/abs/2112.01917): Adam 1e-4, held constant, for 2,000 steps.
    Faster for networks that can hold the whole signal: ``torch.optim.Adam`` with lr 1e-3. On a 64x64 picture, a SIREN
    of three hidden layers of 256 is at 61 dB after 100 steps of it, and at 32 dB with 1e-4; points held out, or noise,
    are another question.

    With ``num_signals=S`` it fits S independent networks at once, to signals with the same coordinates: each is trained
    as it would be alone. The loss is the sum over signals, and clipping by norm takes the norm of each network. The
    parameters are stacked, [S, ...], under the network's names in ``net.stacked``. Optimizers that look at a parameter
    elementwise (SGD, Adam, ...) treat the networks independently, others (LBFGS, LARS, Muon) may not. It pays for
    small networks on few points; where one network's activations fill the cache they run one after another.

    Batches are ``(coordinates [N, d], values [N, c])``, or of S signals ``values [S, N, c]``, such as those of
    ``SignalDataModule``. Logs train/loss (with several signals the mean over them) and train/psnr of the step, every
    ``log_every_n_steps`` of the Trainer and at an epoch's end, and val/psnr and test/psnr over all points; in dB, the
    mean of the signals' own. Dataloaders in a dict (Lightning 2) have its keys behind these names; points that a
    DistributedSampler repeats are not counted. ``predict`` and ``reconstruct`` give values, [N, c] or [S, N, c]. A loss
    that is NaN or infinite stops the run, by the next logged step.

    In mixed precision keep the first layer in float32, as the networks of ``pl_robust.models`` do by themselves: in
    bfloat16 neighbouring coordinates become one. Under DDP gradients are averaged over the ranks' points.

    Args:
        net: coordinates [N, d] -> values [N, c], trained itself; for S > 1 the architecture, which is copied.
        num_signals: S. Each network starts with a draw of its own from ``net.reset_parameters()``.
        shared_init: start all S networks with the values that ``net`` has, such as meta-learned ones.
        signals_at_once: networks in one pass; ``None``: as fits a CPU's cache, or a GPU's memory; all of them in a
            module that is compiled.
        optimizer: parameters -> optimizer.
        lr_scheduler: ``"constant"``, ``"cosine"`` (lr -> 0 over the whole run, per step), or optimizer -> scheduler.
        lr_scheduler_interval: whether a scheduler of yours steps per ``"epoch"`` or per ``"step"``.
        data_range: peak of the PSNR, highest less lowest possible value; ``None``: the datamodule's ``data_range``, as
            ``SignalDataModule`` has it (1 for images in [0, 1], 2 for sounds in [-1, 1]), else 1.

    Raises:
        TypeError: if an argument is of another type; at the first batch, if it is no such pair of floating point.
        ValueError: if an argument is not among the allowed ones, ``net`` cannot be drawn anew for S > 1 or nothing in
            it is to be trained; at the first batch, if its shapes do not fit net and ``num_signals`` or its coordinates
            leave [-1, 1]; while training, if the loss is NaN or infinite.
        MisconfigurationException: at the start of a run, if the datamodule has another ``data_range``, or the cosine
            schedule meets a run without an end; at the first step, if 16-mixed precision meets networks in several
            passes.

    Example:
        >>> from pl_robust.models import SIREN
        >>> module = INRFitting(SIREN(out_features=3, hidden_features=32), num_signals=4)
        >>> module.reconstruct(torch.zeros(10, 2)).shape
        torch.Size([4, 10, 3])
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        num_signals: int = 1,
        shared_init: bool = False,
        signals_at_once: int | None = None,
        optimizer: OptimizerCallable = published_adam,
        lr_scheduler: Literal["constant", "cosine"] | LRSchedulerCallable = "constant",
        lr_scheduler_interval: Literal["epoch", "step"] = "step",
        data_range: float | str | None = None,
    ) -> None:
        peak = None if data_range is None else parse_number(data_range, "data_range")
        if peak is not None and not 0 < peak < math.inf:
            raise ValueError(f"`data_range` must be positive and finite, got {data_range!r}")
        check_count(num_signals, "num_signals")
        super().__init__(num_signals, peak)
        self.save_hyperparameters(ignore=unsavable(net=net, optimizer=optimizer, lr_scheduler=lr_scheduler))
        if not isinstance(net, nn.Module):
            raise TypeError(f"`net` must be an nn.Module, coordinates -> values, got {type(net).__name__}")
        if signals_at_once is not None:
            check_count(signals_at_once, "signals_at_once")
        if not isinstance(shared_init, bool):
            raise TypeError(f"`shared_init` must be true or false, got {shared_init!r}")
        if not callable(optimizer):
            raise TypeError(f"`optimizer` must be a callable parameters -> optimizer, got {optimizer!r}")
        if not callable(lr_scheduler) and lr_scheduler not in ("constant", "cosine"):
            raise ValueError(
                "`lr_scheduler` must be 'constant', 'cosine' or a callable optimizer -> scheduler, got "
                f"{lr_scheduler!r}"
            )
        if lr_scheduler_interval not in ("epoch", "step"):
            raise ValueError(f"`lr_scheduler_interval` must be 'epoch' or 'step', got {lr_scheduler_interval!r}")
        if not any(parameter.requires_grad for parameter in net.parameters()):
            raise ValueError("`net` must have a parameter that requires grad, got none: unfreeze what is to be fitted")
        self.net = net if num_signals == 1 else NetGroup(net, num_signals, shared_init, signals_at_once)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self._watch = DivergenceWatch(_HINT)
        self._has_begun = False

    def forward(self, coordinates: Tensor) -> Tensor:
        """Map coordinates [N, d] to values [N, c], of several signals [S, N, c]."""
        values: Tensor = self.net(coordinates)
        return values

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Give half the mean squared error, summed over the signals."""
        coordinates, values = split_signals(batch, self.num_signals)
        if not self._has_begun:
            check_range(coordinates)
            self._has_begun = True
        errors = self._errors(coordinates, values)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self._watch.note(errors, self.trainer.global_step, rate)
        # Not at steps that no logger takes: for a small network logging costs as much as the step.
        if self._is_logged(batch_idx):
            self.log("train/loss", 0.5 * errors.detach().mean(), batch_size=len(coordinates))
            self.log("train/psnr", psnr(errors, self.data_range), prog_bar=True, batch_size=len(coordinates))
        return 0.5 * errors.sum()

    def on_train_start(self) -> None:
        """Begin to watch the loss."""
        self._watch = DivergenceWatch(_HINT)
        self._has_begun = False

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop a run that has diverged."""
        self._watch.check_at_log_steps(self.trainer)

    def on_train_epoch_end(self) -> None:
        """Stop a run that has diverged."""
        self._watch.check(self.trainer.strategy)

    @torch.no_grad()
    def reconstruct(self, coordinates: Tensor, points: int = 65536) -> Tensor:
        """Evaluate the networks in eval mode, in the precision of their parameters, without a gradient.

        Args:
            coordinates: [N, d], on any device.
            points: how many network evaluations at a time, of all S together.

        Returns:
            Values [N, c], of several signals [S, N, c], on the module's device.

        Raises:
            ValueError: if ``coordinates`` are not [N, d] or ``points`` is not positive.
        """
        check_count(points, "points")
        if coordinates.ndim != 2:
            raise ValueError(f"`coordinates` must be [N, d], got {list(coordinates.shape)}")
        template = self._group.template.modules() if self.num_signals > 1 else ()
        flags = [(part, part.training) for part in (*self.net.modules(), *template)]
        self.net.eval()
        try:
            pieces = torch.split(coordinates.to(self.device), max(1, points // self.num_signals))
            return torch.cat([self(piece) for piece in pieces], dim=-2)
        finally:
            for part, training in flags:
                part.training = training

    def net_of(self, index: int) -> nn.Module:
        """A copy of one signal's network, as a plain module.

        Args:
            index: of the signal, from 0.

        Raises:
            IndexError: if there is no such signal.
        """
        if not 0 <= index < self.num_signals:
            raise IndexError(f"`index` must be one of the {self.num_signals} signals, from 0, got {index}")
        return self._group.net_of(index) if self.num_signals > 1 else copy.deepcopy(self.net)

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
                "lr_scheduler='cosine' needs to know where the run ends: set the Trainer's `max_epochs` "
                "or `max_steps`, or take lr_scheduler='constant'"
            )
        scheduler = cosine(optimizer, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(  # Lightning gives all but the optimizer by name
        self,
        optimizer: Optimizer,
        *_: Any,  # its number, in Lightning 1.9
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm each network's gradient by itself; by value as usual."""
        if self.num_signals == 1 or not gradient_clip_val or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        clip_each_norm(self.parameters(), gradient_clip_val)

    @property
    def _group(self) -> NetGroup:
        return cast(NetGroup, self.net)

    def _is_logged(self, batch_idx: int) -> bool:
        """Tell whether this step's numbers are asked for: every ``log_every_n_steps``, and at an end."""
        every, step = self.trainer.log_every_n_steps, self.trainer.global_step + 1  # type: ignore[attr-defined]
        ends = batch_idx + 1 == self.trainer.num_training_batches or step == self.trainer.max_steps
        return ends or bool(every and step % every == 0)

    def _errors(self, coordinates: Tensor, values: Tensor) -> Tensor:
        """Mean squared error of each signal, [S]."""
        if self.num_signals == 1:
            return mean_squared_errors(self(coordinates), values)[None]
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None and self._group.passes(coordinates) > 1:
            raise MisconfigurationException(
                "precision 16-mixed scales the loss, which networks in several passes do not see: use bf16-mixed, or "
                f"set signals_at_once={self.num_signals}"
            )
        return self._group.errors(coordinates, values)
