"""ExactResume: killed and resumed, a run ends with the bits of the one that was not."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler

from pl_robust._lightning import (
    NAMESPACE,
    Callback,
    LightningDataModule,
    LightningModule,
    MisconfigurationException,
    Trainer,
)
from pl_robust.callbacks import ExactResume
from tests._processes import run_and_kill, run_ranks
from tests.toys import OLD, quiet_trainer

ModelCheckpoint = import_module(f"{NAMESPACE}.callbacks").ModelCheckpoint


pytestmark = [
    pytest.mark.lightning,
    # Lightning's advice on speed, loggers and full checkpoint folders, and torch's on worker counts.
    *map(
        pytest.mark.filterwarnings,
        [
            "ignore:You defined a `validation_step` but have no",
            "ignore:.*does not have many workers",
            "ignore:.*tensorboardX",
            "ignore:.*smaller than the logging interval",
            "ignore:.*exists and is not empty",
            "ignore:.*GPU available but not used",
            "ignore:.*Consider setting `persistent_workers=True`",
            "ignore:The dirpath has changed",
            "ignore:Be aware that when using `ckpt_path`, callbacks used",
            "ignore:This DataLoader will create:UserWarning",
            "ignore:.*fork\\(\\) may lead to deadlocks:DeprecationWarning",
            "ignore:.*isinstance\\(treespec, LeafSpec\\)",
        ],
    ),
]

EPOCHS, BATCHES = 3, 6


class Samples(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Draws in every sample, where it runs: in the main process or in a worker."""

    def __init__(self) -> None:
        drawn = torch.Generator().manual_seed(1)
        self.x = torch.rand(4 * BATCHES, 3, generator=drawn)
        self.transforms = [Shift()]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.x[index] + torch.rand(())
        for transform in self.transforms:
            x = transform(x)
        return x, self.x[index].sum()


class Shift:
    """A transform with its own generator, as users write them."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(int(torch.randint(10**6, ())))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(3, generator=self.generator).to(x.device)


class Noisy(LightningModule):
    """Draws from every generator a training step can come by."""

    net: Any  # a Sequential, whose first layer gets a generator

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.net[0].own = torch.Generator().manual_seed(int(torch.randint(10**6, ())))
        self.attack = Shift()
        self.drawn = np.random.default_rng(int(torch.randint(10**6, ())))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        x = x + torch.rand_like(x) + random.random() + np.random.rand()  # noqa: NPY002, S311
        x = self.attack(x) + torch.rand(3, generator=self.net[0].own).to(x.device) + self.drawn.random()
        loss = F.mse_loss(self.net(x).squeeze(1), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", F.mse_loss(self.net(batch[0] + torch.rand(3, device=self.device)).squeeze(1), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Epochwise(Noisy):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 0.01)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}


class Plateau(Noisy):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.01)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss"}}


class Drawing(Callback):
    """Draws in all the hooks around an epoch's end; in ``on_train_start`` only once per process, alas."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.rand(3)

    on_train_epoch_start = on_train_epoch_end = on_validation_start = on_validation_epoch_end = on_train_start


class DrawingNoisy(Noisy):
    def on_train_start(self) -> None:
        torch.rand(2)

    on_train_epoch_start = on_validation_epoch_end = on_train_start
    if not OLD:  # there, checkpoints are written before this hook
        on_train_epoch_end = on_train_start


class Data(LightningDataModule):
    """Keeps the generator of its shuffling, as the field's datamodules do."""

    def __init__(self, data: Samples) -> None:
        super().__init__()
        self.data = data
        self.generator = torch.Generator().manual_seed(int(torch.randint(10**6, ())))

    def train_dataloader(self) -> Any:
        sampler = RandomSampler(self.data, generator=self.generator)
        return [DataLoader(self.data, 4, sampler=sampler), DataLoader(self.data, 4, shuffle=True)]


class TwoLoaders(Noisy):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch[0], batch_idx) + super().training_step(batch[1], batch_idx)


