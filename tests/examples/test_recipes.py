"""The recipes at published scale: each runs, on images of its size, with a network one can afford."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from PIL import Image

from pl_robust.callbacks import CatastrophicOverfittingDetector, CorruptionEvaluator
from pl_robust.cli import run
from pl_robust.models import PreActResNet, Preprocessed
from pl_robust.modules import AugmentedTraining
from tests.examples.test_quickstart import QUIET
from tests.toys import needs_named_loaders

pytestmark = pytest.mark.lightning

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = {path.stem: path for path in sorted((EXAMPLES / "papers").glob("*/*.yaml"))}


def recipes(*folders: str) -> list[str]:
    """Of some papers."""
    return [stem for stem, path in FILES.items() if path.parent.name in folders]


AUGMENTED = recipes("3_prime")
RECIPES = recipes("1_catastrophic_overfitting", "2_akd")
LINEARIZED = recipes("5_linearized_networks")
STUDENTS = [stem for stem in RECIPES if "AKDStudent" in FILES[stem].read_text()]


@pytest.fixture
def images(tmp_path: Path) -> str:
    """Ten classes of four 32x32 images in colour, in the layout of an imagefolder."""
    for split in ("train", "test"):
        for label in range(10):
            folder = tmp_path / split / str(label)
            folder.mkdir(parents=True)
            for number in range(4):
                Image.fromarray(torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy()).save(
                    folder / f"{number}.png"
                )
    return str(tmp_path)


def taught(stem: str) -> list[str]:
    """A student's teacher of the same narrow kind, if the recipe has one."""
    if stem not in STUDENTS:
        return []
    torch.save(PreActResNet(width=4).state_dict(), "teacher.pt")
    teachers = "--model.teachers.init_args"
    return [f"{teachers}.net.init_args.width=4", f"{teachers}.checkpoint=teacher.pt"]


def small(stem: str, images: str) -> list[str]:
    """The recipe with other images, a narrower network and fewer restarts; all else as it stands."""
    config = yaml.safe_load(FILES[stem].read_text())
    where = "data.base" if "base" in config["data"]["init_args"] else "data"
    net = "model.net.net" if config["model"]["init_args"]["net"]["class_path"] == "Preprocessed" else "model.net"
    return [
        *("--config", str(FILES[stem]), *QUIET, "--trainer.logger=false", "--trainer.accelerator=cpu"),
        *(f"--{where}.name=imagefolder", f"--{where}.data_dir={images}", f"--{where}.batch_size=16"),
        f"--{net}.width=4",
        "--model.eval_attacks.pgd.restarts=2",
        "--model.eval_attacks.pgd.steps=5",
        "--trainer.enable_checkpointing=true",  # some have a ModelCheckpoint, which a fast_dev_run leaves out
        *taught(stem),
    ]


@pytest.mark.parametrize("stem", RECIPES)
@needs_named_loaders
def test_every_recipe_runs(stem: str, images: str) -> None:
    cli: Any = run(["fit", *small(stem, images), "--trainer.fast_dev_run=2"])
    (metrics, *others) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    clean = "/clean" if others else ""
    assert {f"test/{name}{clean}" for name in ("acc", "acc_adv", "acc_pgd")} < set(metrics)
    names = [key.rpartition("/")[2] for result in (metrics, *others) for key in result if "acc_pgd" in key]
    assert names == (["clean", "injected", "carrier_only", "shuffled_carrier"] if others else ["acc_pgd"])


# What the baselines are published with: epochs, when the learning rate drops, and batch-norm while the attack runs.
BASELINES = {
    "cifar10_ard": (200, [100, 150], "train"),
    "cifar10_rslad": (300, [215, 260, 285], "eval"),
    "cifar10_iad": (200, [100, 150], "train"),
}


