"""The chain of examples/akd_teacher.yaml and akd_digits.yaml, and the table of all methods."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from pl_robust.cli import run
from pl_robust.losses import AKD, RSLAD
from tests.examples.test_quickstart import QUIET

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
    for seed in (0, 1):
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


def test_the_table_trains_teachers_and_students_and_takes_up_where_it_stopped(
    script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--folder", "akd", "--seeds", "0", "1", "--methods", "AT, weak", "AKD, ensemble", "AKD, weak teacher"]
    script.main([*arguments, "--", *SHORT, *QUICK])
    table = [line for line in capsys.readouterr().out.splitlines() if "±" in line]
    assert [line.split("  ")[0] for line in table] == [
        "AT, early-stopped (the teachers)",
        "AT, weak",
        "AKD, ensemble",
        "AKD, weak teacher",
    ]
    assert len(list(Path("akd/teachers").glob("*.ckpt"))) == 4
    before = results(Path("akd/students"))
    assert len(before) == 6
    removed = sorted(Path("akd/students").glob("*.json"))[0]
    removed.unlink()
    script.main([*arguments, "--", *SHORT, *QUICK])
    assert results(Path("akd/students")) == before  # the same bits


def test_each_method_trains_as_it_is_called(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pl_robust import _config_run

    seen: list[dict[str, Any]] = []

    def note(config: dict[str, Any], ckpt_path: str | None = None) -> tuple[None, dict[str, float]]:
        seen.append(config)
        return None, dict.fromkeys(script.COLUMNS.values(), 0.0)

    config = script.read_config(str(EXAMPLES / "akd_digits.yaml"), [], "AKDStudent")
    monkeypatch.setattr(_config_run, "fit_and_test", note)
    for name in script.METHODS:
        script.train_student(config, Path("teachers"), {"method": name, "seed": 2, "ensemble": "0,1,2"})
    by_name = dict(zip(script.METHODS, (one["model"]["init_args"] for one in seen), strict=True))
    files = {
        name: [Path(teacher["init_args"]["checkpoint"]).stem for teacher in one["teachers"]]
        for name, one in by_name.items()
    }
    assert files["AKD, ensemble"] == ["seed-0-eps-1.0", "seed-1-eps-1.0", "seed-2-eps-1.0"]
    assert files["AKD, weak teacher"] == ["seed-2-eps-0.5"]
    assert files["ARD"] == files["AKD"] == ["seed-2-eps-1.0"]
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


def test_mistakes_end_with_one_line(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["--config", str(EXAMPLES / "akd_teacher.yaml")]
    for arguments, message in (
        (wrong, "`model` must be AKDStudent, got AdversarialTraining"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--", "--seed_everything=1"], "the seeds are set by --seeds"),
    ):
        with pytest.raises(SystemExit) as ended:
            script.main(["--folder", "akd", *arguments])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
