"""Cost of a training step of N-FGSM and of FGSM with GradAlign over that of FGSM.

python tests/benchmarks/single_step.py [--width 16] [--steps 30]

Each has a network of its own. They take turns step by step; each turn gives one ratio to FGSM's, and the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_robust.attacks import FGSM, NFGSM, Attack
from pl_robust.losses import GradAlign, Regularizer
from pl_robust.models import preact_resnet18

WARM_UP = 3
EPS = 8 / 255
WAYS: dict[str, tuple[Attack, Regularizer | None]] = {
    "FGSM": (FGSM(EPS), None),
    "N-FGSM": (NFGSM(EPS), None),
    "FGSM + GradAlign": (FGSM(EPS), GradAlign()),
}


class Way:
    """One way of training, with a network and an optimizer."""

    def __init__(self, attack: Attack, regularizer: Regularizer | None, width: int) -> None:
        self.attack = attack
        self.regularizer = regularizer
        self.net: nn.Module = preact_resnet18(width=width)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def step(self, x: Tensor, y: Tensor) -> float:
        """Train on a batch, as AdversarialTraining does; give the seconds."""
        start = time.perf_counter()
        if self.regularizer is None:
            loss = F.cross_entropy(self.net(self.attack(self.net, x, y)), y)
        else:
            loss, _ = self.regularizer(self.net, self.attack, x, y)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16, help="width of preact_resnet18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    ways = {name: Way(*parts, arguments.width) for name, parts in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(WARM_UP + arguments.steps):
        x, y = torch.rand(arguments.batch, 3, 32, 32), torch.randint(10, (arguments.batch,))
        for name, way in ways.items():
            took = way.step(x, y)
            if number >= WARM_UP:
                seconds[name].append(took)
    print(f"FGSM: {statistics.median(seconds['FGSM']):.3f} s/step")
    for name in list(ways)[1:]:
        ratios = [ours / fgsm for ours, fgsm in zip(seconds[name], seconds["FGSM"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name} / FGSM: {middle:.3f} (half of the turns between {low:.3f} and {high:.3f})")


if __name__ == "__main__":
    main()
