"""Cost of an NTKAlignmentLogger check at its defaults, as a share of an ordinary epoch on CIFAR-10's size.

python tests/benchmarks/ntk_alignment.py [--width 64] [--rounds 3] [--eigenvalues 0] [--device cpu]

Checks and training steps take turns; the median of the ratios counts. Times are CPU seconds of one thread, which other
processes on the machine do not lengthen; on an accelerator they are seconds, waited for.
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
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pl_robust._lightning import NAMESPACE, LightningModule, Trainer
from pl_robust.callbacks import NTKAlignmentLogger
from pl_robust.models import preact_resnet18

TRAINING_IMAGES, BATCH = 50_000, 128
logging.getLogger(NAMESPACE).setLevel(logging.ERROR)
warnings.simplefilter("ignore")


class Module(LightningModule):
    """Ordinary training."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        return None

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Timed(NTKAlignmentLogger):
    """Keeps the seconds of each check, and those of a step right after it."""

    def __init__(self, batch: tuple[Tensor, Tensor], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.batch = batch
        self.rows: list[dict[str, float]] = []

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        x, y = (part.to(pl_module.device) for part in self.batch)
        optimizer = trainer.optimizers[0]

        def step() -> None:
            optimizer.zero_grad()
            loss: Any = pl_module.training_step((x, y), 0)
            loss.backward()
            optimizer.step()

        def check() -> None:
            super(Timed, self)._check(trainer, pl_module)

        self.rows.append({work.__name__: _seconds(work, pl_module.device) for work in (check, step)})


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64, help="width of preact_resnet18")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--eigenvalues", type=int, default=0, help="largest eigenvalues to find as well")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.rand(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    logger = Timed((x, y), eigenvalues=arguments.eigenvalues)
    trainer = Trainer(
        max_epochs=arguments.rounds,
        accelerator="cpu" if arguments.device == "cpu" else "gpu",
        devices=1,
        callbacks=[logger],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    images = DataLoader(TensorDataset(x, y), batch_size=BATCH)  # an epoch is one step
    trainer.fit(Module(preact_resnet18(width=arguments.width)), images, images)
    steps = [row["check"] / row["step"] for row in logger.rows]
    epoch = -(-TRAINING_IMAGES // BATCH)
    rounds = ", ".join(f"{part / epoch:.2%}" for part in steps)
    print(
        f"a check of {logger.max_samples} samples with {logger.samples} sign vectors and {logger.eigenvalues} "
        f"eigenvalues takes {statistics.median(steps):.1f} training steps of {BATCH} images: "
        f"{statistics.median(steps) / epoch:.2%} of an epoch of {TRAINING_IMAGES} (rounds {rounds}); "
        f"check {statistics.median(row['check'] for row in logger.rows):.2f} s, "
        f"step {statistics.median(row['step'] for row in logger.rows):.3f} s"
    )


if __name__ == "__main__":
    main()
