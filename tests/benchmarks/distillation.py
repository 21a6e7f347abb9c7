"""Time per training step of AKDStudent, over AdversarialTraining's plus one forward pass of each teacher.

python tests/benchmarks/distillation.py [--width 8] [--rounds 5] [--accelerator cpu]

Students and teachers are preact_resnet18. The peer is an AdversarialTraining whose step asks the teachers, too, and
forgets what they say. Both take turns, and each round gives one ratio of median steps: the median of these counts.
With a cache of the teachers' answers (ARD, after its first epoch) their forward passes are gone: that step is compared
with ARD's own without. On the CPU it is the process's own time, which other processes change little. At the end the
size of a checkpoint, with and without teachers.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pl_robust._lightning import NAMESPACE, Callback, Trainer
from pl_robust.attacks import FGSM, PGD, Attack
from pl_robust.losses import ARD
from pl_robust.models import preact_resnet18
from pl_robust.modules import AdversarialTraining, AKDStudent

WARM_UP = 2
logging.getLogger(NAMESPACE).setLevel(logging.ERROR)
warnings.simplefilter("ignore")


def now(on_gpu: bool) -> float:
    """Seconds, when all work is done."""
    if not on_gpu:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Clock(Callback):
    """When each step of the last epoch ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.times = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.times.append(now(pl_module.device.type == "cuda"))

    @property
    def seconds(self) -> float:
        """A step's, the median of those after the warm-up."""
        return statistics.median(after - before for before, after in pairwise(self.times[WARM_UP - 1 :]))


def train(
    module: Any, loader: DataLoader[Any], accelerator: str, epochs: int = 1, others: Sequence[Callback] = ()
) -> tuple[float, Trainer]:
    """Train with a clock and other callbacks. Give the seconds of a step."""
    clock = Clock()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator=accelerator,
        devices=1,
        logger=False,
        callbacks=[*others, clock],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, loader)
    return clock.seconds, trainer


class Asking(AdversarialTraining):
    """Asks teachers once in each step, and does nothing with what they say: the peer."""

    def ask(self, teachers: list[nn.Module]) -> Asking:
        self._others = teachers  # in a list they are no part of the module
        return self

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        with torch.no_grad():
            for one in self._others:
                one(batch[0])
        return super().training_step(batch, batch_idx)


def saved(trainer: Trainer, folder: str) -> int:
    path = Path(folder, "net.ckpt")
    trainer.save_checkpoint(path)
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=8, help="width of preact_resnet18")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "gpu"])
    arguments = parser.parse_args()
    accelerator, width = arguments.accelerator, arguments.width
    device = "cuda" if accelerator == "gpu" else "cpu"
    quick = 10 if accelerator == "gpu" else 1

    def net() -> nn.Module:
        return preact_resnet18(width=width)

    teachers = [net().eval().to(device) for _ in range(3)]
    constant: dict[str, Any] = {"lr_scheduler": "constant"}
    for name, attack, steps in (("FGSM", FGSM(8 / 255), 10 * quick), ("PGD-10", PGD(8 / 255, steps=10), 4 * quick)):
        count = (steps + WARM_UP) * arguments.batch
        x, y = torch.rand(count, 3, 32, 32), torch.randint(10, (count,))
        loader: DataLoader[Any] = DataLoader(TensorDataset(x, y, torch.arange(count)), batch_size=arguments.batch)
        ratios: dict[int, list[float]] = {1: [], 3: []}
        cached: list[float] = []
        for index in range(arguments.rounds):
            for number, rounds in ratios.items():
                asked = teachers[:number]
                pair: list[Any] = [
                    Asking(net(), attack, **constant).ask(asked),
                    AKDStudent(net(), asked, attack, **constant),
                ]
                pair = pair[:: 1 - 2 * (index % 2)]  # each goes first in turn
                seconds = {type(module): train(module, loader, accelerator)[0] for module in pair}
                rounds.append(seconds[AKDStudent] / seconds[Asking])
            with tempfile.TemporaryDirectory() as folder:
                asking, reading = (
                    train(_ard(net(), teachers, attack, cache), loader, accelerator, epochs=2)[0]
                    for cache in (None, folder)
                )
            cached.append(reading / asking)
        for number, rounds in ratios.items():
            print(
                f"{name}, {number} teacher(s): step / (adversarial step + {number} forward) "
                f"{statistics.median(rounds):.3f} (rounds {', '.join(f'{ratio:.3f}' for ratio in rounds)})"
            )
        print(f"{name}, ARD of 3 teachers: step with a full cache / without {statistics.median(cached):.3f}")
    loader = DataLoader(TensorDataset(x[:384], y[:384]), batch_size=arguments.batch)
    with tempfile.TemporaryDirectory() as folder:
        alone = saved(train(AdversarialTraining(net(), FGSM(0.1), **constant), loader, accelerator)[1], folder)
        taught = saved(train(AKDStudent(net(), teachers, FGSM(0.1), **constant), loader, accelerator)[1], folder)
    print(f"checkpoint: {taught} bytes with 3 teachers, {alone} of AdversarialTraining")


def _ard(net: nn.Module, teachers: list[nn.Module], attack: Attack, cache: str | None) -> AKDStudent:
    return AKDStudent(net, teachers, attack, distillation=ARD(), cache=cache, lr_scheduler="constant")


if __name__ == "__main__":
    main()
