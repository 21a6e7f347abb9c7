from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from pl_robust._lightning import Callback, LightningModule, MisconfigurationException, Trainer
from pl_robust.attacks import FGSM, NFGSM, PGD, Attack
from pl_robust.callbacks import EpsSchedule, ExactResume
from pl_robust.modules import AdversarialTraining
from tests.modules.test_adversarial_training import small_net
from tests.toys import PlainModule, assert_identical, loader, quiet_trainer

pytestmark = pytest.mark.lightning


class Watching(AdversarialTraining):
    """Notes the eps of each training step and of each validation."""

    def __init__(self, attack: Attack) -> None:
        super().__init__(small_net(), attack, num_classes=3)
        self.trained: list[Any] = []
        self.validated: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.trained.append(self.attack.eps)
        return super().training_step(batch, batch_idx)

    def on_validation_start(self) -> None:
        self.validated.append(self.attack.eps)
        super().on_validation_start()


def test_a_linear_warm_up_by_epochs() -> None:
    module, schedule = Watching(FGSM(0.1)), EpsSchedule([(0, 0), (2, 1)])
    trainer = quiet_trainer(max_epochs=3, callbacks=[schedule])
    trainer.fit(module, loader(64), loader(16))  # 4 batches in an epoch
    assert module.trained == pytest.approx([0.1 * min(1, step / 8) for step in range(12)])
    assert set(module.validated) == {0.1}  # evaluation sees the full attack
    assert module.attack.eps == 0.1
    assert trainer.callback_metrics["train/eps"].item() == pytest.approx(0.1)


def test_a_ramp_by_steps_scales_step_sizes_and_channels_too() -> None:
    seen: list[tuple[Tensor, Any]] = []

    class Noting(PGD):
        def _perturb(self, target: Any, generator: Any) -> Tensor:
            seen.append((torch.as_tensor(self.eps), self.step_size))
            return super()._perturb(target, generator)

    module = AdversarialTraining(small_net(), Noting([0.2], step_size=0.1, steps=2), num_classes=3)
    schedule = EpsSchedule([(1, 0.25), (3, 0.75), (4, 0.5)], unit="step")
    quiet_trainer(max_epochs=1, limit_train_batches=6, callbacks=[schedule]).fit(module, loader(96))
    factors = [0.25, 0.25, 0.5, 0.75, 0.5, 0.5]
    torch.testing.assert_close(torch.cat([eps for eps, _ in seen]), 0.2 * torch.tensor(factors))
    assert [step for _, step in seen] == pytest.approx([0.1 * factor for factor in factors])


def fit(folder: Path, epochs: int, resume: Path | None = None, saved: Path | None = None) -> dict[str, Any]:
    torch.manual_seed(3)
    module = AdversarialTraining(
        small_net(), NFGSM(0.1), num_classes=3, lr_scheduler="constant", optimizer=lambda p: torch.optim.SGD(p, 0.05)
    )
    trainer = quiet_trainer(max_epochs=epochs, callbacks=[ExactResume(), EpsSchedule([(0, 0), (4, 1)]), Saving(saved)])
    trainer.fit(module, loader(64, shuffle=True), ckpt_path=resume)
    return {"net": dict(module.net.state_dict()), "eps": trainer.callback_metrics["train/eps"].item()}


