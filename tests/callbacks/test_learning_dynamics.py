from __future__ import annotations

import copy
import math
import shutil
import time
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from pl_robust._lightning import (
    NAMESPACE,
    Callback,
    LightningDataModule,
    LightningModule,
    MisconfigurationException,
    Trainer,
)
from pl_robust.attacks import FGSM, PGD
from pl_robust.callbacks import ExactResume, LearningDynamics
from pl_robust.callbacks._dynamics_file import append_row, keep_rows
from pl_robust.callbacks._dynamics_statistics import sample_statistics
from pl_robust.datamodules import IndexedDataModule
from pl_robust.modules import AdversarialTraining
from tests._processes import run_and_kill
from tests.toys import PlainModule, assert_identical, loader, quiet_trainer, stripes, training_state

pytestmark = [
    pytest.mark.lightning,
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:.fit.ckpt_path="),
]

ModelCheckpoint = import_module(f"{NAMESPACE}.callbacks").ModelCheckpoint


class Data(LightningDataModule):
    """Loaders as they are given."""

    def __init__(self, train: Any, val: Any = None) -> None:
        super().__init__()
        self.train, self.val = train, val
        if val is not None:
            self.val_dataloader = lambda: self.val  # type: ignore[method-assign]

    def train_dataloader(self) -> Any:
        return self.train


def csv_logger(folder: Path | str, **arguments: Any) -> Any:
    return import_module(f"{NAMESPACE}.loggers").CSVLogger(folder, **arguments)


# the statistics, against an oracle that goes sample by sample