class StopAt(Callback):
    """Announces one step and waits there for the kill."""

    def __init__(self, step: int, marker: Path) -> None:
        self.step, self.marker = step, marker

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.marker.touch()
            time.sleep(60)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def _train(
    folder: Path,
    resume: str | None = None,
    *extra: Callback,
    seed: int = 0,
    exact: bool = True,
    module: type[Noisy] = Noisy,
    loader: dict[str, Any] | None = None,
    generator: bool = False,
    datamodule: bool = False,
    val: bool = False,
    checkpoint: dict[str, Any] | None = None,
    **trainer_arguments: Any,
) -> dict[str, Any]:
    """Fit from scratch or from a checkpoint of ``folder``; return all that has to be the same bits."""
    _seed(seed)
    data = Samples()
    drawn = torch.Generator().manual_seed(seed) if generator else None
    train = DataLoader(data, batch_size=4, shuffle=True, generator=drawn, **(loader or {}))
    saved = {"save_top_k": -1, "save_last": True, "filename": "{epoch}"} | (checkpoint or {})
    trainer = quiet_trainer(
        callbacks=[*extra, *[ExactResume()] * exact, ModelCheckpoint(str(folder), **saved)],
        enable_checkpointing=True,
        **{"max_epochs": EPOCHS, **trainer_arguments},
    )
    net = module()
    loaders: dict[str, Any] = {"datamodule": Data(data)} if datamodule else {"train_dataloaders": train}
    if val:
        loaders["val_dataloaders"] = DataLoader(Samples(), batch_size=4)
    trainer.fit(net, ckpt_path=None if resume is None else folder / resume, **loaders)
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "step": trainer.global_step,
        "weights": net.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
        "random": [random.getstate(), numpy_state["state"]["key"], torch.get_rng_state()],
        "own": [net.attack.generator.get_state(), net.net[0].own.get_state(), net.drawn.random()],
        "data": [generator.get_state() for generator in (data.transforms[0].generator, drawn) if generator],
    }


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return [key for key in a if not _same(a[key], b[key])]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the child processes: another number of threads may sum in another order, and here it is slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    result: dict[str, Any]
    (result,) = run_ranks(_train, 1, tmp_path_factory.mktemp("whole"))
    return result


@pytest.mark.parametrize("trial", [0, 1, 2])
def test_killed_anywhere_and_resumed_ends_with_the_same_bits(trial: int, whole: dict[str, Any], tmp_path: Path) -> None:
    step = random.Random(trial).randrange(BATCHES + 1, EPOCHS * BATCHES)  # noqa: S311
    marker = tmp_path / "marker"
    assert run_and_kill(_train, marker.exists, tmp_path, None, StopAt(step, marker)) == -signal.SIGKILL
    (resumed,) = run_ranks(_train_otherwise_seeded, 1, tmp_path, "last.ckpt")
    assert _differing(whole, resumed) == []


def test_without_the_callback_a_resumed_run_ends_elsewhere(whole: dict[str, Any], tmp_path: Path) -> None:
    alone = _train(tmp_path, exact=False)
    assert _differing(whole, alone) == []  # nor does the callback change an uninterrupted run
    resumed = _train(tmp_path, "epoch=0.ckpt", exact=False)
    assert {"weights", "optimizer", "random", "own"} <= set(_differing(whole, resumed))


