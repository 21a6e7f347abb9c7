from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from pl_robust.attacks import FGSM
from pl_robust.cli import main
from pl_robust.models import MLP, Pretrained, PretrainedEnsemble, SmallCNN
from pl_robust.modules import AdversarialTraining, AKDStudent
from tests.toys import assert_identical, loader, needs_rebuilding, quiet_trainer

X = torch.rand(5, 1, 8, 8)


def small(seed: int = 0, **arguments: Any) -> SmallCNN:
    torch.manual_seed(seed)
    return SmallCNN(**{"width": 2, "num_classes": 3, **arguments})


def assert_same(pretrained: nn.Module, net: nn.Module) -> None:
    """The same answers in eval mode, and nothing left to train."""
    assert torch.equal(pretrained(X), copy.deepcopy(net).eval()(X))
    assert not any(part.training for part in pretrained.modules())
    assert not any(parameter.requires_grad for parameter in pretrained.parameters())


@pytest.mark.parametrize("prefix", ["", "net.", "model.", "module."])
@pytest.mark.parametrize("compiled", ["", "_orig_mod."])
def test_it_reads_the_state_dicts_there_are(prefix: str, compiled: str, tmp_path: Path) -> None:
    net, path = small(1), tmp_path / "net.pt"
    net(X)  # moves the running statistics
    state = {f"{prefix}{compiled}{name}": value for name, value in net.state_dict().items()}
    torch.save(state, path)
    assert_same(Pretrained(small(), path), net)
    torch.save({"state_dict": {**state, "other.weight": torch.zeros(2)} if prefix else state, "epoch": 3}, path)
    assert_same(Pretrained(small(), str(path)), net)
    if not compiled:
        ours = torch.compile(small(), backend="eager")
        assert_same(Pretrained(ours, path).net._orig_mod, net)  # type: ignore[arg-type]


@pytest.mark.lightning
def test_it_reads_what_a_trainer_has_written(tmp_path: Path) -> None:
    module = AdversarialTraining(small(), FGSM(0.1), num_classes=3)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, loader(32), loader(16))
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    assert_same(Pretrained(small(7), tmp_path / "net.ckpt"), module.net)


