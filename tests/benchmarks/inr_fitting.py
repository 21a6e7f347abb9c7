"""Time of fitting signals with INRFitting: over a bare PyTorch loop, and of many networks over one after another.

python tests/benchmarks/inr_fitting.py [--rounds 5] [--threads 2] [--device cpu]

Peers take turns, each round gives one ratio, and the median counts. "Bare" is the plain loop: network, half the mean
squared error, backward, Adam; nothing is logged. Times are of the steps, without the Trainer's start.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pl_robust._lightning import Callback, Trainer
from pl_robust.datamodules import SignalDataModule
from pl_robust.models import SIREN
from pl_robust.modules import INRFitting

SINGLE = (3, 256, 128, 6)  # hidden layers, width, pixels of a side, steps of a round
MANY = ((3, 32, 32, 100), (3, 64, 64, 8), (3, 256, 64, 1))


class Clock(Callback):
    """Seconds between the first step's beginning and the last one's end."""

    def __init__(self, finish: Callable[[], object]) -> None:
        self.finish = finish

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:  # the first measures the networks and makes the optimizer's state
            self.start = self.now()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == trainer.num_training_batches - 1:
            self.seconds = self.now() - self.start

    def now(self) -> float:
        self.finish()
        return time.perf_counter()


def build(layers: int, width: int) -> SIREN:
    return SIREN(hidden_features=width, num_layers=layers + 1)


def fit(net: SIREN, values: Tensor, steps: int, device: str, finish: Callable[[], object]) -> float:
    """Seconds of INRFitting: of all signals [S, H, W] at once."""
    clock = Clock(finish)
    trainer = Trainer(
        max_steps=1 + steps,
        accelerator=device,
        devices=1,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    data = SignalDataModule([value.numpy() for value in values], steps_per_epoch=1 + steps)
    trainer.fit(INRFitting(net, num_signals=len(values)), data)
    return clock.seconds


def bare(net: SIREN, value: Tensor, steps: int, device: str, finish: Callable[[], object]) -> float:
    """Seconds of a plain loop on one signal [H, W]."""
    coordinates, values = SignalDataModule(value.numpy()).batch(0, device)
    net.to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    start = 0.0
    for step in range(1 + steps):
        if step == 1:
            finish()
            start = time.perf_counter()
        loss = 0.5 * (net(coordinates) - values).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    finish()
    return time.perf_counter() - start


def report(name: str, rounds: list[tuple[float, float]]) -> None:
    ratios = [left / right for left, right in rounds]
    print(f"{name}: {statistics.median(ratios):.2f} (rounds {min(ratios):.2f} to {max(ratios):.2f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--signals", type=int, default=16)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    device = arguments.device
    finish: Callable[[], object] = torch.cuda.synchronize if device == "cuda" else lambda: None

    layers, width, side, steps = SINGLE
    value = torch.rand(side, side)
    rounds = []
    for _ in range(arguments.rounds):
        ours = fit(build(layers, width), value[None], steps, device, finish)
        rounds.append((ours, bare(build(layers, width), value, steps, device, finish)))
    report(f"SIREN {layers}x{width} on {side}x{side}, INRFitting / bare loop", rounds)

    for layers, width, side, steps in MANY:
        values = torch.rand(arguments.signals, side, side)
        alone, plain = [], []
        for _ in range(arguments.rounds):
            ours = fit(build(layers, width), values, steps, device, finish)
            single = sum(fit(build(layers, width), one[None], steps, device, finish) for one in values)
            loop = sum(bare(build(layers, width), one, steps, device, finish) for one in values)
            alone.append((single, ours))
            plain.append((loop, ours))
        name = f"SIREN {layers}x{width} on {side}x{side}, {arguments.signals} signals at once"
        report(f"{name}, times as fast as INRFitting one after another", alone)
        report(f"{name}, times as fast as bare loops one after another", plain)


if __name__ == "__main__":
    main()
