"""The recipe for a picture in colour that the camera's configuration names; the camera itself is in test_inr.py."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path

import pytest

from pl_robust.cli import run
from tests.examples.test_quickstart import QUIET

pytestmark = pytest.mark.lightning

EXAMPLE = Path(__file__).parents[2] / "examples" / "inr_camera.yaml"
SMALL = [
    "--data.size=12",
    "--data.points_per_step=30",
    "--data.steps_per_epoch=4",
    "--model.net.init_args.hidden_features=8",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=3",
    "--trainer.enable_checkpointing=true",
]


def test_a_colour_picture_by_few_points_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    said = " ".join(line.strip("# \n") for line in EXAMPLE.read_text().splitlines() if line.startswith("#"))
    command = re.search(r"pl-robust (fit --config \S+ --data\.signal=astronaut.*?max_time=\S+)", said)
    assert command is not None
    _, _, _, *options = shlex.split(command[1])
    cli = run(["fit", "--config", str(EXAMPLE), *QUIET, *options, *SMALL])
    assert cli.trainer.global_step == 12
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
    assert math.isfinite(cli.trainer.callback_metrics["val/psnr"])
    (folder,) = (tmp_path / "runs" / "inr_camera").iterdir()
    assert {"inr_fit.png", "inr_fit.gif"} <= {path.name for path in folder.iterdir()}
    assert list(folder.glob("checkpoints/*.ckpt"))  # whatever the number of epochs