@pytest.mark.lightning
@needs_rebuilding
def test_the_command_trains_teachers_and_an_ensemble_of_them_teaches_a_student(tmp_path: Path) -> None:
    """All of it from YAML: early stopped teachers, and a student of them whose checkpoint holds nothing of theirs."""
    small_cnn = {"class_path": "SmallCNN", "init_args": {"width": 2}}
    attack = {"class_path": "FGSM", "init_args": {"eps": 0.1}}
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
        "limit_train_batches": 2,
        "limit_val_batches": 2,
    }
    stopped = {"monitor": "val/acc_pgd", "mode": "max"}
    data = {"class_path": "ImageDataModule", "init_args": {"name": "digits", "eval_batch_size": 256}}
    teacher = {
        "trainer": {**quiet, "callbacks": [{"class_path": "ModelCheckpoint", "init_args": stopped}]},
        "model": {"class_path": "AdversarialTraining", "init_args": {"net": small_cnn, "attack": attack}},
        "data": data,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(teacher))
    for seed in (1, 2):
        main(
            ["fit", "--config", "run.yaml", f"--seed_everything={seed}", f"--trainer.default_root_dir=teachers/{seed}"]
        )
    files = sorted(tmp_path.glob("teachers/**/*.ckpt"))
    assert len(files) == 2
    ensemble = {
        "class_path": "PretrainedEnsemble",
        "init_args": {"net": small_cnn, "folder": "teachers", "pattern": "**/*.ckpt"},
    }
    single = {"class_path": "Pretrained", "init_args": {"net": small_cnn, "checkpoint": str(files[0])}}
    student = copy.deepcopy(teacher)
    student["trainer"] = quiet
    sizes = []
    for run, teachers in enumerate((ensemble, [single, single])):
        student["model"] = {
            "class_path": "AKDStudent",
            "init_args": {
                "net": small_cnn,
                "attack": attack,
                "teachers": teachers,
                "distillation": {"class_path": "AKD", "init_args": {"teacher_weight": 0.9}},
                "teacher_weights": [1, 2],
            },
        }
        (tmp_path / "student.yaml").write_text(yaml.safe_dump(student))
        main(["fit", "--config", "student.yaml", f"--trainer.default_root_dir=student{run}"])
        (written,) = tmp_path.glob(f"student{run}/checkpoints/*.ckpt")
        again = AKDStudent.load_from_checkpoint(written)
        assert len(again._teachers.nets) == 2
        assert vars(again.distillation)["teacher_weight"] == 0.9
        assert set(again.state_dict()) == {f"net.{name}" for name in again.net.state_dict()}
        sizes.append(written.stat().st_size)
    (tmp_path / "teachers").rename(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"`checkpoint` must be a file, and there is none at"):
        AKDStudent.load_from_checkpoint(written)
    arguments: Any = {"net": SmallCNN(width=2), "teachers": nn.Identity().eval(), "attack": FGSM(0.1)}
    arguments["teacher_weights"] = None
    alone = AKDStudent.load_from_checkpoint(written, **arguments)
    assert_identical(dict(alone.state_dict()), dict(again.state_dict()))
    assert_same(Pretrained(SmallCNN(width=2), written), alone.net)
    (tmp_path / "gone").rename(tmp_path / "teachers")
    assert max(sizes) < files[0].stat().st_size + 4000  # hyperparameters, which are the teachers' configuration
    module = AdversarialTraining.load_from_checkpoint(files[0])
    assert_same(Pretrained(SmallCNN(width=2), files[0]), module.net)


def test_an_ensemble_is_a_folder_in_order(tmp_path: Path) -> None:
    nets = {name: small(seed) for seed, name in enumerate(("b.ckpt", "a.ckpt", "last.ckpt", "other.pt"))}
    for name, net in nets.items():
        torch.save({"state_dict": net.state_dict()}, tmp_path / name)
    given = small(9)
    before = copy.deepcopy(given.state_dict())
    ensemble = PretrainedEnsemble(given, tmp_path, "[a-k]*.ckpt")
    assert [Path(path).name for path in ensemble.checkpoints] == ["a.ckpt", "b.ckpt"]
    for member, name in zip(ensemble, ("a.ckpt", "b.ckpt"), strict=True):
        assert_same(member, nets[name])
    assert_identical(dict(given.state_dict()), dict(before))
    assert not ensemble.training
    assert_same(PretrainedEnsemble(given, str(tmp_path), "l*.ckpt")[0], nets["last.ckpt"])
    (tmp_path / "last.ckpt").rename(tmp_path / "lasting.ckpt")
    assert len(PretrainedEnsemble(given, str(tmp_path))) == 3


@pytest.mark.parametrize("last", ["last.ckpt", "last-v1.ckpt", "run/last.ckpt"])
def test_a_run_has_one_vote(last: str, tmp_path: Path) -> None:
    """As ``save_last=True`` leaves a folder."""
    (tmp_path / "run").mkdir()
    for name in ("epoch=3-step=40.ckpt", last):
        saved(small().state_dict(), tmp_path / name)
    with pytest.raises(ValueError, match=rf"finds '.*{last}' beside others.* two votes; leave it out by a pattern"):
        PretrainedEnsemble(small(), tmp_path, "**/*.ckpt")
    assert len(PretrainedEnsemble(small(), tmp_path, "**/epoch=*.ckpt")) == 1


