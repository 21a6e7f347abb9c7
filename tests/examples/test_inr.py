"""The examples of implicit neural representations: short runs, and the published findings in their bands."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pl_robust.cli import run
from pl_robust.models import SIREN, FourierFeatureNetwork, save_siren
from tests.examples.test_quickstart import QUIET

pytestmark = pytest.mark.lightning

EXAMPLES = Path(__file__).parents[2] / "examples"


def script(stem: str) -> Any:
    spec: Any = importlib.util.spec_from_file_location(f"__{stem}__", EXAMPLES / f"{stem}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its networks are among the classes that LightningCLI finds by short names
    spec.loader.exec_module(module)
    return module


def camera(*extra: str) -> Any:
    pytest.importorskip("skimage")
    return run(["fit", "--config", str(EXAMPLES / "inr_camera.yaml"), *QUIET, "--trainer.accelerator=cpu", *extra])


def test_the_camera_is_fitted_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli = camera("--data.size=16", "--data.steps_per_epoch=4", "--model.net.init_args.hidden_features=32")
    (folder,) = (tmp_path / "runs" / "inr_camera").iterdir()
    assert {"inr_fit.png", "inr_fit.gif"} <= {path.name for path in folder.iterdir()}
    assert "last, step 20" in capsys.readouterr().out
    assert cli.trainer.callback_metrics["val/psnr"] > 5


@pytest.mark.slow  # half a minute
def test_the_camera_is_at_30_db_after_100_steps() -> None:
    cli = camera()
    assert cli.trainer.global_step == 100
    assert [tuple(layer.weight.shape) for layer in cli.model.net.layers[1:3]] == [(256, 256)] * 2
    assert cli.trainer.callback_metrics["val/psnr"] > 45


def test_the_tone_and_its_alias(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script("inr_alias").main(["--folder", str(tmp_path), "--steps", "20", "--w0", "300", "--frequency", "10"])
    said = capsys.readouterr().out
    assert "The same with stride 2: 10, 118\n" in said
    (line,) = (line for line in said.splitlines() if " dB" in line)
    w0, _, _, tone, alias, *_ = line.split()
    assert w0 == "300"
    assert 0 < float(alias) < float(tone) < 1
    assert (tmp_path / "alias.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("stem", "arguments", "message"),
    [
        ("inr_alias", ["--frequency", "105"], "with stride 2, 256 samples show 105 as 23: lower --frequency"),
        ("inr_alias", ["--stride", "3"], "--stride must divide the 256 samples, got 3"),
        ("inr_alias", ["--length", "0"], "--stride must divide the 0 samples, got 2"),
        ("inr_alias", ["--stride", "1"], "23 has no alias below 128 with stride 1: raise --stride"),
        ("inr_alias", ["--w0", "0"], "`w0` must be positive, got 0.0"),
        ("inr_spectrum", ["--frequencies", "0.3"], "--frequencies must have periods that divide 64 pixels, got 0.3"),
        ("inr_spectrum", ["--signal", "photo.png"], "there is no file 'photo.png'"),
        ("inr_spectrum", ["--sigma", "0"], "`sigma` must be positive, got 0.0"),
        ("inr_ntk", ["--size", "0"], "`image_size` must be at least 1, got 0"),
        ("inr_ntk", ["--size", "4", "--meta", "none.npz"], "No such file or directory: 'none.npz'"),
        ("inr_ntk", ["--size", "4", "--w0", "-1"], "`w0` must be positive, got -1.0"),
    ],
)
def test_a_mistake_ends_with_one_line(
    stem: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if stem == "inr_ntk":
        pytest.importorskip("skimage")
    with pytest.raises(SystemExit, match="2"):
        script(stem).main(["--folder", "runs", *arguments])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{stem}: error: ")
    assert message in line


def test_without_scikit_image_the_line_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(SystemExit, match="2"):
        script("inr_ntk").main(["--folder", "runs"])
    assert capsys.readouterr().err == (
        'inr_ntk: error: lfw_subset ships with scikit-image: `pip install "pl_robust[inr]"`\n'
    )


def test_an_interruption_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(options: Any) -> None:
        raise KeyboardInterrupt

    module = script("inr_alias")
    monkeypatch.setattr(module, "compare", interrupted)
    with pytest.raises(SystemExit, match="130"):
        module.main(["--folder", "runs"])
    assert capsys.readouterr().err == "inr_alias: interrupted\n"


@pytest.mark.slow  # ten seconds
@pytest.mark.parametrize("seed", [0, 1])
def test_w0_of_30_recovers_the_tone_and_300_leaks(seed: int) -> None:
    module = script("inr_alias")
    arguments = {"frequency": 23, "length": 256, "stride": 2, "steps": 2000, "seed": seed}
    options = type("Options", (), arguments)
    for w0 in (30.0, 300.0):
        psnr, _, full = module.fit(w0, options)
        tone, alias = full.at([23, 105])[:, 0].tolist()
        assert psnr > 55
        if w0 == 30:
            assert tone == pytest.approx(1, abs=0.005)
            assert alias < 0.01
        else:
            assert 0.85 < tone < 0.95
            assert 0.05 < alias < 0.12


def test_a_single_frequency_makes_tiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script("inr_spectrum").main(["--folder", str(tmp_path), "--size", "16", "--steps", "30"])
    said = capsys.readouterr().out
    rows = {line[:12].strip(): re.findall(r"[\d.]+|inf", line[12:]) for line in said.splitlines() if " dB" in line}
    assert list(rows) == ["sigma 10", "only 1", "only 0.5"]
    reached, best, low, every = map(float, rows["only 1"])
    assert reached <= best < float(rows["sigma 10"][0])
    assert rows["only 0.5"][1] == "inf"
    assert 0.9 < low <= 1
    assert every == 1
    assert (tmp_path / "spectrum.png").stat().st_size > 10_000


def test_shares_and_tiles_are_those_of_known_networks() -> None:
    module = script("inr_spectrum")
    picture = torch.rand(8, 12, 3)
    net = FourierFeatureNetwork(2, 3, frequencies=torch.eye(2), hidden_features=8)
    wrong = FourierFeatureNetwork(2, 3, frequencies=0.5 * torch.eye(2), hidden_features=8)
    assert module.share_inside(net, 1.0, None, 8) == pytest.approx(1, abs=1e-6)
    assert module.share_inside(wrong, 1.0, None, 8) < 0.9
    assert module.share_inside(net, 1.0, 1, 8) < module.share_inside(net, 1.0, 4, 8) < 1
    torch.testing.assert_close(module.tiled(picture, 0.5), picture)
    once = module.tiled(picture, 1.0)
    torch.testing.assert_close(once[:4, :6], once[4:, 6:])
    torch.testing.assert_close(once[0, 0], (picture[0, 0] + picture[4, 0] + picture[0, 6] + picture[4, 6]) / 4)
    assert module.psnr(picture, picture) == math.inf


def test_energy_of_faces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage")
    save_siren(SIREN(hidden_features=16), "meta.npz")
    small = ["--folder", str(tmp_path), "--size", "12", "--width", "32", "--w0", "5", "30", "--meta", "meta.npz"]
    script("inr_ntk").main(small)
    rows = {line.split()[0]: float(line.split()[1]) for line in capsys.readouterr().out.splitlines() if "±" in line}
    assert list(rows) == ["ReLU", "SIREN-5", "SIREN-30", "SIREN-meta"]
    assert rows["ReLU"] < rows["SIREN-30"]
    assert rows["SIREN-5"] < rows["SIREN-30"]
    assert len(list(tmp_path.glob("eigenfunctions_*.png"))) == 4
    assert (tmp_path / "energy.png").stat().st_size > 10_000


@pytest.mark.slow  # half a minute
@pytest.mark.parametrize("seed", [0, 1])
def test_sirens_of_middle_w0_suit_faces(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage")
    script("inr_ntk").main(["--folder", str(tmp_path), "--w0", "5", "10", "20", "40", "--seed", str(seed)])
    rows = {line.split()[0]: float(line.split()[1]) for line in capsys.readouterr().out.splitlines() if "±" in line}
    print(rows)
    assert rows["ReLU"] < 0.25
    assert rows["SIREN-5"] + 0.1 < rows["SIREN-10"] < rows["SIREN-20"] < rows["SIREN-40"]
    assert rows["SIREN-40"] > 0.7
