"""Time of PRIME on a batch over that of one forward pass of torchvision's resnet on the same batch.

python tests/benchmarks/prime.py [--rounds 7]

The network is in eval mode and keeps no graph: its fastest. Both take turns, and each round gives one ratio: the
median counts. resnet18 at 32 pixels, batch 128 (the CIFAR preset); resnet50 at 224 pixels, batch 16 (the ImageNet
preset).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torchvision.models import resnet18, resnet50

from pl_robust.transforms import PRIME

SETTINGS = (
    ("CIFAR preset, 128 x 3 x 32 x 32", PRIME.cifar(), "resnet18", resnet18, (128, 3, 32, 32)),
    ("ImageNet preset, 16 x 3 x 224 x 224", PRIME.imagenet(), "resnet50", resnet50, (16, 3, 224, 224)),
)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    for name, prime, peer, build, shape in SETTINGS:
        net, x = build().eval(), torch.rand(shape)
        pairs = []
        with torch.no_grad():
            for _ in range(1 + arguments.rounds):
                pairs.append((seconds(lambda prime=prime, x=x: prime(x)), seconds(lambda net=net, x=x: net(x))))  # type: ignore[misc]
        ours, theirs = zip(*pairs[1:], strict=True)  # the first makes tables
        ratios = [own / peers for own, peers in pairs[1:]]
        print(
            f"{name}: PRIME / {peer} forward {statistics.median(ratios):.3f} (rounds {min(ratios):.3f} to "
            f"{max(ratios):.3f}); PRIME {shape[0] / statistics.median(ours):.0f} images/s, {peer} "
            f"{shape[0] / statistics.median(theirs):.0f}; {torch.get_num_threads()} threads"
        )


if __name__ == "__main__":
    main()