@pytest.mark.parametrize("stem", BASELINES)
def test_students_have_the_published_hyperparameters(stem: str) -> None:
    config = yaml.safe_load(FILES[stem].read_text())
    arguments = config["model"]["init_args"]
    assert arguments["distillation"] == {"class_path": stem.removeprefix("cifar10_").upper()}  # its defaults
    attack = {"batch_norm": "train", **arguments["attack"]["init_args"]}
    milestones = arguments["lr_scheduler"]["init_args"]["milestones"]
    assert (config["trainer"]["max_epochs"], milestones, attack.pop("batch_norm")) == BASELINES[stem]
    assert attack == {"eps": "8/255", "step_size": "2/255", "steps": 10}
    assert arguments["optimizer"]["init_args"] == {"lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4}


def test_eps_and_beta_are_arguments(images: str) -> None:
    arguments = ["--model.attack.eps=6/255", "--model.eval_attacks.pgd.eps=6/255", "--data.beta=4/255"]
    cli: Any = run(["fit", *small("cifar10_fgsm", images), *arguments, "--trainer.fast_dev_run=1"])
    assert cli.model.attack.eps == cli.model.eval_attacks["pgd"].eps == 6 / 255
    detector = next(part for part in cli.trainer.callbacks if isinstance(part, CatastrophicOverfittingDetector))
    assert detector.history  # it took its ball from the attack
    x, _ = next(iter(cli.datamodule.train_dataloader()))
    assert -4 / 255 - 1e-6 <= float(x.min()) < 0  # the feature is there, of this strength


def small_augmented(stem: str, images: str, folder: Path) -> list[str]:
    """The recipe with other images, a network that fits them, and a part of the corruptions; all else as it stands."""
    config = yaml.safe_load(FILES[stem].read_text())
    config["trainer"]["accelerator"] = "cpu"
    net = config["model"]["init_args"]["net"]["init_args"]
    if "net" in net:
        net["net"]["init_args"].update(num_classes=10, weights=None)
    else:
        net["width"] = 4
    data = {"name": "imagefolder", "data_dir": images, "batch_size": 16, "val_fraction": 0.1}
    config["data"]["init_args"].update(data, num_workers=0, pin_memory=False, image_size=32)
    evaluator = config["trainer"]["callbacks"][1]
    evaluator["init_args"] = {**evaluator.get("init_args", {}), "severities": [5], "max_samples": 6}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return ["--config", str(folder / "run.yaml"), *QUIET, "--trainer.logger=false"]


class Published(NamedTuple):
    """What Modas et al. 2022 train with, but for the data."""

    net: str
    transform: Any
    views: int
    lr: float
    weight_decay: float
    lr_peak: float
    clip: float | None
    batch_size: int


PUBLISHED = {
    "cifar10_prime": Published("PreActResNet", "cifar", 3, 0.2, 5e-4, 0.25, 0.5, 128),
    "cifar10_augmix": Published(
        "PreActResNet", {"class_path": "AugMix", "init_args": {"severity": 3}}, 3, 0.2, 5e-4, 0.25, 0.5, 128
    ),
    "imagenet100_prime": Published("ResNet", "imagenet", 3, 0.2, 1e-4, 0.25, 0.5, 256),
    "imagenet_prime": Published("ResNet", "imagenet", 1, 0.01, 1e-4, 0.1, None, 256),
}


@pytest.mark.parametrize("stem", AUGMENTED)
def test_every_recipe_against_corruptions_runs_with_the_published_hyperparameters(
    stem: str, images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = PUBLISHED[stem]
    original = yaml.safe_load(FILES[stem].read_text())
    assert original["trainer"]["max_epochs"] == 100
    assert original["data"]["init_args"]["batch_size"] == published.batch_size
    assert original["data"]["init_args"]["augment"] is True
    assert original["data"]["init_args"].get("image_size", 32) == (32 if "cifar" in stem else 224)
    cli: Any = run(["fit", *small_augmented(stem, images, tmp_path), "--trainer.fast_dev_run=2"])
    module, trainer = cli.model, cli.trainer
    assert isinstance(module, AugmentedTraining)
    assert isinstance(module.net, PreActResNet | Preprocessed)
    bare = module.net.net if isinstance(module.net, Preprocessed) else module.net
    assert type(bare).__name__ == published.net
    normalize: Any = module.net.transform if isinstance(module.net, Preprocessed) else module.net.normalize
    assert normalize.mean.flatten().tolist() == pytest.approx(
        [0.4914, 0.4822, 0.4465] if "cifar" in stem else [0.485, 0.456, 0.406]
    )
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is torch.optim.SGD
    kept = {key: optimizer.defaults[key] for key in ("lr", "momentum", "nesterov", "weight_decay")}
    assert kept == {"lr": published.lr, "momentum": 0.9, "nesterov": True, "weight_decay": published.weight_decay}
    assert (module.lr_scheduler, module.lr_peak, module.jsd_weight) == ("one_cycle", published.lr_peak, 12)
    assert trainer.gradient_clip_val == published.clip
    given = original["trainer"]["callbacks"][0]
    assert given == {
        "class_path": "PRIMETransform",
        "init_args": {"transform": published.transform, "views": published.views},
    }
    (evaluator,) = (callback for callback in trainer.callbacks if isinstance(callback, CorruptionEvaluator))
    assert evaluator.baseline == ("alexnet" if stem == "imagenet_prime" else None)

    assert trainer.global_step == 2
    (metrics,) = trainer.test(module, cli.datamodule, verbose=False)
    assert {"test/acc", "corruption/mean_acc", "corruption/mce", "corruption/fog/acc"} < set(metrics)
    assert "jpeg_compression" in capsys.readouterr().out  # the table


def small_linearized(stem: str, images: str) -> list[str]:
    """The recipe with other and fewer images, and a narrower ResNet; all else as it stands."""
    data = "data.init_args"
    quiet = [*QUIET, "--trainer.logger=false", "--trainer.accelerator=cpu"]
    if "eigenfunctions" not in stem:
        return ["--config", str(FILES[stem]), *quiet, f"--{data}.train_size=256", f"--{data}.test_size=64"]
    return [
        *("--config", str(FILES[stem]), *quiet, f"--{data}.k=21", f"--{data}.landmarks=60"),
        *(f"--{data}.base.init_args.name=imagefolder", f"--{data}.base.init_args.data_dir={images}"),
        *(["--model.net.init_args.net.init_args.width=4"] if "resnet" in stem else []),
    ]


@pytest.mark.parametrize("stem", LINEARIZED)
def test_every_recipe_of_linearized_networks_runs_with_the_published_hyperparameters(stem: str, images: str) -> None:
    original = yaml.safe_load(FILES[stem].read_text())
    data = original["data"]["init_args"]
    assert (original["trainer"]["max_epochs"], original["seed_everything"]) == (100, 42)
    cli: Any = run(["fit", *small_linearized(stem, images), "--trainer.fast_dev_run=2"])
    assert cli.trainer.global_step == (1 if "eigenfunctions" in stem else 2)  # of 36 images
    (optimizer,) = cli.trainer.optimizers
    kept = {key: optimizer.defaults[key] for key in ("lr", "momentum", "weight_decay")}
    assert kept == {"lr": 0.05, "momentum": 0.9, "weight_decay": 0}
    assert (cli.model.lr_scheduler, cli.model.num_classes) == ("linear", 2)
    (metrics,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    assert 0 <= metrics["test/acc"] <= 1
    if "eigenfunctions" in stem:
        assert (data["k"], data["standardize"]) == (1000, True)
        assert data["base"]["init_args"] == {"name": "cifar10", "data_dir": "data", "batch_size": 128}
        assert cli.datamodule.eigen.vectors.shape == (80, 21)  # training and test points
    else:
        assert [data[key] for key in ("eps", "sigma", "train_size", "test_size")] == [1, 1, 10_000, 10_000]
        assert tuple(cli.datamodule.direction.shape) == (1, 32, 32)


def test_no_recipe_is_left_out() -> None:
    """The others have tests beside those of their scripts."""
    others = {"inr_maml_celeba", "graph_cora", "graph_citeseer", "graph_cora_public"}
    assert others | {*RECIPES, *AUGMENTED, *LINEARIZED} == set(FILES)