def test_one_network_reads_several_files_and_stays_as_it_is(tmp_path: Path) -> None:
    nets, given = [small(1), small(2)], small(9)
    before = copy.deepcopy(given.state_dict())
    both = [Pretrained(given, saved(net.state_dict(), tmp_path / f"{i}.pt")) for i, net in enumerate(nets)]
    for one, net in zip(both, nets, strict=True):
        assert_same(one, net)
    assert_identical(dict(given.state_dict()), dict(before))
    assert given.training
    assert all(parameter.requires_grad for parameter in given.parameters())


class Own:
    """What a checkpoint may hold and nobody should unpickle."""


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    net, path = small(), tmp_path / "net.pt"
    state = net.state_dict()
    content: Any
    with pytest.raises(FileNotFoundError, match=r"`checkpoint` must be a file, and there is none at '.*net.pt'"):
        Pretrained(net, path)
    for content, named in (({"state_dict": state, "own": Own()}, "test_pretrained.Own"), (net, "small_cnn.SmallCNN")):
        with pytest.raises(
            ValueError, match=rf"holds objects beside tensors \(.*{named}\).*write nothing but its state"
        ):
            Pretrained(net, saved(content, path))
    whole = saved(state, path).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"<html>", b"version https://git-lfs.github.com/spec/v1", b"hello"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is no file of torch.save, or is damaged \(.*\): give one that"):
            Pretrained(net, path)
    with path.open("wb") as file:
        np.savez(file, weight=np.zeros(3))
    with pytest.raises(ValueError, match=r"is no file of torch.save, or is damaged"):
        Pretrained(net, path)
    for content, got in (
        ({"model": state, "epoch": 1}, r"a dict with \['model', 'epoch'\]"),
        ([1], "a list"),
        ({}, "a"),
    ):
        with pytest.raises(
            ValueError, match=f"must hold a state dict, or one at 'state_dict' as Lightning's do, got {got}"
        ):
            Pretrained(net, saved(content, path))


def test_another_network_is_refused(tmp_path: Path) -> None:
    net, path = small(), tmp_path / "net.pt"
    state = net.state_dict()
    with pytest.raises(TypeError, match=r"`net` must be an nn.Module, built as it was trained, got str"):
        Pretrained("SmallCNN", path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"is none of this net .*missing .*, unknown layers.0.bias, .* and \d+ more"):
        Pretrained(net, saved(MLP(64).state_dict(), path))
    with pytest.raises(ValueError, match=r"other sizes: it has linear.weight \[4, 32\] instead of \[3, 32\]"):
        Pretrained(net, saved(small(num_classes=4).state_dict(), path))
    # A net inside another one: what stands around it would be lost, so it has to be asked for.
    saved({f"net.net.{name}": value for name, value in state.items()}, path)
    with pytest.raises(ValueError, match=r"`prefix` may be one of \['net.net.'\]"):
        Pretrained(net, path)
    assert_same(Pretrained(small(4), path, prefix="net.net."), net)
    twins = {
        f"{part}.{name}": value
        for part, seed in (("ema", 1), ("student", 2))
        for name, value in small(seed).state_dict().items()
    }
    with pytest.raises(ValueError, match=r"several networks .* set `prefix` to one of 'ema.', 'student.'"):
        Pretrained(net, saved(twins, path))
    assert_same(Pretrained(net, path, prefix="student."), small(2))
    with pytest.raises(ValueError, match=r"names that begin with 'teacher.'"):
        Pretrained(net, path, prefix="teacher.")


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"`folder` must be a folder of checkpoints, and there is none at '.*none'"
    ):
        PretrainedEnsemble(small(), tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no file in .* fits `pattern`='\*.ckpt'; it holds nothing"):
        PretrainedEnsemble(small(), tmp_path)
    (tmp_path / "a.pt").touch()
    with pytest.raises(FileNotFoundError, match=r"it holds a.pt"):
        PretrainedEnsemble(small(), tmp_path)
    with pytest.raises(TypeError, match=r"`net` must be an nn.Module"):
        PretrainedEnsemble(None, tmp_path)  # type: ignore[arg-type]
