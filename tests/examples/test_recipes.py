"""The recipes at published scale: each runs, on images of its size, with a network one can afford."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from pl_robust.callbacks import CatastrophicOverfittingDetector
from pl_robust.cli import run
from tests.examples.test_quickstart import QUIET

pytestmark = pytest.mark.lightning

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted(path.stem for pattern in ("cifar10_*.yaml", "svhn_*.yaml") for path in EXAMPLES.glob(pattern))


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


def small(stem: str, images: str) -> list[str]:
    """The recipe with other images, a narrower network and fewer restarts; all else as it stands."""
    config = yaml.safe_load((EXAMPLES / f"{stem}.yaml").read_text())
    where = "data.base" if "base" in config["data"]["init_args"] else "data"
    net = "model.net.net" if config["model"]["init_args"]["net"]["class_path"] == "Preprocessed" else "model.net"
    return [
        *("--config", str(EXAMPLES / f"{stem}.yaml"), *QUIET, "--trainer.logger=false", "--trainer.accelerator=cpu"),
        *(f"--{where}.name=imagefolder", f"--{where}.data_dir={images}", f"--{where}.batch_size=16"),
        f"--{net}.width=4",
        "--model.eval_attacks.pgd.restarts=2",
        "--model.eval_attacks.pgd.steps=5",
    ]


@pytest.mark.parametrize("stem", RECIPES)
def test_every_recipe_runs(stem: str, images: str) -> None:
    cli: Any = run(["fit", *small(stem, images), "--trainer.fast_dev_run=2"])
    (metrics, *others) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    clean = "/clean" if others else ""
    assert {f"test/{name}{clean}" for name in ("acc", "acc_adv", "acc_pgd")} < set(metrics)
    names = [key.rpartition("/")[2] for result in (metrics, *others) for key in result if "acc_pgd" in key]
    assert names == (["clean", "injected", "carrier_only", "shuffled_carrier"] if others else ["acc_pgd"])


def test_eps_and_beta_are_arguments(images: str) -> None:
    arguments = ["--model.attack.eps=6/255", "--model.eval_attacks.pgd.eps=6/255", "--data.beta=4/255"]
    cli: Any = run(["fit", *small("cifar10_fgsm", images), *arguments, "--trainer.fast_dev_run=1"])
    assert cli.model.attack.eps == cli.model.eval_attacks["pgd"].eps == 6 / 255
    detector = next(part for part in cli.trainer.callbacks if isinstance(part, CatastrophicOverfittingDetector))
    assert detector.history  # it took its ball from the attack
    x, _ = next(iter(cli.datamodule.train_dataloader()))
    assert -4 / 255 - 1e-6 <= float(x.min()) < 0  # the feature is there, of this strength
