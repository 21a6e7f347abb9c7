from __future__ import annotations

import random
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pl_robust._lightning import Callback, LightningModule, MisconfigurationException, Trainer
from pl_robust.attacks import FGSM, NFGSM, PGD, fgsm, pgd
from pl_robust.callbacks import CatastrophicOverfittingDetector
from pl_robust.modules import AdversarialTraining
from tests.toys import PlainModule, assert_identical, loader, needs_frozen_parts, quiet_trainer, stripes, training_state

pytestmark = pytest.mark.lightning

Pair = namedtuple("Pair", "x y")


def train(*callbacks: Callback, module: LightningModule | None = None, **arguments: Any) -> tuple[Trainer, Any]:
    torch.manual_seed(0)
    module = PlainModule() if module is None else module
    trainer = quiet_trainer(max_epochs=2, callbacks=list(callbacks), **arguments)
    trainer.fit(module, loader(70, shuffle=True), loader(40, seed=1))
    return trainer, module


class Scripted(LightningModule):
    """A net whose robustness follows a script: it answers right on clean and weakly perturbed inputs, at will.

    One feature, the mean of the image; the label is its sign. In the healthy state the decision is linear, so that PGD
    is no stronger than FGSM. In the collapsed state the logit folds back at half of eps: a full FGSM step
    overshoots the wrong region and comes out right again, PGD stops in it.
    """

    def __init__(self, collapse_at: int) -> None:
        super().__init__()
        self.collapse_at = collapse_at
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1).mean(1) * self.weight
        if self.current_epoch >= self.collapse_at:
            value = value * (value.abs() - 0.05) * (value.abs() - 0.15) * 100
        return torch.stack([-value, value], dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        total: Tensor = self(batch[0]).sum()
        return 0 * self.weight * total

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        return None

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def signs(count: int = 128) -> DataLoader[Any]:
    """Images of mean ±0.2 and their class."""
    y = torch.arange(count) % 2
    x = (0.4 * y - 0.2).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    return DataLoader(TensorDataset(x, y), batch_size=32)


@pytest.mark.parametrize("collapse_at", [2, 99])
def test_a_scripted_collapse_is_seen_at_once_and_a_healthy_net_is_left_alone(collapse_at: int) -> None:
    detector = CatastrophicOverfittingDetector(eps=0.18, bounds=None, strong_attack=PGD(0.18, steps=40, bounds=None))
    trainer = quiet_trainer(max_epochs=4, callbacks=[detector])
    if collapse_at == 99:
        trainer.fit(Scripted(collapse_at), signs(), signs())
        assert detector.detections == []
        assert [row["acc_pgd"] for row in detector.history] == [1.0] * 4
        return
    with pytest.warns(UserWarning, match="Catastrophic overfitting at epoch 2"):
        trainer.fit(Scripted(collapse_at), signs(), signs())
    assert [row["epoch"] for row in detector.detections] == [2]
    assert [row["detected"] for row in detector.history] == [0, 0, 1, 1]
    assert trainer.callback_metrics["co/detected"] == 1
    assert (
        trainer.callback_metrics["co/gap"]
        == trainer.callback_metrics["co/acc_fgsm"] - trainer.callback_metrics["co/acc_pgd"]
    )


def test_stop_ends_the_run_at_the_collapse() -> None:
    detector = CatastrophicOverfittingDetector(
        eps=0.18, bounds=None, strong_attack=PGD(0.18, steps=40, bounds=None), action="stop"
    )
    trainer = quiet_trainer(max_epochs=9, callbacks=[detector])
    with pytest.warns(UserWarning, match="Training stops"):
        trainer.fit(Scripted(2), signs(), signs())
    assert trainer.current_epoch == 3


class Drifting(Scripted):
    """Scripted, with weights and momentum that move: a rollback shows."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        total: Tensor = self(batch[0]).sum()
        return -0.01 * self.weight + 0 * total

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)}


class Record(Callback):
    """Keeps the training state at the end of each epoch, as the callbacks after the detector see it."""

    def __init__(self) -> None:
        self.states: list[Any] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        schedules = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
        self.states.append({**training_state(trainer, pl_module), "schedules": schedules})


def collapse_detector(**arguments: Any) -> CatastrophicOverfittingDetector:
    strong = PGD(0.18, steps=40, bounds=None)
    return CatastrophicOverfittingDetector(eps=0.18, bounds=None, strong_attack=strong, **arguments)


def test_rollback_puts_weights_optimizer_and_schedule_back_and_stops() -> None:
    record = Record()
    trainer = quiet_trainer(max_epochs=9, callbacks=[collapse_detector(action="rollback"), record])
    with pytest.warns(UserWarning, match="back at the last healthy check; training stops"):
        trainer.fit(Drifting(2), signs(), signs())
    assert trainer.current_epoch == 3
    healthy, after = record.states[1], record.states[2]
    for part in ("module", "optimizers", "schedules"):
        assert_identical(healthy[part], after[part], part)
    assert not torch.equal(record.states[0]["module"]["weight"], healthy["module"]["weight"])  # it does move


class DriftingWithAttack(Drifting):
    def __init__(self, collapse_at: int) -> None:
        super().__init__(collapse_at)
        self.attack = FGSM(0.1)


def test_after_rollback_training_goes_on_with_the_fallback_until_it_fails_too(tmp_path: Path) -> None:
    detector = collapse_detector(action="rollback", fallback_attack=NFGSM(0.1))
    module = DriftingWithAttack(2)
    trainer = quiet_trainer(max_epochs=3, callbacks=[detector])
    with pytest.warns(UserWarning, match=r"training goes on with NFGSM\(eps=0.1"):
        trainer.fit(module, signs(), signs())
    assert isinstance(module.attack, NFGSM)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = DriftingWithAttack(2)  # its net is collapsed still: the second collapse ends the run
    trainer = quiet_trainer(max_epochs=9, callbacks=[collapse_detector(action="rollback", fallback_attack=NFGSM(0.1))])
    with pytest.warns(UserWarning, match="training stops"):
        trainer.fit(resumed, signs(), signs(), ckpt_path=tmp_path / "last.ckpt")
    assert isinstance(resumed.attack, NFGSM)
    assert trainer.current_epoch == 4
    (again,) = (part for part in trainer.callbacks if isinstance(part, CatastrophicOverfittingDetector))  # type: ignore[attr-defined]
    assert [row["epoch"] for row in again.detections] == [2, 3]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}],
    ids=["plain", "accumulate", "bf16-mixed"],
)
@pytest.mark.parametrize("cadence", [{}, {"every_n_steps": 1}], ids=["epochs", "steps"])
def test_training_is_bit_identical_with_and_without_it(arguments: dict[str, Any], cadence: dict[str, Any]) -> None:
    detector = CatastrophicOverfittingDetector(eps=0.1, **cadence)
    other = CatastrophicOverfittingDetector(eps=0.05, norm="l2", **cadence)
    with_it = training_state(*train(detector, other, **arguments))
    assert len(detector.history) == (2 if not cadence else len(other.history))
    assert detector.history
    assert_identical(with_it, training_state(*train(**arguments)))


def test_it_measures_what_the_attacks_measure() -> None:
    detector = CatastrophicOverfittingDetector(eps=0.1)
    _, module = train(detector)
    module.eval()
    x, y = stripes(40, seed=1).tensors
    last = detector.history[-1]
    with torch.no_grad():
        assert last["acc"] == pytest.approx((module(x).argmax(1) == y).float().mean().item())
        x_adv = fgsm(module, x, y, eps=0.1)
        assert last["acc_fgsm"] == pytest.approx((module(x_adv).argmax(1) == y).float().mean().item())
        x_adv = pgd(module, x, y, eps=0.1)
        assert last["acc_pgd"] == pytest.approx((module(x_adv).argmax(1) == y).float().mean().item(), abs=0.05)
    assert 0 < last["acc_pgd"] <= last["acc_fgsm"] < last["acc"]
    assert last["gap"] == last["acc_fgsm"] - last["acc_pgd"]


def test_gradient_alignment_is_one_on_a_linear_model() -> None:
    class Linear(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

    detector = CatastrophicOverfittingDetector(eps=0.1)
    x, y = stripes(32).tensors
    trainer = quiet_trainer(max_epochs=1, callbacks=[detector])
    data = DataLoader(TensorDataset(x, y % 2), batch_size=16)
    trainer.fit(Linear(), data, data)
    assert detector.history[0]["grad_align"] == pytest.approx(1, abs=1e-5)


def as_dict(x: Tensor, y: Tensor) -> Any:
    return {"image": x, "label": y}


@pytest.mark.parametrize("kind", [lambda x, y: (x, y), lambda x, y: [x, y], Pair, as_dict])
def test_batches_of_every_kind_are_understood(kind: Any) -> None:
    def collate(samples: list[Any]) -> Any:
        return kind(torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples]))

    keys = ("image", "label") if kind is as_dict else (0, 1)
    detector = CatastrophicOverfittingDetector(eps=0.1, input_key=keys[0], label_key=keys[1])
    data = DataLoader(stripes(32), batch_size=16, collate_fn=collate)
    trainer = quiet_trainer(max_epochs=1, callbacks=[detector])
    trainer.fit(PlainModule(*keys), data, data)
    assert len(detector.history) == 1


def test_two_detectors_live_in_one_trainer_and_resume(tmp_path: Path) -> None:
    def both() -> list[Any]:
        return [CatastrophicOverfittingDetector(eps=eps) for eps in (0.05, "8/255")]

    first = both()
    trainer, _ = train(*first)
    assert {"co/acc_pgd", "co_2/acc_pgd"} <= set(trainer.callback_metrics)
    assert trainer.callback_metrics["co/acc_pgd"] == pytest.approx(first[0].history[-1]["acc_pgd"])
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    assert torch.load(tmp_path / "two.ckpt", weights_only=True)["epoch"] == 2
    second = both()
    resumed = quiet_trainer(max_epochs=3, callbacks=second)
    resumed.fit(PlainModule(), loader(70), loader(40, seed=1), ckpt_path=tmp_path / "two.ckpt")
    for before, after in zip(first, second, strict=True):
        assert after.history[:2] == before.history
        assert [row["epoch"] for row in after.history] == [0, 1, 2]


def test_a_second_run_starts_from_scratch_and_a_continued_one_does_not() -> None:
    detector = CatastrophicOverfittingDetector(eps=0.1)
    train(detector)
    trainer, module = train(detector)
    assert [row["epoch"] for row in detector.history] == [0, 1]
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, loader(70), loader(40, seed=1))
    assert [row["epoch"] for row in detector.history] == [0, 1, 2]


def test_checks_by_steps_come_after_every_nth_optimizer_step() -> None:
    detector = CatastrophicOverfittingDetector(eps=0.1, every_n_steps=2)
    train(detector, accumulate_grad_batches=2)  # 5 batches, so 3 optimizer steps an epoch
    assert [row["step"] for row in detector.history] == [2, 4, 6]


def test_the_probe_set_is_seen_as_in_validation_and_not_as_in_training() -> None:
    class Augmenting(PlainModule):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            x, y = batch
            return (torch.zeros_like(x) if self.trainer.training else x * 0.5), y

    detector = CatastrophicOverfittingDetector(eps=0.1)
    train(detector, module=Augmenting())
    x = torch.cat([part for _, part, _ in detector._probe_set.mine])
    assert torch.equal(x, stripes(40, seed=1).tensors[0] * 0.5)


class Stream(IterableDataset[Any]):
    """Data that goes on from where it was left: reading it ahead would move it."""

    def __init__(self, count: int) -> None:
        self.samples = list(zip(*stripes(count, seed=1).tensors, strict=True))
        self.at = 0

    def __iter__(self) -> Any:
        for _ in range(40):
            yield self.samples[self.at % len(self.samples)]
            self.at += 1


def probe_inputs(detector: CatastrophicOverfittingDetector) -> Tensor:
    return torch.cat([x for _, x, _ in detector._probe_set.mine])


def test_the_probe_set_has_at_most_max_samples() -> None:
    detector = CatastrophicOverfittingDetector(eps=0.1, max_samples=100)
    quiet_trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=1, callbacks=[detector]).fit(
        PlainModule(), loader(32), loader(200)
    )
    assert torch.equal(probe_inputs(detector), stripes(200).tensors[0][:100])


def test_the_probe_set_follows_the_dataloaders_sampler() -> None:
    everything = stripes(200)
    sampler = torch.utils.data.SubsetRandomSampler(list(range(150, 200)))  # validation images of a shared data set
    detector = CatastrophicOverfittingDetector(eps=0.1)
    quiet_trainer(max_epochs=1, callbacks=[detector]).fit(
        PlainModule(), loader(32), DataLoader(everything, batch_size=16, sampler=sampler)
    )
    seen = {tuple(image.flatten().tolist()) for image in probe_inputs(detector)}
    assert seen == {tuple(image.flatten().tolist()) for image in everything.tensors[0][150:]}


def test_samples_of_a_stream_are_kept_when_validation_passes_them() -> None:
    detector = CatastrophicOverfittingDetector(eps=0.1, max_samples=100)
    stream = Stream(200)
    trainer = quiet_trainer(max_epochs=2, num_sanity_val_steps=0, callbacks=[detector])
    trainer.fit(PlainModule(), loader(32), DataLoader(stream, batch_size=16))
    assert torch.equal(probe_inputs(detector), stripes(200, seed=1).tensors[0][:40])
    assert [row["epoch"] for row in detector.history] == [0, 1]


class Noisy(torch.utils.data.Dataset[Any]):
    """Augments what it gives with a generator of its own."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        self.data = stripes(70)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        x, y = self.data[index]
        return x + 0.1 * float(self.generator.random()), y


@pytest.mark.parametrize("kind", ["dataset", "python", "stream", "loader"])
def test_generators_and_streams_of_the_data_stay_where_they_are(kind: str) -> None:
    def weights(*callbacks: Callback) -> dict[str, Any]:
        torch.manual_seed(0)
        data: Any = stripes(70)
        validation: Any = stripes(40, seed=1)
        generator = torch.Generator().manual_seed(1)
        if kind in ("dataset", "python"):
            noise = np.random.default_rng(0) if kind == "dataset" else random.Random(0)  # noqa: S311
            data, validation = torch.utils.data.random_split(Noisy(noise), [50, 20], generator)
        elif kind == "stream":
            validation = Stream(100)
        shared: dict[str, Any] = {"generator": generator} if kind == "loader" else {}
        module = PlainModule()
        trainer = quiet_trainer(max_epochs=2, num_sanity_val_steps=0, check_val_every_n_epoch=2, callbacks=callbacks)
        trainer.fit(
            module,
            DataLoader(data, batch_size=16, shuffle=True, **shared),
            DataLoader(validation, batch_size=16, **shared),
        )
        return training_state(trainer, module)

    assert_identical(weights(CatastrophicOverfittingDetector(eps=0.1, bounds=None)), weights())


class Own(PlainModule):
    """Draws the order of its data, training and validation, from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def train_dataloader(self) -> Any:
        return DataLoader(stripes(70), batch_size=16, shuffle=True, generator=self.generator)

    def val_dataloader(self) -> Any:
        chosen = torch.randperm(70, generator=self.generator)[:20].tolist()
        return DataLoader(torch.utils.data.Subset(stripes(70), chosen), batch_size=16)


def test_asking_for_the_validation_data_draws_nothing() -> None:
    def weights(*callbacks: Callback) -> dict[str, Any]:
        torch.manual_seed(0)
        module = Own()
        trainer = quiet_trainer(max_epochs=2, num_sanity_val_steps=0, callbacks=callbacks)
        trainer.fit(module)
        return training_state(trainer, module)

    assert_identical(weights(CatastrophicOverfittingDetector(eps=0.1)), weights())


class InWorkers(torch.utils.data.Dataset[Any]):
    """Data that must not be touched outside workers, as files that each worker opens for itself."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        if torch.utils.data.get_worker_info() is None:
            raise RuntimeError("read in the main process")
        return stripes(40)[index]


def test_data_of_workers_is_read_in_a_worker() -> None:
    detector = CatastrophicOverfittingDetector(eps=0.1)
    data = DataLoader(InWorkers(), batch_size=16, num_workers=1)
    quiet_trainer(max_epochs=1, num_sanity_val_steps=0, callbacks=[detector]).fit(PlainModule(), loader(32), data)
    assert torch.equal(probe_inputs(detector), stripes(40).tensors[0])


def test_images_of_several_sizes_are_taken_in_the_loaders_own_batches() -> None:
    class Pooling(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    sizes = [(torch.rand(1, side, side), side % 3) for side in (8, 8, 10, 10, 12, 12)]
    data: Any = DataLoader(sizes, batch_size=2)  # type: ignore[arg-type]
    detector = CatastrophicOverfittingDetector(eps=0.1)
    quiet_trainer(max_epochs=1, callbacks=[detector]).fit(Pooling(), data, data)
    assert [x.shape[-1] for _, x, _ in detector._probe_set.mine] == [8, 10, 12]


@pytest.mark.parametrize("given", [{}, {"save_on_train_epoch_end": True}, {"save_on_train_epoch_end": False}])
def test_a_checkpoint_that_looks_too_early_is_pointed_out(given: dict[str, bool], tmp_path: Path) -> None:
    from importlib import import_module

    from pl_robust._lightning import NAMESPACE

    checkpoint = import_module(f"{NAMESPACE}.callbacks").ModelCheckpoint(
        tmp_path, monitor="co/acc_pgd", mode="max", save_top_k=-1, **given
    )
    detector = CatastrophicOverfittingDetector(eps=0.1)
    if given.get("save_on_train_epoch_end", True):
        train(detector, checkpoint, enable_checkpointing=True)
        saved = sorted(float(value) for value in checkpoint.best_k_models.values())
        assert saved == pytest.approx(sorted(row["acc_pgd"] for row in detector.history))
        return
    with (
        pytest.warns(UserWarning, match="looks after validation"),
        pytest.raises(MisconfigurationException, match="could not find the monitored key"),
    ):
        train(detector, checkpoint, enable_checkpointing=True)


def test_what_is_wrong_with_the_data_is_said_before_the_first_epoch() -> None:
    class Counting(PlainModule):
        steps = 0

        def on_train_batch_end(self, *_: Any) -> None:
            self.steps += 1

    module = Counting()
    x, y = stripes(32).tensors
    normalized = DataLoader(torch.utils.data.TensorDataset((x - 0.5) / 0.2, y), batch_size=16)
    trainer = quiet_trainer(max_epochs=1, callbacks=[CatastrophicOverfittingDetector(eps=0.1)])
    with pytest.raises(ValueError, match="pass `normalization=\\(mean, std\\)` if the data was normalized"):
        trainer.fit(module, normalized, normalized)
    assert module.steps == 0


def test_after_a_collapse_it_says_so_until_robustness_is_back() -> None:
    class Flickering(Scripted):
        """Healthy, collapsed, half way back, collapsed, healthy again."""

        def forward(self, x: Tensor) -> Tensor:
            value = x.flatten(1).mean(1) * self.weight
            folded = value * (value.abs() - 0.05) * (value.abs() - 0.15) * 100
            lost = {1: value > -9, 2: value > 0, 3: value > -9}.get(self.current_epoch, value > 9)
            value = torch.where(lost, folded, value)
            return torch.stack([-value, value], dim=1)

    detector = collapse_detector()
    trainer = quiet_trainer(max_epochs=5, callbacks=[detector])
    with pytest.warns(UserWarning, match="Catastrophic overfitting at epoch 1"):
        trainer.fit(Flickering(99), signs(), signs())
    assert [row["detected"] for row in detector.history] == [0, 1, 1, 1, 0]
    assert len(detector.detections) == 1


def test_rollback_with_nothing_to_go_back_to_stops(tmp_path: Path) -> None:
    trainer = quiet_trainer(max_epochs=1, callbacks=[collapse_detector()])
    trainer.fit(Drifting(1), signs(), signs())
    trainer.save_checkpoint(tmp_path / "warn.ckpt")
    trainer = quiet_trainer(max_epochs=9, callbacks=[collapse_detector(action="rollback")])
    with pytest.warns(UserWarning, match="nothing to go back to; training stops"):
        trainer.fit(Drifting(1), signs(), signs(), ckpt_path=tmp_path / "warn.ckpt")
    assert trainer.current_epoch == 2


def test_detectors_of_other_cadence_or_attack_live_together() -> None:
    others = [
        CatastrophicOverfittingDetector(eps=0.1),
        CatastrophicOverfittingDetector(eps=0.1, every_n_steps=2),
        CatastrophicOverfittingDetector(eps=0.1, attack=FGSM(0.1, random_start=True)),
    ]
    train(*others)
    assert all(detector.history for detector in others)


def test_a_check_before_the_first_validation_finds_the_data() -> None:
    detector = CatastrophicOverfittingDetector(eps=0.1)
    train(detector, num_sanity_val_steps=0, check_val_every_n_epoch=2)
    assert [row["epoch"] for row in detector.history] == [0, 1]


def test_it_finds_the_curves_a_place(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from pl_robust._lightning import NAMESPACE

    loggers = pytest.importorskip(f"{NAMESPACE}.loggers")
    logger = loggers.TensorBoardLogger(tmp_path)
    trainer, _ = train(CatastrophicOverfittingDetector(eps=0.1), logger=logger, log_every_n_steps=50)
    assert (Path(trainer.log_dir or "") / "co_curves.png").stat().st_size > 5000
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert "co/curves" in events.Tags()["images"]
    assert len(events.Scalars("co/acc_pgd")) == 2


def test_adversarial_training_and_validate_only_and_fast_dev_run() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    detector = CatastrophicOverfittingDetector(eps=0.1)
    module = AdversarialTraining(net, FGSM(0.1), num_classes=3)
    trainer = quiet_trainer(fast_dev_run=True, callbacks=[detector])
    trainer.fit(module, loader(32), loader(32))
    assert len(detector.history) == 1
    trainer.validate(module, loader(32), verbose=False)
    trainer.test(module, loader(32), verbose=False)
    assert len(detector.history) == 1


def test_without_validation_data_it_says_so_and_takes_probe_data() -> None:
    with pytest.raises(MisconfigurationException, match="give the Trainer a validation dataloader"):
        quiet_trainer(max_epochs=1, callbacks=[CatastrophicOverfittingDetector(eps=0.1)]).fit(PlainModule(), loader(32))
    x, y = stripes(100).tensors
    detector = CatastrophicOverfittingDetector(eps=0.1, probe_data=(x, y))
    quiet_trainer(max_epochs=1, callbacks=[detector]).fit(PlainModule(), loader(32))
    assert detector.history[0]["acc"] > 0


def test_a_fallback_needs_a_module_with_an_attack() -> None:
    detector = CatastrophicOverfittingDetector(eps=0.1, action="rollback", fallback_attack=NFGSM(0.1))
    with pytest.raises(MisconfigurationException, match="PlainModule has no attack there"):
        train(detector)


def test_sorted_validation_data_is_pointed_out() -> None:
    data = torch.utils.data.TensorDataset(torch.rand(32, 1, 8, 8), torch.zeros(32, dtype=torch.long))
    with pytest.warns(UserWarning, match="of one class"):
        quiet_trainer(max_epochs=1, callbacks=[CatastrophicOverfittingDetector(eps=0.1)]).fit(
            PlainModule(), loader(32), DataLoader(data, batch_size=16)
        )


@needs_frozen_parts
def test_nothing_is_left_behind_after_an_exception() -> None:
    class Broken(PlainModule):
        broken = False

        def forward(self, x: Tensor) -> Tensor:
            if self.broken and not self.training:
                raise RuntimeError("broken on purpose")
            return super().forward(x)

        def on_train_epoch_start(self) -> None:
            self.broken = self.current_epoch == 1

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            return None

    module = Broken()
    module.net[3].eval()  # a frozen part must stay frozen
    with pytest.raises(RuntimeError, match="on purpose"):
        train(CatastrophicOverfittingDetector(eps=0.1), module=module)
    assert [part.training for part in module.modules()] == [True, True, True, True, True, False, True, True]
    assert torch.is_grad_enabled()


class Saturated(PlainModule):
    """Logits so large that the softmax is 0 or 1 in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * super().forward(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 1e-9 * super().training_step(batch, batch_idx)


def test_masked_gradients_draw_one_warning() -> None:
    detector = CatastrophicOverfittingDetector(0.1)
    with pytest.warns(
        UserWarning, match=r"co, epoch 0: Masked gradients: \d+% of the input gradients are .* zero"
    ) as said:
        train(detector, module=Saturated())
    assert sum("Masked gradients" in str(warning.message) for warning in said) == 1
    assert len(detector.history) == 2
