from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets  # noqa: F401  # sets environment variables when it is imported: not inside a test
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pl_robust._lightning import NAMESPACE, LightningDataModule, MisconfigurationException, Trainer
from pl_robust.datamodules import ImageDataModule, InjectedFeatureDataModule
from pl_robust.transforms import dct_carrier
from tests.datamodules.toys import (
    Base,
    Recorder,
    WithClasses,
    to_dict,
    to_frozen,
    to_list,
    to_namedtuple,
    to_ordered,
)
from tests.toys import needs_lightning, quiet_trainer

pytestmark = [
    pytest.mark.lightning,
    pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`:UserWarning"),
]


def _trainer(**arguments: Any) -> Trainer:
    return quiet_trainer(max_epochs=1, **arguments)


def _expected(base: Base, beta: float) -> Tensor:
    return base.x + beta * dct_carrier(4, 8)[base.y]


def _images(loader: Any) -> Tensor:
    return torch.cat([x for x, _ in loader])


# the formula


@pytest.mark.parametrize(("beta", "value"), [(0.1, 0.1), ("8/255", 8 / 255), (-0.5, -0.5), (3, 3.0)])
def test_adds_beta_times_the_carrier_and_does_not_clip(beta: float | str, value: float) -> None:
    base = WithClasses()
    x = _images(InjectedFeatureDataModule(base, beta).train_dataloader())
    assert torch.equal(x, _expected(base, value))
    assert x.min() < 0
    assert x.max() > 1


def test_beta_zero_leaves_every_bit() -> None:
    base = WithClasses()
    base.x[:5] = -0.0  # -0.0 + 0.0 would be +0.0
    x = _images(InjectedFeatureDataModule(base, 0).train_dataloader())
    assert torch.equal(x.view(torch.int32), base.x.view(torch.int32))


def test_all_splits_and_nested_loaders_are_injected() -> None:
    base = WithClasses()
    data = InjectedFeatureDataModule(base, 0.1)
    test = data.test_dataloader()
    for loader in (data.train_dataloader(), *data.val_dataloader(), test["a"], test["b"][0]):
        assert torch.equal(_images(loader), _expected(base, 0.1))


def test_a_loader_that_the_base_keeps_is_injected_once_and_stays_clean() -> None:
    base = WithClasses()
    data = InjectedFeatureDataModule(base, 0.1)
    for _ in range(3):
        assert torch.equal(_images(data.train_dataloader()), _expected(base, 0.1))
    assert torch.equal(_images(base.train_dataloader()), base.x)


def test_injecting_twice_on_purpose_adds_up() -> None:
    base = WithClasses()
    data = InjectedFeatureDataModule(InjectedFeatureDataModule(base, 0.25), 0.5)
    expected = _expected(base, 0.25) + 0.5 * dct_carrier(4, 8)[base.y]
    assert torch.equal(_images(data.train_dataloader()), expected)


@pytest.mark.parametrize("collate", [to_list, to_namedtuple, to_dict, to_ordered, to_frozen])
def test_the_batch_keeps_its_type(collate: Callable[[Any], Any]) -> None:
    base = Base(collate)
    is_sequence = collate in (to_list, to_namedtuple)
    keys: tuple[Any, Any] = (0, 1) if is_sequence else ("image", "label")
    data = InjectedFeatureDataModule(base, 0.1, num_classes=4, input_key=keys[0], label_key=keys[1])
    (first, *_), (plain, *_) = list(data.train_dataloader()), list(base.loader)
    assert type(first) is type(plain)
    assert torch.equal(first[keys[0]], _expected(base, 0.1)[:8])
    assert torch.equal(first[keys[1]], base.y[:8])
    assert is_sequence or (list(first) == list(plain) and first["name"] == "batch")


def test_own_carriers_may_differ_per_channel() -> None:
    base, carriers = Base(), torch.rand(4, 3, 8, 8)
    data = InjectedFeatureDataModule(base, 0.5, carriers=carriers)
    assert data.num_classes == 4
    assert torch.equal(_images(data.train_dataloader()), base.x + 0.5 * carriers[base.y])
    assert "carriers" not in data.hparams


def test_a_copied_loader_forgets_workers_that_know_nothing_of_the_injection() -> None:
    base = WithClasses()
    base.loader._iterator = running = object()
    assert InjectedFeatureDataModule(base, 0.1).train_dataloader()._iterator is None
    assert base.loader._iterator is running


@pytest.mark.slow  # once a Trainer has run, torch takes its full five seconds to give each worker up
def test_works_in_worker_processes_even_if_the_bases_workers_live_on() -> None:
    base = WithClasses(workers=1)
    assert torch.equal(_images(base.train_dataloader()), base.x)  # starts workers that know nothing of the injection
    loader = InjectedFeatureDataModule(base, 0.1).train_dataloader()
    assert torch.equal(_images(loader), _expected(base, 0.1))


# inside the Trainer


def test_fit_sees_the_injected_data_through_the_bases_hooks() -> None:
    base = WithClasses()
    data, net = InjectedFeatureDataModule(base, 0.1), Recorder()
    trainer = _trainer(limit_val_batches=0, log_every_n_steps=1)
    trainer.fit(net, datamodule=data)
    assert torch.equal(torch.cat([x for x, _ in net.batches]), _expected(base, 0.1))
    assert base.calls == [("prepare_data", None), ("setup", "fit"), ("teardown", "fit")]
    assert base.trainer is data.trainer is trainer


def test_the_modules_batch_hook_is_not_hidden_and_the_bases_wins() -> None:
    class Doubling(WithClasses):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            assert self.trainer is not None
            return [2 * batch[0], batch[1]]

    plain, net = Recorder(), Recorder()
    for module, base in ((plain, WithClasses()), (net, Doubling())):
        trainer = _trainer(limit_val_batches=0, log_every_n_steps=1)
        trainer.fit(module, datamodule=InjectedFeatureDataModule(base, 0.1))
    assert plain.hooked == 3
    assert net.hooked == 0
    assert torch.equal(torch.cat([x for x, _ in net.batches]), 2 * _expected(base, 0.1))


@pytest.mark.parametrize("loop", ["predict", "overfit"])
def test_loaders_that_lightning_builds_anew_keep_the_injection(loop: str) -> None:
    # Both replace the sampler, by the same code as DDP does.
    class Predicting(WithClasses):
        def predict_dataloader(self) -> Any:
            return DataLoader(TensorDataset(self.x, self.y), batch_size=8)

    base, net = Predicting(), Recorder()
    data = InjectedFeatureDataModule(base, 0.1)
    if loop == "predict":
        seen = torch.cat(_trainer().predict(net, datamodule=data))  # type: ignore[arg-type]
    else:
        _trainer(overfit_batches=3, limit_val_batches=0, log_every_n_steps=1).fit(net, datamodule=data)
        seen = torch.cat([x for x, _ in net.batches])
    assert torch.equal(seen, _expected(base, 0.1))


@needs_lightning("2.0", "a missing loader is another error")
def test_a_loader_the_base_does_not_have_stays_missing() -> None:
    data = InjectedFeatureDataModule(WithClasses(), 0.1)
    with pytest.raises(MisconfigurationException, match="`predict_dataloader` must be implemented"):
        _trainer().predict(Recorder(), datamodule=data)


def test_state_of_the_base_is_saved_and_loaded() -> None:
    class Stateful(WithClasses):
        seen = 0

        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.seen = state_dict["seen"]

    base = Stateful()
    base.seen = 7
    trainer = _trainer(limit_val_batches=0, log_every_n_steps=1)
    trainer.fit(Recorder(), datamodule=InjectedFeatureDataModule(base, 0.1))
    trainer.save_checkpoint("last.ckpt")
    again = Stateful()
    longer = _trainer(limit_val_batches=0, log_every_n_steps=1)
    longer.fit(Recorder(), datamodule=InjectedFeatureDataModule(again, 0.1), ckpt_path="last.ckpt")
    assert again.seen == 7


def test_hyperparameters_are_plain() -> None:
    data = InjectedFeatureDataModule(WithClasses(), "8/255", carriers=torch.ones(4, 1, 8, 8))
    plain = {"beta": "8/255", "num_classes": None, "input_key": 0, "label_key": 1}
    assert dict(data.hparams) == {**plain, "mode": "add", "test_sets": ("injected",)}


def test_can_be_copied_and_pickled() -> None:
    data = InjectedFeatureDataModule(ImageDataModule("digits"), 0.1)
    data.setup("test")
    pickle.dumps(data.test_dataloader())  # what workers that are spawned rather than forked get
    for clone in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):  # noqa: S301  # our own bytes
        clone.setup("test")
        assert clone.base is not data.base
        assert len(_images(clone.test_dataloader())) == 497


# the LightningCLI


@pytest.mark.filterwarnings("ignore:(?s).*:DeprecationWarning")  # how Lightning calls jsonargparse
def test_builds_from_yaml_and_prints_a_configuration_that_builds_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pl-robust"])  # LightningCLI warns of arguments on both sides
    cli: Any = import_module(f"{NAMESPACE}.cli")

    def build(*arguments: str) -> Any:
        return cli.LightningCLI(
            Recorder, LightningDataModule, subclass_mode_data=True, run=False, args=list(arguments)
        ).datamodule

    (tmp_path / "config.yaml").write_text(
        """
        seed_everything: 0
        trainer: {accelerator: cpu, logger: false}
        data:
          class_path: InjectedFeatureDataModule
          init_args:
            beta: 8/255
            base: {class_path: ImageDataModule, init_args: {name: digits, batch_size: 64}}
        """
    )
    data = build("--config=config.yaml", "--data.init_args.base.init_args.eval_batch_size=200")
    with pytest.raises(SystemExit, match="0"):
        build("--config=config.yaml", "--print_config")
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    for datamodule in (data, build("--config=printed.yaml")):
        assert isinstance(datamodule, InjectedFeatureDataModule)
        assert isinstance(datamodule.base, ImageDataModule)
        assert datamodule.num_classes == 10
        assert datamodule.image_shape == (1, 8, 8)
        assert datamodule.hparams["beta"] == "8/255"
        datamodule.setup("fit")
        plain = ImageDataModule("digits")
        plain.setup("fit")
        x, y = next(iter(plain.val_dataloader()))
        assert torch.equal(next(iter(datamodule.val_dataloader()))[0], x + 8 / 255 * dct_carrier(10, 8)[y])
    assert data.base.eval_batch_size == 200


# what it refuses


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"base": nn.Linear(1, 1)}, TypeError, "must be a LightningDataModule, got Linear without"),
        ({"beta": "8 of 255"}, ValueError, "`beta` must be a number or a fraction"),
        ({"beta": float("nan")}, ValueError, "`beta` must be finite"),
        ({"carriers": torch.ones(4, 8, 8)}, ValueError, "got shape"),
        ({"carriers": torch.ones(4, 1, 8, 8), "num_classes": 5}, ValueError, "number of `carriers`, 4, got 5"),
        ({"carriers": torch.ones(0, 1, 8, 8)}, ValueError, r"got shape \[0, 1, 8, 8\]"),
        ({"carriers": torch.full((4, 1, 8, 8), torch.inf)}, ValueError, "`carriers` must be finite"),
        ({"num_classes": 0}, ValueError, "`num_classes` must be a positive integer, got 0"),
        ({"mode": "minus"}, ValueError, "`mode` must be one of add, orthogonal, reverse, got 'minus'"),
        ({"test_sets": ["clean", "clear"]}, ValueError, r"must be a list of clean, .*, got \['clean', 'clear'\]"),
        ({"test_sets": ["clean", "clean"]}, ValueError, "each at most once, got"),
        ({"test_sets": "clean"}, ValueError, "`test_sets` must be a list of .*, got 'clean'"),
        ({"test_sets": []}, ValueError, "`test_sets` must be a list of"),
        ({"test_sets": None}, ValueError, "`test_sets` must be a list of .*, got None"),
    ],
)
def test_refuses_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        InjectedFeatureDataModule(**{"base": WithClasses(), "beta": 0.1, **arguments})


def test_names_the_way_out_if_the_base_does_not_know_its_classes() -> None:
    with pytest.raises(AttributeError, match="Base does not tell `num_classes`: give `num_classes=`"):
        InjectedFeatureDataModule(Base(), 0.1).train_dataloader()
    with pytest.raises(AttributeError, match="Base has no `image_shape`"):
        _ = InjectedFeatureDataModule(Base(), 0.1).image_shape


@pytest.mark.parametrize("beta", [0, 0.1])
def test_refuses_labels_out_of_range(beta: float) -> None:
    base = Base(labels=5)
    with pytest.raises(ValueError, match="labels must be 0 to 3, got 0 to 4; `num_classes`"):
        list(InjectedFeatureDataModule(base, beta, num_classes=4).train_dataloader())
    with pytest.raises(ValueError, match="labels must be 0 to 3, got 0 to 4; `carriers` must hold one for each class"):
        list(InjectedFeatureDataModule(base, beta, carriers=torch.ones(4, 1, 8, 8)).train_dataloader())
    base.y -= 1  # an index of -1 would silently take the last carrier
    with pytest.raises(ValueError, match="labels must be 0 to 4, got -1 to 3"):
        list(InjectedFeatureDataModule(base, beta, num_classes=5).train_dataloader())


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4).long(), TypeError, "got torch.uint8 of shape"),
        (torch.zeros(4, 8, 8), torch.zeros(4).long(), TypeError, r"got torch.float32 of shape \[4, 8, 8\]"),
        (torch.zeros(4, 1, 8, 8), torch.zeros(4), TypeError, r"integers of shape \[4\], got torch.float32"),
        (
            torch.zeros(4, 1, 8, 8),
            torch.zeros(4, 4).long(),
            TypeError,
            r"shape \[4\], got torch.int64 of shape \[4, 4\]",
        ),
        (
            torch.zeros(4, 1, 9, 8),
            torch.zeros(4).long(),
            ValueError,
            r"`carriers` must fit images of shape \[1, 9, 8\]",
        ),
    ],
)
def test_refuses_batches(x: Tensor, y: Tensor, error: type[Exception], message: str) -> None:
    base = Base()
    base.loader = DataLoader(TensorDataset(x, y), 4)
    data = InjectedFeatureDataModule(base, 0.1, carriers=torch.ones(4, 1, 8, 8))
    with pytest.raises(error, match=message):
        list(data.train_dataloader())


def test_names_the_way_out_if_there_are_more_classes_than_carriers() -> None:
    data = InjectedFeatureDataModule(Base(), 0.1, num_classes=1000)
    with pytest.raises(ValueError, match=r"at most \d+ for images of 8x8, got 1000; .* can be given as `carriers=`"):
        list(data.train_dataloader())


def test_refuses_what_is_no_torch_loader() -> None:
    base = WithClasses()
    base.loader = iter([])
    with pytest.raises(TypeError, match=r"must give torch DataLoaders.*inject inside its data set instead"):
        InjectedFeatureDataModule(base, 0.1).train_dataloader()
