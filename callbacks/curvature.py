"""Follow how strongly the loss bends around the samples while a network trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pl_robust._lightning import LightningModule, Trainer
from pl_robust._number import check_count
from pl_robust._probe import probe
from pl_robust.attacks._target import Normalization, under_attack
from pl_robust.attacks._threat_model import Norm, Radius
from pl_robust.callbacks._neighborhood import Neighborhood, given_neighborhood, plain_eps, training_neighborhood
from pl_robust.callbacks._observer import ProbeObserver, time_axis
from pl_robust.losses.input_curvature import input_hessian_eigenvalues
from pl_robust.losses.local_linearity import local_linearity_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class CurvatureLogger(ProbeObserver):
    """Log the curvature of the loss in the input, and its distance from linear in the eps-ball.

    Single-step attacks take the loss for linear in the ball. Where catastrophic overfitting sets in, it is not any
    more: both figures jump (Andriushchenko & Flammarion 2020; Ortiz-Jimenez et al. 2023). Drop it into any Trainer
    whose module's ``forward(x)`` gives logits [B, K] and whose batches hold (x, y). On a fixed probe set, in eval mode,
    it measures after every n epochs or steps the cross-entropy's

    * ``curvature/eigenvalue_1`` … ``eigenvalue_k``: the largest eigenvalues of each sample's input Hessian, mean over
      samples, in units of the loss per squared input unit (``input_hessian_eigenvalues``);
    * ``curvature/linearity_error``: the largest distance of the loss from its linear approximation at x in the
      eps-ball, mean over samples (``local_linearity_error``; Qin et al. 2019).

    Derivatives are taken outside the Trainer's autocast, in the module's own precision. At the end of fit the figures
    are drawn, to the loggers and as PNG into the run's folder.

    It only looks: weights, buffers, gradients, optimizer and random numbers are bit for bit as without it. All ranks
    share the work and log the same numbers; the history survives a resume; several can live in one Trainer (the second
    of the same ``prefix`` logs under ``curvature_2/``; those that differ in ``probe_data`` only need a ``prefix`` of
    their own). It logs at the end of the training epoch, after validation: see ``CatastrophicOverfittingDetector`` for
    a ModelCheckpoint that monitors one of its values.

    Args:
        eps: radius of the ball in input units, 8/255 for images in [0, 1]; a float, ``"8/255"``, or one number per
            channel. None means eps, norm, bounds and normalization of the module's training attack, its attribute
            ``attack``, as it is when fit starts.
        k: number of eigenvalues.
        iterations: Lanczos iterations, at least k, each one double backward: see ``input_hessian_eigenvalues`` for how
            many are enough.
        norm: ``"linf"`` or ``"l2"``.
        bounds: lowest and highest valid input value, or None for data that may leave [0, 1].
        normalization: (mean, std) per channel of data that is normalized before it reaches the module; eigenvalues are
            then those in images before.
        every_n_epochs: check at the end of every n-th training epoch.
        every_n_steps: check after every n-th optimizer step instead.
        max_samples: size of the probe set: the first samples of the first validation dataloader, in the order of its
            sampler. Iterable data is not read ahead: its samples are those of the first validation, and checks begin
            after it.
        probe_data: (x, y) to look at instead: inputs [N, ...] as the module takes them, and labels [N].
        input_key: where a batch holds its inputs: position in tuples and lists, key in dicts.
        label_key: where a batch holds its labels.
        prefix: first part of the logged names.

    Raises:
        ValueError: at construction, for a value that is not allowed; at the start of fit, for samples that are not, or
            more eigenvalues than an input has entries.
        TypeError: at construction, for an argument of another type.
        MisconfigurationException: at the start of fit, if the strategy splits parameters, there is no validation data,
            or there is neither an ``eps`` nor a training attack.
    """

    _around: Neighborhood  # known when fit starts

    def __init__(
        self,
        eps: Radius | None = None,
        *,
        k: int = 1,
        iterations: int = 10,
        norm: Norm = "linf",
        bounds: tuple[float, float] | None = (0.0, 1.0),
        normalization: Normalization | None = None,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        max_samples: int = 64,
        probe_data: tuple[Tensor, Tensor] | None = None,
        input_key: str | int = 0,
        label_key: str | int = 1,
        prefix: str = "curvature",
    ) -> None:
        super().__init__(
            every_n_epochs=every_n_epochs,
            every_n_steps=every_n_steps,
            max_samples=max_samples,
            probe_data=probe_data,
            input_key=input_key,
            label_key=label_key,
            prefix=prefix,
        )
        self._given = given_neighborhood(eps, norm, bounds, normalization)
        check_count(k, "k")
        check_count(iterations, "iterations")
        if iterations < k:
            raise ValueError(f"`iterations` must be at least `k`={k}, one for each eigenvalue, got {iterations}")
        self.k = k
        self.iterations = iterations

    @property
    def state_key(self) -> str:
        """Tell loggers apart by what they measure and how they log it; the same before fit, in it and after."""
        ball = None if self._given is None else self._given.ball
        return self._generate_state_key(
            eps=plain_eps(self._given),
            k=self.k,
            iterations=self.iterations,
            norm=None if ball is None else ball.norm,
            bounds=None if ball is None else ball.bounds,
            normalization=repr(None if self._given is None else self._given.normalization),
            every_n_epochs=self.every_n_epochs,
            every_n_steps=self.every_n_steps,
            max_samples=self.max_samples,
            keys=[self.input_key, self.label_key],
            prefix=self.prefix,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the strategy can be watched, and take the training attack's ball if none was given."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._around = self._given or training_neighborhood(pl_module, type(self).__name__)

    def _inspect(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with probe(pl_module):
            for _, x, y in self._probe_set.mine:
                x, y = x.to(pl_module.device), y.to(pl_module.device)
                with (
                    under_attack(
                        pl_module,
                        x,
                        y,
                        bounds=self._around.ball.bounds,
                        loss=None,
                        normalization=self._around.normalization,
                        batch_norm="train",  # moot: the probe runs in eval mode
                        check=True,
                    ) as target,
                    torch.no_grad(),
                ):
                    target.evaluate(target.x)
                # One sample tells whether the network has a second derivative, and the input k eigenvalues.
                self._eigenvalues(pl_module, x[:1], y[:1], self.k, torch.Generator(x.device))

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        table = torch.zeros(self._probe_set.chunks, self.k + 2, device=pl_module.device)
        with probe(pl_module):
            for index, x, y in self._probe_set.mine:
                table[index] = self._measure_chunk(pl_module, x, y, index)
            # Each rank has filled in its own chunks: adding zeros to them is exact, and what follows has one order.
            table = trainer.strategy.reduce(table, reduce_op="sum")
        samples, error, *eigenvalues = table.cpu().double().sum(0).tolist()
        means = {f"eigenvalue_{number}": value / samples for number, value in enumerate(eigenvalues, start=1)}
        return {**means, "linearity_error": error / samples}

    def _measure_chunk(self, module: LightningModule, x: Tensor, y: Tensor, index: int) -> Tensor:
        """Count the samples, add up their linearity errors and their eigenvalues: [2 + k]."""
        x, y = x.to(module.device), y.to(module.device)
        generator = torch.Generator(x.device)
        generator.manual_seed(index)
        eigenvalues = self._eigenvalues(module, x, y, self.iterations, generator)
        errors = local_linearity_error(
            module,
            x,
            y,
            eps=self._around.ball.eps,
            norm=self._around.ball.norm,
            bounds=self._around.ball.bounds,
            normalization=self._around.normalization,
            generator=generator,
            check=False,  # looked at when fit started
        )
        count = torch.full_like(errors[:1], len(y))
        return torch.cat([count, errors.sum(0, keepdim=True), eigenvalues.sum(0)])

    def _eigenvalues(
        self, module: LightningModule, x: Tensor, y: Tensor, iterations: int, generator: torch.Generator
    ) -> Tensor:
        return input_hessian_eigenvalues(
            module,
            x,
            y,
            k=self.k,
            iterations=iterations,
            bounds=self._around.ball.bounds,
            normalization=self._around.normalization,
            generator=generator,
            check=False,  # looked at when fit started
        )

    def _draw(self) -> Figure:
        from matplotlib.figure import Figure  # late: only rank zero draws, once

        axis = time_axis(self.history)
        at = [row[axis] for row in self.history]
        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        above, below = figure.subplots(2, sharex=True)
        for number in range(1, self.k + 1):
            above.plot(
                at, [row[f"eigenvalue_{number}"] for row in self.history], marker=".", label=f"eigenvalue {number}"
            )
        below.plot(at, [row["linearity_error"] for row in self.history], marker=".", color="tab:gray")
        for axes in (above, below):
            if any(value > 0 for line in axes.get_lines() for value in line.get_ydata()):
                axes.set_yscale("log")  # of no positive value there is no logarithm
        above.set(ylabel="input Hessian", title=f"{self._logged_as}: curvature of the loss over training")
        above.legend(fontsize="small")
        below.set(xlabel=axis, ylabel="linearity error")
        return figure

    def _summarize(self) -> str:
        lines = [f"{self._logged_as + ' check':<24}{'eigenvalue_1':>16}{'linearity_error':>18}"]
        highest = max(self.history, key=lambda row: row["eigenvalue_1"])
        for label, row in (("first", self.history[0]), ("highest", highest), ("last", self.history[-1])):
            where = f"{label}, epoch {row['epoch']:.0f}"
            lines.append(f"{where:<24}{row['eigenvalue_1']:>16.4g}{row['linearity_error']:>18.4g}")
        return "\n".join(lines)
