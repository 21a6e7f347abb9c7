"""The table of standard training, AugMix and PRIME: what differs between the runs, and what the numbers show."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torchvision  # noqa: F401  # as below
import yaml

from pl_robust.cli import run
from pl_robust.transforms.corruption import CORRUPTIONS
from tests.examples.test_quickstart import QUIET

pytestmark = pytest.mark.lightning

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGITS = str(EXAMPLES / "prime_digits.yaml")
SHORT = ["--", "--trainer.max_epochs=2", "--trainer.limit_train_batches=10"]


@pytest.fixture(scope="module")
def script() -> Any:
    """The script as a module that no other process can import: it travels by value, as ``__main__`` does."""
    spec: Any = importlib.util.spec_from_file_location("__augmentation_table__", EXAMPLES / "augmentation_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results(folder: Path) -> dict[str, dict[str, float]]:
    return {path.stem: json.loads(path.read_text())["result"] for path in sorted(folder.glob("*.json"))}


def write_config(path: Path, evaluator: dict[str, Any] | None = None, **changes: Any) -> str:
    """The digits' configuration, changed: fewer corruptions on fewer images."""
    config = yaml.safe_load(Path(DIGITS).read_text())
    transform, _ = config["trainer"]["callbacks"]
    transform["init_args"].update(changes)
    small = {"corruptions": ["gaussian_noise", "fog"], "severities": [1, 5], "max_samples": 40, "every_n_epochs": 1}
    callbacks = [
        transform,
        {"class_path": "CorruptionEvaluator", "init_args": small if evaluator is None else evaluator},
    ]
    config["trainer"]["callbacks"] = callbacks
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_the_digits_run_by_themselves_and_end_with_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """As they stand, but for the number of steps."""
    run(["fit", "--config", DIGITS, *QUIET, "--trainer.logger=false", "--trainer.limit_train_batches=2"])
    lines = capsys.readouterr().out.splitlines()
    assert any("epoch 19, step 40: 130 images, constants of cifar" in line for line in lines)
    shown = {word for line in lines for word in line.split()}
    assert {"clean", "mean", *CORRUPTIONS} < shown


def callbacks_of(config: Any) -> list[str]:
    return [callback["class_path"].rpartition(".")[2] for callback in config["trainer"]["callbacks"]]


@pytest.mark.parametrize(
    ("stem", "severity"),
    [("prime_digits", 3), ("papers/3_prime/cifar10_prime", 3), ("papers/3_prime/imagenet100_prime", 1)],
)
def test_the_runs_differ_in_the_augmentation_only(script: Any, stem: str, severity: int) -> None:
    config = script.read_config(str(EXAMPLES / f"{stem}.yaml"), [])
    standard, augmix, prime = (script.fill(config, method, 7) for method in script.METHODS)
    assert callbacks_of(standard) == ["CorruptionEvaluator"]
    assert callbacks_of(augmix) == callbacks_of(prime) == ["PRIMETransform", "CorruptionEvaluator"]
    mixed, own = (run["trainer"]["callbacks"][0]["init_args"] for run in (augmix, prime))
    assert mixed["transform"] == {"class_path": "pl_robust.transforms.AugMix", "init_args": {"severity": severity}}
    assert own["transform"] == ("imagenet" if severity == 1 else "cifar")
    assert mixed.pop("transform") != own.pop("transform")
    assert mixed == own
    assert (own["views"], own["seed"]) == (3, 7)
    for one in (standard, augmix, prime):
        assert one["seed_everything"] == 7
        assert one["trainer"].pop("callbacks")[-1]["init_args"]["every_n_epochs"] is None
    assert standard == augmix == prime


