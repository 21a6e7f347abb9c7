"""Seconds per training step: AdversarialTraining in a Trainer against a bare PyTorch loop doing the same passes.

python tests/benchmarks/adversarial_training.py [--width 16] [--rounds 5]

Progress bar and TensorBoard logger are on. Both sides take turns, and each round gives one ratio: the median counts.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pl_robust._lightning import NAMESPACE, Callback, Trainer
from pl_robust.attacks import FGSM, PGD, Attack
from pl_robust.models import preact_resnet18
from pl_robust.modules import AdversarialTraining

WARM_UP = 3
logging.getLogger(NAMESPACE).setLevel(logging.ERROR)
warnings.simplefilter("ignore")


class Clock(Callback):
    """Seconds from the end of the warm-up to the end of the last step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter())


def data(steps: int, batch: int) -> DataLoader[Any]:
    images = TensorDataset(torch.rand(steps * batch, 3, 32, 32), torch.randint(10, (steps * batch,)))
    return DataLoader(images, batch_size=batch, shuffle=True)


def per_step(times: list[float]) -> float:
    return (times[-1] - times[WARM_UP - 1]) / (len(times) - WARM_UP)


def by_hand(net: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> torch.Tensor:
    """FGSM for one step, PGD with a random start for more, at eps 8/255."""
    eps = 8 / 255
    size = eps if steps == 1 else 2.5 * eps / steps
    x_adv = x if steps == 1 else (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(x_adv), y), x_adv)
        x_adv = (x + (x_adv.detach() + size * gradient.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    return x_adv.detach()


def bare(net: nn.Module, attack: Attack, loader: DataLoader[Any]) -> float:
    """The loop that people write: attack, forward, backward, step, none of it ours."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    times = []
    net.train()
    for x, y in loader:
        x_adv = by_hand(net, x, y, attack.steps if isinstance(attack, PGD) else 1)
        loss = F.cross_entropy(net(x_adv), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        times.append(time.perf_counter())
    return per_step(times)


def lightning(net: nn.Module, attack: Attack, loader: DataLoader[Any], folder: str) -> float:
    from importlib import import_module

    clock = Clock()
    logger = import_module(f"{NAMESPACE}.loggers").TensorBoardLogger(folder)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=logger,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=5,
    )
    trainer.fit(AdversarialTraining(net, attack, lr_scheduler="constant"), loader)
    return per_step(clock.times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16, help="width of preact_resnet18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    attacks: dict[str, tuple[Attack, int]] = {"FGSM": (FGSM(8 / 255), 15), "PGD-10": (PGD(8 / 255, steps=10), 8)}
    with tempfile.TemporaryDirectory() as folder:
        for name, (attack, steps) in attacks.items():
            ratios, seconds = [], []
            for _ in range(arguments.rounds):
                loader = data(steps, arguments.batch)
                alone = bare(preact_resnet18(width=arguments.width), attack, loader)
                ours = lightning(preact_resnet18(width=arguments.width), attack, loader, folder)
                ratios.append(ours / alone)
                seconds.append(alone)
            rounds = ", ".join(f"{ratio:.3f}" for ratio in ratios)
            print(
                f"{name}: Trainer / bare loop {statistics.median(ratios):.3f} (rounds {rounds}); "
                f"bare {statistics.median(seconds):.3f} s/step"
            )


if __name__ == "__main__":
    main()