def _train_otherwise_seeded(folder: Path, resume: str) -> dict[str, Any]:
    return _train(folder, resume, seed=5)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "workers": {"loader": {"num_workers": 2}},
    "generator": {"generator": True},
    "generator and workers": {"generator": True, "loader": {"num_workers": 2}},
    "accumulation": {"accumulate_grad_batches": 2},
    "uneven accumulation": {"accumulate_grad_batches": 4},
    "validation": {"val": True},
    "validation, saved at its end": {"val": True, "checkpoint": {"save_on_train_epoch_end": False}},
    "validation, twice an epoch": {
        "val": True,
        "val_check_interval": 0.5,
        "checkpoint": {"save_on_train_epoch_end": True},
    },
    "saved at validation's end, workers": {
        "val": True,
        "loader": {"num_workers": 2},
        "checkpoint": {"save_on_train_epoch_end": False},
    },
    "limited batches": {"limit_train_batches": 4},
    "a fixed number of steps": {"max_steps": EPOCHS * BATCHES, "max_epochs": -1},
    "a fixed number of steps, validation": {"max_steps": EPOCHS * BATCHES, "max_epochs": -1, "val": True},
    "a fixed number of steps, saved at validation's end": {
        "max_steps": EPOCHS * BATCHES,
        "max_epochs": -1,
        "val": True,
        "checkpoint": {"save_on_train_epoch_end": False},
    },
    "a schedule of epochs": {"module": Epochwise},
    "a schedule of epochs, saved at validation's end": {
        "module": Epochwise,
        "val": True,
        "checkpoint": {"save_on_train_epoch_end": False},
    },
    "a schedule of epochs, a fixed number of steps, saved at validation's end": {
        "module": Epochwise,
        "max_steps": EPOCHS * BATCHES,
        "max_epochs": -1,
        "val": True,
        "checkpoint": {"save_on_train_epoch_end": False},
    },
    "datamodule, two loaders": {"datamodule": True, "module": TwoLoaders},
    "hooks that draw": {"module": DrawingNoisy, "extra": True},
    "hooks that draw, validation": {"module": DrawingNoisy, "extra": True, "val": True},
    "hooks that draw, saved at validation's end": {
        "module": DrawingNoisy,
        "extra": True,
        "val": True,
        "checkpoint": {"save_on_train_epoch_end": False},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_from_an_epochs_end_ends_with_the_same_bits(variant: str, tmp_path: Path) -> None:
    arguments = dict(VARIANTS[variant])
    extra = [Drawing()] if arguments.pop("extra", False) else []
    wanted = _train(tmp_path, None, *extra, **arguments)
    for epoch in range(EPOCHS - 1):
        got = _train(tmp_path, f"epoch={epoch}.ckpt", *extra, seed=7, **arguments)
        assert _differing(wanted, got) == []


def test_a_run_resumed_twice_ends_with_the_same_bits(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"val": True, "checkpoint": {"save_on_train_epoch_end": False}}
    wanted = _train(tmp_path / "whole", **arguments)
    _train(tmp_path, max_epochs=1, **arguments)
    _train(tmp_path, "last.ckpt", seed=3, max_epochs=2, **arguments)
    assert _differing(wanted, _train(tmp_path, "last.ckpt", seed=4, **arguments)) == []


def test_persistent_workers_are_exact_in_the_main_process_and_warned_about(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"loader": {"num_workers": 2, "persistent_workers": True}, "max_epochs": 2}
    wanted = _train(tmp_path, **arguments)
    with pytest.warns(UserWarning, match="use persistent_workers=False"):
        got = _train(tmp_path, "epoch=0.ckpt", seed=7, **arguments)
    if not OLD:  # there, the first epoch of a run draws the workers' seed at another time
        assert _differing({"random": wanted["random"]}, got) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"checkpoint": {"every_n_train_steps": 4, "filename": "middle"}}, "written inside an epoch"),
        ({"reload_dataloaders_every_n_epochs": 1}, "use reload_dataloaders_every_n_epochs=0"),
        ({"module": Plateau}, "ReduceLROnPlateau misses"),
    ],
    ids=["mid-epoch", "reload", "plateau"],
)
@pytest.mark.filterwarnings("ignore:.*checkpoint that ended before the epoch ended")
def test_a_resume_that_is_not_exact_says_so(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    _train(tmp_path, max_epochs=1, **arguments)
    name = "middle.ckpt" if message == "written inside an epoch" else "epoch=0.ckpt"
    with pytest.warns(UserWarning, match=message):
        _train(tmp_path, name, max_epochs=2, **arguments)


@pytest.mark.filterwarnings("ignore:.*checkpoint that ended before the epoch ended")
def test_a_schedule_of_epochs_steps_once_in_an_epoch_that_is_resumed(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"module": Epochwise, "checkpoint": {"every_n_train_steps": 4, "filename": "{step}"}}
    wanted = _train(tmp_path, **arguments)
    with pytest.warns(UserWarning, match="written inside an epoch"):
        got = _train(tmp_path, "step=4.ckpt", **arguments)
    assert _differing({"scheduler": wanted["scheduler"]}, got) == []


def test_a_checkpoint_without_random_state_is_warned_about(tmp_path: Path) -> None:
    _train(tmp_path, exact=False, max_epochs=1)
    with pytest.warns(UserWarning, match="written without ExactResume"):
        _train(tmp_path, "epoch=0.ckpt", max_epochs=2)


def test_a_generator_that_is_gone_is_warned_about(tmp_path: Path) -> None:
    _train(tmp_path, generator=True, max_epochs=1)
    with pytest.warns(UserWarning, match=r"generator train_dataloader\.\S+ of the checkpoint is not in this run"):
        _train(tmp_path, "epoch=0.ckpt", max_epochs=2)


def test_what_validate_loads_is_never_applied(tmp_path: Path) -> None:
    _train(tmp_path, max_epochs=1)
    states = []
    for callbacks in ([ExactResume()], []):
        trainer = quiet_trainer(max_epochs=1, callbacks=callbacks)
        loader = DataLoader(Samples(), batch_size=4)
        _seed(9)
        trainer.validate(Noisy(), loader, tmp_path / "epoch=0.ckpt", verbose=False)
        states.append(torch.get_rng_state())
        trainer.fit(Noisy(), loader)
        states.append(torch.get_rng_state())
    assert torch.equal(states[0], states[2])
    assert torch.equal(states[1], states[3])


def test_state_is_plain_and_there_before_any_fit(tmp_path: Path) -> None:
    callback = ExactResume()
    torch.save(callback.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    callback.load_state_dict(state)
    assert callback.state_dict() is state  # what waits to be applied is what a checkpoint gets
    _train(tmp_path, max_epochs=1)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["ExactResume"]
    assert state["position"] == "ended"
    assert any(name.endswith("attack.generator") for name in state["ranks"][0]["generators"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_same_random_numbers_are_drawn(tmp_path: Path) -> None:
    states = []
    for resume, seed in ((None, 0), ("epoch=0.ckpt", 7)):
        result = _train(tmp_path, resume, seed=seed, accelerator="gpu")
        states.append([result["random"], result["own"], torch.cuda.get_rng_state()])
    assert _same(*states)


def test_cuda_state_in_a_run_without_cuda_is_warned_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _train(tmp_path, max_epochs=1)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["callbacks"]["ExactResume"]["ranks"][0]["cuda"] = torch.zeros(16, dtype=torch.uint8)
    torch.save(checkpoint, tmp_path / "cuda.ckpt")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="written on a CUDA device"):
        _train(tmp_path, "cuda.ckpt", max_epochs=2)


def _train_rank(folder: Path, resume: str | None, seed: int) -> dict[str, Any]:
    import os

    torch.set_num_threads(1)
    return _train(folder, resume, seed=seed + int(os.environ["LOCAL_RANK"]), devices=2, strategy="ddp")


def test_two_ranks_get_each_its_own_state_back(tmp_path: Path) -> None:
    wanted = run_ranks(_train_rank, 2, tmp_path, None, 0)
    got = run_ranks(_train_rank, 2, tmp_path, "epoch=0.ckpt", 50)
    assert [_differing(*pair) for pair in zip(wanted, got, strict=True)] == [[], []]
    assert not _same(wanted[0]["random"], wanted[1]["random"])
    with pytest.raises(MisconfigurationException, match=r"devices \* num_nodes must be 2, got 1"):
        _train(tmp_path, "epoch=0.ckpt")