def script(epochs: int, samples: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Random histories [E, N]; some looks are missing, the last sample was never looked at."""
    drawn = np.random.default_rng(0)
    confidence = drawn.random((epochs, samples), np.float32)
    correct = (confidence > drawn.random(samples)).astype(np.int8)
    unseen = drawn.random((epochs, samples)) < 0.2
    unseen[:, -1] = True
    return np.where(unseen, np.float32(np.nan), confidence), np.where(unseen, -1, correct).astype(np.int8)


def test_statistics_equal_those_of_each_history_by_itself() -> None:
    confidence, correct = script(epochs=15, samples=60)
    epochs = list(range(3, 33, 2))
    found = sample_statistics(epochs, confidence, correct)
    for sample in range(59):
        looks = [(epoch, answer) for epoch, answer in zip(epochs, correct[:, sample], strict=True) if answer >= 0]
        answers = [answer for _, answer in looks]
        events = sum(a == 1 and b == 0 for a, b in pairwise(answers))
        seen = confidence[:, sample][correct[:, sample] >= 0].astype(np.float64)
        assert found.forgetting[sample] == events
        assert found.first_learned[sample] == min((epoch for epoch, answer in looks if answer), default=-1)
        assert found.looks[sample] == len(looks)
        assert found.right[sample] == sum(answers)
        assert found.correctness[sample] == sum(answers) / len(looks)
        assert found.never_learned[sample] == (1 not in answers)
        assert found.unforgettable[sample] == (1 in answers and events == 0)
        assert found.is_right[sample] == answers[-1]
        assert found.confidence[sample] == pytest.approx(seen.mean(), rel=1e-12)
        assert found.variability[sample] == pytest.approx(seen.std(), rel=1e-9, abs=1e-12)
    assert found.forgetting.max() > 2
    assert found.never_learned.any()
    nothing = [found.confidence[59], found.variability[59], found.correctness[59]]
    assert np.isnan(nothing).all()
    assert [found.looks[59], found.first_learned[59], found.is_right[59]] == [0, -1, -1]
    assert not found.never_learned[59]
    assert found.summary() == {
        "forgetting": pytest.approx(found.forgetting[:59].mean()),
        "learned": pytest.approx((found.first_learned[:59] >= 0).mean()),
    }


def test_ranking_puts_the_never_learned_first_and_then_the_most_forgotten_and_the_latest() -> None:
    correct = np.array(
        [
            [1, 1, 1, 1],  # 0: never forgotten
            [0, 0, 0, 0],  # 1: never learned
            [1, 0, 1, 0],  # 2: forgotten twice
            [0, 0, 0, 1],  # 3: learned last
            [0, 1, 0, 1],  # 4: forgotten once, learned late
            [1, 0, 1, 1],  # 5: forgotten once
            [0, 0, 0, 1],  # 6: learned last, with less confidence
            [-1, -1, -1, -1],  # 7: never seen
        ],
        np.int8,
    ).T
    confidence = np.full((4, 8), 0.5, np.float32)
    confidence[:, 6] = 0.4
    statistics = sample_statistics(range(4), confidence, correct)
    assert statistics.ranking().tolist() == [1, 2, 4, 5, 6, 3, 0]
    assert statistics.forgetting.tolist() == [0, 0, 2, 0, 1, 1, 0, 0]
    assert statistics.first_learned.tolist() == [0, -1, 0, 3, 1, 0, 3, -1]


# the file


def write(path: Path, rows: range, samples: int = 5) -> NDArray[np.float32]:
    confidence, correct = script(8, samples)
    for epoch in rows:
        append_row(path, epoch, {"": (confidence[epoch], correct[epoch])})
    return confidence


def test_a_file_cut_anywhere_gives_the_rows_that_were_whole_and_can_go_on(tmp_path: Path) -> None:
    path, cut = tmp_path / "run.npz", tmp_path / "cut.npz"
    write(path, range(2))
    sound = path.stat().st_size
    confidence = write(path, range(2, 3))
    data = path.read_bytes()
    assert len(np.load(path)["epoch_000002"]) == 5  # any reader of npz files reads it
    for size in range(sound, len(data) + 1):
        cut.write_bytes(data[:size])
        epochs = LearningDynamics.load(cut).epochs.tolist()
        assert epochs == ([0, 1, 2] if size == len(data) else [0, 1])
    cut.write_bytes(data[:-30])
    assert keep_rows(cut, 7) == [0, 1]
    write(cut, range(2, 4))
    np.testing.assert_array_equal(LearningDynamics.load(cut).confidence, confidence[:4])
    assert cut.stat().st_size < 2 * 4 * (5 * 5 + 350)  # rows and tables of contents, not copies of copies
    cut.write_bytes(data[: sound // 3])  # killed in its first row
    with pytest.raises(ValueError, match=r"must be a file that LearningDynamics has written, and .*cut.npz is none"):
        LearningDynamics.load(cut)
    assert keep_rows(cut, 7) == []
    assert not cut.exists()


def test_rows_behind_an_epoch_are_cut_off_and_another_file_is_left_alone(tmp_path: Path) -> None:
    path, other = tmp_path / "run.npz", tmp_path / "other.npz"
    confidence = write(path, range(6))
    assert keep_rows(path, 2) == [0, 1, 2]
    assert keep_rows(path, 2) == [0, 1, 2]
    write(path, range(3, 5))
    np.testing.assert_array_equal(LearningDynamics.load(path).confidence, confidence[:5])
    assert keep_rows(path, -1) == []
    assert keep_rows(path, 3) == []
    np.savez(other, mine=np.zeros(3))
    with pytest.raises(FileExistsError, match=r"other.npz is in the way and none of LearningDynamics"):
        keep_rows(other, 3)
    with pytest.raises(ValueError, match="must be a file that LearningDynamics has written"):
        LearningDynamics.load(other)
    write(path, range(1))
    with pytest.raises(ValueError, match="`adversarial`=True needs adversarial looks"):
        LearningDynamics.load(path).statistics(adversarial=True)


# what it sees


class Scripted(LightningModule):
    """A network that follows a script: the probability of each sample's label in each epoch, when in eval mode."""

    def __init__(self, confidence: Tensor) -> None:
        super().__init__()
        self.table = confidence
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        p = self.table[self.current_epoch, x[:, 0].long()]
        if self.training:
            p = 1 - p
        return torch.stack([p.log(), (1 - p).log()], 1) + 0 * (self.weight + x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def scripted(samples: int, epochs: int = 6) -> tuple[Scripted, TensorDataset]:
    generator = torch.Generator().manual_seed(1)
    module = Scripted(torch.rand(epochs, samples, generator=generator))
    return module, TensorDataset(torch.arange(float(samples))[:, None], torch.zeros(samples).long())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_scripted_history_is_recorded_as_it_is_written(tmp_path: Path, accumulate: int) -> None:
    module, data = scripted(50)
    dynamics = LearningDynamics()
    trainer = quiet_trainer(
        max_epochs=6, callbacks=[dynamics], logger=csv_logger(tmp_path), accumulate_grad_batches=accumulate
    )
    trainer.fit(module, datamodule=IndexedDataModule(Data(DataLoader(data, 8, shuffle=True))))
    recorded = LearningDynamics.load(Path(trainer.log_dir or "") / "dynamics.npz")
    assert recorded.epochs.tolist() == list(range(6))
    np.testing.assert_allclose(recorded.confidence, module.table.numpy(), rtol=1e-5)
    assert recorded.confidence_adv is None
    correct = (module.table > 0.5).numpy()
    np.testing.assert_array_equal(recorded.correct, correct)
    events = (correct[:-1] & ~correct[1:]).sum(0)
    statistics = dynamics.statistics["clean"]
    np.testing.assert_array_equal(statistics.forgetting, events)
    assert_identical(recorded.statistics().state_dict(), statistics.state_dict())
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged == {
        "dynamics/confidence": pytest.approx(float(module.table[5].mean()), rel=1e-5),
        "dynamics/learned": pytest.approx(correct.any(0).mean()),
        "dynamics/forgetting": pytest.approx(events.mean()),
    }
    assert [row["samples"] for row in dynamics.history] == [50] * 6


def test_samples_that_an_epoch_leaves_out_are_unseen_and_repeated_ones_count_once() -> None:
    module, data = scripted(20)
    dynamics = LearningDynamics(every_n_epochs=2)
    trainer = quiet_trainer(max_epochs=4, callbacks=[dynamics])
    trainer.fit(module, datamodule=IndexedDataModule(Data(DataLoader(data, 8, drop_last=True))))
    assert dynamics.statistics["clean"].looks.tolist() == [2] * 16 + [0] * 4
    assert [row["epoch"] for row in dynamics.history] == [1, 3]
    seen = module.table[[1, 3], :16]
    assert dynamics.statistics["clean"].confidence[:16] == pytest.approx(seen.double().mean(0).numpy(), rel=1e-5)
    assert dynamics.history[1]["learned"] == pytest.approx(float((seen > 0.5).any(0).float().mean()))
    # Ends inside its second epoch: what was looked at counts.
    trainer = quiet_trainer(max_steps=4, callbacks=[partly := LearningDynamics()])
    trainer.fit(module, datamodule=IndexedDataModule(Data(DataLoader(data, 8))))
    assert partly.statistics["clean"].looks.tolist() == [2] * 8 + [1] * 12
    again = WeightedRandomSampler([1.0] * 20, 64)
    trainer = quiet_trainer(max_epochs=1, callbacks=[repeating := LearningDynamics()])
    trainer.fit(module, datamodule=IndexedDataModule(Data(DataLoader(data, 8, sampler=again))))
    assert repeating.statistics["clean"].looks.max() == 1
    assert repeating.history[0]["samples"] == repeating.statistics["clean"].looks.sum()


class Watching(PlainModule):
    """Computes by itself what its samples' probabilities are when a step sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.attack = FGSM(0.1)
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, index = batch
        net = copy.deepcopy(self.net).eval()
        x_adv = self.attack(net, x, y)
        clean, adversarial = (net(each).softmax(1).gather(1, y[:, None])[:, 0].detach() for each in (x, x_adv))
        self.seen.append((index, clean, adversarial))
        return super().training_step(batch, batch_idx)


def test_it_looks_at_the_weights_and_the_inputs_of_the_step_in_eval_mode(tmp_path: Path) -> None:
    module, dynamics = Watching(), LearningDynamics(adversarial=True)
    trainer = quiet_trainer(max_epochs=2, callbacks=[dynamics], logger=csv_logger(tmp_path))
    trainer.fit(module, datamodule=IndexedDataModule(Data(loader(70, shuffle=True))))
    recorded = LearningDynamics.load(Path(trainer.log_dir or "") / "dynamics.npz")
    for epoch in range(2):
        index, clean, adversarial = (torch.cat(part) for part in zip(*module.seen[5 * epoch :][:5], strict=True))
        np.testing.assert_array_equal(recorded.confidence[epoch, index], clean)
        assert recorded.confidence_adv is not None
        np.testing.assert_array_equal(recorded.confidence_adv[epoch, index], adversarial)
    assert recorded.confidence_adv is not None
    assert (recorded.confidence_adv < recorded.confidence).mean() > 0.9
    assert set(dynamics.history[0]) == {
        *("epoch", "step", "samples", "confidence", "learned", "forgetting"),
        *("confidence_adv", "learned_adv", "forgetting_adv"),
    }


class InPlace(PlainModule):
    """Its first layer writes into the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (PlainModule, {}),
        (PlainModule, {"accumulate_grad_batches": 2}),
        (PlainModule, {"precision": "bf16-mixed"}),
        (InPlace, {}),
    ],
)
def test_training_is_bit_identical_with_and_without_it(kind: type[PlainModule], arguments: dict[str, Any]) -> None:
    def train(*callbacks: Callback) -> dict[str, Any]:
        torch.manual_seed(0)
        module = kind()
        trainer = quiet_trainer(max_epochs=2, callbacks=callbacks, **arguments)
        trainer.fit(module, datamodule=IndexedDataModule(Data(loader(70, shuffle=True), loader(40, seed=1))))
        return training_state(trainer, module)

    attack = None if kind is InPlace else PGD(0.1, steps=2, random_start=True)  # autograd bears no such layer
    two = [LearningDynamics(attack), LearningDynamics(every_n_epochs=2)]
    assert_identical(train(*two), train())
    assert [len(dynamics.history) for dynamics in two] == [2, 1]