class Saving(Callback):
    """Saves a checkpoint at the end of the second epoch."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.path is not None and trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)


def test_it_resumes_exactly(tmp_path: Path) -> None:
    path = tmp_path / "second.ckpt"
    whole = fit(tmp_path, epochs=4, saved=path)
    resumed = fit(tmp_path, epochs=4, resume=path)
    assert_identical(whole, resumed)
    assert whole["eps"] == pytest.approx(0.1 * 3.75 / 4)
    assert "EpsSchedule" not in torch.load(path, weights_only=True)["callbacks"]  # the time is all its state


@pytest.mark.filterwarnings("ignore:.*Detected KeyboardInterrupt")
def test_the_full_attack_is_back_after_an_exception() -> None:
    class Failing(Watching):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise RuntimeError("in the middle of a batch")

    module = Failing(FGSM(0.1))
    with pytest.raises(RuntimeError, match="in the middle"):
        quiet_trainer(max_epochs=1, callbacks=[EpsSchedule([(0, 0.5)])]).fit(module, loader(32))
    assert module.attack.eps == 0.1


def test_another_attack_put_there_on_the_way_is_scheduled_from_then_on() -> None:
    """As the detector's fallback attack is."""

    class Replacing(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            if trainer.global_step == 2:
                pl_module.attack = FGSM(0.3)

    for callbacks in ([Replacing(), EpsSchedule([(0, 0.5)])], [EpsSchedule([(0, 0.5)]), Replacing()]):
        module = Watching(FGSM(0.1))
        quiet_trainer(max_epochs=1, callbacks=callbacks).fit(module, loader(64))
        assert module.trained == pytest.approx([0.05, 0.05, 0.15, 0.15])
        assert module.attack.eps == 0.3


def test_a_skipped_batch_leaves_the_full_attack_behind() -> None:
    """Lightning leaves out the end of a batch whose start says -1, and the rest of the epoch."""

    class Skipping(Watching):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    module = Skipping(FGSM(0.4))
    quiet_trainer(max_epochs=3, callbacks=[EpsSchedule([(0, 0.5)])]).fit(module, loader(64), loader(16))
    assert module.trained == pytest.approx([0.2] * 6)
    assert set(module.validated) == {0.4}
    assert module.attack.eps == 0.4


def test_callbacks_find_the_full_attack_at_a_batchs_end_wherever_they_stand() -> None:
    class Looking(Callback):
        seen: list[Any] = []  # noqa: RUF012  # of all instances

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            self.seen.append(pl_module.attack.eps)

    callbacks = [Looking(), EpsSchedule([(0, 0.5)]), Looking()]
    quiet_trainer(max_epochs=1, callbacks=callbacks).fit(Watching(FGSM(0.4)), loader(32))
    assert Looking.seen == [0.4] * 4


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (None, "pairs of numbers.*got None"),
        ([(0,)], r"pairs of numbers.*got \[\(0,\)\]"),
        ([(0, "much")], r"pairs of numbers, such as"),
        ([], "at least one"),
        ([(0, 0), (0, 1)], r"with rising times.*got \[\(0, 0\), \(0, 1\)\]"),
        ([(0, -1)], "finite factors of at least 0"),
        ([(0, math.nan)], "finite factors of at least 0"),
        ([(math.inf, 1)], "finite times"),
    ],
)
def test_points_that_are_none_are_named(points: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpsSchedule(points)


def test_a_unit_must_be_one() -> None:
    with pytest.raises(ValueError, match="`unit` must be 'epoch' or 'step', got 'batch'"):
        EpsSchedule([(0, 1)], unit="batch")  # type: ignore[arg-type]


def test_what_cannot_be_scheduled_is_named_at_the_start() -> None:
    with pytest.raises(MisconfigurationException, match="PlainModule has no attack there: use AdversarialTraining"):
        quiet_trainer(max_epochs=1, callbacks=[EpsSchedule([(0, 1)])]).fit(PlainModule(), loader(32))
    with pytest.raises(ValueError, match="must not be larger than the width of bounds"):
        quiet_trainer(max_epochs=1, callbacks=[EpsSchedule([(0, 11)])]).fit(Watching(FGSM(0.1)), loader(32))
    two = [EpsSchedule([(0, 1)]), EpsSchedule([(0, 2)])]
    with pytest.raises(MisconfigurationException, match="there must be one EpsSchedule"):
        quiet_trainer(max_epochs=1, callbacks=two).fit(Watching(FGSM(0.1)), loader(32))


class Stream(IterableDataset[Any]):
    """Data without a length."""

    def __iter__(self) -> Any:
        return iter(loader(32).dataset)


def test_epochs_of_unknown_length_need_steps() -> None:
    data: DataLoader[Any] = DataLoader(Stream(), batch_size=16)
    module = AdversarialTraining(small_net(), FGSM(0.1), num_classes=3, lr_scheduler="constant")
    with pytest.raises(MisconfigurationException, match=r"use unit='step', or the Trainer's `limit_train_batches`"):
        quiet_trainer(max_epochs=1, callbacks=[EpsSchedule([(0, 1)])]).fit(module, data)
    quiet_trainer(max_epochs=1, callbacks=[EpsSchedule([(0, 1)], unit="step")]).fit(module, data)
