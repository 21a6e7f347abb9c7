"""Time of a training step: NodeClassification in a Trainer against a bare PyTorch Geometric loop doing the same passes.

python tests/benchmarks/node_classification.py [--steps 60] [--rounds 7] [--data_dir ../shared/data/planetoid]

GCN on Cora, public split, or on a generated graph of its size where the files are not there. Both sides validate every
10 steps, an epoch of the Trainer, and take loss and accuracy; progress bar and TensorBoard logger are on. The loop has
PyG's layers first, which draw dropout for the zeros of a bag of words, too; then the same networks as the Trainer has,
so that its own work is all the difference: most with SGC, whose step is a small matrix product.
Both sides take turns, and each round gives one ratio: the median counts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import shutil
import statistics
import tempfile
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_robust._lightning import NAMESPACE, Callback, Trainer
from pl_robust.datamodules import GraphDataModule
from pl_robust.models import GCN, SGC
from pl_robust.modules import NodeClassification

WARM_UP = 20
EPOCH = 10
logging.getLogger(NAMESPACE).setLevel(logging.ERROR)
warnings.simplefilter("ignore")


class Clock(Callback):
    """Seconds from the end of the warm-up to the end of the run."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter())


class BareGCN(nn.Module):
    """As in PyTorch Geometric's own example, at our width."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        from torch_geometric.nn import GCNConv

        self.first = GCNConv(features, 64, cached=True)
        self.second = GCNConv(64, classes, cached=True)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = self.first(F.dropout(x, 0.5, self.training), edges).relu()
        logits: Tensor = self.second(F.dropout(x, 0.5, self.training), edges)
        return logits


def bare(net: nn.Module, data: GraphDataModule, steps: int) -> float:
    """The loop that people write, none of it ours."""
    batch = data.batch()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=5e-4)
    times = []
    for step in range(1, steps + 1):
        net.train()
        optimizer.zero_grad()
        logits = net(batch.x, batch.edge_index)
        F.cross_entropy(logits[batch.train_mask], batch.y[batch.train_mask]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % EPOCH == 0:
            net.eval()
            with torch.no_grad():
                logits, y = net(batch.x, batch.edge_index)[batch.val_mask], batch.y[batch.val_mask]
                F.cross_entropy(logits, y).item()
                (logits.argmax(1) == y).float().mean().item()
            times.append(time.perf_counter())
    return per_step(times)


def lightning(net: nn.Module, data: GraphDataModule, steps: int, folder: str) -> float:
    clock = Clock()
    trainer = Trainer(
        max_epochs=steps // EPOCH,
        accelerator="cpu",
        logger=import_module(f"{NAMESPACE}.loggers").TensorBoardLogger(folder),
        callbacks=[clock],
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=EPOCH,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        trainer.fit(NodeClassification(net, num_classes=data.num_classes, patience=10**6), data)
    return per_step(clock.times)


def per_step(times: list[float]) -> float:
    warm = WARM_UP // EPOCH
    return (times[-1] - times[warm - 1]) / (EPOCH * (len(times) - warm))


def read(data_dir: Path, folder: str) -> GraphDataModule:
    if not (data_dir / "Cora" / "raw").is_dir():
        print("a generated graph of Cora's size")
        size: dict[str, Any] = {"sbm_nodes": 2708, "sbm_classes": 7, "sbm_features": 1433, "sbm_degree": 3.9}
        return GraphDataModule("csbm", train_fraction=0.052, steps_per_epoch=EPOCH, **size)
    shutil.copytree(data_dir / "Cora" / "raw", Path(folder) / "Cora" / "raw")
    return GraphDataModule(
        "Cora", data_dir=folder, download=False, split="public", row_normalize=True, steps_per_epoch=EPOCH
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="of a round; the first 20 are not counted")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    planetoid = Path(__file__).parents[3] / "shared" / "data" / "planetoid"
    parser.add_argument("--data_dir", type=Path, default=planetoid)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        data = read(arguments.data_dir, folder)
        data.prepare_data()
        sizes = (data.in_features, data.num_classes)
        rows: tuple[tuple[str, type[nn.Module], type[nn.Module]], ...] = (
            ("GCN, PyG's layers in the loop", BareGCN, GCN),
            ("GCN, the same network", GCN, GCN),
            ("SGC, the same network", SGC, SGC),
        )
        for name, alone, ours in rows:
            ratios, bares, trainers = [], [], []
            for _ in range(arguments.rounds):
                bares.append(bare(alone(*sizes), data, arguments.steps))
                trainers.append(lightning(ours(*sizes), data, arguments.steps, folder))
                ratios.append(trainers[-1] / bares[-1])
            rounds = ", ".join(f"{ratio:.3f}" for ratio in ratios)
            print(
                f"{name}: Trainer / bare loop {statistics.median(ratios):.3f} (rounds {rounds}); bare "
                f"{1000 * statistics.median(bares):.2f}, Trainer {1000 * statistics.median(trainers):.2f} ms/step"
            )


if __name__ == "__main__":
    main()
