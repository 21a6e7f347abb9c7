from __future__ import annotations

import re
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import pl_robust
from pl_robust._cli_checkpoint import check_replaced
from pl_robust._lightning import LightningModule, MisconfigurationException
from pl_robust.attacks import FGSM
from pl_robust.cli import main, run
from pl_robust.models import SmallCNN
from pl_robust.modules import AdversarialTraining
from tests.toys import needs_checkpoint_arguments, needs_rebuilding

pytestmark = [
    pytest.mark.lightning,
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]


def config(folder: Path, **changes: Any) -> str:
    attack = {"class_path": "FGSM", "init_args": {"eps": "8/255"}}
    content: dict[str, Any] = {
        "seed_everything": 1,
        "trainer": {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1},
        "model": {"class_path": "AdversarialTraining", "init_args": {"net": "SmallCNN", "attack": attack}},
        "data": {"class_path": "ImageDataModule", "init_args": {"name": "digits", "eval_batch_size": 32}},
    }
    content["model"]["init_args"].update(changes)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize("command", [["pl-robust"], [sys.executable, "-m", "pl_robust"]])
def test_version_and_help_come_at_once(command: list[str], tmp_path: Path) -> None:
    if command == ["pl-robust"]:
        command = [str(Path(sys.executable).with_name("pl-robust"))]
        if not Path(command[0]).exists():
            pytest.skip("pl_robust is installed in an environment behind this one")
    answer = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert answer.stdout.strip() == f"pl-robust {pl_robust.__version__}"
    assert answer.stderr == ""
    start = time.perf_counter()
    answer = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "usage: pl-robust" in answer.stdout
    assert time.perf_counter() - start < 2  # importing Lightning alone takes longer
    code = "import sys, pl_robust.cli; print({'torch', 'pytorch_lightning', 'lightning'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert answer.stdout.strip() == "set()"


def test_fractions_short_names_and_links(tmp_path: Path) -> None:
    cli = run(["fit", "--config", config(tmp_path), *QUIET, "--trainer.fast_dev_run=1"])
    assert isinstance(cli.model.attack, FGSM)
    assert cli.model.attack.eps == 8 / 255
    assert isinstance(cli.model.net, SmallCNN)
    assert cli.model.num_classes == cli.datamodule.num_classes == 10


@needs_rebuilding
def test_fit_then_test_and_load_from_the_checkpoint(tmp_path: Path) -> None:
    net = {"class_path": "SmallCNN", "init_args": {"width": 4}}
    path = config(tmp_path, net=net)
    cli = run(["fit", "--config", path, *QUIET])
    checkpoint = cli.trainer.checkpoint_callback.best_model_path
    torch.load(checkpoint, weights_only=True)
    loaded = AdversarialTraining.load_from_checkpoint(checkpoint)  # no argument: the checkpoint holds its configuration
    for key, value in cli.model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key])
    assert loaded.attack.eps == 8 / 255
    tested = run(["test", "--config", path, "--ckpt_path", checkpoint, *QUIET])
    assert torch.equal(tested.model.net.linear.weight, cli.model.net.linear.weight)
    assert "test/acc_pgd" in tested.trainer.callback_metrics


