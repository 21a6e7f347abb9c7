"""Cost of a CurvatureLogger check at its defaults, in passes and as a share of an FGSM epoch on CIFAR-10's size.

python tests/benchmarks/curvature.py [--width 16] [--rounds 5]

Passes of the network are counted at its output: forwards, backwards, and second backwards, through the graphs of both.
Checks, bare forwards and backwards of the same samples, and FGSM training steps take turns; the median of the ratios
counts. Times are CPU seconds of one thread, which other processes on the machine do not lengthen.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pl_robust._lightning import NAMESPACE, LightningModule, Trainer
from pl_robust.attacks import fgsm
from pl_robust.callbacks import CurvatureLogger
from pl_robust.models import preact_resnet18

TRAINING_IMAGES, BATCH = 45_000, 128
logging.getLogger(NAMESPACE).setLevel(logging.ERROR)
warnings.simplefilter("ignore")


class Passes(torch.autograd.Function):
    """The identity, which counts how often forward, backward and second backward come past."""

    seen: ClassVar[Counter[str]] = Counter()

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        Passes.seen["forward"] += 1
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        Passes.seen["backward"] += 1
        through: Tensor = SecondPass.apply(gradients[0])
        return through


class SecondPass(torch.autograd.Function):
    """The identity inside a backward: its own backward is the second."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        Passes.seen["second backward"] += 1
        return gradients[0]


class Module(LightningModule):
    """FGSM adversarial training, timed, with a bare pass over the probe set beside each epoch."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.counts = False

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return Passes.apply(logits) if self.counts else logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(fgsm(self.net, x, y, eps=8 / 255)), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        return None

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0, momentum=0.9)


class Timed(CurvatureLogger):
    """Keeps the seconds of each check, and of the work it is compared with, done right after it."""

    def __init__(self, x: Tensor, y: Tensor, **arguments: Any) -> None:
        super().__init__(eps=8 / 255, **arguments)
        self.samples = x[: self.max_samples], y[: self.max_samples]
        self.batch = x, y
        self.rows: list[dict[str, float]] = []

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.rows:
            pl_module.counts = True  # type: ignore[assignment]
            Passes.seen.clear()
            super()._check(trainer, pl_module)
            # A second backward comes past twice: through the graph of the backward, then through that of the forward.
            self.passes = Passes.seen - Counter({"backward": Passes.seen["second backward"]})
            pl_module.counts = False  # type: ignore[assignment]
        x, y = self.samples
        optimizer = trainer.optimizers[0]

        def both() -> None:
            F.cross_entropy(pl_module(x), y).backward()  # type: ignore[no-untyped-call]

        def step() -> None:
            optimizer.zero_grad()
            loss: Any = pl_module.training_step(self.batch, 0)
            loss.backward()
            optimizer.step()

        def check() -> None:
            super(Timed, self)._check(trainer, pl_module)

        self.rows.append({work.__name__: _seconds(work) for work in (check, both, step)})


def _seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16, help="width of preact_resnet18")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--k", type=int, default=1, help="number of eigenvalues")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x, y = torch.rand(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    logger = Timed(x, y, k=arguments.k)
    trainer = Trainer(
        max_epochs=arguments.rounds,
        accelerator="cpu",
        callbacks=[logger],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    images = DataLoader(TensorDataset(x, y), batch_size=BATCH)  # an epoch is one step
    trainer.fit(Module(preact_resnet18(width=arguments.width)), images, images)
    passes = ", ".join(f"{count} {name}s" for name, count in logger.passes.items())
    multiples = [row["check"] / row["both"] for row in logger.rows]
    shares = [row["check"] / (row["step"] * -(-TRAINING_IMAGES // BATCH)) for row in logger.rows]
    print(f"a check of {logger.max_samples} samples, k={logger.k}: {passes}")
    print(
        f"time: {statistics.median(multiples):.1f} times one forward and backward of the same samples "
        f"(rounds {', '.join(f'{part:.1f}' for part in multiples)})"
    )
    print(
        f"{statistics.median(shares):.2%} of an FGSM epoch of {TRAINING_IMAGES} images "
        f"(rounds {', '.join(f'{part:.2%}' for part in shares)}); "
        f"check {statistics.median(row['check'] for row in logger.rows):.2f} s, "
        f"step {statistics.median(row['step'] for row in logger.rows):.3f} s"
    )


if __name__ == "__main__":
    main()