def test_diverged_half_and_double_networks_and_dict_batches_are_understood() -> None:
    def as_dict(samples: Any) -> Any:
        return {"image": torch.stack([x for x, _ in samples]), "label": torch.stack([y for _, y in samples])}

    class Diverged(PlainModule):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = super().forward(x)
            return logits if self.training else logits * math.nan

    data = IndexedDataModule(Data(DataLoader(stripes(17), 8, collate_fn=as_dict)))
    keys = {"input_key": "image", "label_key": "label", "index_key": "index"}
    for precision in (64, "bf16-mixed"):
        dynamics = LearningDynamics(FGSM(0.1), **keys)  # type: ignore[arg-type]
        quiet_trainer(max_epochs=2, callbacks=[dynamics], precision=precision).fit(PlainModule("image", "label"), data)
        assert 0 < dynamics.history[1]["confidence_adv"] < dynamics.history[1]["confidence"] < 1
    dynamics = LearningDynamics(**keys)  # type: ignore[arg-type]
    quiet_trainer(max_epochs=1, callbacks=[dynamics]).fit(Diverged("image", "label"), data)
    assert np.isnan(dynamics.history[0]["confidence"])
    assert dynamics.history[0]["learned"] == 0
    assert dynamics.statistics["clean"].never_learned.all()