class _Unlinked(LightningModule):
    """A user's module that has no use for the data's number of classes."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = SmallCNN(width)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class _Linked(_Unlinked):
    def __init__(self, num_classes: int, **rest: Any) -> None:
        super().__init__(**rest)


class _OwnNote(_Unlinked):
    def __init__(self) -> None:
        LightningModule.__init__(self)
        self.save_hyperparameters({"num_classes": 3})
        self.net = SmallCNN(2)


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
@needs_checkpoint_arguments
def test_the_number_of_classes_is_noted_for_those_alone_that_take_it(tmp_path: Path) -> None:
    data = ["--data=ImageDataModule", "--data.name=digits", "--trainer.limit_val_batches=0", "--trainer.logger=false"]
    for name, noted in (("_Unlinked", False), ("_Linked", True)):
        cli = run(["fit", f"--model={__name__}.{name}", "--model.width=2", *data, *QUIET, "--trainer.max_steps=1"])
        assert ("num_classes" in cli.model.hparams) is noted
        assert ("num_classes" in cli.model.hparams_initial) is noted
        checkpoint = tmp_path / f"{name}.ckpt"
        cli.trainer.save_checkpoint(checkpoint)
        tested = run(["test", f"--model={__name__}.{name}", "--ckpt_path", str(checkpoint), *data, *QUIET])
        assert tested.model.hparams["width"] == 2
        assert "test/loss" in tested.trainer.callback_metrics
    cli = run(["fit", f"--model={__name__}._OwnNote", *data, *QUIET, "--trainer.fast_dev_run=1"])
    assert cli.model.hparams["num_classes"] == 3


def test_offers_are_what_a_configuration_can_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = {"class_path": "PRIMETransform", "init_args": {"transform": {"class_path": "PRIMME"}}}
    path = Path(config(tmp_path))
    content = yaml.safe_load(path.read_text())
    content["trainer"]["callbacks"] = [callback]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", str(path)])
    said = capsys.readouterr().err
    assert "did you mean 'PRIME'? There are: AugMix, Corruption, DCTLowPass, PRIME, Random" in said
    assert "Spectrum" not in said
    assert "LeakedComponents" not in said


def test_a_second_run_overwrites_the_saved_configuration(tmp_path: Path) -> None:
    arguments = ["fit", "--config", config(tmp_path), *QUIET, "--trainer.logger=false"]
    run(arguments)
    run(arguments)
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved["model"]["class_path"] == "pl_robust.modules.AdversarialTraining"
    assert saved["model"]["init_args"]["attack"]["init_args"]["eps"] == "8/255"
    main(["fit", "--config", str(tmp_path / "config.yaml"), *QUIET, "--trainer.logger=false"])


def test_the_whole_configuration_can_be_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config", config(tmp_path), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["lr_scheduler"] == "triangular"


def test_a_net_may_be_a_function_of_any_package(tmp_path: Path) -> None:
    net = {"class_path": "pl_robust.models.preact_resnet18", "init_args": {"width": 4, "in_channels": 1}}
    cli = run(["fit", "--config", config(tmp_path, net=net), *QUIET, "--trainer.fast_dev_run=1"])
    assert type(cli.model.net).__name__ == "PreActResNet"


def test_arguments_of_a_function_belong_into_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The parser can change those of a class only, and dies of a function's without saying why."""
    net = {"class_path": "pl_robust.models.preact_resnet18", "init_args": {"in_channels": 1}}
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", config(tmp_path, net=net), "--model.net.width=4", "--trainer.fast_dev_run=1"])
    assert "cannot change arguments of a function that stands as a class_path" in capsys.readouterr().err
    net = {"class_path": "PreActResNet", "init_args": {"in_channels": 1}}
    fast = [*QUIET, "--trainer.fast_dev_run=1"]
    cli = run(["fit", "--config", config(tmp_path, net=net), "--model.net.width=4", *fast])
    assert cli.model.net.linear.in_features == 32


def _fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pl-robust: error: ")]
    return said.removeprefix("pl-robust: error: ")


FILES = {
    "": "must hold keys and values, such as `model: ...` and `data: ...`, and it holds nothing",
    "# later\n": "and it holds nothing but comments",
    "- a\n- b\n": "and it holds '- a - b'",
    "model: {class_path: X\n": "did not find expected ',' or '}'",
    "model:\n class_path: A\n  init_args: 3\n": "mapping values are not allowed .* line 3, column 12",
    "fit:\n  trainer: {max_epochs: 1}\n": "the file holds `fit:`; write the keys below it at the top of the file",
    "trainer: {max_epochs: 1}\n": "`data` and `model` must be given, in the configuration or as --model CLASS",
    "model: {net: SmallCNN}\ndata: ImageDataModule\n": "a class, and its arguments below init_args: {class_path: Adv",
    "model: ImageDataModule\n": "ImageDataModule is one of pl_robust.datamodules and does not fit here; there are: AKD",
    "model: my.own.Net\n": "model: there is no 'my.own.Net' .pl-robust looks among the installed packages; `python -m",
}


