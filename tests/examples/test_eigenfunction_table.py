"""The table of networks and linearizations on eigenfunctions: what differs between the runs, what the numbers show."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from pl_robust.cli import run
from pl_robust.ntk import LinearizedModel
from tests.examples.test_quickstart import QUIET

pytestmark = pytest.mark.lightning

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGITS = str(EXAMPLES / "ntk_digits.yaml")
SHORT = ["--", "--trainer.max_epochs=2", "--trainer.limit_train_batches=4", "--trainer.check_val_every_n_epoch=1"]


@pytest.fixture(scope="module")
def script() -> Any:
    """The script as a module that no other process can import: it travels by value, as ``__main__`` does."""
    spec: Any = importlib.util.spec_from_file_location("__eigenfunction_table__", EXAMPLES / "eigenfunction_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_digits_run_by_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--trainer.logger=false", "--trainer.max_epochs=20", "--trainer.limit_train_batches=1"]
    cli: Any = run(["fit", "--config", DIGITS, *QUIET, *short])
    assert "before training" in capsys.readouterr().out
    (logger,) = (one for one in cli.trainer.callbacks if type(one).__name__ == "NTKAlignmentLogger")
    assert [row["epoch"] for row in logger.history] == [-1, 19]
    labels = cli.datamodule.state_dict()["labels"]["train"][0]
    signs = (cli.datamodule.eigen.vectors[: len(labels), 20] > 0).long()
    torch.testing.assert_close(labels, signs)


def test_both_kinds_learn_one_task_from_one_start(script: Any) -> None:
    from pl_robust._config_run import fit_and_test

    config = script.read_config(DIGITS, SHORT[1:])
    config["trainer"]["max_epochs"] = 1
    net, linear = (
        fit_and_test(script.fill(config, {"index": 5, "seed": 3, "linearized": kind}))[0] for kind in (False, True)
    )
    assert isinstance(linear.model.net, LinearizedModel)
    assert not isinstance(net.model.net, LinearizedModel)
    for split in ("train", "test"):
        theirs = [cli.datamodule.state_dict()["labels"][split][0] for cli in (net, linear)]
        torch.testing.assert_close(*theirs)


def test_the_table_the_figure_and_a_second_call(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--config", DIGITS, "--folder", "runs", "--indices", "0", "3", "--seeds", "1"]
    script.main([*arguments, *SHORT])
    said = capsys.readouterr().out
    head, *lines, figure = said.splitlines()
    assert "network" in head
    assert "linearized after training" in head
    assert [line.split()[0] for line in lines] == ["0", "3"]
    assert figure == "Figure: runs/eigenfunctions.png"
    assert (tmp_path / "runs" / "eigenfunctions.png").stat().st_size > 10_000
    for line, index in zip(lines, (0, 3), strict=True):
        shown = [float(text) for text in line.split()[1:]]
        kept: dict[str, float] = {}
        for linearized in (False, True):
            path = tmp_path / "runs" / f"index={index},seed=1,linearized={linearized}.json"
            kept |= json.loads(path.read_text())["result"]
        assert shown == pytest.approx([kept[name] for name in script.COLUMNS], abs=6e-4)
        assert all(0 < kept[name] <= 1 for name in ("net", "linearized", "linearized_after"))

    monkeypatch.setattr(script, "run_cell", lambda config, cell: pytest.fail("it is there already"))
    script.main([*arguments, *SHORT])
    assert capsys.readouterr().out == said


def without_logger(config: dict[str, Any]) -> None:
    config["trainer"]["callbacks"] = []


def without_cka(config: dict[str, Any]) -> None:
    config["trainer"]["callbacks"][0]["init_args"]["cka"] = False


def with_model(config: dict[str, Any]) -> None:
    config["data"]["init_args"]["model"] = config["model"]["init_args"]["net"]


def with_steps(config: dict[str, Any]) -> None:
    config["trainer"]["max_steps"] = 10


def with_time(config: dict[str, Any]) -> None:
    config["trainer"]["max_time"] = "00:00:01:00"


def with_one_batch(config: dict[str, Any]) -> None:
    config["trainer"]["fast_dev_run"] = True


def with_stopping(config: dict[str, Any]) -> None:
    config["trainer"]["callbacks"].append({"class_path": "EarlyStopping", "init_args": {"monitor": "val/acc"}})


def with_other_data(config: dict[str, Any]) -> None:
    config["data"] = config["data"]["init_args"]["base"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_logger, "must have one NTKAlignmentLogger, got"),
        (without_cka, "must have `cka` true"),
        (with_model, "`data.model` must be null"),
        (with_steps, "leave `trainer.max_steps` out, got 10: the table compares runs of"),
        (with_time, "leave `trainer.max_time` out, got"),
        (with_one_batch, "leave `trainer.fast_dev_run` out, got"),
        (with_stopping, "leave EarlyStopping out of `trainer.callbacks`"),
        (with_other_data, "`data` must be EigenfunctionDataModule, got ImageDataModule"),
    ],
)
def test_other_configurations_are_refused(change: Any, said: str, script: Any, tmp_path: Path) -> None:
    config = yaml.safe_load(Path(DIGITS).read_text())
    change(config)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=said):
        script.read_config(str(tmp_path / "run.yaml"), [])


def test_a_run_without_two_checks_is_named(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = type("NTKAlignmentLogger", (), {"history": [{"alignment": 1.0}]})()
    cli = SimpleNamespace(trainer=SimpleNamespace(callbacks=[logger]))
    monkeypatch.setattr("pl_robust._config_run.fit_and_test", lambda _: (cli, {"test/acc": 1.0}))
    monkeypatch.setattr(script, "fill", lambda *_: {})
    with pytest.raises(
        ValueError, match=r"a check of NTKAlignmentLogger before its first epoch and one after .* got 1"
    ):
        script.run_cell({}, {"linearized": False})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--indices", "3", "-1"], "--indices must be at least 0, got -1"),
        (["--", "--seed_everything=2"], "the seeds are set by --seeds: leave out --seed_everything=2"),
        (["--", "--data.idx=2"], "data: EigenfunctionDataModule has no argument 'idx'; did you mean 'index'?"),
    ],
)
def test_mistakes_are_named(
    arguments: Sequence[str], said: str, script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        script.main(["--config", DIGITS, "--folder", "table", *arguments])
    assert f"eigenfunction_table: error: {said}" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.slow  # the example as it stands, at three of its six indices: 27 trainings
def test_linearization_wins_on_eigenfunctions_of_small_eigenvalues(script: Any, tmp_path: Path) -> None:
    """The bands of three seeds: both solve the first one, the linearization the sixtieth better; the kernel turns."""
    script.main(["--config", DIGITS, "--folder", "table", "--indices", "0", "20", "60", "--jobs", "2"])
    found: dict[int, dict[str, float]] = {}
    for index in (0, 20, 60):
        results: list[dict[str, float]] = []
        for seed in range(3):
            paths = (tmp_path / "table").glob(f"index={index},seed={seed},*.json")
            results.append({k: v for path in paths for k, v in json.loads(path.read_text())["result"].items()})
        found[index] = {name: mean(one[name] for one in results) for name in script.COLUMNS}
    assert min(found[0]["net"], found[0]["linearized"]) >= 0.97
    assert found[60]["linearized"] >= found[60]["net"] + 0.05
    assert found[20]["linearized"] > found[20]["net"]
    for index in (20, 60):
        assert found[index]["cka_growth"] >= 1.5
