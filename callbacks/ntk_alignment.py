"""Follow how the network's tangent kernel turns towards the labels while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import nan
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from pl_robust._lightning import LightningModule, Trainer
from pl_robust._number import check_count
from pl_robust._probe import probe
from pl_robust.callbacks._float32_view import Float32View, is_half
from pl_robust.callbacks._kernel_share import KernelShare, take_share
from pl_robust.callbacks._ntk_report import draw_curves, summarize
from pl_robust.callbacks._observer import ProbeObserver
from pl_robust.ntk._jacobian import Reduce
from pl_robust.ntk._streaming import random_signs, streamed_alignment, streamed_eigh

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class NTKAlignmentLogger(ProbeObserver):
    r"""Log how well the network's tangent kernel is aligned with the labels, before training and during it.

    A kernel that turns towards its task tells the training of a network from that of its linearization (Ortiz-Jimenez,
    Moosavi-Dezfooli & Frossard 2021). Drop it into any Trainer whose module's ``forward(x)`` gives outputs [N, C] or
    [N], sample by sample, and whose batches hold (x, y). With J the Jacobian of the outputs in the parameters that
    require grad, and the kernel K = J Jᵀ, it measures on a fixed probe set, in eval mode, before the first step and
    after every n epochs or steps:

    * ``ntk/alignment``: :math:`\|J^\top y\|^2 / \|y\|^2`. It grows with N and with the square of the outputs' scale:
      compare it with its own first value, ``history[0]``;
    * ``ntk/cka``: :math:`\langle K, y y^\top\rangle / (\|K\|_F \|y\|^2)`, in [0, 1] and free of scale. The kernel's
      norm is estimated by random signs, the same at each check; its standard error is in the history as ``cka_error``;
    * ``ntk/eigenvalue_1`` …: the largest eigenvalues of K, if asked for;
    * ``ntk/share/<module>``: the share of each module's own parameters in :math:`\|J^\top y\|^2`, if asked for.

    What y is follows from labels and outputs. Class labels [N] (integers) for C >= 2 logits are one-hot minus 1 / C,
    because a shift of all logits changes no prediction; class labels 0 and 1 for a single logit are -1 and 1; values in
    floating point, of the outputs' shape, are taken as they are, as a regression takes them.

    Derivatives are taken outside autocast, in the parameters' precision; those of a network of half precision
    ("bf16-true") in float32, with a copy of its parameters while a check lasts. Inputs in another floating dtype are
    cast to that of the parameters. Parameters that ``forward`` does not use count nothing, and frozen ones are not in
    J: where some are unfrozen during training, the kernel is another one. At the end of fit the figures are drawn, to
    the loggers and as PNG into the run's folder.

    It only looks: weights, buffers, gradients, optimizer and random numbers are bit for bit as without it. Compiled
    networks run eagerly meanwhile (torch 2.6 and later). All ranks share the work and log the same numbers; the history
    survives a resume; several can live in one Trainer (the second of the same ``prefix`` logs under ``ntk_2/``; those
    that differ in ``probe_data`` only need a ``prefix`` of their own). It logs at the end of the training epoch, after
    validation: see ``CatastrophicOverfittingDetector`` for a ModelCheckpoint that monitors one of its values. What it
    finds before the first step is in the history as epoch -1, and goes to the loggers only: as epoch -1 too, at step 0,
    where Lightning also puts what comes after the first step.

    A check costs about as much as training on ``max_samples`` * (1 + 2 * ``samples``) samples.

    Args:
        cka: whether to estimate the CKA, which is nearly all of a check's work.
        samples: number of sign vectors for the CKA, at least 2. Its relative error is at most 1 / sqrt(2 ``samples``),
            where one eigenvalue stands out, as with a single output; with 10 outputs, a third to a half of that.
        eigenvalues: how many of the largest eigenvalues to find, fewer than N C. Each check then takes 20 to 40 sign
            vectors' work more (Lanczos).
        per_layer: whether to log each module's share.
        every_n_epochs: check at the end of every n-th training epoch.
        every_n_steps: check after every n-th optimizer step instead.
        max_samples: size of the probe set: the first samples of the first validation dataloader, in the order of its
            sampler. Iterable data is not read ahead: its samples are those of the first validation, and checks begin
            after it, with none before training.
        probe_data: (x, y) to look at instead: inputs [N, ...] as the module takes them, and labels.
        input_key: where a batch holds its inputs: position in tuples and lists, key in dicts.
        label_key: where a batch holds its labels.
        prefix: first part of the logged names.

    Raises:
        ValueError: at construction, for a value that is not allowed; before the first step, for labels that do not fit
            the outputs or are all zero, more eigenvalues than there are, or a module without tangent kernel: all of it
            frozen, other outputs, samples that mix.
        TypeError: at construction, for an argument of another type; before the first step, for labels of a wrong dtype.
        MisconfigurationException: at the start of fit, if the strategy splits parameters, or there is no validation
            data.
    """

    _unlogged: ClassVar[tuple[str, ...]] = ("cka_error",)
    _looks_before: ClassVar[bool] = True

    def __init__(
        self,
        *,
        cka: bool = True,
        samples: int = 5,
        eigenvalues: int = 0,
        per_layer: bool = False,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        max_samples: int = 128,
        probe_data: tuple[Tensor, Tensor] | None = None,
        input_key: str | int = 0,
        label_key: str | int = 1,
        prefix: str = "ntk",
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
        check_count(samples, "samples")
        if samples < 2:
            raise ValueError(f"`samples` must be at least 2, because one tells no standard error, got {samples}")
        check_count(eigenvalues, "eigenvalues", least=0)
        for name, flag in (("cka", cka), ("per_layer", per_layer)):
            if not isinstance(flag, bool):
                raise TypeError(f"`{name}` must be true or false, got {flag!r}")
        self.cka = cka
        self.samples = samples
        self.eigenvalues = eigenvalues
        self.per_layer = per_layer
        self._share: KernelShare | None = None

    @property
    def state_key(self) -> str:
        """Tell loggers apart by what they measure and how they log it."""
        return self._generate_state_key(
            cka=self.cka,
            samples=self.samples,
            eigenvalues=self.eigenvalues,
            per_layer=self.per_layer,
            every_n_epochs=self.every_n_epochs,
            every_n_steps=self.every_n_steps,
            max_samples=self.max_samples,
            keys=[self.input_key, self.label_key],
            prefix=self.prefix,
        )

    def _inspect(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._share = None
        if self._probe_set.chunks:
            with _seen(pl_module) as net:
                self._share = self._take_share(trainer, net, _trainable(net))

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        with _seen(pl_module) as net:
            parameters = _trainable(net)
            if self._share is None:  # samples that validation has passed since
                self._share = self._take_share(trainer, net, parameters)
            device = next(iter(parameters.values())).device
            chunks = [(x.to(device), y.to(device)) for x, y in self._share.chunks]
            rows = self._share.rows.to(device)
            shape = self._share.samples, self._share.outputs
            signs = None
            if self.cka:
                signs = random_signs(self.samples, shape, _seeded(), device=device)[:, rows]
            measured = streamed_alignment(
                net, parameters, chunks, reduce=_sum_over(trainer), per_layer=self.per_layer, signs=signs
            )
            found: list[float] = []
            if self.eigenvalues:
                try:
                    values, _ = streamed_eigh(
                        net,
                        parameters,
                        [x for x, _ in chunks],
                        self.eigenvalues,
                        torch.randn(shape, dtype=torch.float64, generator=_seeded()),
                        outputs="full",
                        num_outputs=shape[1],
                        rows=rows,
                        reduce=_sum_over(trainer),
                    )
                    found = values.tolist()
                except ValueError:  # not finite, on all ranks: a diverged network must not end the run
                    found = [nan] * self.eigenvalues
        row = {"alignment": measured.total}
        if measured.cka is not None and measured.cka_error is not None:
            row |= {"cka": measured.cka, "cka_error": measured.cka_error}
        row |= {f"eigenvalue_{number}": value for number, value in enumerate(found, start=1)}
        for name, part in (measured.per_layer or {}).items():
            row[f"share/{_plain(name) or type(pl_module).__name__}"] = part
        return row

    def _take_share(self, trainer: Trainer, net: nn.Module, parameters: dict[str, nn.Parameter]) -> KernelShare:
        share = take_share(
            self._probe_set, net, parameters, _sum_over(trainer), owner=type(trainer.lightning_module).__name__
        )
        if self.eigenvalues >= share.samples * share.outputs:
            raise ValueError(
                "`eigenvalues` must be less than the kernel has, one for each sample and output, "
                f"{share.samples} * {share.outputs}, got {self.eigenvalues}"
            )
        return share

    def _draw(self) -> Figure:
        return draw_curves(self.history, self._logged_as)

    def _summarize(self) -> str:
        return summarize(self.history, self._logged_as)


@contextmanager
def _seen(module: LightningModule) -> Iterator[nn.Module]:
    """Show a module as it is to be measured, and put all back afterwards."""
    with probe(module):
        yield Float32View(module).eval() if is_half(module) else module


def _trainable(net: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that span the kernel, on every rank the same.

    Raises:
        ValueError: if there are none.
    """
    parameters = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise ValueError(
            "the module has no parameter with requires_grad=True, so it has no tangent kernel: unfreeze some, or leave "
            f"{NTKAlignmentLogger.__name__} out"
        )
    return parameters


def _seeded() -> torch.Generator:
    """The source of the signs and of the start of Lanczos: each check, run and rank draws the same."""
    return torch.Generator().manual_seed(0)


def _plain(name: str) -> str:
    """A module's name as if it were not compiled."""
    return ".".join(word for word in name.split(".") if word != "_orig_mod")


def _sum_over(trainer: Trainer) -> Reduce:
    """The sum over ranks, of a copy: Lightning's is in place on several ranks, and not on one."""

    def reduce(tensor: Tensor) -> Tensor:
        total: Tensor = trainer.strategy.reduce(tensor.clone(), reduce_op="sum")
        return total

    return reduce
