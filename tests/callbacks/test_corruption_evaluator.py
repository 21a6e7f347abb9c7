from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pl_robust._lightning import (
    NAMESPACE,
    Callback,
    LightningDataModule,
    LightningModule,
    MisconfigurationException,
    Trainer,
)
from pl_robust.attacks import FGSM
from pl_robust.callbacks import CorruptionEvaluator
from pl_robust.datamodules import CorruptedImageDataModule
from pl_robust.modules import AdversarialTraining
from pl_robust.transforms.corruption import CORRUPTIONS, corrupt, table_for
from tests.toys import (
    PlainModule,
    assert_identical,
    needs_named_loaders,
    needs_torch_2_6,
    quiet_trainer,
    stripes,
    training_state,
)

pytestmark = pytest.mark.lightning

NAMES = ["gaussian_noise", "brightness", "contrast"]
SEVERITIES = (2, 5)


def pictures(count: int, seed: int = 1) -> TensorDataset:
    """Images [count, 1, 16, 16] in [0, 1] of three classes."""
    x, y = stripes(count, seed).tensors
    return TensorDataset(F.interpolate(x, 16), y)


def loader(count: int, *, seed: int = 1, shuffle: bool = False, batch_size: int = 16) -> DataLoader[Any]:
    return DataLoader(pictures(count, seed), batch_size=batch_size, shuffle=shuffle)


class Classifier(PlainModule):
    """The plain classifier for images of 16 pixels."""

    def __init__(self, input_key: Any = 0, label_key: Any = 1) -> None:
        super().__init__(input_key, label_key)
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(784, 3)
        )


def evaluator(**arguments: Any) -> CorruptionEvaluator:
    return CorruptionEvaluator(**{"corruptions": NAMES, "severities": SEVERITIES, **arguments})


def train(
    *callbacks: Callback, module: Any = Classifier, validation: Any = None, **arguments: Any
) -> tuple[Trainer, Any]:
    """Fit a module, or one of a class, made when the seed is set."""
    torch.manual_seed(0)
    module = module() if isinstance(module, type) else module
    trainer = quiet_trainer(**{"max_epochs": 2, "callbacks": list(callbacks), **arguments})
    trainer.fit(module, loader(70, seed=0, shuffle=True), loader(40) if validation is None else validation)
    return trainer, module


@torch.no_grad()
def by_hand(module: LightningModule, data: TensorDataset, table: Any = "cifar") -> tuple[float, dict[str, list[float]]]:
    """The loop over the suite as one writes it without the callback, all images in one batch."""
    x, y = data.tensors
    module.eval()
    clean = (module(x.clone()).argmax(1) == y).float().mean()
    accuracies = {
        name: [
            float((module(corrupt(x, name, s, table=table, seeds=torch.arange(len(x)))).argmax(1) == y).float().mean())
            for s in SEVERITIES
        ]
        for name in NAMES
    }
    return float(clean), accuracies


class Stirring(Classifier):
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
    first, second = evaluator(every_n_epochs=1), evaluator(severities=[1], every_n_epochs=2, max_samples=20)
    states: list[Any] = []
    results: list[Any] = []
    for callbacks in ([first, second], []):
        trainer, module = train(*callbacks, **arguments)
        states.append(training_state(trainer, module))
        logged = {"fit": trainer.callback_metrics["val/loss"]}
        # And outside of training, in inference mode.
        for run in ("validate", "test"):
            (found,) = getattr(trainer, run)(module, loader(40), verbose=False)
            logged |= {name: value for name, value in found.items() if not name.startswith("corruption")}
        states.append(training_state(trainer, module))
        results.append(logged)
    assert [(row["stage"], row["epoch"]) for row in first.history] == [
        ("fit", 0),
        ("fit", 1),
        ("validate", 2),
        ("test", 2),
    ]
    assert [row["epoch"] for row in second.history] == [1, 2, 2]
    assert_identical(states[:2], states[2:])
    assert results[0] == results[1]


class Threshold(LightningModule):
    """Takes bright images for class 1: right on its data, and wrong as soon as they are made brighter by 0.175."""

    def forward(self, x: Tensor) -> Tensor:
        brightness = x.mean((1, 2, 3)) - 0.475
        return torch.stack([-brightness, brightness], dim=1)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        return None

    def test_step(self, batch: Any, batch_idx: int) -> None:
        return None