# what it leaves behind


def test_figure_numbers_and_summary_find_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = import_module(f"{NAMESPACE}.loggers").TensorBoardLogger(tmp_path)
    module, data = scripted(30)
    both = [LearningDynamics(), LearningDynamics(FGSM(0.0, bounds=None))]
    trainer = quiet_trainer(max_epochs=6, callbacks=both, logger=logger, log_every_n_steps=50)
    trainer.fit(module, datamodule=IndexedDataModule(Data(DataLoader(data, 8))))
    folder = Path(trainer.log_dir or "")
    assert (folder / "dynamics_map.png").stat().st_size > 10_000
    assert len(LearningDynamics.load(folder / "dynamics_2.npz").epochs) == 6
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert {"dynamics/map", "dynamics_2/map"} <= set(events.Tags()["images"])
    assert [event.value for event in events.Scalars("dynamics_2/forgetting_adv")] == pytest.approx(
        [row["forgetting_adv"] for row in both[1].history]
    )
    said = capsys.readouterr().out
    top = ", ".join(map(str, both[0].statistics["clean"].ranking()[:10]))
    assert f"Prone to be memorized (clean): samples {top}" in said
    assert "Prone to be memorized (adversarial)" in said
    trainer = quiet_trainer(max_epochs=1, callbacks=[LearningDynamics()], logger=logger)
    with pytest.warns(UserWarning, match=r"LearningDynamics replaces the file of an earlier run, .*dynamics.npz"):
        trainer.fit(module, datamodule=IndexedDataModule(Data(DataLoader(data, 8))))
    assert len(LearningDynamics.load(folder / "dynamics.npz").epochs) == 1


