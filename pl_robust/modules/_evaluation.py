"""Clean and adversarial accuracy over one dataloader."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from pl_robust.attacks import FGSM, Attack
from pl_robust.attacks._masking import beats_fgsm, masking_symptom


def make_accuracy(num_classes: int) -> MulticlassAccuracy:
    """Make a metric of the share of correct answers."""
    return MulticlassAccuracy(num_classes, average="micro", validate_args=False)


class Evaluation(nn.Module):
    """Metrics of one dataloader: loss and acc on clean inputs, acc_<name> under each attack.

    Args:
        num_classes: number of classes.
        attacks: the names of the attacks.

    Attributes:
        attacks: their names.
        metrics: the torchmetrics by name, to be logged.
        counts: zero gradients and all gradients at the attacks' starts, [2], of this rank.
    """

    def __init__(self, num_classes: int, attacks: list[str]) -> None:
        super().__init__()
        self.attacks = attacks
        accuracies = {f"acc{suffix}": make_accuracy(num_classes) for suffix in ("", *(f"_{name}" for name in attacks))}
        self.metrics = MetricCollection({"loss": MeanMetric(), **accuracies}, compute_groups=False)
        self.counts: Tensor
        self.register_buffer("counts", torch.zeros(2), persistent=False)

    def update(self, net: nn.Module, attacks: Mapping[str, Attack], x: Tensor, y: Tensor, seed: int) -> None:
        """Take a batch into account.

        Args:
            net: the network in eval mode.
            attacks: name -> attack in its form for evaluation.
            x: clean inputs [B, ...].
            y: labels [B].
            seed: of the noise of each attack.
        """
        logits = net(x)
        self.metrics["loss"].update(F.cross_entropy(logits, y), weight=len(y))
        self.metrics["acc"].update(logits, y)
        for name, attack in attacks.items():
            generator = torch.Generator(x.device)
            generator.manual_seed(seed)
            x_adv, gradient = attack.with_start_gradient(net, x, y, generator=generator)
            self.metrics[f"acc_{name}"].update(net(x_adv), y)
            if gradient is not None:
                is_zero = (gradient == 0).flatten(1).all(1)
                self.counts += torch.stack([is_zero.sum(), torch.ones_like(is_zero).sum()])


def find_masking(attacks: Mapping[str, Attack], accuracies: Mapping[str, float], counts: Tensor) -> str | None:
    """Say how a network masks its gradients, if it does.

    Args:
        attacks: name -> attack.
        accuracies: acc_<name> -> accuracy under it, where it is known.
        counts: number of zero gradients and of all gradients at the attacks' starts.
    """
    zero, total = counts.tolist()
    gaps = [
        (accuracies[f"acc_{single}"], accuracies[f"acc_{strong}"])
        for single, fgsm in attacks.items()
        for strong, pgd in attacks.items()
        if isinstance(fgsm, FGSM) and beats_fgsm(pgd, fgsm.ball, fgsm.normalization)
        if {f"acc_{single}", f"acc_{strong}"} <= set(accuracies)
    ]
    acc_fgsm, acc_pgd = max(gaps, key=lambda pair: pair[1] - pair[0], default=(None, None))
    samples = max(1, round(total / len(attacks)))
    return masking_symptom(zero_gradients=zero / max(1.0, total), acc_fgsm=acc_fgsm, acc_pgd=acc_pgd, samples=samples)


def summarize(accuracies: Mapping[str, Mapping[str, float]]) -> str:
    """Write a table: one row for each dataloader, one column for each accuracy.

    Args:
        accuracies: name of the dataloader -> name of the metric -> accuracy in [0, 1].
    """
    width = max(len(name) for name in accuracies) + 2
    columns = list(next(iter(accuracies.values())))
    lines = [" " * width + "".join(f"{column:>{len(column) + 3}}" for column in columns)]
    for name, row in accuracies.items():
        lines.append(f"{name:<{width}}" + "".join(f"{row[column]:>{len(column) + 3}.1%}" for column in columns))
    return "\n".join(lines)
