from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pl_robust._lightning import NAMESPACE, Callback, LightningModule, MisconfigurationException, Trainer, is_before
from pl_robust.attacks import FGSM, PGD, Attack
from pl_robust.callbacks import CalibrationLogger
from pl_robust.callbacks._calibration_report import draw_reliability
from pl_robust.metrics import Calibration
from pl_robust.models import BinaryLogits
from pl_robust.modules import AdversarialTraining
from tests.metrics.test_calibration import oracle
from tests.toys import (
    PlainModule,
    assert_identical,
    loader,
    needs_named_loaders,
    quiet_trainer,
    stripes,
    training_state,
)

pytestmark = pytest.mark.lightning

KEYS = {f"{key}{ending}" for key in ("ece", "nll", "brier") for ending in ("", "_adv")}


def train(
    *callbacks: Callback, module: Any = PlainModule, validation: Any = None, **arguments: Any
) -> tuple[Trainer, Any]:
    """Fit a module, or one of a class, made when the seed is set."""
    torch.manual_seed(0)
    module = module() if isinstance(module, type) else module
    trainer = quiet_trainer(**{"max_epochs": 2, "callbacks": list(callbacks), **arguments})
    trainer.fit(module, loader(70, shuffle=True), loader(40, seed=1) if validation is None else validation)
    return trainer, module


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """What is measured in a row, as one number each."""
    return {key: value for key, value in row.items() if key.removesuffix("_adv") in ("acc", "ece", "nll", "brier")}


