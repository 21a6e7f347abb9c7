"""Our parts beside those of lightning-bolts: on its datamodules, with its scheduler, as users of both have them."""

from __future__ import annotations

import copy
import struct
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

if find_spec("pl_bolts") is None:
    pytest.skip(
        "lightning-bolts is not installed; it takes no Lightning but 1.9: the extra `bolts`, in its own environment",
        allow_module_level=True,
    )
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # UnderReviewWarning and others of its own, as it is imported
    from pl_bolts.datamodules import FashionMNISTDataModule  # type: ignore[import-not-found]
    from pl_bolts.optimizers.lr_scheduler import LinearWarmupCosineAnnealingLR  # type: ignore[import-not-found]

from pl_robust._lightning import Callback, LightningDataModule, LightningModule, Trainer
from pl_robust.attacks import FGSM, fgsm, pgd
from pl_robust.callbacks import (
    CalibrationLogger,
    CatastrophicOverfittingDetector,
    CorruptionEvaluator,
    CurvatureLogger,
    EpsSchedule,
    ExactResume,
    LearningDynamics,
    NTKAlignmentLogger,
    PRIMETransform,
)
from pl_robust.cli import run
from pl_robust.datamodules import (
    CorruptedImageDataModule,
    GraphDataModule,
    IndexedDataModule,
    InjectedFeatureDataModule,
    LowPassDataModule,
    SignalDataModule,
)
from pl_robust.losses import AKD
from pl_robust.losses.input_curvature import input_hessian_eigenvalues
from pl_robust.metrics import reliability
from pl_robust.models import SGC, SIREN, Normalize, SmallCNN
from pl_robust.modules import (
    AdversarialTraining,
    AKDStudent,
    AugmentedTraining,
    INRFitting,
    LinearizedTraining,
    NodeClassification,
)
from pl_robust.ntk import linearize, ntk_alignment
from pl_robust.transforms import corrupt, dct_carrier, dct_low_pass
from tests.toys import assert_identical, quiet_trainer, training_state

pytestmark = [
    pytest.mark.lightning,
    pytest.mark.filterwarnings("ignore::Warning:pl_bolts"),
    pytest.mark.filterwarnings("ignore:.*marked under review"),
]

TRAIN, VAL, TEST, BATCH = 48, 24, 40, 16
EPS = 0.1