def test_the_table_from_start_to_end_and_again(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--config", write_config(tmp_path / "run.yaml"), "--seeds", "0", "1", "--folder", "runs/table"]
    script.main([*arguments, *SHORT])
    said = capsys.readouterr()
    first = results(tmp_path / "runs" / "table")
    assert list(first) == [f"method={method},seed={seed}" for method in sorted(script.METHODS) for seed in (0, 1)]
    header, *rows = said.out.splitlines()
    assert header.split() == ["standard", "AugMix", "PRIME"]
    assert [row.split()[0] for row in rows] == ["clean", "gaussian_noise", "fog", "mean", "mCE"]
    shown = [(float(value), float(deviation)) for value, deviation in re.findall(r"([\d.]+) ± ([\d.]+)", rows[2])]
    for method, (value, deviation) in zip(script.METHODS, shown, strict=True):
        one, two = (first[f"method={method},seed={seed}"]["fog"] for seed in (0, 1))
        assert value == pytest.approx((one + two) / 2, abs=0.06)
        assert deviation == pytest.approx(abs(one - two) / 2**0.5, abs=0.06)
    for result in first.values():
        assert result["mean"] == pytest.approx((result["fog"] + result["gaussian_noise"]) / 2)
        assert result["mCE"] == pytest.approx(100 - result["mean"])
        assert 0 < result["clean"] <= 100
    assert len({tuple(result.values()) for result in first.values()}) > 3  # the methods and seeds are not one
    assert "augmentation_table: 100%" in said.err
    assert {path.name for path in tmp_path.iterdir()} == {"run.yaml", "runs"}  # no log, no checkpoint, no figure

    monkeypatch.setattr(script, "run_cell", lambda config, cell: pytest.fail("it is there already"))
    script.main([*arguments, *SHORT])
    assert capsys.readouterr().out == said.out
    with pytest.raises(SystemExit, match="2"):
        script.main([*arguments, *SHORT[:1], "--trainer.max_epochs=3", *SHORT[2:]])
    assert "config.trainer.max_epochs = 2, and this one 3): take another folder" in capsys.readouterr().err


def test_an_evaluator_is_added_where_there_is_none(script: Any, tmp_path: Path) -> None:
    config = yaml.safe_load(Path(DIGITS).read_text())
    del config["trainer"]["callbacks"][1]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    read = script.read_config(str(tmp_path / "run.yaml"), [])
    assert callbacks_of(script.fill(read, "standard", 0)) == ["CorruptionEvaluator"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--", "--seed_everything=2"], "the seeds are set by --seeds: leave out --seed_everything=2"),
        (["--", "--trainer.max_epoch=2"], "trainer has no argument 'max_epoch'; did you mean"),
        (["--seeds", "1", "1"], "`cells` must differ from each other, got method=AugMix,seed=1 more than once"),
        (["--jobs", "0"], "`jobs` must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(
    arguments: Sequence[str], said: str, script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        script.main(["--config", DIGITS, "--folder", "table", *arguments])
    answer = capsys.readouterr()
    assert f"augmentation_table: error: {said}" in answer.err
    assert answer.out == ""
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("quickstart.yaml", "`model` must be AugmentedTraining, with which all methods train, got AdversarialTraining"),
        (
            "papers/3_prime/cifar10_augmix.yaml",
            "one PRIMETransform with `transform` cifar or imagenet, which the other methods replace",
        ),
    ],
)
def test_other_configurations_are_refused(config: str, said: str, script: Any) -> None:
    with pytest.raises(ValueError, match=said):
        script.read_config(str(EXAMPLES / config), [])


def test_an_interruption_says_how_to_go_on(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "run_cell", interrupted)
    with pytest.raises(SystemExit, match="130"):
        script.main(["--config", DIGITS, "--folder", str(tmp_path / "table"), *SHORT])
    assert "interrupted; the same command goes on" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.slow  # the example as it stands: nine trainings of half a minute
def test_augmentation_helps_against_corruptions(script: Any, tmp_path: Path) -> None:
    script.main(["--config", DIGITS, "--seeds", "0", "1", "2", "--folder", "table", "--jobs", "2"])
    for seed in range(3):
        standard, augmix, prime = (
            results(tmp_path / "table")[f"method={method},seed={seed}"] for method in script.METHODS
        )
        assert augmix["mean"] >= standard["mean"] + 3
        assert prime["mean"] >= standard["mean"] + 3
        assert min(augmix["clean"], prime["clean"]) >= 97
        blur = [name for name in standard if name.endswith("_blur")]
        assert sum(prime[name] for name in blur) > sum(standard[name] for name in blur)
