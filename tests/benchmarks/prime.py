"""Time and memory of PRIME on a batch: over one forward pass of torchvision's resnet on the same batch, and over it.

python tests/benchmarks/prime.py [--rounds 7]

The network is in eval mode and keeps no graph: its fastest. Both take turns, and each round gives one ratio: the
median counts. resnet18 at 32 pixels, batch 128 (the CIFAR preset); resnet50 at 224 pixels, batch 16 (the ImageNet
preset). Memory is what torch holds at the peak beside the batch itself, the worst of ten draws, over the batch's size.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
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


def peak_memory(prime: PRIME, x: torch.Tensor, seed: int) -> float:
    """Bytes that torch allocates at the peak of augmenting a batch, over those of the batch."""
    prime(x)  # makes tables that stay
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        prime(x, torch.Generator().manual_seed(seed))
    events: Any = profiler.profiler
    changes = [event for event in events.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return float(max(accumulate(event.nbytes() for event in changes)) / x.nbytes)


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
        peak = max(peak_memory(prime, x, seed) for seed in range(10))
        print(
            f"{name}: PRIME / {peer} forward {statistics.median(ratios):.3f} (rounds {min(ratios):.3f} to "
            f"{max(ratios):.3f}); PRIME {shape[0] / statistics.median(ours):.0f} images/s, {peer} "
            f"{shape[0] / statistics.median(theirs):.0f} with "
            f"{torch.get_num_threads()} threads; peak memory {peak:.1f} batches"
        )


if __name__ == "__main__":
    main()