def test_a_fast_run_and_one_without_a_logger_leave_no_file_and_a_second_run_starts_anew(tmp_path: Path) -> None:
    module, data = scripted(1)
    dynamics = LearningDynamics()
    for arguments in ({"fast_dev_run": True}, {"max_epochs": 2}, {"max_epochs": 2}):
        trainer = quiet_trainer(callbacks=[dynamics], default_root_dir=tmp_path, **arguments)
        trainer.fit(module, datamodule=IndexedDataModule(Data(DataLoader(data, 8))))
        assert dynamics.statistics["clean"].looks.tolist() == [len(dynamics.history)]
    assert len(dynamics.history) == 2
    assert not list(tmp_path.iterdir())
    with pytest.warns(UserWarning, match=r"LearningDynamics\(every_n_epochs=9\) has not looked at any batch"):
        quiet_trainer(max_epochs=1, callbacks=[LearningDynamics(every_n_epochs=9)]).fit(
            module, datamodule=IndexedDataModule(Data(DataLoader(data, 8)))
        )


# resuming


class Halt(Callback):
    """Says where the run is, and waits there to be killed."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            Path("reached").touch()
            time.sleep(60)


def run(halt: int | None, folder: str, when: str = "train", resume: str | None = None, epochs: int = 4) -> Any:
    """Train for 4 epochs of 5 steps, with a checkpoint after each one, or inside it."""
    torch.manual_seed(0)
    kinds: dict[str, dict[str, Any]] = {
        "train": {"save_on_train_epoch_end": True},
        "validation": {"save_on_train_epoch_end": False},
        "inside": {"every_n_train_steps": 13},
    }
    saving = ModelCheckpoint("checkpoints", save_top_k=-1, filename="{step}", **kinds[when])
    dynamics = LearningDynamics(FGSM(0.05))
    trainer = quiet_trainer(
        max_epochs=epochs,
        callbacks=[dynamics, Halt(halt), ExactResume(), saving],
        logger=csv_logger(Path(folder), name="", version=""),
        enable_checkpointing=True,
        num_sanity_val_steps=0,
    )
    data = IndexedDataModule(Data(loader(70, shuffle=True), loader(20, seed=1)))
    trainer.fit(PlainModule(), datamodule=data, ckpt_path=resume)
    return dynamics


def assert_same_dynamics(left: Path, right: Path, callbacks: tuple[Any, Any]) -> None:
    for a, b in zip(LearningDynamics.load(left), LearningDynamics.load(right), strict=True):
        np.testing.assert_array_equal(a, b)
    states = [callback.state_dict() for callback in callbacks]
    for state in states:
        state.pop("path")
    assert_identical(*states)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure takes longer than the training."""
    monkeypatch.setattr("pl_robust.callbacks.learning_dynamics.publish_figure", lambda *_: None)
    monkeypatch.setattr("pl_robust.callbacks.learning_dynamics.draw_maps", lambda *_: None)


