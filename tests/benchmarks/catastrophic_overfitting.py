"""Cost of the detector's check at its defaults, as a share of an FGSM training epoch on CIFAR-10's size.

python tests/benchmarks/catastrophic_overfitting.py [--width 64] [--rounds 3]

A check stops on samples that are already fooled, so its cost depends on the network's robust accuracy. Measured is the
worst case: a network that withstands everywhere, so that every sample takes every step. Steps and checks take turns;
the median of the ratios counts.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pl_robust._lightning import NAMESPACE, LightningModule, Trainer
from pl_robust.attacks import fgsm
from pl_robust.callbacks import CatastrophicOverfittingDetector
from pl_robust.models import preact_resnet18

TRAINING_IMAGES, BATCH = 45_000, 128
EPS = 1e-6  # so small that no answer changes: what counts is the work
logging.getLogger(NAMESPACE).setLevel(logging.ERROR)
warnings.simplefilter("ignore")


class Timed(CatastrophicOverfittingDetector):
    """Keeps the seconds of each check."""

    seconds: list[float]

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        start = time.perf_counter()
        super()._check(trainer, pl_module)
        self.seconds.append(time.perf_counter() - start)


class Module(LightningModule):
    """FGSM adversarial training, timed."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.ends: list[float] = []
        self.starts: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(x)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.starts.append(time.perf_counter())
        x, y = batch
        return F.cross_entropy(self(fgsm(self.net, x, y, eps=8 / 255)), y)

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        return None

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0, momentum=0.9)  # the network stays as it is


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64, help="width of preact_resnet18")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    net = preact_resnet18(width=arguments.width)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.0  # nor do its statistics move
    x = torch.rand(512, 3, 32, 32)
    with torch.no_grad():
        net.eval()
        y = torch.cat([net(part).argmax(1) for part in torch.split(x, 128)])
    detector = Timed(eps=EPS)
    detector.seconds = []
    module = Module(net)
    steps = 3
    training = DataLoader(TensorDataset(x[: steps * BATCH], y[: steps * BATCH]), batch_size=BATCH)
    trainer = Trainer(
        max_epochs=arguments.rounds,
        accelerator="cpu",
        callbacks=[detector],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, training, DataLoader(TensorDataset(x, y), batch_size=256))
    durations = [end - start for start, end in zip(module.starts, module.ends, strict=True)]
    per_step = [statistics.median(durations[i : i + steps]) for i in range(0, len(durations), steps)]
    batches = -(-TRAINING_IMAGES // BATCH)
    shares = [check / (step * batches) for check, step in zip(detector.seconds, per_step, strict=True)]
    rounds = ", ".join(f"{part:.2%}" for part in shares)
    print(
        f"robust accuracy {detector.history[-1]['acc_pgd']:.0%}: a check costs {statistics.median(shares):.2%} of "
        f"an epoch (rounds {rounds}); check {statistics.median(detector.seconds):.2f} s, "
        f"step {statistics.median(per_step):.3f} s"
    )


if __name__ == "__main__":
    main()