class Stirring(PlainModule):
    """Draws random numbers and moves its batch-norm's statistics wherever its forward is called in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.rand_like(x))

    def on_validation_model_eval(self) -> None:
        """Stay in training mode, as for Monte Carlo dropout."""


@pytest.mark.parametrize(
    "arguments",
    [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}, {"module": Stirring}],
    ids=["plain", "accumulate", "bf16-mixed", "stirring"],
)
def test_training_is_bit_identical_with_and_without_it(arguments: dict[str, Any]) -> None:
    first, second = CalibrationLogger(PGD(0.1, steps=2)), CalibrationLogger(None, every_n_epochs=2)
    states: list[Any] = []
    results: list[Any] = []
    for callbacks in ([first, second], []):
        trainer, module = train(*callbacks, **arguments)
        states.append(training_state(trainer, module))
        logged = {"fit": trainer.callback_metrics["val/loss"]}
        # And outside of training, in inference mode.
        for run in ("validate", "test"):
            (found,) = getattr(trainer, run)(module, loader(40, seed=1), verbose=False)
            logged |= {name: value for name, value in found.items() if name.endswith("loss")}
        states.append(training_state(trainer, module))
        results.append(logged)
    rows = [(row["stage"], row["epoch"], row["samples"]) for row in first.history]
    assert rows == [("fit", 0, 40), ("fit", 1, 40), ("validate", 2, 40), ("test", 2, 40)]
    assert [row["epoch"] for row in second.history] == [1, 2, 2]
    # Two evaluations of one network agree, noise and all.
    if arguments.get("module") is not Stirring:
        assert numbers(first.history[1]) == numbers(first.history[2]) == numbers(first.history[3])
    assert_identical(states[:2], states[2:])
    assert results[0] == results[1]


def test_it_logs_what_numpy_computes_on_all_samples() -> None:
    attack = PGD(0.1, steps=3, random_start=False)
    logger = CalibrationLogger(attack, bins=10)
    trainer, module = train(logger, validation=loader(45, seed=1))
    x, y = stripes(45, seed=1).tensors
    module.eval()
    for ending, inputs in (("", x), ("_adv", attack(module, x, y))):
        expected = oracle(module(inputs).detach(), y, 10)
        for key in ("ece", "nll", "brier"):
            assert float(trainer.callback_metrics[f"val/{key}{ending}"]) == pytest.approx(expected[key], rel=1e-5)
        row = logger.history[-1]
        assert row[f"acc{ending}"] == pytest.approx(expected["accuracy"])
        assert sum(row[f"bins{ending}"]["counts"]) == row["samples"] == 45
    assert logger.history[-1]["acc_adv"] < logger.history[-1]["acc"]
    (found,) = trainer.test(module, loader(45, seed=1), verbose=False)
    tested = {name: value for name, value in found.items() if name != "test/loss"}
    last = numbers(logger.history[-2])
    assert tested == pytest.approx({f"test/{key}": last[key] for key in KEYS})


def test_attacks_run_as_they_are_given() -> None:
    # In its form for evaluation PGD leaves a sample as soon as it is wrong, which is wrong by little.
    full, early = CalibrationLogger(PGD(0.2)), CalibrationLogger(PGD(0.2, early_stop=True), suffix="_early")
    train(full, early)
    assert early.history[-1]["acc_adv"] <= full.history[-1]["acc_adv"] < 1
    assert early.history[-1]["nll_adv"] < 0.9 * full.history[-1]["nll_adv"]


def steps(count: int) -> DataLoader[Any]:
    """Numbers in (0, 1), of class 1 above a half."""
    x = (torch.arange(count) + 0.5) / count
    return DataLoader(TensorDataset(x[:, None], (x > 0.5).long()), batch_size=8)


class Scripted(LightningModule):
    """Puts the border of its classes at another place in each epoch; FGSM's answer to it is known."""

    borders = (0.8, 0.5, 0.62, 0.7, 0.9, 0.5)

    def __init__(self, attack: Attack | None = None) -> None:
        super().__init__()
        self.attack = attack
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        margin = 20 * self.weight * (x[:, 0] - self.borders[self.current_epoch % 6])
        return torch.stack([-margin, margin], dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = 0 * self(batch[0]).sum()
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        return None

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        return None

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def scripted(*callbacks: Any, epochs: int = 5, **arguments: Any) -> Trainer:
    trainer = quiet_trainer(max_epochs=epochs, callbacks=list(callbacks), **arguments)
    trainer.fit(Scripted(FGSM(0.1)), steps(8), steps(40))
    return trainer


def robust(borders: Any) -> list[float]:
    """Accuracy of a border under a shift of 0.1, of 40 steps."""
    x = (np.arange(40) + 0.5) / 40
    return [float(np.mean(np.where(x > 0.5, x - 0.1 > b, x + 0.1 < b))) for b in borders]


def test_the_robust_gap_is_the_best_accuracy_so_far_minus_the_present_one() -> None:
    values: list[float] = []

    class Reading(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.state.fn == "fit" and not trainer.sanity_checking:
                values.append(float(trainer.callback_metrics["val/robust_gap"]))

    logger = CalibrationLogger()
    trainer = scripted(Reading(), logger)
    accuracies = robust(Scripted.borders[:5])
    assert len(set(accuracies)) > 3
    gaps = [max(accuracies[: i + 1]) - accuracies[i] for i in range(5)]
    assert [row["acc_adv"] for row in logger.history] == pytest.approx(accuracies)
    assert [row["robust_gap"] for row in logger.history] == pytest.approx(gaps)
    assert values == pytest.approx(gaps)
    assert gaps == pytest.approx([0, 0, 0.025, 0.1, 0.3])
    # It belongs to a fit: an evaluation by itself has none, and the next fit begins anew.
    trainer.validate(Scripted(FGSM(0.1)), steps(40), verbose=False)
    assert "val/robust_gap" not in trainer.callback_metrics
    assert "robust_gap" not in logger.history[-1]
    scripted(logger, epochs=1)
    assert [row["robust_gap"] for row in logger.history] == [0]


def test_a_resumed_run_has_the_history_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    def two() -> list[CalibrationLogger]:
        return [CalibrationLogger(), CalibrationLogger(FGSM(0.05), bins=4)]

    whole, before, after = two(), two(), two()
    trainer = scripted(*whole)
    assert {f"val/{key}{end}" for key in (*KEYS, "robust_gap") for end in ("", "_2")} <= set(trainer.callback_metrics)
    assert trainer.callback_metrics["val/ece_adv_2"] == pytest.approx(whole[1].history[-1]["ece_adv"])
    scripted(*before, epochs=3).save_checkpoint(tmp_path / "three.ckpt")
    torch.load(tmp_path / "three.ckpt", weights_only=True)
    resumed = quiet_trainer(max_epochs=5, callbacks=after)
    resumed.fit(Scripted(FGSM(0.1)), steps(8), steps(40), ckpt_path=tmp_path / "three.ckpt")
    for one, other in zip(whole, after, strict=True):
        # As text, in which NaN equals itself.
        assert repr(one.history) == repr(other.history)
        assert len(one.history) == 5


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_checkpoint_can_follow_it(place: str, tmp_path: Path) -> None:
    callbacks = pytest.importorskip(f"{NAMESPACE}.callbacks")
    best = callbacks.ModelCheckpoint(tmp_path, "{epoch}", monitor="val/ece_adv", mode="min")
    stop = callbacks.EarlyStopping("val/robust_gap", mode="min", patience=1, strict=True)
    logger = CalibrationLogger()
    others = [best, stop]
    trainer = scripted(*([*others, logger] if place == "before" else [logger, *others]), enable_checkpointing=True)
    errors = [row["ece_adv"] for row in logger.history]
    assert trainer.current_epoch == 2  # the second gap is no better than the first
    assert float(best.best_model_score) == pytest.approx(min(errors))
    assert Path(best.best_model_path).name == f"epoch={errors.index(min(errors))}.ckpt"


@pytest.mark.parametrize(
    "module", [PlainModule, AdversarialTraining(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), PGD(0.1), num_classes=3)]
)
def test_the_modules_attack_is_taken_where_there_is_one(module: Any) -> None:
    logger, none = CalibrationLogger(), CalibrationLogger(None)
    trainer, module = train(logger, none, module=module)
    has_attack = isinstance(module, AdversarialTraining)
    assert ("ece_adv" in logger.history[0]) == ("val/robust_gap" in trainer.callback_metrics) == has_attack
    assert set(numbers(none.history[0])) == {"acc", "ece", "nll", "brier"}
    assert not has_attack or "val/acc_pgd" in trainer.callback_metrics
    assert logger.history[-1]["acc"] == none.history[-1]["acc"]


@needs_named_loaders
def test_dataloaders_have_their_names_behind() -> None:
    logger = CalibrationLogger(FGSM(0.1), suffix="_fgsm")
    trainer = quiet_trainer(callbacks=[logger])
    module = Scripted()
    data = {"few": steps(16), "many": steps(40)}
    trainer.validate(module, data, verbose=False)
    ends = ["/few", "/many"]
    assert [(row["end"], row["samples"]) for row in logger.history] == [("/few", 16), ("/many", 40)]
    assert set(trainer.callback_metrics) == {f"val/{key}_fgsm{end}" for key in KEYS for end in ends}
    for row in logger.history:
        assert float(trainer.callback_metrics[f"val/nll_adv_fgsm{row['end']}"]) == pytest.approx(row["nll_adv"])


def test_dataloaders_without_names_have_their_numbers_behind() -> None:
    logger = CalibrationLogger(FGSM(0.1), suffix="_fgsm")
    trainer = quiet_trainer(callbacks=[logger])
    for evaluate in (trainer.validate, trainer.test):
        evaluate(Scripted(), [steps(16), steps(40)], verbose=False)
    few, many = logger.history[2:]
    assert [numbers(row) for row in logger.history[:2]] == [numbers(few), numbers(many)]
    assert numbers(few) != numbers(many)
    ends = ["/0", "/1"] if is_before("2.5.3") else ["/dataloader_idx_0", "/dataloader_idx_1"]
    assert [(row["end"], row["samples"]) for row in (few, many)] == list(zip(ends, (16, 40), strict=True))
    assert set(trainer.callback_metrics) == {f"test/{key}_fgsm{end}" for key in KEYS for end in ends}
    for row in (few, many):
        assert float(trainer.callback_metrics[f"test/nll_adv_fgsm{row['end']}"]) == pytest.approx(row["nll_adv"])


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", 64])
def test_any_precision_is_measured_in_float32_at_least(precision: Any) -> None:
    seen: list[Tensor] = []

    class Looking(PlainModule):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(super().forward(x))
            return seen[-1]

    logger = CalibrationLogger(None)
    data = loader(32, batch_size=32)
    quiet_trainer(callbacks=[logger], precision=precision).validate(Looking(), data, verbose=False)
    assert seen[0].dtype == (torch.float64 if precision == 64 else torch.bfloat16)
    expected = Calibration()
    expected.update(seen[0].float() if precision != 64 else seen[0], stripes(32).tensors[1])
    assert logger.history[0]["ece"] == float(expected.compute())
    assert logger.history[0]["nll"] == float(expected.summary().nll)


def test_dicts_and_steps_that_change_their_batch() -> None:
    class Changing(PlainModule):
        def __init__(self) -> None:
            super().__init__("image", "label")
            self.net.insert(0, nn.Threshold(0.5, 0.0, inplace=True))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/sum", batch["image"].sum())
            batch["image"] = batch["image"] * 100

    def collate(samples: list[Any]) -> Any:
        return {"image": torch.stack([x for x, _ in samples]), "label": torch.stack([y for _, y in samples])}

    module = Changing()
    logger = CalibrationLogger(None, input_key="image", label_key="label")
    data = DataLoader(stripes(8), batch_size=8, collate_fn=collate)
    (found,) = quiet_trainer(callbacks=[logger]).validate(module, data, verbose=False)
    x, y = stripes(8).tensors
    assert found["val/sum"] == pytest.approx(float(x.sum()))
    assert logger.history[0]["nll"] == pytest.approx(oracle(module.eval()(x.clone()).detach(), y, 15)["nll"], rel=1e-5)


def test_epochs_that_are_not_due_and_the_sanity_check_leave_nothing() -> None:
    forwards: list[int] = []

    class Counting(PlainModule):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                forwards.append(self.current_epoch)
            return super().forward(x)

    logger = CalibrationLogger(PGD(0.1, steps=3), every_n_epochs=2)
    train(logger, module=Counting(), max_epochs=3, num_sanity_val_steps=0, validation=loader(32))
    assert [row["epoch"] for row in logger.history] == [1]
    assert forwards == [0] * 2 + [1] * 2 * (1 + 1 + 3 + 1) + [2] * 2
    forwards.clear()
    with pytest.warns(UserWarning, match=r"CalibrationLogger\(every_n_epochs=5\) has made no check: the run ended"):
        trainer, _ = train(CalibrationLogger(None, every_n_epochs=5), module=Counting(), validation=loader(32))
    assert forwards == [0] * (2 + 1) + [0] * 2 + [1] * 2  # the sanity check looks at one batch
    assert "val/ece" not in trainer.callback_metrics


def test_a_network_that_diverges_draws_one_warning_and_ends_no_run(tmp_path: Path) -> None:
    loggers = pytest.importorskip(f"{NAMESPACE}.loggers")

    class Diverged(Scripted):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / float(self.current_epoch == 0)

    logger = CalibrationLogger()
    trainer = quiet_trainer(max_epochs=3, callbacks=[logger], logger=loggers.CSVLogger(tmp_path))
    with pytest.warns(
        UserWarning, match="val: the module's logits are NaN or infinite for 40 of 40 clean inputs"
    ) as said:
        trainer.fit(Diverged(FGSM(0.1)), steps(8), steps(40))
    assert len([one for one in said if "logits are NaN" in str(one.message)]) == 1
    assert not math.isnan(logger.history[0]["ece"])
    last = logger.history[-1]
    assert all(math.isnan(last[key]) for key in KEYS)
    assert (last["acc"], last["acc_adv"], last["robust_gap"]) == (0, 0, logger.history[0]["acc_adv"])
    assert trainer.callback_metrics["val/ece"].isnan()
    assert (Path(trainer.log_dir or "") / "val_reliability.png").stat().st_size > 5000


@pytest.mark.filterwarnings("ignore:Total length of `(DataLoader|CombinedLoader|dict)`.* is zero")
@needs_named_loaders
def test_one_sample_is_enough_and_none_is_spoken_of(capsys: pytest.CaptureFixture[str]) -> None:
    logger = CalibrationLogger(FGSM(0.1))
    trainer = quiet_trainer(callbacks=[logger])
    none = DataLoader(TensorDataset(torch.rand(4, 1), torch.zeros(4).long()), batch_size=16, drop_last=True)
    with pytest.warns(UserWarning, match="has seen no sample: the dataloader val/none is empty"):
        trainer.validate(Scripted(), {"one": steps(1), "none": none}, verbose=False)
    (row,) = logger.history
    assert (row["end"], row["samples"], sum(row["bins"]["counts"])) == ("/one", 1, 1)
    assert "clean/one" in capsys.readouterr().out


@needs_named_loaders
def test_figures_and_tables_find_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = pytest.importorskip(f"{NAMESPACE}.loggers")
    logger = loggers.TensorBoardLogger(tmp_path)
    trainer, module = train(CalibrationLogger(FGSM(0.1)), CalibrationLogger(None), logger=logger)
    said = capsys.readouterr().out
    assert said.count("calibration, val, epoch 1") == 1
    assert [word in said for word in ("clean", "adversarial", "robust gap", "calibration_2, val")] == [True] * 4
    for count in (30, 40):
        trainer.test(module, {"some": loader(count)}, verbose=False)
        lines = capsys.readouterr().out.splitlines()
        assert sum(line.startswith("clean/some") for line in lines) == 2  # each logger shows its last check alone
        assert any(line.startswith("calibration, test ") for line in lines)
    files = {path.name for path in Path(trainer.log_dir or "").iterdir()}
    names = {f"{name}.png" for end in ("", "_2") for name in (f"val_reliability{end}", f"test_reliability{end}_some")}
    assert names <= files
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert {"val/reliability", "val/reliability_2", "test/reliability/some"} <= set(events.Tags()["images"])
    assert len(events.Scalars("val/ece_adv")) == 2
    assert len(events.Scalars("val/robust_gap")) == 2


def test_the_diagram_shows_accuracy_confidence_and_share_of_each_bin() -> None:
    nan = math.nan
    bins = {"counts": [0, 1, 0, 3], "confidence": [nan, 0.4, nan, 0.9], "accuracy": [nan, 1.0, nan, 0.5]}
    row = {"bins": bins, "ece": 0.45, "bins_adv": bins, "ece_adv": 0.25}
    figure = draw_reliability(row, "val, epoch 3")
    left, right, below, _ = figure.axes
    assert [axes.get_title() for axes in (left, right)] == ["clean: ECE 0.450", "adversarial: ECE 0.250"]
    heights = [[bar.get_height() for bar in bars] for bars in left.containers]
    assert heights == [[0.4, 0.5], pytest.approx([0, 0.4]), pytest.approx([0.6, 0])]  # shown, over-, underconfident
    assert [bar.get_x() for bar in left.containers[0]] == [0.25, 0.75]
    assert [bar.get_height() for bar in below.containers[0]] == [0, 0.25, 0, 0.75]
    assert [np.asarray(line.get_xdata())[0] for line in below.get_lines()] == pytest.approx(
        [(0.4 + 2.7) / 4, (1 + 1.5) / 4]
    )
    assert len(draw_reliability({"bins": bins, "ece": 0.45}, "clean only").axes) == 2


@pytest.mark.parametrize("arguments", [{"fast_dev_run": True}, {"logger": False}])
def test_runs_that_log_nowhere_leave_no_file(
    arguments: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = CalibrationLogger(None)
    trainer, module = train(logger, default_root_dir=tmp_path, max_epochs=1, **arguments)
    trainer.validate(module, loader(40), verbose=False)
    assert [row["samples"] for row in logger.history] == ([16, 16] if "fast_dev_run" in arguments else [40, 40])
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out.count("calibration, val") == 2


class Answering(PlainModule):
    """Gives what a test wants it to give, but only in validation."""

    steps = 0
    answer: Any = None

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return logits if self.training or self.answer is None else self.answer(logits)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        return None

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1


X, Y = stripes(16).tensors


@pytest.mark.parametrize(
    ("x", "y", "answer", "error", "message"),
    [
        (X, Y, lambda logits: logits[:, :1], ValueError, r"got \[16, 1\], as a binary network .*BinaryLogits"),
        (X, Y, lambda logits: logits[:, 0], ValueError, r"got \[16\], as a binary network gives them"),
        (X, Y, lambda logits: logits[:, :, None], ValueError, r"must be \[B, classes\].*got \[16, 3, 1\] and \[16\]"),
        (X, Y, lambda logits: (logits,), TypeError, r"forward must give logits \[16, classes\], got tuple"),
        (X, Y, lambda logits: logits.argmax(1), TypeError, r"`logits` must be of floating point, got torch.int64"),
        (X, Y + 1, None, ValueError, r"labels must lie in 0..2 for 3 classes, got 1..3"),
        (X, Y.float(), None, TypeError, r"`y` must be integer class labels, got torch.float32"),
        (4 * X - 2, Y, None, ValueError, r"must lie in bounds=\(0.0, 1.0\).*pass `normalization=\(mean, std\)`"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_epoch(x: Any, y: Any, answer: Any, error: Any, message: str) -> None:
    module = Answering()
    module.answer = answer
    with pytest.raises(error, match=message):
        train(
            CalibrationLogger(FGSM(0.1), every_n_epochs=2),
            module=module,
            validation=DataLoader(TensorDataset(x, y), batch_size=16),
        )
    assert module.steps == 0
    assert [part.training for part in module.modules()] == [False] * 8  # as Lightning has them in validation


def test_a_binary_network_has_its_way_out() -> None:
    class Binary(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = BinaryLogits(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)))  # type: ignore[assignment]

    logger = CalibrationLogger(None)
    data = DataLoader(TensorDataset(X, (Y > 0).long()), batch_size=16)
    quiet_trainer(callbacks=[logger]).validate(Binary(), data, verbose=False)
    assert 0.5 < logger.history[0]["nll"] < 1


def test_strategies_that_split_parameters_are_refused() -> None:
    trainer = quiet_trainer()

    class FSDPStrategy:
        pass

    trainer._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(MisconfigurationException, match="needs whole parameters on every rank, FSDPStrategy splits"):
        CalibrationLogger().setup(trainer, PlainModule(), "test")


def test_a_suffix_that_the_second_of_another_has_is_refused() -> None:
    trainer = quiet_trainer(callbacks=[CalibrationLogger(), CalibrationLogger(None), CalibrationLogger(suffix="_2")])
    with pytest.raises(
        MisconfigurationException, match="log with '_2' behind their names, one as number 2 of `suffix`"
    ):
        trainer.validate(PlainModule(), loader(16), verbose=False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"attack": "pgd"}, TypeError, r"`attack` must be an attack such as PGD.*'module' .* or None .*got 'pgd'"),
        ({"bins": 0}, ValueError, r"`bins` must be at least 1, got 0"),
        ({"every_n_epochs": 0.5}, TypeError, r"`every_n_epochs` must be an integer, got 0.5"),
        ({"suffix": 2}, TypeError, r"`suffix` must be a string, got 2"),
        ({"suffix": "pgd"}, ValueError, r"`suffix` must be '' or an underscore and letters.*got 'pgd'"),
        ({"suffix": "_a/b"}, ValueError, r"such as '_pgd50'.*got '_a/b'"),
        (
            {"suffix": "_adv"},
            ValueError,
            r"must not begin with '_adv', which stands for adversarial inputs, got '_adv'",
        ),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        CalibrationLogger(**arguments)


def test_it_can_be_said_in_yaml(tmp_path: Path) -> None:
    import yaml

    from pl_robust.cli import run

    attack = {"class_path": "PGD", "init_args": {"eps": "8/255", "steps": 1}}
    given: list[dict[str, Any]] = [{}, {"attack": attack, "bins": 10}, {"attack": None, "suffix": "_clean"}]
    configuration = {
        "trainer": {
            "callbacks": [{"class_path": "CalibrationLogger", "init_args": arguments} for arguments in given],
            "fast_dev_run": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
        },
        "model": {"class_path": "AdversarialTraining", "init_args": {"net": "SmallCNN", "attack": attack}},
        "data": {"class_path": "ImageDataModule", "init_args": {"name": "digits"}},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(configuration))
    callbacks = run(["fit", "--config", str(tmp_path / "run.yaml")]).trainer.callbacks
    made = [callback for callback in callbacks if isinstance(callback, CalibrationLogger)]
    assert made[0].attack == "module"
    assert isinstance(made[1].attack, PGD)
    assert made[2].attack is None
    assert ["ece_adv" in one.history[0] for one in made] == [True, True, False]
