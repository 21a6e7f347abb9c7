"""Small things to train: data sets, nets and modules that a test can afford."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pl_robust._lightning import LightningModule, Trainer, is_before


def needs_lightning(version: str, why: str) -> pytest.MarkDecorator:
    """Skip what an older Lightning cannot do. What a user would notice of it belongs into the README."""
    return pytest.mark.skipif(is_before(version), reason=f"before Lightning {version}, {why}")


OLD = is_before("2.0")
"""Whether this is Lightning 1.9."""

needs_named_loaders = needs_lightning("2.0", "dataloaders come in no dict")
needs_folders = needs_lightning("2.1", "all runs of a CSVLogger share one folder")
needs_shared_shuffling = needs_lightning("2.1", "ranks of different seeds shuffle differently")
needs_frozen_parts = needs_lightning("2.2", "training starts with all parts in training mode")
needs_exact_middle = needs_lightning("2.5", "a run resumed inside an epoch trains one batch again")
needs_rebuilding = needs_lightning("2.4", "`load_from_checkpoint` does not make the networks that the command has made")
needs_torch_2_6 = pytest.mark.skipif(
    not hasattr(torch.compiler, "set_stance"),
    reason="before torch 2.6, nobody can make a compiled network run eagerly",
)
needs_checkpoint_arguments = needs_lightning("2.6", "the command takes no arguments from a checkpoint")


class PlainModule(LightningModule):
    """A classifier as users write one: knows nothing of pl_robust; has batch-norm, dropout and momentum."""

    def __init__(self, input_key: Any = 0, label_key: Any = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(144, 3)
        )
        self.keys = (input_key, label_key)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch[self.keys[0]], batch[self.keys[1]]
        x = x + 0.1 * torch.randn_like(x)  # the global generator is in use
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", F.cross_entropy(self(batch[self.keys[0]]), batch[self.keys[1]]), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", F.cross_entropy(self(batch[self.keys[0]]), batch[self.keys[1]]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}


def stripes(count: int, seed: int = 0) -> TensorDataset:
    """Images [count, 1, 8, 8] in [0, 1] of three classes told by a bright row."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (count,), generator=generator)
    x = torch.rand(count, 1, 8, 8, generator=generator) * 0.7
    x[torch.arange(count), 0, 2 * y + 1] += 0.3
    return TensorDataset(x, y)


def loader(count: int, *, seed: int = 0, shuffle: bool = False, batch_size: int = 16) -> DataLoader[Any]:
    """A dataloader over stripes."""
    return DataLoader(stripes(count, seed), batch_size=batch_size, shuffle=shuffle)


def quiet_trainer(**arguments: Any) -> Trainer:
    """A CPU trainer that prints and writes nothing unless told to."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    if "callbacks" in arguments:
        arguments["callbacks"] = list(arguments["callbacks"])  # Lightning 1.9 adds its own to the list it is given
    if arguments.get("precision") in ("bf16-true", "16-true", 64, "64", "64-true") and is_before("2.1"):
        pytest.skip("before Lightning 2.1, half precision is mixed only, and only a module's own steps see doubles")
    return Trainer(**{**quiet, **(_as_in_1_9(arguments) if OLD else arguments)})


def _as_in_1_9(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same arguments by the names that Lightning 1.9 has for them."""
    names = {"use_distributed_sampler": "replace_sampler_ddp"}
    values = {"bf16-mixed": "bf16", "16-mixed": 16, "32-true": 32, "64-true": 64}
    changed = {names.get(name, name): value for name, value in arguments.items()}
    if changed.get("strategy") == "ddp_find_unused_parameters_true":
        changed["strategy"] = "ddp"  # which finds them by itself
    if changed.get("precision") in values:
        changed["precision"] = values[changed["precision"]]
    return changed


def training_state(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Everything that an observer must leave alone, copied."""
    return {
        "module": {key: value.clone() for key, value in module.state_dict().items()},
        "optimizers": [copy.deepcopy(optimizer.state_dict()) for optimizer in trainer.optimizers],
        "grads": [None if parameter.grad is None else parameter.grad.clone() for parameter in module.parameters()],
        "flags": [part.training for part in module.modules()],
        "rng": torch.get_rng_state(),
    }


def assert_identical(left: Any, right: Any, path: str = "state") -> None:
    """Compare nested states bit for bit; NaN equals NaN."""
    assert type(left) is type(right), path
    if isinstance(left, Tensor):
        assert left.dtype == right.dtype, path
        assert torch.equal(left.isnan(), right.isnan()), path
        assert torch.equal(left.nan_to_num(0.0), right.nan_to_num(0.0)), path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_identical(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_identical(a, b, f"{path}[{index}]")
    else:
        assert left == right or (left != left and right != right), path
