"""The heat map over (beta, eps): what the sweep sets, what it keeps, and the band of catastrophic overfitting."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.optim import Adam

from pl_robust._lightning import Callback
from pl_robust.attacks import Attack

pytestmark = pytest.mark.lightning

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICKSTART = str(EXAMPLES / "quickstart.yaml")
SHORT = ["--", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_test_batches=1"]


@pytest.fixture(scope="module")
def script() -> Any:
    """The script as a module that no other process can import: it travels by value, as ``__main__`` does."""
    spec: Any = importlib.util.spec_from_file_location("__co_sweep__", EXAMPLES / "co_sweep.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_config(path: Path, **changes: Any) -> str:
    """A configuration with images and an attack only: no detector, no injected feature."""
    attack = {"class_path": "FGSM", "init_args": {"eps": "8/255"}}
    net = {"class_path": "SmallCNN", "init_args": {"width": 4}}
    content: dict[str, Any] = {
        "trainer": {"accelerator": "cpu", "log_every_n_steps": 1},
        "model": {"class_path": "AdversarialTraining", "init_args": {"net": net, "attack": attack, **changes}},
        "data": {"class_path": "ImageDataModule", "init_args": {"name": "digits", "eval_batch_size": 64}},
    }
    path.write_text(yaml.safe_dump(content))
    return str(path)


def results(folder: Path) -> dict[str, dict[str, float]]:
    return {path.stem: json.loads(path.read_text())["result"] for path in sorted(folder.glob("*.json"))}


def values_of(node: Any, name: str) -> list[Any]:
    """All values of a key, wherever it stands."""
    parts = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [value for part in parts for value in values_of(part, name)] + (
        [node[name]] if isinstance(node, dict) and name in node else []
    )


def test_every_eps_and_beta_is_set_wherever_it_stands(script: Any) -> None:
    config = script.read_config(str(EXAMPLES / "quickstart_rollback.yaml"), [], ["beta", "eps"])
    filled = script._fill(config, {"beta": 0.5, "eps": 0.125, "seed": 7})
    # Training, evaluation and fallback attack; the detector's null takes the training attack's.
    assert sorted(map(str, values_of(filled, "eps"))) == ["0.125"] * 3 + ["None"]
    assert values_of(filled, "beta") == [0.5]
    assert filled["seed_everything"] == 7
    assert values_of(filled, "steps") == [20]


def test_a_callback_has_its_eps_set_if_it_has_one(script: Any, tmp_path: Path) -> None:
    config = yaml.safe_load(Path(write_config(tmp_path / "run.yaml")).read_text())
    config["trainer"]["callbacks"] = [{"class_path": "CatastrophicOverfittingDetector", "init_args": {"eps": "2/255"}}]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    read = script.read_config(str(tmp_path / "run.yaml"), [], ["eps"])
    assert values_of(script._fill(read, {"eps": 0.125, "seed": 0}), "eps") == [0.125] * 2


def test_an_eps_that_is_no_radius_is_left_alone(script: Any) -> None:
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1, "eps": 1e-8}}
    attack = {"class_path": "pl_robust.attacks.FGSM", "init_args": {"eps": 0.1}}
    config = {"model": {"attacks": [{"one": attack}], "optimizer": adam}}
    assert script.set_everywhere(config, "eps", 0.3, (Attack, Callback)) == 1
    assert attack["init_args"] == {"eps": 0.3}
    assert adam["init_args"] == {"lr": 0.1, "eps": 1e-8}
    assert script.set_everywhere(config, "eps", 0.5, (Adam,)) == 1


def test_a_sweep_from_start_to_end_and_again(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--config", QUICKSTART, "--beta", "0", "0.1", "--eps", "1/4", "--folder", "runs/sweep"]
    script.main([*arguments, *SHORT])
    said = capsys.readouterr()
    first = results(tmp_path / "runs" / "sweep")
    assert list(first) == ["beta=0.0,eps=0.25,seed=0", "beta=0.1,eps=0.25,seed=0"]
    for result in first.values():
        assert result.keys() == {"acc", "acc_adv", "acc_pgd", "co"}
    lines = said.out.splitlines()
    assert lines[0].split()[:5] == ["beta", "eps", "clean", "attack", "PGD"]
    second = first["beta=0.1,eps=0.25,seed=0"]
    accuracies = [f"{second[name]:.3f}" for name in ("acc", "acc_adv", "acc_pgd")]
    assert lines[2].split() == ["0.1", "1/4", *accuracies, "-"]
    assert len(lines) == 4  # nothing of what the runs say
    assert "co_sweep: 100%" in said.err
    assert 0 < (tmp_path / "runs" / "sweep" / "heat_map.png").stat().st_size < 100_000
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]  # no log, no checkpoint, no saved configuration
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["sweep"]

    monkeypatch.setattr(script, "run_cell", lambda config, cell: pytest.fail("it is there already"))
    script.main([*arguments, *SHORT])
    with pytest.raises(SystemExit, match="2"):
        script.main([*arguments, *SHORT[:1], "--trainer.max_epochs=2", *SHORT[2:]])
    assert "config.trainer.max_epochs = 1, and this one 2): take another folder" in capsys.readouterr().err


def test_any_configuration_will_do(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load(Path(write_config(tmp_path / "run.yaml")).read_text())
    saving = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "saved"}}
    config["trainer"]["callbacks"] = [saving, {"class_path": "TQDMProgressBar"}, {"class_path": "LearningRateMonitor"}]
    config["trainer"]["logger"] = {"class_path": "CSVLogger", "init_args": {"save_dir": "logs"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    script.main(["--config", "run.yaml", "--eps", "8/255", "--seeds", "1", "2", "--folder", "sweep", *SHORT])
    assert list(results(tmp_path / "sweep")) == ["eps=0.03137254901960784,seed=1", "eps=0.03137254901960784,seed=2"]
    assert {path.name for path in tmp_path.iterdir()} == {"run.yaml", "sweep"}
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[:3] == ["as", "configured", "8/255"]
    assert row[-2:] == ["no", "detector"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--beta", "0.1"], "--beta: the configuration has no datamodule with a `beta`: leave --beta out"),
        (["--eps", "8/0"], "`eps` must be a number or a fraction such as '8/255', got '8/0'"),
        (["--eps", "1", "--", "--model.attack.eps=2"], "the sweep sets every `eps`: leave out --model.attack.eps=2"),
        (["--eps", "1", "--", "--seed_everything", "2"], "the sweep sets every `seed_everything`"),
        (["--eps", "1", "--", "--trainer.max_epoch=2"], "trainer has no argument 'max_epoch'; did you mean"),
        (["--eps", "1", "1.0"], "`cells` must differ from each other, got eps=1.0,seed=0 more than once"),
        (["--eps", "1", "--jobs", "0"], "`jobs` must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(
    arguments: Sequence[str], said: str, script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "run.yaml")
    with pytest.raises(SystemExit, match="2"):
        script.main(["--config", config, "--folder", "sweep", *arguments])
    answer = capsys.readouterr()
    assert f"co_sweep: error: {said}" in answer.err
    assert answer.out == ""
    assert not (tmp_path / "sweep").exists()


def test_the_pgd_attack_must_be_there(script: Any, tmp_path: Path) -> None:
    weak = {"weak": {"class_path": "FGSM", "init_args": {"eps": 0.1}}}
    with pytest.raises(ValueError, match=r"`eval_attacks` must have one called pgd.* got \['weak'\]"):
        script.read_config(write_config(tmp_path / "run.yaml", eval_attacks=weak), [], ["eps"])


def test_of_several_test_sets_the_injected_one_counts(script: Any) -> None:
    assert script._pick({"test/acc/clean": 0.1, "test/acc/injected": 0.2}, "test/acc") == 0.2
    with pytest.raises(ValueError, match=r"gave no test/acc_pgd, .* it gave test/acc/clean"):
        script._pick({"test/acc/clean": 0.1}, "test/acc_pgd")


def test_the_figure_shows_means_and_frames_overfitted_cells(script: Any) -> None:
    healthy = {"acc": 0.9, "acc_adv": 0.6, "acc_pgd": 0.5, "co": 0.0}
    lost = {"acc": 0.8, "acc_adv": 1.0, "acc_pgd": 0.1, "co": 1.0, "co_epoch": 12.0}
    grid = [[healthy, healthy], [healthy, lost], [lost, lost], [healthy, healthy]]
    labels = {"beta": ["0", "8/255"], "eps": ["0.1", "0.2"]}
    clean, pgd, _ = script.draw(grid, labels).axes
    assert pgd.images[0].get_array().tolist() == [[0.5, 0.3], [0.1, 0.5]]
    assert pgd.images[0].get_clim() == (0, 1)
    assert [text.get_text() for text in pgd.texts] == ["0.50", "0.30\n1/2", "0.10\n2/2", "0.50"]
    assert [text.get_text() for text in clean.texts] == ["0.90", "0.85\n1/2", "0.80\n2/2", "0.90"]
    for axes in (clean, pgd):
        assert [tuple(round(x + 0.46) for x in patch.get_xy()) for patch in axes.patches] == [(1, 0), (0, 1)]
    table = script.tabulate(grid, labels).splitlines()
    assert table[2].split() == ["0", "0.2", "0.850", "0.800", "0.300", "-,", "12"]


@pytest.mark.parametrize(("backend", "jobs"), [("loky", "2"), ("dask", "1")])
def test_in_other_processes_the_numbers_are_the_same(backend: str, jobs: str, script: Any, tmp_path: Path) -> None:
    if backend == "dask":
        pytest.importorskip("distributed")
    arguments = ["--config", QUICKSTART, "--eps", "0.1", "0.2"]
    script.main([*arguments, "--folder", "here", *SHORT])
    script.main([*arguments, "--folder", "there", "--jobs", jobs, "--backend", backend, *SHORT])
    assert results(tmp_path / "here") == results(tmp_path / "there")
    assert len(results(tmp_path / "there")) == 2


@pytest.mark.long
@pytest.mark.slow
def test_injection_alone_opens_a_band_of_catastrophic_overfitting(script: Any, tmp_path: Path) -> None:
    values = ["--beta", "0", "0.1", "0.3", "--eps", "0.25", "--seeds", "0", "1", "2"]
    script.main(["--config", QUICKSTART, *values, "--folder", "sweep", "--jobs", "2"])
    for seed in range(3):
        plain, injected, strong = (
            results(tmp_path / "sweep")[f"beta={beta},eps=0.25,seed={seed}"] for beta in (0.0, 0.1, 0.3)
        )
        assert plain["acc_pgd"] >= 0.35
        assert plain["co"] == 0
        assert injected["acc_pgd"] <= 0.2
        assert injected["acc_adv"] >= 0.9
        assert injected["co"] == 1
        assert strong["acc_pgd"] >= 0.8
        assert strong["co"] == 0


def test_an_interrupted_sweep_says_how_to_go_on(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "run_cell", interrupted)
    arguments = ["--config", QUICKSTART, "--eps", "0.1", "--folder", str(tmp_path / "sweep"), *SHORT]
    with pytest.raises(SystemExit, match="130"):
        script.main(arguments)
    assert "interrupted; the same command goes on" in capsys.readouterr().err
