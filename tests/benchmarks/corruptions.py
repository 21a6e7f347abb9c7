"""Time of an image's corruption by the PyPI package imagecorruptions over that by `corrupt`, type by type.

python -m tests.benchmarks.corruptions [--rounds 5] [--severity 3] [--threads N] [names ...]

Batches of 16 photos of 224 pixels and of 256 of 32 pixels, both sides with the ImageNet constants on uint8-valued
images. The peer takes one image at a time; how long it takes does not depend on which, so a round gives it a few. Both
take turns, and each round gives one ratio: the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from pl_robust.transforms import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt
from tests.transforms.corruptions.oracle import peer, photos, to_batch

# Side in pixels, images in our batch, images that the peer takes in a round.
SETTINGS = ((224, 16, 2), (32, 256, 12))


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(name: str, severity: int, side: int, batch: int, few: int, rounds: int) -> tuple[float, float, float]:
    """The median ratio, and the median times of one image in ms: ours and the peer's."""
    images = [photos(side)[image % 6] for image in range(batch)]
    x, seeds, theirs = to_batch(images), torch.arange(batch), peer(name, severity)
    pairs = []
    for _ in range(1 + rounds):
        own = seconds(lambda: corrupt(x, name, severity, seeds=seeds)) / batch
        pairs.append((own, seconds(lambda: [theirs(image) for image in images[:few]]) / few))
    pairs = pairs[1:]  # the first makes tables and reads photos
    ours, others = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
    return statistics.median(other / own for own, other in pairs), ours, others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--severity", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("names", nargs="*", default=(*CORRUPTIONS, *EXTRA_CORRUPTIONS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"severity {arguments.severity}, {arguments.threads} threads; ms per image: ours, imagecorruptions, ratio")
    ratios: dict[int, list[float]] = {side: [] for side, _, _ in SETTINGS}
    for name in arguments.names:
        cells = []
        for side, batch, few in SETTINGS:
            ratio, ours, others = measure(name, arguments.severity, side, batch, few, arguments.rounds)
            ratios[side].append(ratio)
            cells.append(f"{side} px {ours:8.3f} {others:9.3f} {ratio:7.1f}x")
        print(f"{name:18s}", "   ".join(cells), flush=True)
    print("median over the types:", ", ".join(f"{side} px {statistics.median(r):.1f}x" for side, r in ratios.items()))


if __name__ == "__main__":
    main()
