"""The chain of examples/akd_teacher.yaml and akd_digits.yaml, and the table of all methods."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pl_robust.cli import run
from pl_robust.losses import AKD, RSLAD
from tests.examples.test_quickstart import QUIET
from tests.toys import needs_lightning

pytestmark = [
    pytest.mark.lightning,
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = [
    "--trainer.max_epochs=1",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
]
SAVING = "--trainer.enable_checkpointing=true"
QUICK = ["--model.eval_attacks.pgd.steps=2", "--model.attack.steps=2"]


@pytest.fixture(scope="module")
def script() -> Any:
    """The script as a module that no other process can import: it travels by value, as ``__main__`` does."""
    spec: Any = importlib.util.spec_from_file_location("__akd_table__", EXAMPLES / "akd_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results(folder: Path) -> dict[str, dict[str, float]]:
    return {path.stem: json.loads(path.read_text())["result"] for path in sorted(folder.glob("*.json"))}


def test_the_chain_of_teachers_and_student(tmp_path: Path) -> None:
    """As the files' heads have it, but for the length."""
    for seed in (1, 2):
        arguments = ["--config", str(EXAMPLES / "akd_teacher.yaml"), f"--seed_everything={seed}"]
        run(["fit", *arguments, *QUIET, SAVING, *SHORT, *QUICK])
    files = sorted(Path("runs/akd_teachers").iterdir())
    assert [file.name for file in files] == ["best-v1.ckpt", "best.ckpt"]
    cli = run(["fit", "--config", str(EXAMPLES / "akd_digits.yaml"), *QUIET, *SHORT, *QUICK])
    assert len(cli.model._teachers.nets) == 2
    assert not {key for key in cli.model.state_dict() if "teacher" in key}
    folder = Path(cli.trainer.log_dir)
    assert list(folder.glob("*.npz"))
    assert len(list(folder.glob("*.png"))) >= 2
    arguments = ["--config", str(EXAMPLES / "akd_digits.yaml"), "--model.init_args.distillation", "RSLAD"]
    assert isinstance(run(["fit", *arguments, *QUIET, *SHORT, *QUICK]).model.distillation, RSLAD)


