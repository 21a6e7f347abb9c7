"""What the catastrophic-overfitting detector measures on its probe set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pl_robust._lightning import LightningModule, Trainer, rank_zero_warn
from pl_robust._probe import probe
from pl_robust._probe_set import ProbeSet
from pl_robust.attacks import Attack
from pl_robust.attacks._masking import beats_fgsm
from pl_robust.attacks._target import Normalization, Target, under_attack
from pl_robust.attacks._threat_model import ThreatModel
from pl_robust.losses.gradient_alignment import gradient_cosine


@dataclass(frozen=True)
class Measured:
    """The outcome of one check, the same on every rank, whatever the number of ranks.

    Attributes:
        accuracies: acc, acc_fgsm, acc_pgd, their gap, and grad_align, as the detector logs them.
        samples: size of the probe set.
        chance: accuracy of the best constant answer: the share of the most frequent class, at least 1 / K.
        zero_gradients: share of the samples whose input gradient is zero at x or near it.
    """

    accuracies: dict[str, float]
    samples: int
    chance: float
    zero_gradients: float


@dataclass(frozen=True)
class Gauge:
    """How to measure.

    Args:
        ball: the ball in which single step and gradient alignment are taken.
        normalization: (mean, std) of data that is normalized before it reaches the module.
        attack: the single-step attack; None means FGSM, which costs no gradient beyond that of the alignment.
        strong_attack: the attack that tells the truth.
    """

    ball: ThreatModel
    normalization: Normalization | None
    attack: Attack | None
    strong_attack: Attack

    @property
    def compares_like_with_like(self) -> bool:
        """Whether the strong attack must beat the single-step one on every network with honest gradients."""
        return self.attack is None and beats_fgsm(self.strong_attack, self.ball, self.normalization)

    def inspect(self, trainer: Trainer, module: LightningModule, chunks: Sequence[tuple[int, Tensor, Tensor]]) -> None:
        """Run the module once on the samples and check their values, so that what is wrong is said early.

        Raises:
            TypeError: for a wrong dtype.
            ValueError: for NaN, values outside the bounds, labels out of range, or answers that are no logits.
        """
        with probe(module):
            for _, x, y in chunks:
                with self._under_attack(trainer, module, x, y, check=True) as target, torch.no_grad():
                    target.evaluate(target.x)

    def measure(self, trainer: Trainer, module: LightningModule, probe_set: ProbeSet) -> Measured:
        """Measure on the probe set. A collective call: every rank measures its own chunks."""
        table = torch.zeros(probe_set.chunks, 6, device=module.device)
        classes = 0
        with probe(module):
            for index, x, y in probe_set.mine:
                table[index], classes = self._measure_chunk(trainer, module, x, y, index)
            # Each rank has filled in its own chunks: adding zeros to them is exact, and what follows has one order.
            table = trainer.strategy.reduce(table, reduce_op="sum")
            chance = _constant_accuracy(trainer, [y for _, _, y in probe_set.mine], classes, module.device)
        samples, clean, single, strong, cosine, defined = table.double().cpu().sum(0).tolist()
        accuracies = {
            "acc": clean / samples,
            "acc_fgsm": single / samples,
            "acc_pgd": strong / samples,
            "gap": single / samples - strong / samples,
            "grad_align": cosine / max(defined, 1.0),
        }
        return Measured(accuracies, int(samples), chance, zero_gradients=1 - defined / samples)

    @contextmanager
    def _under_attack(
        self, trainer: Trainer, module: LightningModule, x: Tensor, y: Tensor, check: bool
    ) -> Iterator[Target]:
        with (
            trainer.precision_plugin.forward_context(),
            under_attack(
                module,
                x.to(module.device),
                y.to(module.device),
                bounds=self.ball.bounds,
                loss=None,
                normalization=self.normalization,
                batch_norm="train",  # moot: the probe runs in eval mode
                check=check,
            ) as target,
        ):
            yield target

    def _measure_chunk(
        self, trainer: Trainer, module: LightningModule, x: Tensor, y: Tensor, index: int
    ) -> tuple[Tensor, int]:
        """Count samples, correct ones (clean, single-step, strong), cosines and their sum; and the classes."""
        x, y = x.to(module.device), y.to(module.device)
        generator = torch.Generator(x.device)
        generator.manual_seed(index)
        with self._under_attack(trainer, module, x, y, check=False) as target:
            at_x, logits, _ = target.gradient(target.x)
            near = self.ball.clip(target.x + self.ball.random(target.x, generator=generator))
            at_near, _, _ = target.gradient(near)
            single = target.to_input(self.ball.project(self.ball.ascend(target.x, at_x, self.ball.eps), target.x))
            if self.attack is not None:
                single = self.attack(module, x, y, generator=generator)
            strong = self.strong_attack(module, x, y, generator=generator)
            with torch.no_grad():
                correct = [(answer.argmax(1) == y).sum() for answer in (logits, module(single), module(strong))]
        cosines, defined = gradient_cosine(at_x, at_near)
        counts = [torch.tensor(len(y), device=x.device), *correct, cosines[defined].sum(), defined.sum()]
        return torch.stack([count.float() for count in counts]), logits.shape[1]


def _constant_accuracy(trainer: Trainer, labels: list[Tensor], classes: int, device: torch.device) -> float:
    classes = int(trainer.strategy.reduce(torch.tensor(classes, device=device), reduce_op="max"))
    counts = torch.zeros(classes, device=device)
    for y in labels:
        counts += torch.bincount(y.to(device), minlength=classes)
    counts = trainer.strategy.reduce(counts, reduce_op="sum")
    share = float(counts.max() / counts.sum())
    if share == 1.0:
        rank_zero_warn(
            "all samples of the detector's probe set are of one class: the validation data seems to be sorted. Shuffle "
            "the data set once, or give the detector `probe_data=(x, y)`"
        )
    return max(share, 1 / classes)
