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

from pl_robust._lightning import NAMESPACE, LightningDataModule, MisconfigurationException
from pl_robust.datamodules import ImageDataModule, InjectedFeatureDataModule, LowPassDataModule
from pl_robust.transforms import dct_carrier, dct_low_pass
from tests.datamodules.toys import Base, Recorder, WithClasses, to_dict, to_frozen, to_list, to_namedtuple, to_ordered
from tests.toys import quiet_trainer

pytestmark = [
    pytest.mark.lightning,
    pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`:UserWarning"),
]


class Predicting(WithClasses):
    def predict_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.x, self.y), batch_size=8)


def _images(loader: Any) -> Tensor:
    return torch.cat([x for x, _ in loader])


def _filtered(x: Tensor, bandwidth: int | tuple[int, int] = 4) -> Tensor:
    return torch.cat(
        [dct_low_pass(part, bandwidth) for part in torch.split(x, 8)]
    )  # in the batches of the toy's loader


# what it does to the batches


@pytest.mark.parametrize("bandwidth", [1, 4, (8, 3), 8])
def test_filters_all_splits_and_nested_loaders(bandwidth: int | tuple[int, int]) -> None:
    base = Predicting()
    data = LowPassDataModule(base, bandwidth)
    test = data.test_dataloader()
    splits = (data.train_dataloader(), *data.val_dataloader(), test["a"], test["b"][0], data.predict_dataloader())
    for loader in splits:
        assert torch.equal(_images(loader), _filtered(base.x, bandwidth))
        assert torch.equal(torch.cat([y for _, y in loader]), base.y)


def test_does_not_clip() -> None:
    base = WithClasses()
    base.x[..., :4], base.x[..., 4:] = 0, 1
    x = _images(LowPassDataModule(base, 3).train_dataloader())
    assert x.min() < 0
    assert x.max() > 1


def test_a_loader_that_the_base_keeps_stays_as_it_is() -> None:
    base = WithClasses()
    base.loader._iterator = running = object()
    data = LowPassDataModule(base, 4)
    for _ in range(2):
        loader = data.train_dataloader()
        assert loader._iterator is None
        assert torch.equal(_images(loader), _filtered(base.x))
    assert base.loader._iterator is running
    assert torch.equal(_images(base.loader), base.x)


@pytest.mark.parametrize("collate", [to_list, to_namedtuple, to_dict, to_ordered, to_frozen])
def test_the_batch_keeps_its_type(collate: Callable[[Any], Any]) -> None:
    base = Base(collate)
    is_sequence = collate in (to_list, to_namedtuple)
    key: Any = 0 if is_sequence else "image"
    (first, *_), (plain, *_) = list(LowPassDataModule(base, 4, input_key=key).train_dataloader()), list(base.loader)
    assert type(first) is type(plain)
    assert torch.equal(first[key], _filtered(base.x)[:8])
    assert torch.equal(first[1 if is_sequence else "label"], base.y[:8])
    assert is_sequence or (list(first) == list(plain) and first["name"] == "batch")


def test_needs_no_labels() -> None:
    base: Any = Base()
    base.loader = DataLoader(TensorDataset(base.x), 8)
    assert torch.equal(torch.cat([x for (x,) in LowPassDataModule(base, 4).train_dataloader()]), _filtered(base.x))
    base.loader = DataLoader(base.x, 8)  # batches that are tensors
    assert torch.equal(torch.cat(list(LowPassDataModule(base, 4).train_dataloader())), _filtered(base.x))


@pytest.mark.slow  # once a Trainer has run, torch takes its full five seconds to give each worker up
def test_works_in_worker_processes_even_if_the_bases_workers_live_on() -> None:
    base = WithClasses(workers=1)
    assert torch.equal(_images(base.train_dataloader()), base.x)  # starts workers that know nothing of the filter
    assert torch.equal(_images(LowPassDataModule(base, 4).train_dataloader()), _filtered(base.x))


# around and inside other datamodules


def test_filters_an_injected_feature_and_takes_one() -> None:
    base = WithClasses()
    carriers = dct_carrier(4, 8)[base.y]
    around = LowPassDataModule(InjectedFeatureDataModule(base, 0.1), 4)
    assert around.num_classes == 4
    assert torch.equal(_images(around.train_dataloader()), _filtered(base.x + 0.1 * carriers))
    inside = InjectedFeatureDataModule(LowPassDataModule(base, 4), 0.1)
    assert torch.equal(_images(inside.train_dataloader()), _filtered(base.x) + 0.1 * carriers)


def test_keeps_the_names_of_test_sets() -> None:
    base = WithClasses()
    base.test_dataloader = lambda: base.loader  # type: ignore[method-assign]
    sets = LowPassDataModule(InjectedFeatureDataModule(base, 0.1, test_sets=["clean", "injected"]), 4).test_dataloader()
    clean, injected = sets.values() if isinstance(sets, dict) else sets
    assert isinstance(sets, list) or list(sets) == ["clean", "injected"]
    assert torch.equal(_images(clean), _filtered(base.x))
    assert torch.equal(_images(injected), _filtered(base.x + 0.1 * dct_carrier(4, 8)[base.y]))


def test_a_loader_the_base_does_not_have_stays_missing_through_two_wrappers() -> None:
    class Training(LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(TensorDataset(torch.rand(8, 1, 8, 8), torch.zeros(8).long()), 4)

    data = LowPassDataModule(LowPassDataModule(Training(), 6), 4)
    net = Recorder()
    # Its validation_step would be run if there seemed to be a loader, and that loader's error end the fit.
    quiet_trainer(max_epochs=1, log_every_n_steps=1).fit(net, datamodule=data)
    assert len(net.batches) == 2
    with pytest.raises((MisconfigurationException, ValueError), match="predict_dataloader"):  # 1.9 has words of its own
        quiet_trainer().predict(net, datamodule=data)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
def test_wraps_a_datamodule_made_of_data_sets() -> None:
    x = torch.rand(16, 3, 8, 8)
    base = LightningDataModule.from_datasets(train_dataset=TensorDataset(x, torch.zeros(16).long()), batch_size=16)
    ((first, _),) = LowPassDataModule(base, 4).train_dataloader()
    order = torch.cdist(first.flatten(1), dct_low_pass(x, 4).flatten(1)).argmin(1)  # its training data is shuffled
    torch.testing.assert_close(first, dct_low_pass(x, 4)[order])


# inside the Trainer


def test_fit_sees_the_filtered_data_through_the_bases_hooks() -> None:
    class Doubling(WithClasses):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            assert self.trainer is not None
            return [2 * batch[0], batch[1]]

    base, net = Doubling(), Recorder()
    data = LowPassDataModule(base, 4)
    trainer = quiet_trainer(max_epochs=1, limit_val_batches=0, log_every_n_steps=1)
    trainer.fit(net, datamodule=data)
    assert torch.equal(torch.cat([x for x, _ in net.batches]), 2 * _filtered(base.x))
    assert base.calls == [("prepare_data", None), ("setup", "fit"), ("teardown", "fit")]
    assert net.hooked == 0
    assert base.trainer is data.trainer is trainer


def test_predict_sees_the_filtered_data_through_a_loader_that_lightning_builds_anew() -> None:
    base = Predicting()
    seen: Any = quiet_trainer().predict(Recorder(), datamodule=LowPassDataModule(base, 4))
    assert torch.equal(torch.cat(seen), _filtered(base.x))


def test_hyperparameters_are_plain() -> None:
    assert dict(LowPassDataModule(WithClasses(), (8, 4)).hparams) == {"bandwidth": (8, 4), "input_key": 0}


def test_can_be_copied_and_pickled() -> None:
    data = LowPassDataModule(ImageDataModule("digits"), 4)
    data.setup("test")
    pickle.dumps(data.test_dataloader())  # what workers that are spawned rather than forked get
    for clone in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):  # noqa: S301  # our own bytes
        clone.setup("test")
        assert clone.base is not data.base
        assert torch.equal(_images(clone.test_dataloader()), _images(data.test_dataloader()))


# the LightningCLI


@pytest.mark.filterwarnings("ignore:(?s).*:DeprecationWarning")  # how Lightning calls jsonargparse
@pytest.mark.parametrize(("written", "bandwidth"), [("5", 5), ("[5, 3]", (5, 3))])
def test_builds_from_yaml_and_prints_a_configuration_that_builds_the_same(
    written: str, bandwidth: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pl-robust"])  # LightningCLI warns of arguments on both sides
    cli: Any = import_module(f"{NAMESPACE}.cli")

    def build(*arguments: str) -> Any:
        return cli.LightningCLI(
            Recorder, LightningDataModule, subclass_mode_data=True, run=False, args=list(arguments)
        ).datamodule

    (tmp_path / "config.yaml").write_text(
        f"""
        seed_everything: 0
        trainer: {{accelerator: cpu, logger: false}}
        data:
          class_path: LowPassDataModule
          init_args:
            bandwidth: {written}
            base: {{class_path: ImageDataModule, init_args: {{name: digits, eval_batch_size: 200}}}}
        """
    )
    data = build("--config=config.yaml")
    with pytest.raises(SystemExit, match="0"):
        build("--config=config.yaml", "--print_config")
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    for datamodule in (data, build("--config=printed.yaml")):
        assert isinstance(datamodule, LowPassDataModule)
        assert datamodule.num_classes == 10
        assert datamodule.image_shape == (1, 8, 8)
        datamodule.setup("fit")
        plain = ImageDataModule("digits", eval_batch_size=200)
        plain.setup("fit")
        x, _ = next(iter(plain.val_dataloader()))
        assert torch.equal(next(iter(datamodule.val_dataloader()))[0], dct_low_pass(x, bandwidth))


# what it refuses


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"base": nn.Linear(1, 1)}, TypeError, "must be a LightningDataModule, got Linear without"),
        ({"bandwidth": 0}, ValueError, "`bandwidth` must be at least 1, got 0"),
        ({"bandwidth": 0.5}, TypeError, "`bandwidth` must be an integer, got 0.5"),
    ],
)
def test_refuses_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LowPassDataModule(**{"base": WithClasses(), "bandwidth": 4, **arguments})


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.zeros(4, 3, 8, 6), ValueError, "`bandwidth` must be at most the size of the images, 8x6, got 7"),
        (torch.zeros(4, 3, 8, 8).byte(), TypeError, "got torch.uint8 of shape"),
        (
            torch.zeros(4, 64),
            TypeError,
            r"float images \[B, C, H, W\] .*of shape \[4, 64\]; `input_key`",
        ),
    ],
)
def test_refuses_batches(data: Tensor, error: type[Exception], message: str) -> None:
    base = Base()
    base.loader = DataLoader(TensorDataset(data), 4)
    with pytest.raises(error, match=message):
        list(LowPassDataModule(base, 7).train_dataloader())


def test_names_what_is_missing() -> None:
    base = Base()
    with pytest.raises(KeyError, match="`input_key`='image' is not in the batch, which has"):
        list(LowPassDataModule(base, 4, input_key="image").train_dataloader())
    with pytest.raises(AttributeError, match="Base has no `num_classes`; give it that attribute"):
        _ = LowPassDataModule(base, 4).num_classes
    base.loader = iter([])
    with pytest.raises(TypeError, match=r"must give torch DataLoaders.*filter inside its data set instead"):
        LowPassDataModule(base, 4).train_dataloader()
