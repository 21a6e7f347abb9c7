"""The README's examples run, and its table names every public class and function."""

from __future__ import annotations

import re
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pl_robust._cli_errors import ROOMS
from pl_robust._lightning import NAMESPACE
from pl_robust.cli import main
from tests.toys import quiet_trainer

pytestmark = pytest.mark.lightning

README = (Path(__file__).parents[1] / "README.md").read_text()
ROWS = {
    row.split("|")[1].strip(): re.sub("`", "", row.split("|")[3]).replace("<br>", "\n").strip()
    for row in README.splitlines()
    if row.startswith("| `") and "<br>" in row
}
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def namespace(tmp_path: Path) -> dict[str, Any]:
    """What a reader would have at hand: their data, network and trainer, and our names."""
    names: dict[str, Any] = {"torch": torch, "nn": nn, "mean": [0.5] * 3, "std": [0.25] * 3}
    for room in ROOMS:
        face = import_module(f"pl_robust.{room}")
        names |= {name: getattr(face, name) for name in face.__all__}
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    x, y = torch.rand(4, 3, 32, 32), torch.randint(10, (4,))
    data = names["ImageDataModule"]("digits", eval_batch_size=64)
    module = names["AdversarialTraining"](names["SmallCNN"](width=4), names["FGSM"](0.1))
    trainer = partial(quiet_trainer, limit_train_batches=1, limit_val_batches=1, default_root_dir=tmp_path)
    names |= {"model": model, "net": model, "x": x, "y": y, "data": data, "module": module}
    names["ModelCheckpoint"] = import_module(f"{NAMESPACE}.callbacks").ModelCheckpoint
    names["Trainer"] = lambda **arguments: trainer(**{"max_epochs": 1, "enable_checkpointing": True, **arguments})
    return names


@pytest.mark.parametrize("part", [part for part in ROWS if not part.startswith("`pl-robust")])
@pytest.mark.filterwarnings("ignore:.fit.ckpt_path=")
def test_the_three_lines_of_each_part_run(part: str, tmp_path: Path) -> None:
    code = ROWS[part].replace('"cifar10"', '"digits"').replace("max_epochs=30", "max_epochs=1")
    names = namespace(tmp_path)
    if "AdversarialTraining" in part:  # its data has three channels, ours has one
        names["preact_resnet18"] = lambda: names["SmallCNN"](width=4)
    exec(code, names)  # noqa: S102  # our own README


@pytest.mark.filterwarnings("ignore:.fit.ckpt_path=")
def test_the_python_blocks_run(tmp_path: Path) -> None:
    for number, block in enumerate(PYTHON):
        code = block.replace("from pytorch_lightning import Trainer\n", "").replace("pytorch_lightning", NAMESPACE)
        assert "Trainer(" not in block or "import Trainer" in block
        # What a stranger has who copies it: a trainer, a module, data. Whatever else it needs, it imports.
        own = namespace(tmp_path / str(number))
        exec(code.replace("max_epochs=30", "max_epochs=1"), {name: own[name] for name in ("Trainer", "module", "data")})  # noqa: S102


def test_the_configuration_runs(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    block = block.replace("name: cifar10", "name: digits").replace("net: preact_resnet18", "net: SmallCNN")
    (tmp_path / "run.yaml").write_text(block)
    quiet = ["--trainer.fast_dev_run=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    main(["fit", "--config", str(tmp_path / "run.yaml"), "--model.attack.eps=10/255", *quiet])


def test_no_figure_is_outstanding() -> None:
    """A word in capitals that is no name stands where a figure is to come."""
    table = README.partition("[start:hooks]")[2].partition("[end:hooks]")[0]
    assert set(re.findall(r"\b[A-Z]{4,}\b", re.sub(r"`[^`]*`", "", table))) <= {"CIFAR", "FGSM"}
    assert not re.search(r"^[A-Z]+$", README, re.MULTILINE)


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_its_row(room: str) -> None:
    listed = set(re.findall(r"\w+", " ".join(ROWS)))
    bases = {"Attack", "Regularizer", "Distillation", "Progress", "Teacher"}  # named in a row's text
    assert set(import_module(f"pl_robust.{room}").__all__) - bases <= listed