def plain_gray() -> DataLoader[Any]:
    """Ten images without any contrast, three of them of class 0 and dark."""
    y = (torch.arange(10) > 2).long()
    return DataLoader(TensorDataset((0.3 + 0.4 * y).view(-1, 1, 1, 1).repeat(1, 3, 16, 16), y), batch_size=4)


def test_a_network_that_fails_under_one_corruption_gets_the_table_it_must(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # CIFAR's brightness adds .05 .1 .15 .2 .3; pixelating and contrast do nothing to a plain image.
    loggers = pytest.importorskip(f"{NAMESPACE}.loggers")
    watching = CorruptionEvaluator(["pixelate", "brightness", "contrast"], baseline="alexnet")
    trainer = quiet_trainer(callbacks=[watching], logger=loggers.CSVLogger(tmp_path))
    (results,) = trainer.test(Threshold(), plain_gray(), verbose=False)
    (row,) = watching.history
    wrong = pytest.approx([1, 1, 1, 0.7, 0.7])
    assert row["acc"] == {"pixelate": [1] * 5, "brightness": wrong, "contrast": [1] * 5}
    ce = 100 * 0.6 / (5 * 0.564592)
    assert row["ce"] == {"pixelate": 0, "brightness": pytest.approx(ce), "contrast": 0}
    assert (row["stage"], row["samples"], row["table"], row["clean_acc"]) == ("test", 10, "cifar", 1)
    assert results == {
        "corruption/clean/acc": 1,
        "corruption/pixelate/acc": 1,
        "corruption/brightness/acc": pytest.approx(0.88),
        "corruption/contrast/acc": 1,
        "corruption/mean_acc": pytest.approx(0.96),
        "corruption/mce": pytest.approx(ce / 3),
    }
    said = capsys.readouterr().out
    assert "corruption, test, epoch 0, step 0: 10 images, constants of cifar, CE over AlexNet's errors\n" in said
    lines = [line.split() for line in said.splitlines()]
    assert ["clean", "100.0%"] in lines
    assert ["weather", "brightness", "100.0%", "100.0%", "100.0%", "70.0%", "70.0%", "88.0%", "21.3"] in lines
    assert ["pixelate", *["100.0%"] * 6, "0.0"] in lines  # below contrast, in the same group
    assert ["mean", "100.0%", "100.0%", "100.0%", "90.0%", "90.0%", "96.0%", "7.1"] in lines
    folder = Path(trainer.log_dir or "")
    with (folder / "corruption_test.csv").open() as file:
        table = {line["corruption"]: line for line in csv.DictReader(file)}
    assert list(table) == ["clean", "brightness", "contrast", "pixelate", "mean"]
    assert table["brightness"] == {
        "group": "weather",
        "corruption": "brightness",
        **{f"severity_{severity}": "1" if severity < 4 else "0.7" for severity in range(1, 6)},
        "mean": "0.88",
        "ce": f"{ce:.6g}",
    }
    assert float(table["mean"]["ce"]) == pytest.approx(ce / 3, rel=1e-5)
    markdown = (folder / "corruption_test.md").read_text()
    assert "| weather | brightness | 100.0 | 100.0 | 100.0 | 70.0 | 70.0 | 88.0 | 21.3 |" in markdown
    assert (folder / "corruption_test_heat_map.png").stat().st_size > 5000


def test_it_counts_what_a_loop_by_hand_counts() -> None:
    watching = evaluator(every_n_epochs=1)
    trainer, module = train(watching)
    clean, accuracies = by_hand(module, pictures(40))
    row = watching.history[-1]
    assert (row["clean_acc"], row["acc"]) == (clean, accuracies)
    means = {name: sum(accs) / 2 for name, accs in accuracies.items()}
    assert 0 < means["brightness"] < 1
    for name, mean in means.items():
        assert trainer.callback_metrics[f"corruption/{name}/acc"] == pytest.approx(mean)
    mean = sum(means.values()) / 3
    assert trainer.callback_metrics["corruption/mean_acc"] == pytest.approx(mean)
    assert trainer.callback_metrics["corruption/mce"] == pytest.approx(100 * (1 - mean))
    assert trainer.callback_metrics["corruption/clean/acc"] == pytest.approx(clean)


def test_batch_size_does_not_matter_and_the_table_does() -> None:
    module = Classifier()
    rows = {}
    for table, batch_size in ((None, 16), (None, 7), ("imagenet", 16)):
        watching = evaluator(table=table)
        quiet_trainer(callbacks=[watching]).test(module, loader(40, batch_size=batch_size), verbose=False)
        rows[table, batch_size] = watching.history[0]
    assert rows[None, 16] == rows[None, 7]
    assert rows["imagenet", 16]["acc"] == by_hand(module, pictures(40), "imagenet")[1] != rows[None, 16]["acc"]


@pytest.mark.parametrize(
    ("side", "table"),
    [(16, "cifar"), (48, "cifar"), (49, "tiny_imagenet"), (96, "tiny_imagenet"), (97, "imagenet"), (224, "imagenet")],
)
def test_without_a_table_the_shorter_side_decides(side: int, table: str) -> None:
    assert table_for((1, 3, side, 300)) == table


def test_normalized_data_is_corrupted_in_its_images() -> None:
    class Denormalizing(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 0.25 + 0.5)

    x, y = pictures(40).tensors
    data = DataLoader(TensorDataset((x - 0.5) / 0.25, y), batch_size=16)
    torch.manual_seed(0)
    plain, inside = Classifier(), Denormalizing()
    inside.load_state_dict(plain.state_dict())
    watching = evaluator(normalization=([0.5], [0.25]))
    quiet_trainer(callbacks=[watching]).validate(inside, data, verbose=False)
    clean, accuracies = by_hand(plain, pictures(40))
    assert (watching.history[0]["clean_acc"], watching.history[0]["acc"]) == (clean, accuracies)


def test_bf16_modules_get_the_same_images() -> None:
    seen: list[Tensor] = []

    class Looking(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.float())
            return super().forward(x)

    x, y = pictures(8).tensors
    x = (x * 255).round() / 256  # exact in bfloat16
    data = DataLoader(TensorDataset(x.bfloat16().float(), y), batch_size=8)
    quiet_trainer(callbacks=[evaluator()], precision="bf16-true").validate(Looking(), data, verbose=False)
    expected = [
        corrupt(x.bfloat16().float(), n, s, table="cifar", seeds=torch.arange(8)) for n in NAMES for s in (2, 5)
    ]
    corrupted = seen[1 : 1 + len(expected)]  # the clean images come first, validation's own last
    assert len(seen) == len(expected) + 2
    for found, wanted in zip(corrupted, expected, strict=True):
        assert torch.equal(found, wanted.bfloat16().float())


def test_a_step_that_changes_its_batch_and_a_first_layer_that_works_in_place_do_no_harm() -> None:
    class InPlace(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net.insert(0, nn.Threshold(0.5, 0.0, inplace=True))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/sum", batch[0].sum())
            batch[0] = (batch[0] - 0.5) / 0.25

    module, data = InPlace(), loader(8)
    watching = evaluator()
    (results,) = quiet_trainer(callbacks=[watching]).validate(module, data, verbose=False)
    assert results["val/sum"] == pytest.approx(float(pictures(8).tensors[0].sum()))
    assert watching.history[0]["acc"] == by_hand(module, pictures(8))[1]


@pytest.mark.parametrize("seen", [{"max_samples": 20}, {"limit_val_batches": 2}, {"limit_val_batches": 1}])
def test_fewer_samples_are_the_first_ones(seen: dict[str, int]) -> None:
    count = seen.get("max_samples", 16 * seen.get("limit_val_batches", 0))
    watching = evaluator(max_samples=seen.pop("max_samples", None))
    module = Classifier()
    quiet_trainer(callbacks=[watching], **seen).validate(module, loader(40), verbose=False)
    (row,) = watching.history
    first = TensorDataset(*(part[:count] for part in pictures(40).tensors))
    assert row["samples"] == count
    assert (row["clean_acc"], row["acc"]) == by_hand(module, first)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(pictures(40))


def test_iterable_data_is_seeded_by_its_order() -> None:
    watching = evaluator()
    module = Classifier()
    quiet_trainer(callbacks=[watching]).validate(module, DataLoader(Stream(), batch_size=16), verbose=False)
    assert (watching.history[0]["clean_acc"], watching.history[0]["acc"]) == by_hand(module, pictures(40))


@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")
def test_shuffled_data_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"shuffles them \(RandomSampler\): give it shuffle=False"):
        quiet_trainer(callbacks=[evaluator()]).validate(Classifier(), loader(40, shuffle=True), verbose=False)
    # It disturbs nobody before it is asked for.
    train(evaluator(), validation=loader(40, shuffle=True))


@pytest.mark.parametrize("chosen", [1, "fog"])
@needs_named_loaders
def test_one_of_several_dataloaders_is_evaluated(chosen: int | str) -> None:
    class Several(Classifier):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            return None

    data = {"clean": loader(16, seed=5), "fog": loader(24)}
    module, watching = Several(), evaluator(loader=chosen)
    quiet_trainer(callbacks=[watching]).validate(module, data, verbose=False)
    assert (watching.history[0]["samples"], watching.history[0]["acc"]) == (24, by_hand(module, pictures(24))[1])
    for wrong in (2, "mist", -1):
        message = f"one of the dataloaders of this evaluation, 'clean', 'fog', got {wrong!r}"
        with pytest.raises(MisconfigurationException, match=message):
            quiet_trainer(callbacks=[evaluator(loader=wrong)]).validate(module, data, verbose=False)


def test_batches_that_are_dicts() -> None:
    def collate(samples: list[Any]) -> Any:
        return {"image": torch.stack([x for x, _ in samples]), "label": torch.stack([y for _, y in samples])}

    module = Classifier("image", "label")
    watching = evaluator(input_key="image", label_key="label")
    data = DataLoader(pictures(24), batch_size=16, collate_fn=collate)
    quiet_trainer(callbacks=[watching]).test(module, data, verbose=False)
    assert watching.history[0]["acc"] == by_hand(module, pictures(24))[1]


def test_it_evaluates_adversarial_training() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    module = AdversarialTraining(net, FGSM(0.1), num_classes=3)
    watching = evaluator(every_n_epochs=1)
    trainer, _ = train(watching, module=module, max_epochs=1)
    assert watching.history[0]["clean_acc"] == pytest.approx(float(trainer.callback_metrics["val/acc"]))
    assert watching.history[0]["acc"] == by_hand(module, pictures(40))[1]


@needs_named_loaders
def test_it_sees_the_images_of_the_datamodule() -> None:
    class Base(LightningDataModule):
        def test_dataloader(self) -> Any:
            return loader(40)

    module = AdversarialTraining(nn.Sequential(nn.Flatten(), nn.Linear(256, 3)), FGSM(0.1), num_classes=3)
    watching = evaluator()
    quiet_trainer(callbacks=[watching]).test(module, loader(40), verbose=False)
    data = CorruptedImageDataModule(Base(), corruptions=NAMES, severities=SEVERITIES)
    trainer = quiet_trainer()
    trainer.test(module, datamodule=data, verbose=False)
    for name, accuracies in watching.history[0]["acc"].items():
        of_loaders = [float(trainer.callback_metrics[f"test/acc/{name}/{severity}"]) for severity in SEVERITIES]
        assert of_loaders == pytest.approx(accuracies)


@pytest.mark.filterwarnings("ignore:Total length of `(DataLoader|CombinedLoader|dict)`.* is zero")
@needs_named_loaders
def test_a_dataloader_without_images_is_spoken_of(capsys: pytest.CaptureFixture[str]) -> None:
    class Several(Classifier):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            return None

    watching = evaluator(loader="few")
    trainer = quiet_trainer(callbacks=[watching])
    trainer.validate(Several(), {"some": loader(16), "few": loader(4)}, verbose=False)
    assert "gaussian_noise" in capsys.readouterr().out
    none = DataLoader(pictures(4), batch_size=16, drop_last=True)
    with pytest.warns(UserWarning, match="has seen no image: the dataloader `loader`='few' is empty"):
        trainer.validate(Several(), {"some": loader(16), "few": none}, verbose=False)
    assert len(watching.history) == 1
    assert "gaussian_noise" not in capsys.readouterr().out  # what is old is not reported again


def test_two_live_in_one_trainer_and_resume(tmp_path: Path) -> None:
    def two() -> list[Any]:
        return [evaluator(every_n_epochs=1), evaluator(every_n_epochs=1, table="imagenet", baseline="alexnet")]

    first = two()
    trainer, _ = train(*first)
    assert {f"corruption{end}/mce" for end in ("", "_2")} <= set(trainer.callback_metrics)
    assert trainer.callback_metrics["corruption_2/mce"] == pytest.approx(first[1].history[-1]["mce"])
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    assert torch.load(tmp_path / "two.ckpt", weights_only=True)["epoch"] == 2
    second = two()
    resumed = quiet_trainer(max_epochs=3, callbacks=second)
    resumed.fit(Classifier(), loader(70, seed=0), loader(40), ckpt_path=tmp_path / "two.ckpt")
    for before, after in zip(first, second, strict=True):
        assert after.history[:2] == before.history
        assert [(row["epoch"], row["step"]) for row in after.history] == [(0, 5), (1, 10), (2, 15)]


def test_a_new_fit_begins_anew() -> None:
    watching = evaluator(every_n_epochs=1)
    train(watching)
    trainer, module = train(watching)
    assert [row["epoch"] for row in watching.history] == [0, 1]
    trainer.validate(module, loader(40), verbose=False)
    assert [row["stage"] for row in watching.history] == ["fit", "fit", "validate"]
    assert watching.history[2]["acc"] == watching.history[1]["acc"]


def test_epochs_that_are_not_due_cost_nothing() -> None:
    forwards: list[int] = []

    class Counting(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                forwards.append(self.current_epoch)
            return super().forward(x)

    watching = evaluator(every_n_epochs=2)
    train(watching, module=Counting(), max_epochs=3, num_sanity_val_steps=0, validation=loader(32))
    assert [row["epoch"] for row in watching.history] == [1]
    assert forwards == [0] * 2 + [1] * 2 * (1 + 1 + 6) + [2] * 2
    forwards.clear()
    train(evaluator(), module=Counting(), max_epochs=1, validation=loader(32))
    assert forwards == [0] * 2 * 2  # the sanity check's and validation's own


def test_a_fit_without_a_check_says_so() -> None:
    with pytest.warns(UserWarning, match=r"\(every_n_epochs=5\) has made no check: the run ended before the first one"):
        train(evaluator(every_n_epochs=5))
    train(evaluator())


def test_a_checkpoint_can_follow_it(tmp_path: Path) -> None:
    callbacks = pytest.importorskip(f"{NAMESPACE}.callbacks")
    best = callbacks.ModelCheckpoint(tmp_path, monitor="corruption/mce", mode="min")
    watching = evaluator(every_n_epochs=1)
    train(watching, best, enable_checkpointing=True)
    assert float(best.best_model_score) == pytest.approx(min(row["mce"] for row in watching.history))


@pytest.mark.parametrize("arguments", [{"fast_dev_run": True}, {"logger": False}])
def test_runs_that_log_nowhere_leave_no_file(
    arguments: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watching = evaluator(every_n_epochs=1)
    trainer, module = train(watching, default_root_dir=tmp_path, max_epochs=1, **arguments)
    trainer.validate(module, loader(40), verbose=False)
    assert [row["samples"] for row in watching.history] == ([16, 16] if "fast_dev_run" in arguments else [40, 40])
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out.count("gaussian_noise") == 2


def test_figures_and_files_find_their_place(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = pytest.importorskip(f"{NAMESPACE}.loggers")
    logger = loggers.TensorBoardLogger(tmp_path)
    trainer, module = train(evaluator(every_n_epochs=1), evaluator(every_n_epochs=2, prefix="other"), logger=logger)
    trainer.test(module, loader(40), verbose=False)
    folder = Path(trainer.log_dir or "")
    names = {f"{prefix}_{split}" for prefix in ("corruption", "other") for split in ("val", "test")}
    files = {name + ending for name in names for ending in (".csv", ".md", "_heat_map.png")}
    assert files <= {path.name for path in folder.iterdir()}
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert {"corruption/val_heat_map", "other/test_heat_map"} <= set(events.Tags()["images"])
    assert len(events.Scalars("corruption/brightness/acc")) == 3
    assert len(events.Scalars("other/mce")) == 2


@needs_torch_2_6
def test_a_compiled_network_is_looked_at_without_being_compiled_anew() -> None:
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(len(inputs))
        return graph.forward

    class Compiled(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.compile(self.net, backend=backend)  # type: ignore[assignment]

    train(module=Compiled())
    without = len(compiled)
    compiled.clear()
    torch._dynamo.reset()
    watching = evaluator(every_n_epochs=1)
    train(watching, module=Compiled())
    assert len(watching.history) == 2
    assert len(compiled) == without > 0


class Counting(Classifier):
    steps = 0
    answer: Any = None

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x.float())
        return logits if self.answer is None or self.training else self.answer(logits)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        return None

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1


def of(x: Tensor, y: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y), batch_size=16)


X, Y = pictures(16).tensors


@pytest.mark.parametrize(
    ("data", "answer", "error", "message"),
    [
        (
            of(4 * X - 2, Y),
            None,
            ValueError,
            r"lie in \[0, 1\] to be corrupted, got .*pass `normalization=\(mean, std\)`",
        ),
        (
            of(X / 0, Y),
            None,
            ValueError,
            r"images must lie in \[0, 1\] to be corrupted, got values from nan to nan|inf",
        ),
        (of((255 * X).byte(), Y), None, TypeError, r"divide uint8 images by 255"),
        (of(X[:, 0], Y), None, ValueError, r"images must be a batch \[B, C, H, W\], got shape \[16, 16, 16\]"),
        (of(X, Y + 1), None, ValueError, r"labels must lie in 0..2 for a module of 3 classes, got 1..3"),
        (of(X, Y), lambda logits: (logits,), ValueError, r"forward must give logits \[16, classes\], got tuple"),
        (of(X, Y), lambda logits: logits.sum(1), ValueError, r"must give logits \[16, classes\], got shape \[16\]"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_epoch(data: Any, answer: Any, error: Any, message: str) -> None:
    module = Counting()
    module.answer = answer
    with pytest.raises(error, match=message):
        train(evaluator(every_n_epochs=2), module=module, validation=data)
    assert module.steps == 0


def test_a_corruption_that_cannot_be_made_is_missed_before_the_first_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Tensor:
        raise ImportError("no photos")

    monkeypatch.setattr("pl_robust.callbacks._corruption_suite.corrupt", fail)
    module = Counting()
    with pytest.raises(ImportError, match="no photos"):
        train(evaluator(every_n_epochs=2), module=module)
    assert module.steps == 0
    train(evaluator(), module=module)


def test_strategies_that_split_parameters_are_refused() -> None:
    trainer = quiet_trainer()

    class FSDPStrategy:
        pass

    trainer._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(MisconfigurationException, match="needs whole parameters on every rank, FSDPStrategy splits"):
        evaluator().setup(trainer, Classifier(), "test")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"corruptions": "fog"}, ValueError, r"`corruptions` must be 'benchmark', 'all' or a list of names, got 'fog'"),
        ({"corruptions": ["fog", "mist"]}, ValueError, r"must be among gaussian_noise, .*, saturate, got 'mist'"),
        ({"corruptions": []}, ValueError, r"`corruptions` must hold at least one name"),
        ({"severities": (0,)}, ValueError, r"`severities` must be some of 1 to 5, none of them twice, got \[0\]"),
        (
            {"table": "cifar10"},
            ValueError,
            r"`table` must be one of cifar, tiny_imagenet, imagenet or None, got 'cifar10'",
        ),
        ({"baseline": {"fog": 0.5}}, ValueError, r"`baseline` must hold every type of `corruptions`, there are fog"),
        ({"every_n_epochs": 0}, ValueError, r"`every_n_epochs` must be at least 1, got 0"),
        ({"max_samples": 1.5}, TypeError, r"`max_samples` must be an integer, got 1.5"),
        ({"loader": None}, TypeError, r"`loader` must be the index or the name of a dataloader, got None"),
        ({"normalization": (0.5, 0.5)}, ValueError, r"`normalization` must be \(mean, std\), each one number per chan"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        CorruptionEvaluator(**arguments)


def test_it_can_be_said_in_yaml(tmp_path: Path) -> None:
    import yaml

    from pl_robust.cli import run

    arguments = {"corruptions": ["fog", "snow"], "severities": [1, 3], "baseline": {"fog": 0.5, "snow": [0.1] * 5}}
    callbacks = [
        {"class_path": "CorruptionEvaluator", "init_args": {**arguments, "normalization": [[0.5], [0.2]]}},
        {"class_path": "CorruptionEvaluator", "init_args": {"corruptions": "all", "baseline": "alexnet"}},
    ]
    attack = {"class_path": "FGSM", "init_args": {"eps": "8/255"}}
    configuration = {
        "trainer": {"callbacks": callbacks, "fast_dev_run": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "model": {"class_path": "AdversarialTraining", "init_args": {"net": "SmallCNN", "attack": attack}},
        "data": {"class_path": "ImageDataModule", "init_args": {"name": "digits"}},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(configuration))
    made = [
        callback
        for callback in run(["fit", "--config", str(tmp_path / "run.yaml")]).trainer.callbacks
        if isinstance(callback, CorruptionEvaluator)
    ]
    assert made[0].baseline == arguments["baseline"]
    assert made[0]._suite.normalization is not None
    assert made[0]._suite.corruptions == ("fog", "snow")
    assert len(made[1]._suite.corruptions) == 19


def test_the_whole_benchmark_is_the_default() -> None:
    watching = CorruptionEvaluator()
    quiet_trainer(callbacks=[watching]).validate(Classifier(), loader(4), verbose=False)
    assert tuple(watching.history[0]["acc"]) == CORRUPTIONS
    assert all(len(row) == 5 for row in watching.history[0]["acc"].values())