@pytest.mark.usefixtures("undrawn")
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole = run(None, "whole")
    shutil.rmtree("checkpoints")
    run_and_kill(run, Path("reached").exists, 18, "killed")  # in the fourth epoch
    assert LearningDynamics.load("killed/dynamics.npz").epochs.tolist() == [0, 1, 2]
    # From an older checkpoint than need be: the third epoch is repeated, its row cut off.
    resumed = run(None, "killed", resume="checkpoints/step=10.ckpt")
    assert_same_dynamics(Path("whole/dynamics.npz"), Path("killed/dynamics.npz"), (whole, resumed))
    # Into another folder: the rows go along.
    resumed = run(None, "moved", resume="checkpoints/step=10.ckpt")
    assert_same_dynamics(Path("whole/dynamics.npz"), Path("moved/dynamics.npz"), (whole, resumed))
    shutil.rmtree("killed")
    with pytest.warns(UserWarning, match=r"goes on without its rows of the epochs \[0, 1\], which are not in .*killed"):
        resumed = run(None, "lost", resume="checkpoints/step=10.ckpt")
    assert LearningDynamics.load("lost/dynamics.npz").epochs.tolist() == [2, 3]
    np.testing.assert_array_equal(resumed.statistics["clean"].looks, 4)


@pytest.mark.usefixtures("undrawn")
def test_a_checkpoint_of_a_validation_holds_the_looks_of_its_epoch() -> None:
    whole = run(None, "whole", "validation")
    resumed = run(None, "resumed", "validation", resume="checkpoints/step=15.ckpt")
    assert_same_dynamics(Path("whole/dynamics.npz"), Path("resumed/dynamics.npz"), (whole, resumed))


@pytest.mark.filterwarnings("ignore:ExactResume. the resumed run may end unlike")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.usefixtures("undrawn")
def test_a_checkpoint_inside_an_epoch_holds_the_looks_before_it() -> None:
    run(None, "whole", "inside")
    whole = LearningDynamics.load("whole/dynamics.npz")
    run(None, "resumed", "inside", resume="checkpoints/step=13.ckpt", epochs=3)
    resumed = LearningDynamics.load("resumed/dynamics.npz")
    state = next(
        state
        for name, state in torch.load("checkpoints/step=13.ckpt", weights_only=True)["callbacks"].items()
        if name.startswith("LearningDynamics")
    )
    before = state["looks"]["index"].unique()
    assert len(before) == 3 * 16
    np.testing.assert_array_equal(resumed.confidence[:2], whole.confidence[:2])
    np.testing.assert_array_equal(resumed.confidence[2][before], whole.confidence[2][before])
    assert (resumed.correct[2] >= 0).sum() >= 48


def test_other_data_than_the_checkpoints_is_refused(tmp_path: Path) -> None:
    module, data = scripted(20)
    trainer = quiet_trainer(max_epochs=1, callbacks=[LearningDynamics()])
    trainer.fit(module, datamodule=IndexedDataModule(Data(DataLoader(data, 8))))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    module, data = scripted(21)
    with pytest.raises(MisconfigurationException, match="of 20 samples, this one has 21: resume on the same data"):
        quiet_trainer(max_epochs=2, callbacks=[LearningDynamics()]).fit(
            module, datamodule=IndexedDataModule(Data(DataLoader(data, 8))), ckpt_path=tmp_path / "last.ckpt"
        )


# what it refuses


def fit(dynamics: LearningDynamics, train: Any, module: LightningModule | None = None, indexed: bool = True) -> None:
    data: LightningDataModule = Data(train)
    data = IndexedDataModule(data) if indexed else data
    quiet_trainer(max_epochs=1, callbacks=[dynamics]).fit(PlainModule() if module is None else module, datamodule=data)