def write_idx(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Write bytes in the format of MNIST's files: two zeros, the code of unsigned bytes, the dimensions, the values."""
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A folder with the files of Fashion-MNIST, of noise with one bright row for each class."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    drawn = np.random.default_rng(0)
    for split, count in (("train", TRAIN + VAL), ("t10k", TEST)):
        labels = np.arange(count) % 10
        images = drawn.integers(0, 120, (count, 28, 28))
        images[np.arange(count), 2 * labels + 3] += 130
        write_idx(raw / f"{split}-images-idx3-ubyte", images)
        write_idx(raw / f"{split}-labels-idx1-ubyte", labels)
    return str(tmp_path)


def fashion(folder: str, **arguments: Any) -> Any:
    """Bolts' datamodule on these files."""
    return FashionMNISTDataModule(
        folder, **{"val_split": VAL, "batch_size": BATCH, "pin_memory": False, "shuffle": False, **arguments}
    )


def whole(loader: Any) -> tuple[Tensor, Tensor]:
    """All samples of a loader, as one batch."""
    x, y = zip(*loader, strict=True)
    return torch.cat(x), torch.cat(y)


def split(folder: str, name: str) -> tuple[Tensor, Tensor]:
    """All samples of a split of bolts' own datamodule."""
    data = fashion(folder)
    data.setup()
    return whole(getattr(data, f"{name}_dataloader")())


def small_net() -> SmallCNN:
    torch.manual_seed(0)
    return SmallCNN(width=4)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def warmup(optimizer: torch.optim.Optimizer) -> Any:
    """Bolts' schedule over six steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LinearWarmupCosineAnnealingLR(optimizer, warmup_epochs=2, max_epochs=6)


RATES = [0.0, 0.1, *(0.05 * (1 + np.cos(np.pi * step / 4)) for step in range(4))]
"""The same written out, for a rate of 0.1: a linear rise, which reaches its top one step early, and half a cosine."""


def adversarial(**arguments: Any) -> AdversarialTraining:
    settings = {"optimizer": sgd, "lr_scheduler": warmup, "lr_scheduler_interval": "step", **arguments}
    return AdversarialTraining(small_net(), FGSM(EPS), **settings)


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


def by_hand(loss: Any, data: Any, net: nn.Module) -> nn.Module:
    """Two epochs of a bare loop over bolts' loader, at bolts' rates."""
    data.setup()
    optimizer = sgd(net.parameters())
    rates = iter(RATES)
    for _ in range(2):
        for x, y in data.train_dataloader():
            optimizer.param_groups[0]["lr"] = next(rates)
            value = loss(net, x, y)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    return net


def assert_same_weights(module: nn.Module, net: nn.Module) -> None:
    for key, value in net.state_dict().items():
        torch.testing.assert_close(module.state_dict()[key], value)


def test_adversarial_training_ends_where_a_bare_loop_over_bolts_data_does(folder: str) -> None:
    net = by_hand(
        lambda net, x, y: F.cross_entropy(net(fgsm(net, x, y, eps=EPS)), y), fashion(folder), small_net().train()
    )
    module = adversarial()
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(module, datamodule=fashion(folder))
    assert_same_weights(module.net, net)
    (found,) = trainer.test(module, datamodule=fashion(folder), verbose=False)
    x, y = split(folder, "test")
    net.eval()
    assert found["test/acc"] == pytest.approx(accuracy(net, x, y))
    assert found["test/acc_adv"] == pytest.approx(accuracy(net, fgsm(net, x, y, eps=EPS), y))
    assert found["test/acc_pgd"] <= found["test/acc_adv"] <= found["test/acc"]


def test_augmented_training_ends_where_a_bare_loop_over_bolts_data_does(folder: str) -> None:
    def darker(x: Tensor, generator: torch.Generator) -> Tensor:
        return 0.5 * x

    net = by_hand(lambda net, x, y: F.cross_entropy(net(0.5 * x), y), fashion(folder), small_net().train())
    module = AugmentedTraining(small_net(), optimizer=sgd, lr_scheduler=warmup, lr_scheduler_interval="step")
    trainer = quiet_trainer(max_epochs=2, callbacks=[PRIMETransform(darker)])
    trainer.fit(module, datamodule=fashion(folder))
    assert_same_weights(module.net, net)
    (found,) = trainer.test(module, datamodule=fashion(folder), verbose=False)
    assert found["test/acc"] == pytest.approx(accuracy(net.eval(), *split(folder, "test")))  # as they are


def test_linearized_training_ends_where_a_bare_loop_over_bolts_data_does(folder: str) -> None:
    net = by_hand(lambda net, x, y: F.cross_entropy(net(x), y), fashion(folder), linearize(small_net()))
    module = LinearizedTraining(small_net(), optimizer=sgd, lr_scheduler=warmup, lr_scheduler_interval="step")
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(module, datamodule=fashion(folder))
    x, y = split(folder, "test")
    with torch.no_grad():
        torch.testing.assert_close(module(x), net(x), rtol=1e-3, atol=1e-4)
    (found,) = trainer.test(module, datamodule=fashion(folder), verbose=False)
    assert found["test/acc"] == pytest.approx(accuracy(net, x, y))


def test_a_student_learns_from_teachers_on_bolts_data(folder: str) -> None:
    torch.manual_seed(1)
    teacher = SmallCNN(width=4).eval()
    before = copy.deepcopy(teacher.state_dict())
    settings: dict[str, Any] = {
        "distillation": AKD(teacher_input="clean"),
        "optimizer": sgd,
        "lr_scheduler": warmup,
        "lr_scheduler_interval": "step",
    }
    student = AKDStudent(small_net(), teacher, FGSM(EPS), **settings)
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(student, datamodule=fashion(folder))
    assert_identical(dict(teacher.state_dict()), dict(before))
    cached = AKDStudent(small_net(), teacher, FGSM(EPS), cache=f"{folder}/cache", **settings)
    quiet_trainer(max_epochs=2).fit(cached, datamodule=IndexedDataModule(fashion(folder)))
    assert_same_weights(cached.net, student.net)
    (found,) = trainer.test(student, datamodule=fashion(folder), verbose=False)
    assert found["test/acc"] == pytest.approx(accuracy(student.net.eval(), *split(folder, "test")))


def test_bolts_scheduler_drives_modules_with_data_of_their_own() -> None:
    seen: list[float] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    graph = GraphDataModule("csbm", sbm_nodes=80, sbm_features=6, steps_per_epoch=3)
    nodes = NodeClassification(
        SGC(6, 4), num_classes=4, optimizer=sgd, lr_scheduler=warmup, lr_scheduler_interval="step"
    )
    tone = SignalDataModule("tone", frequency=5.0, length=64, steps_per_epoch=3)
    siren = SIREN(in_features=1, hidden_features=8, num_layers=3, out_features=1)
    fitting = INRFitting(siren, optimizer=sgd, lr_scheduler=warmup, lr_scheduler_interval="step")
    runs: list[tuple[LightningModule, LightningDataModule]] = [(nodes, graph), (fitting, tone)]
    for module, data in runs:
        seen.clear()
        before = copy.deepcopy(module.state_dict())
        trainer = quiet_trainer(max_epochs=2, callbacks=[Watch()])
        trainer.fit(module, datamodule=data)
        assert seen == pytest.approx(RATES)
        assert any(not torch.equal(value, before[key]) for key, value in module.state_dict().items())
        (found,) = trainer.test(module, datamodule=data, verbose=False)
        assert np.isfinite(list(found.values())).all()
        assert found


def test_callbacks_measure_on_bolts_data_what_the_functions_do(folder: str) -> None:
    x, y = split(folder, "val")
    x, y = x[:BATCH], y[:BATCH]
    detector = CatastrophicOverfittingDetector(EPS, probe_data=(x, y))
    tangents = NTKAlignmentLogger(probe_data=(x, y), cka=False)
    curvature = CurvatureLogger(EPS, probe_data=(x, y))
    calibration = CalibrationLogger(FGSM(EPS))
    observers = [detector, tangents, curvature, calibration]
    module = adversarial()
    trainer = quiet_trainer(max_epochs=2, callbacks=observers)
    trainer.fit(module, datamodule=fashion(folder))
    net = copy.deepcopy(module.net).eval()
    strong = pgd(net, x, y, eps=EPS, generator=torch.Generator().manual_seed(0))
    last = detector.history[-1]
    assert last["acc_fgsm"] == pytest.approx(accuracy(net, fgsm(net, x, y, eps=EPS), y))
    assert last["acc_pgd"] == pytest.approx(accuracy(net, strong, y), abs=1.01 / BATCH)
    alone = ntk_alignment(net, x, F.one_hot(y, 10) - 0.1)
    assert tangents.history[-1]["alignment"] == pytest.approx(alone.total, rel=1e-3)
    largest = input_hessian_eigenvalues(net, x, y, k=1, generator=torch.Generator().manual_seed(0))
    assert curvature.history[-1]["eigenvalue_1"] == pytest.approx(float(largest.mean()), rel=1e-3)
    x, y = split(folder, "val")
    for ending, inputs in (("", x), ("_adv", fgsm(net, x, y, eps=EPS))):
        with torch.no_grad():
            logits = net(inputs)
        expected = reliability(logits.softmax(1), y)
        assert float(trainer.callback_metrics[f"val/ece{ending}"]) == pytest.approx(float(expected.ece), abs=1e-5)
        nll = float(F.cross_entropy(logits, y))
        assert float(trainer.callback_metrics[f"val/nll{ending}"]) == pytest.approx(nll, rel=1e-4)
    (found,) = trainer.test(module, datamodule=fashion(folder), verbose=False)
    x, y = split(folder, "test")
    with torch.no_grad():
        assert found["test/nll"] == pytest.approx(float(F.cross_entropy(net(x), y)), rel=1e-4)
    # They have looked on: without them the weights end the same.
    bare = adversarial()
    alone_trainer = quiet_trainer(max_epochs=2)
    alone_trainer.fit(bare, datamodule=fashion(folder))
    assert_identical(dict(bare.state_dict()), dict(module.state_dict()))


def test_corruptions_of_bolts_test_data_are_counted(folder: str) -> None:
    module = adversarial()
    evaluator = CorruptionEvaluator(["brightness", "contrast"], [3])
    trainer = quiet_trainer(max_epochs=2, callbacks=[evaluator])
    trainer.fit(module, datamodule=fashion(folder))
    (found,) = trainer.test(module, datamodule=fashion(folder), verbose=False)
    x, y = split(folder, "test")
    net = module.net.eval()
    assert found["corruption/clean/acc"] == pytest.approx(accuracy(net, x, y))
    for name in ("brightness", "contrast"):
        expected = accuracy(net, corrupt(x, name, 3), y)
        assert found[f"corruption/{name}/acc"] == pytest.approx(expected)


def test_dynamics_are_recorded_by_position_in_bolts_data(folder: str) -> None:
    dynamics = LearningDynamics()
    quiet_trainer(max_epochs=2, callbacks=[dynamics]).fit(
        AugmentedTraining(
            small_net(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0), lr_scheduler="constant"
        ),  # so that it answers the same throughout
        datamodule=IndexedDataModule(fashion(folder, shuffle=True)),
    )
    x, y = split(folder, "train")
    statistics = dynamics.statistics["clean"]
    assert statistics.looks[:TRAIN].tolist() == [2] * TRAIN
    net = small_net().eval()
    with torch.no_grad():
        logits = net(x)
    probabilities = logits.softmax(1)[torch.arange(TRAIN), y]
    np.testing.assert_allclose(statistics.confidence[:TRAIN], probabilities.numpy(), rtol=0.05)
    assert statistics.forgetting[:TRAIN].tolist() == [0] * TRAIN


def test_a_schedule_of_eps_rules_training_on_bolts_data(folder: str) -> None:
    seen: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            seen.append(float(trainer.callback_metrics["train/eps"]))

    trainer = quiet_trainer(max_epochs=2, callbacks=[EpsSchedule([(0, 0.0), (1, 1.0)]), Watch()])
    trainer.fit(adversarial(), datamodule=fashion(folder))
    assert seen == pytest.approx([0.0, EPS / 3, 2 * EPS / 3, EPS, EPS, EPS], abs=1e-6)


def test_a_run_resumed_after_an_epoch_of_bolts_data_ends_with_the_same_bits(folder: str) -> None:
    class Keep(Callback):
        def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(f"{folder}/first.ckpt")

    def fit(*callbacks: Callback, **arguments: Any) -> dict[str, Any]:
        torch.manual_seed(3)
        module = adversarial()
        trainer = quiet_trainer(max_epochs=3, callbacks=[ExactResume(), *callbacks])
        trainer.fit(module, datamodule=fashion(folder, shuffle=True), **arguments)
        return training_state(trainer, module)

    without_stop = fit(Keep())
    assert torch.load(f"{folder}/first.ckpt", weights_only=True)["global_step"] == 3
    assert_identical(fit(ckpt_path=f"{folder}/first.ckpt"), without_stop)


@pytest.mark.parametrize("kind", ["low_pass", "injected", "corrupted"])
def test_wrappers_change_bolts_images_and_nothing_else(kind: str, folder: str) -> None:
    base = fashion(folder)
    x, y = split(folder, "test")
    wrappers: dict[str, Callable[[], Any]] = {
        "low_pass": lambda: LowPassDataModule(base, 9),
        "injected": lambda: InjectedFeatureDataModule(base, beta=0.5, num_classes=10),
        "corrupted": lambda: CorruptedImageDataModule(base, corruptions=["contrast"], severities=[3], clean=False),
    }
    data: Any = wrappers[kind]()
    module = AdversarialTraining(
        small_net(), FGSM(EPS, bounds=None), optimizer=sgd, lr_scheduler=warmup, lr_scheduler_interval="step"
    )
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(module, datamodule=data)
    (found,) = trainer.test(module, datamodule=data, verbose=False)
    if kind == "low_pass":
        changed = dct_low_pass(x, 9)
    elif kind == "injected":
        changed = x + 0.5 * dct_carrier(10, (28, 28))[y]
    else:
        changed = corrupt(x, "contrast", 3)
    accuracies = {name: value for name, value in found.items() if name.split("/")[1] == "acc"}
    assert list(accuracies.values()) == pytest.approx([accuracy(module.net.eval(), changed, y)])
    images, labels = whole(data.test_dataloader()) if kind != "corrupted" else (changed, y)
    torch.testing.assert_close(images, changed, atol=1e-5, rtol=1e-5)
    assert torch.equal(labels, y)
    assert torch.equal(whole(base.test_dataloader())[0], x)  # the base's own are as they were


def test_bolts_parts_work_from_yaml(folder: str) -> None:
    """All of it named in a configuration; wrapped, and with the scheduler as a callable of one argument."""
    fashion_mnist = {
        "class_path": "pl_bolts.datamodules.FashionMNISTDataModule",
        "init_args": {"data_dir": folder, "val_split": VAL, "batch_size": BATCH, "pin_memory": False, "shuffle": False},
    }
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    config = {
        "seed_everything": 0,
        "trainer": {**quiet, "max_epochs": 2, "callbacks": [{"class_path": "CatastrophicOverfittingDetector"}]},
        "model": {
            "class_path": "AdversarialTraining",
            "init_args": {
                "net": {"class_path": "SmallCNN", "init_args": {"width": 4}},
                "attack": {"class_path": "FGSM", "init_args": {"eps": EPS, "bounds": None}},
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}},
                "lr_scheduler": {
                    "class_path": "pl_bolts.optimizers.lr_scheduler.LinearWarmupCosineAnnealingLR",
                    "init_args": {"warmup_epochs": 2, "max_epochs": 6},
                },
                "lr_scheduler_interval": "step",
            },
        },
        "data": {"class_path": "LowPassDataModule", "init_args": {"base": fashion_mnist, "bandwidth": 9}},
    }
    Path("bolts.yaml").write_text(yaml.safe_dump(config))
    cli = run(["fit", "--config", "bolts.yaml"])
    detector = next(one for one in cli.trainer.callbacks if isinstance(one, CatastrophicOverfittingDetector))
    assert len(detector.history) == 2
    (found,) = cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    x, y = split(folder, "test")
    assert found["test/acc"] == pytest.approx(accuracy(cli.model.net.eval(), dct_low_pass(x, 9), y))
    assert cli.trainer.lr_scheduler_configs[0].scheduler.get_last_lr() == pytest.approx([0.0], abs=1e-9)


def test_normalized_bolts_data_is_attacked_in_its_own_units(folder: str) -> None:
    attack = FGSM(EPS, normalization=((0.5,), (0.5,)))
    module = AdversarialTraining(small_net(), attack, optimizer=sgd, lr_scheduler=warmup, lr_scheduler_interval="step")
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(module, datamodule=fashion(folder, normalize=True))
    (found,) = trainer.test(module, datamodule=fashion(folder, normalize=True), verbose=False)
    x, y = split(folder, "test")
    net = nn.Sequential(Normalize((0.5,), (0.5,)), module.net).eval()
    assert found["test/acc"] == pytest.approx(accuracy(net, x, y))
    assert found["test/acc_adv"] == pytest.approx(accuracy(net, fgsm(net, x, y, eps=EPS), y))