@pytest.mark.parametrize("text", FILES)
def test_a_file_that_is_no_configuration(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(text)
    assert re.search(FILES[text].replace("{class", r"\{class"), _fails(["fit", "--config", "run.yaml"], capsys))


COMMANDS = {
    "--config @ fit": "the subcommand comes first, options behind it: pl-robust fit --config FILE.yaml",
    "--config @": "say what to do first, one of corrupt, fit, predict, test, validate",
    "fti --config @": "invalid choice: 'fti'; did you mean 'fit'? There are: corrupt, fit",
    "fit --config nowhere.yaml": "config: there is no file '",
    "fit @": "stands alone; did you mean --config ",
    "fit --config": "an option that begins with --config stands without its value",
    "fit --config @ --ckpt_path none.ckpt": "ckpt_path: there is no file 'none.ckpt'",
    "fit --config @ --ckpt_path @": "is no checkpoint that can be read",
    "fit --config @ --trainer.accelerator=gppu": "invalid accelerator name",
    "fit --config @ --model.attack=TorchAttacks": "model.attack: the following arguments are required: name",
    "fit --config @ --model.lr_scheduler=cosine": "there is no 'cosine'; give a schedule's full import path",
    "fit --config @ --data.data_dir=nowhere --data.name=cifar10 --data.download=false": "no complete cifar10 data",
    "fit --model.help Adversarial": "no class 'Adversarial'; did you mean 'AdversarialTraining'?",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_cannot_run(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last of them are found when the run is under way; no traceback for these either."""
    path = config(tmp_path)
    assert COMMANDS[command] in _fails(command.replace("@", path).split(), capsys)


@pytest.mark.parametrize("name", ["APPNP", "GCN", "MLP"])
def test_a_short_name_of_several_packages(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_module("torch_geometric.nn")  # has classes of these names
    path = config(tmp_path, net={"class_path": name})
    said = _fails(["fit", "--config", path], capsys)
    assert said == f"model.net: other packages have a {name!r}, too: give the full path, pl_robust.models.{name}"


def test_a_package_that_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    attack = {"class_path": "TorchAttacks", "init_args": {"name": "AutoAttack", "eps": 0.1}}
    path = config(tmp_path, eval_attacks={"aa": attack})
    assert "pip install" in _fails(["fit", "--config", path], capsys)


def test_faults_of_the_program_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("a fault of another package")

    monkeypatch.setattr(FGSM, "__call__", broken)
    with pytest.raises(ValueError, match="a fault of another package"):
        main(["fit", "--config", config(tmp_path), *QUIET, "--trainer.fast_dev_run=1"])


class Faulty(LightningModule):
    """A user's module with a fault in its constructor, its training, or its use of this package."""

    def __init__(self, fault: str = "init") -> None:
        super().__init__()
        self.fault = fault
        self.net = SmallCNN(width=4)
        if fault == "init":
            len(3)  # type: ignore[arg-type]

    def training_step(self, batch: Any, index: int) -> None:
        if self.fault == "step":
            raise MisconfigurationException("the user's own")
        if self.fault == "weights":
            self.net.load_state_dict({})
        FGSM(0.1)(self.net, 255 * batch[0], batch[1])

    def configure_optimizers(self) -> None:
        return None


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("init", TypeError, "has no len"),
        ("step", MisconfigurationException, "the user's own"),
        ("weights", RuntimeError, "Missing key"),
        ("images", ValueError, "`x` must lie in bounds"),
    ],
)
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`", "ignore:.*returned `None`")
def test_faults_of_the_users_code_keep_their_traceback(fault: str, kind: type[Exception], said: str) -> None:
    data = ["--data=ImageDataModule", "--data.name=digits", "--trainer.max_steps=1", "--trainer.logger=false"]
    with pytest.raises(kind, match=said) as raised:
        main(["fit", f"--model={__name__}.Faulty", f"--model.fault={fault}", *data, *QUIET])
    assert Path(__file__).name in {Path(entry.path).name for entry in raised.traceback[1:]}
    assert raised.value.__cause__ is None


class Plain:
    """An object that no checkpoint should hold."""


@needs_checkpoint_arguments
def test_a_checkpoint_without_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["test", "--config", config(tmp_path), *QUIET, "--ckpt_path=one.ckpt"]
    torch.save({"hyper_parameters": {"lr_peak": 0.5}, "state_dict": {}}, "one.ckpt")  # as from a script
    assert "was not written by pl-robust, and does not say of which class it is" in _fails(command, capsys)


def test_a_file_that_is_no_checkpoint_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["test", "--config", config(tmp_path), *QUIET, "--ckpt_path=one.ckpt"]
    torch.save({"state_dict": SmallCNN().state_dict()}, "one.ckpt")
    assert "the file was not written by Lightning; to take the weights that it holds, say" in _fails(command, capsys)
    torch.save({"hyper_parameters": {"thing": Plain()}}, "one.ckpt")
    assert f"holds an object of {__name__}.Plain, which is not read" in _fails(command, capsys)
    torch.save(torch.ones(2), "one.ckpt")
    assert "ckpt_path: 'one.ckpt' is no checkpoint that can be read" in _fails(command, capsys)
    for content in (b"", b"no checkpoint", b"\x80\x02e."):
        Path("one.ckpt").write_bytes(content)
        assert "ckpt_path: 'one.ckpt' is no checkpoint that can be read" in _fails(command, capsys)
    Path("one.ckpt").unlink()
    Path("one.ckpt").mkdir()
    assert "ckpt_path: 'one.ckpt' is a folder, and this strategy reads files" in _fails(command, capsys)
    command = ["fit", "--config", config(tmp_path), *QUIET, "--ckpt_path=best", "--trainer.enable_checkpointing=false"]
    assert "`ModelCheckpoint` is not configured" in _fails(command, capsys)


@pytest.mark.parametrize(
    ("asked", "held", "said"),
    [
        ({"a": None}, {"a": {"class_path": "x.ARD", "init_args": {"b": 1}}}, "a='x.ARD' (not None)"),
        ({"a": {"class_path": "x.ARD", "init_args": {"b": 1}}}, {"a": None}, "a=None (not 'x.ARD')"),
        (
            {"a": {"class_path": "x.PGD", "init_args": {"eps": 1, "steps": 3}}},
            {"a": {"class_path": "x.FGSM", "init_args": {"eps": 2}}},
            "a='x.FGSM' (not 'x.PGD')",
        ),
        (
            {"a": {"class_path": "x.PGD", "init_args": {"eps": 1, "new": 3}}},
            {"a": {"class_path": "x.PGD", "init_args": {"eps": 2}}},
            "a.init_args.eps=2 (not 1)",
        ),
        ({"a": {"pgd": {"class_path": "x.PGD"}}}, {"a": {}}, "a={} (not {'pgd': {'class_path': 'x.PGD'}})"),
        ({"a": {"p": {"class_path": "x.A"}}}, {"a": {"p": {"class_path": "x.B"}}}, "a.p='x.B' (not 'x.A')"),
        ({"a": (1, 2), "new": 3}, {"a": [1, 2], "old": 4}, None),
    ],
)
def test_every_argument_that_the_checkpoint_replaces_is_named(
    asked: dict[str, Any], held: dict[str, Any], said: str | None
) -> None:
    found = check_replaced({"class_path": "M", "init_args": asked}, {"class_path": "M", "dict_kwargs": held})
    assert found == (said and f"the checkpoint's own arguments of M hold: {said}")


@needs_checkpoint_arguments
def test_a_checkpoint_does_not_replace_the_configuration_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = config(tmp_path, net={"class_path": "SmallCNN", "init_args": {"width": 4}})
    run(["fit", "--config", path, *QUIET, "--trainer.max_steps=1"]).trainer.save_checkpoint("one.ckpt")
    command = ["test", "--ckpt_path=one.ckpt", "--trainer.fast_dev_run=1", *QUIET]
    with caplog.at_level("INFO"):
        tested = run([*command, "--config", path, "--model.attack.eps=4/255"])
    assert tested.model.attack.eps == 8 / 255  # Lightning's rule: the checkpoint's arguments hold
    assert "AdversarialTraining hold: attack.init_args.eps='8/255' (not '4/255')" in caplog.text
    other = ["--model=LinearizedTraining", "--model.net=SmallCNN", "--data=ImageDataModule", "--data.name=digits"]
    assert "written by AdversarialTraining, and the configuration asks for Lin" in _fails([*command, *other], capsys)
    saved = torch.load("one.ckpt", weights_only=True)
    del saved["hyper_parameters"]
    torch.save(saved, "one.ckpt")
    assert "size mismatch for net" in _fails([*command, "--config", path, "--model.net.width=8"], capsys)


def test_the_printed_configuration_is_a_starting_point(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--model=AdversarialTraining", "--data=ImageDataModule", "--print_config"])
    (tmp_path / "x.yaml").write_text(capsys.readouterr().out)
    assert "model: the following arguments are required: net, attack" in _fails(["fit", "--config=x.yaml"], capsys)
    given = ["--model.net=SmallCNN", "--model.attack=FGSM", "--model.attack.eps=8/255", "--data.name=digits"]
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config=x.yaml", *given, "--print_config"])
    (tmp_path / "y.yaml").write_text(capsys.readouterr().out)
    cli = run(["fit", "--config=y.yaml", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1", *QUIET])
    assert cli.trainer.max_epochs == 1
    assert (type(cli.model.net), cli.model.attack.eps) == (SmallCNN, 8 / 255)