@needs_lightning("2.1", "ModelCheckpoint cannot overwrite without counting")
def test_the_table_trains_teachers_and_students_and_takes_up_where_it_stopped(
    script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = yaml.safe_load((EXAMPLES / "akd_teacher.yaml").read_text())
    teacher["model"]["init_args"]["net"]["init_args"]["width"] = 8  # not the students'
    Path("narrow.yaml").write_text(yaml.safe_dump(teacher))
    methods = ["--methods", "AKD, ensemble", "AKD, weak teacher"]
    arguments = ["--folder", "akd", "--teacher", "narrow.yaml", *methods]
    extra = ["--", *SHORT, *QUICK, "--trainer.limit_test_batches=1"]
    script.main([*arguments, "--seeds", "0", *extra])
    assert len(results(Path("akd/students"))) == 2
    assert "±" not in capsys.readouterr().out
    script.main([*arguments, "--seeds", "1", "0", *extra])
    table = [line for line in capsys.readouterr().out.splitlines() if "±" in line]
    assert [line.split("  ")[0] for line in table] == ["AT, early-stopped (the teachers)", *methods[1:]]
    assert len(list(Path("akd/teachers").glob("*.ckpt"))) == 4
    before = results(Path("akd/students"))
    assert len(before) == 2 + 3  # an ensemble of two teachers is another than one of one
    removed = sorted(Path("akd/students").glob("*.json"))[-1]
    removed.unlink()
    script.main([*arguments, "--seeds", "0", "1", *extra])  # the same teachers, in another order
    assert results(Path("akd/students")) == before  # the same bits


def test_each_method_trains_as_it_is_called(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pl_robust import _config_run

    seen: list[dict[str, Any]] = []

    def note(config: dict[str, Any], ckpt_path: str | None = None) -> tuple[None, dict[str, float]]:
        seen.append(config)
        return None, dict.fromkeys(script.COLUMNS.values(), 0.0)

    config = script.read_config(str(EXAMPLES / "akd_digits.yaml"), [], "AKDStudent")
    wide = {"class_path": "SmallCNN", "init_args": {"width": 32}}
    monkeypatch.setattr(_config_run, "fit_and_test", note)
    for name in script.METHODS:
        teachers = "1000,1001,1002" if "ensemble" in name else "1002"
        script.train_student(config, wide, Path("teachers"), {"method": name, "seed": 2, "teachers": teachers})
    by_name = dict(zip(script.METHODS, (one["model"]["init_args"] for one in seen), strict=True))
    assert all(teacher["init_args"]["net"] == wide for one in by_name.values() for teacher in one["teachers"])
    files = {
        name: [Path(teacher["init_args"]["checkpoint"]).stem for teacher in one["teachers"]]
        for name, one in by_name.items()
    }
    assert files["AKD, ensemble"] == ["seed-1000-eps-1.0", "seed-1001-eps-1.0", "seed-1002-eps-1.0"]
    assert files["AKD, weak teacher"] == ["seed-1002-eps-0.5"]
    assert files["ARD"] == files["AKD"] == ["seed-1002-eps-1.0"]
    assert {name: one["attack"]["init_args"]["eps"] for name, one in by_name.items() if "weak" in name} == {
        "AT, weak": 0.125,
        "AKD, weak": 0.125,
        "AKD, weak teacher": 0.25,
    }
    assert all(one["eval_attacks"]["pgd"]["init_args"]["eps"] == 0.25 for one in by_name.values())
    kinds = {name: one["distillation"]["class_path"].rpartition(".")[2] for name, one in by_name.items()}
    assert kinds["AT"] == AKD.__name__
    assert by_name["AT"]["distillation"]["init_args"]["teacher_weight"] == 0
    assert (kinds["ARD"], kinds["RSLAD"], kinds["IAD"]) == ("ARD", "RSLAD", "IAD")


def test_a_weak_teacher_is_validated_and_tested_at_the_full_eps(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pl_robust import _config_run

    seen: list[dict[str, Any]] = []

    def note(config: dict[str, Any], ckpt_path: str | None = None) -> tuple[None, dict[str, float]]:
        assert ckpt_path == "best"
        seen.append(config)
        return None, dict.fromkeys(script.COLUMNS.values(), 0.0)

    config = script.read_config(
        str(EXAMPLES / "papers" / "2_akd" / "cifar10_akd_teacher.yaml"), [], "AdversarialTraining"
    )
    monkeypatch.setattr(_config_run, "fit_and_test", note)
    script.train_teacher(config, tmp_path, {"seed": 3, "eps": 0.5})
    arguments, callbacks = seen[0]["model"]["init_args"], seen[0]["trainer"]["callbacks"]
    assert arguments["attack"]["init_args"]["eps"] == pytest.approx(4 / 255)  # a fraction in the file
    (calibration,) = (one for one in callbacks if one["class_path"].endswith("CalibrationLogger"))
    for attack in (arguments["eval_attacks"]["pgd"], calibration["init_args"]["attack"]):
        assert (attack["init_args"]["eps"], attack["init_args"]["steps"]) == ("8/255", 20)
    (saving,) = (one["init_args"] for one in callbacks if one["class_path"] == "ModelCheckpoint")
    assert (saving["monitor"], saving["mode"], saving["filename"]) == ("val/acc_pgd", "max", "seed-3-eps-0.5")


def changed(name: str, key: str, value: Any) -> list[str]:
    """A configuration of the students in which an argument of the model is another."""
    config = yaml.safe_load((EXAMPLES / "akd_digits.yaml").read_text())
    config["model"]["init_args"][key] = value
    Path(name).write_text(yaml.safe_dump(config))
    return ["--config", name]


def test_mistakes_end_with_one_line(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("empty", ""), ("broken", "a: ["), ("bare", "trainer: {max_epochs: 1}"), ("list", "- 1")):
        Path(f"{name}.yaml").write_text(text)
    wrong = ["--config", str(EXAMPLES / "akd_teacher.yaml")]
    for arguments, message in (
        (wrong, "`model` must be AKDStudent, got AdversarialTraining"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config", "empty.yaml"], "empty.yaml: a configuration must hold keys"),
        (["--config", "broken.yaml"], "broken.yaml: Problems parsing config"),
        (["--config", "bare.yaml"], "bare.yaml: `model` must be AKDStudent, got none"),
        (["--config", "list.yaml"], "list.yaml: a configuration must hold keys"),
        (changed("untested.yaml", "eval_attacks", None), "`eval_attacks` must have an attack named pgd"),
        (changed("ard.yaml", "distillation", {"class_path": "ARD"}), "`distillation` must be AKD"),
        (["--", "--trainer.max_epochs=-1"], "`trainer.max_epochs` must be at least 1"),
        (["--", "--seed_everything=1"], "the seeds are set by --seeds"),
    ):
        with pytest.raises(SystemExit) as ended:
            script.main(["--folder", "akd", *arguments])
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