class Batches:
    """No torch DataLoader."""

    def __iter__(self) -> Any:
        return iter(with_index(torch.arange(16)))


def with_index(index: Tensor) -> Any:
    return DataLoader(TensorDataset(*stripes(16).tensors, index), 8)


def test_refuses_data_without_positions() -> None:
    with pytest.raises(
        MisconfigurationException,
        match=r"`index_key`=2 is not among its entries \[0, 1\]: wrap the data, IndexedDataModule\(datamodule\)",
    ):
        fit(LearningDynamics(), loader(16), indexed=False)
    with pytest.raises(ValueError, match=r"positions must lie in 0..15, the training data set's, got 20..27"):
        fit(LearningDynamics(), with_index(torch.arange(20, 36)), indexed=False)
    with pytest.raises(ValueError, match=r"positions must lie in 0..15, .* got 0..16"):  # only at the epoch's end
        fit(LearningDynamics(), with_index(torch.arange(16) + (torch.arange(16) > 14)), indexed=False)
    with pytest.raises(TypeError, match=r"`index_key`=2 must be the positions of its 8 samples .* got torch.float32"):
        fit(LearningDynamics(), with_index(torch.arange(16.0)), indexed=False)
    with pytest.raises(MisconfigurationException, match="follows the samples of one training dataloader, got a dict"):
        fit(LearningDynamics(), {"a": loader(16), "b": loader(16)})
    with pytest.raises(MisconfigurationException, match="of a data set of known length, and Batches has none"):
        fit(LearningDynamics(), Batches(), indexed=False)


def test_refuses_a_name_that_the_second_of_another_has(tmp_path: Path) -> None:
    three = [LearningDynamics(), LearningDynamics(FGSM(0.1)), LearningDynamics(prefix="dynamics_2")]
    trainer = quiet_trainer(
        max_epochs=1, callbacks=three, logger=csv_logger(tmp_path)
    )  # both would write dynamics_2.npz
    with pytest.raises(
        MisconfigurationException, match="log under dynamics_2/, one as the next of `prefix`='dynamics'"
    ):
        trainer.fit(PlainModule(), IndexedDataModule(Data(loader(16))))


def test_refuses_what_is_no_classification() -> None:
    x, y = stripes(16).tensors
    with pytest.raises(ValueError, match=r"labels must lie in 0..2 for a module of 3 classes, got 3..5"):
        fit(LearningDynamics(), DataLoader(TensorDataset(x, y + 3), 8, drop_last=True))
    with pytest.raises(
        TypeError, match=r"labels must be integers \[8\], one for each sample, got torch.float32 \[8, 3\]"
    ):
        fit(LearningDynamics(), DataLoader(TensorDataset(x, F.one_hot(y, 3).float()), 8))

    class Flat(PlainModule):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = super().forward(x)
            return logits if self.training else logits[:, 0]

    with pytest.raises(ValueError, match=r"the module must give logits \[8, classes\], got shape \[8\]"):
        fit(LearningDynamics(), DataLoader(TensorDataset(x, y), 8), Flat())
    with pytest.raises(MisconfigurationException, match="PlainModule has no attack there: give `attack=`"):
        fit(LearningDynamics(adversarial=True), loader(16))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    module = AdversarialTraining(net, FGSM(0.1), num_classes=3)
    fit(LearningDynamics(adversarial=True), loader(16), module)  # what has one is welcome


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"attack": 0.1}, TypeError, "`attack` must be an attack such as PGD"),
        ({"adversarial": FGSM(0.1)}, TypeError, "`adversarial` must be True or False, got FGSM"),
        ({"every_n_epochs": 0}, ValueError, "`every_n_epochs` must be at least 1, got 0"),
        ({"prefix": ""}, ValueError, "`prefix` must be a name of at least one letter"),
        ({"prefix": 3}, TypeError, "`prefix` must be a name, got 3"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LearningDynamics(**arguments)
