"""Time of fitting signals with INRFitting: over a bare PyTorch loop, and of many networks over one after another.

python tests/benchmarks/inr_fitting.py [--rounds 5] [--threads 2] [--device cpu]

"Bare" is the plain loop: network, half the mean squared error, backward, Adam; nothing is logged. Times are of the
steps, without the Trainer's start.

The first ratio is of single steps: between any two of the Trainer's the plain loop takes one on the same points, so
that both meet the same neighbours on the machine; everything else between two plain steps counts as the Trainer's. For
the others peers take turns, and each round gives a ratio. Medians count; beside them the middle half of the ratios.
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

SINGLE = (3, 256, 128, 20)  # hidden layers, width, pixels of a side, steps for each round
MANY = ((3, 32, 32, 100), (3, 64, 64, 8), (3, 256, 64, 1))


class Clock(Callback):
    """Seconds between the second step's beginning and the last one's end: the first makes the optimizer's state."""

    def __init__(self, finish: Callable[[], object]) -> None:
        self.finish = finish

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.start = self.now()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == trainer.num_training_batches - 1:
            self.seconds = self.now() - self.start

    def now(self) -> float:
        self.finish()
        return time.perf_counter()


class Turns(Clock):
    """Takes a step of a plain loop before each of the Trainer's; gives the pairs of seconds (Trainer's, plain)."""

    def __init__(self, step: Callable[[Any], object], finish: Callable[[], object]) -> None:
        super().__init__(finish)
        self.step = step
        self.pairs: list[tuple[float, float]] = []
        self.before: tuple[float, float] | None = None  # the last plain step: its seconds, its end

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        start = self.now()
        if self.before is not None:
            self.pairs.append((start - self.before[1], self.before[0]))
        self.step(batch)
        end = self.now()
        self.before = (end - start, end) if batch_idx else None

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pass


def build(layers: int, width: int) -> SIREN:
    return SIREN(hidden_features=width, num_layers=layers + 1)


def fit(net: SIREN, values: Tensor, steps: int, device: str, clock: Clock) -> None:
    """Run INRFitting under a clock: all signals [S, H, W] at once."""
    trainer = Trainer(
        max_steps=steps,
        accelerator=device,
        devices=1,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    data = SignalDataModule([value.numpy() for value in values], steps_per_epoch=steps)
    trainer.fit(INRFitting(net, num_signals=len(values)), data)


def timed(net: SIREN, values: Tensor, steps: int, device: str, finish: Callable[[], object]) -> float:
    """Seconds of INRFitting, of all signals [S, H, W] at once."""
    clock = Clock(finish)
    fit(net, values, 1 + steps, device, clock)
    return clock.seconds


def plain_step(net: SIREN, device: str) -> Callable[[Any], None]:
    """One step of the plain loop on a batch."""
    net.to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)

    def step(batch: Any) -> None:
        loss = 0.5 * (net(batch[0]) - batch[1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def bare(net: SIREN, value: Tensor, steps: int, device: str, finish: Callable[[], object]) -> float:
    """Seconds of the plain loop on one signal [H, W]."""
    batch = SignalDataModule(value.numpy()).batch(0, device)
    step = plain_step(net, device)
    step(batch)
    finish()
    start = time.perf_counter()
    for _ in range(steps):
        step(batch)
    finish()
    return time.perf_counter() - start


def report(name: str, rounds: list[tuple[float, float]]) -> None:
    low, median, high = statistics.quantiles([left / right for left, right in rounds], n=4)
    print(f"{name}: {median:.2f} ({low:.2f} to {high:.2f}, {len(rounds)} ratios)", flush=True)


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
    turns = Turns(plain_step(build(layers, width), device), finish)
    fit(build(layers, width), torch.rand(1, side, side), 1 + steps * arguments.rounds, device, turns)
    report(f"SIREN {layers}x{width} on {side}x{side}, INRFitting / bare loop, step by step", turns.pairs)

    for layers, width, side, steps in MANY:
        values = torch.rand(arguments.signals, side, side)
        alone, plain = [], []
        for _ in range(arguments.rounds):
            ours = timed(build(layers, width), values, steps, device, finish)
            single = sum(timed(build(layers, width), one[None], steps, device, finish) for one in values)
            loop = sum(bare(build(layers, width), one, steps, device, finish) for one in values)
            alone.append((single, ours))
            plain.append((loop, ours))
        name = f"SIREN {layers}x{width} on {side}x{side}, {arguments.signals} signals at once"
        report(f"{name}, times as fast as INRFitting one after another", alone)
        report(f"{name}, times as fast as bare loops one after another", plain)


if __name__ == "__main__":
    main()
