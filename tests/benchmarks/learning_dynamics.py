"""Time per training step of adversarial training with a LearningDynamics, over the same without.

python -m tests.benchmarks.learning_dynamics [--width 8] [--batch 32] [--rounds 5] [--accelerator cpu]

FGSM training of preact_resnet18 on images 3x32x32. Clean looks are a forward pass each, adversarial ones an attack and
two. Both take turns, and each round gives one ratio of median steps: the median of these counts. On the CPU it is the
process's own time, which other processes change little.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from pl_robust.attacks import FGSM
from pl_robust.callbacks import LearningDynamics
from pl_robust.models import preact_resnet18
from pl_robust.modules import AdversarialTraining
from tests.benchmarks.distillation import WARM_UP, train

STEPS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=8, help="width of preact_resnet18")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "gpu"])
    arguments = parser.parse_args()
    count = (STEPS + WARM_UP) * arguments.batch
    x, y = torch.rand(count, 3, 32, 32), torch.randint(10, (count,))
    loader: DataLoader[Any] = DataLoader(TensorDataset(x, y, torch.arange(count)), batch_size=arguments.batch)
    ratios: dict[bool, list[float]] = {False: [], True: []}
    for index in range(arguments.rounds):
        for adversarial, rounds in ratios.items():
            seconds: dict[bool, float] = {}
            for watched in (False, True)[:: 1 - 2 * (index % 2)]:  # each goes first in turn
                module = AdversarialTraining(preact_resnet18(width=arguments.width), FGSM(8 / 255))
                others = [LearningDynamics(adversarial=adversarial)] if watched else []
                seconds[watched] = train(module, loader, arguments.accelerator, others=others)[0]
            rounds.append(seconds[True] / seconds[False])
    for adversarial, rounds in ratios.items():
        print(
            f"{'clean and adversarial' if adversarial else 'clean'} looks: step with / without "
            f"{statistics.median(rounds):.3f} (rounds {', '.join(f'{ratio:.3f}' for ratio in rounds)})"
        )


if __name__ == "__main__":
    main()
