from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from pl_robust._lightning import LightningDataModule, LightningModule
from pl_robust.attacks import FGSM
from pl_robust.callbacks import CorruptionEvaluator
from pl_robust.cli import main, run
from pl_robust.datamodules import (
    CorruptedImageDataModule,
    ImageDataModule,
    InjectedFeatureDataModule,
    LowPassDataModule,
)
from pl_robust.modules import AdversarialTraining
from pl_robust.transforms import dct_low_pass
from pl_robust.transforms.corruption import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt
from tests._processes import run_ranks
from tests.datamodules.corruption_toys import COUNT, NAMES, pixel, write_arrays
from tests.datamodules.toys import to_dict, to_frozen, to_list, to_namedtuple, to_ordered
from tests.toys import OLD, quiet_trainer

pytestmark = pytest.mark.lightning

CHOICE = ["gaussian_noise", "fog"]


class Images(LightningDataModule):
    """A user's datamodule: 20 training, 11 validation and 21 test images; hooks that say when they are called."""

    num_classes = 3

    def __init__(self, side: int = 32, batch_size: int = 8, workers: int = 0, collate: Any = default_collate) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.x = {
            split: torch.rand(size, 3, side, side, generator=generator)
            for split, size in (("train", 20), ("val", 11), ("test", 21))
        }
        self.settings = {"batch_size": batch_size, "num_workers": workers, "collate_fn": collate}
        self.calls: list[tuple[str, Any]] = []

    def setup(self, stage: str | None = None) -> None:
        self.calls.append(("setup", stage))

    def data(self, split: str) -> TensorDataset:
        return TensorDataset(self.x[split], torch.arange(len(self.x[split])) % 3)

    def train_dataloader(self) -> Any:
        return DataLoader(self.data("train"), **self.settings)

    def val_dataloader(self) -> Any:
        return DataLoader(self.data("val"), **self.settings)

    def test_dataloader(self) -> Any:
        return DataLoader(self.data("test"), **self.settings)

    def predict_dataloader(self) -> Any:
        return self.test_dataloader()


class Watcher(LightningModule):
    """Keeps the images of each loop, by the loader's index."""

    def __init__(self, input_key: Any = 0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.input_key = input_key
        self.seen: dict[tuple[str, int], list[Any]] = {}

    def images(self, loop: str, loader: int = 0) -> Tensor:
        return torch.cat(
            [batch if isinstance(batch, Tensor) else batch[self.input_key] for batch in self.seen[loop, loader]]
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.setdefault(("fit", 0), []).append(batch)
        mean: Tensor = batch[0].mean()
        return self.scale * mean

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seen.setdefault(("validate", dataloader_idx), []).append(batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seen.setdefault(("test", dataloader_idx), []).append(batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return batch[0]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


def suite(data: CorruptedImageDataModule, split: str = "test") -> dict[str, Any]:
    sets = data.test_dataloader() if split == "test" else data.val_dataloader()
    names = [*["clean"] * data.clean, *(f"{name}/{s}" for name in data.corruptions for s in data.severities)]
    return sets if isinstance(sets, dict) else dict(zip(names, sets, strict=True))


def images(loader: Any) -> Tensor:
    return torch.cat([x for x, _ in loader])


def expected(x: Tensor, name: str, severity: int, table: Any = "cifar") -> Tensor:
    return corrupt(x, name, severity, table=table, seeds=torch.arange(len(x)))


def corrupted(base: LightningDataModule | None = None, **arguments: Any) -> CorruptedImageDataModule:
    return CorruptedImageDataModule(base, **{"corruptions": CHOICE, "severities": [1, 5], **arguments})


# made from the base's images


def test_one_loader_for_each_corruption_and_severity_behind_the_clean_one() -> None:
    base = Images()
    sets = suite(corrupted(base))
    assert list(sets) == ["clean", "gaussian_noise/1", "gaussian_noise/5", "fog/1", "fog/5"]
    assert torch.equal(images(sets.pop("clean")), base.x["test"])
    for key, loader in sets.items():
        name, severity = key.split("/")
        assert torch.equal(images(loader), expected(base.x["test"], name, int(severity)))
        assert torch.equal(torch.cat([y for _, y in loader]), torch.arange(21) % 3)
    assert list(suite(corrupted(base, clean=False))) == list(sets)


def test_names_of_the_benchmark_and_of_all() -> None:
    benchmark, every = (suite(CorruptedImageDataModule(Images(), corruptions=which)) for which in ("benchmark", "all"))
    assert list(benchmark) == ["clean", *(f"{name}/{s}" for name in CORRUPTIONS for s in range(1, 6))]
    assert list(every) == [*benchmark, *(f"{name}/{s}" for name in EXTRA_CORRUPTIONS for s in range(1, 6))]


@pytest.mark.parametrize(("side", "table"), [(32, "cifar"), (48, "cifar"), (64, "tiny_imagenet"), (97, "imagenet")])
def test_the_table_is_that_of_images_of_this_size_unless_given(side: int, table: str) -> None:
    base = Images(side)
    base.x["test"] = base.x["test"][:2]
    (chosen,) = suite(corrupted(base, corruptions=["fog"], severities=[3], clean=False)).values()
    assert torch.equal(images(chosen), expected(base.x["test"], "fog", 3, table))
    given = suite(corrupted(base, corruptions=["fog"], severities=[3], table="imagenet"))["fog/3"]
    assert torch.equal(images(given), expected(base.x["test"], "fog", 3, "imagenet"))


def test_an_image_is_the_same_in_any_batch_and_order() -> None:
    base = Images()
    wanted = images(suite(corrupted(base))["fog/5"])
    for size in (1, 7, 64):
        assert torch.equal(images(suite(corrupted(Images(batch_size=size)))["fog/5"]), wanted)

    class Shuffled(Images):
        def test_dataloader(self) -> Any:
            sampler = BatchSampler(RandomSampler(self.data("test")), 5, drop_last=True)
            return DataLoader(TensorDataset(self.x["test"], torch.arange(21)), batch_sampler=sampler)

    batches = list(suite(corrupted(Shuffled()))["fog/5"])
    order = torch.cat([y for _, y in batches])
    assert not torch.equal(order, order.sort().values)
    assert len(order) == 20
    assert torch.equal(torch.cat([x for x, _ in batches]), wanted[order])


@pytest.mark.slow  # torch takes seconds to start workers and give them up
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_worker_processes_make_the_same(start: str) -> None:
    class Working(Images):
        def test_dataloader(self) -> Any:
            return DataLoader(
                self.data("test"),
                4,
                num_workers=2 if start == "fork" else 1,
                persistent_workers=True,
                multiprocessing_context=start,
            )

    alone, together = (suite(corrupted(base)) for base in (Images(), Working()))
    for key in ("fog/5", "gaussian_noise/1")[: 2 if start == "fork" else 1]:  # spawning takes a minute
        assert torch.equal(images(together[key]), images(alone[key]))
    assert not together["fog/5"].persistent_workers


def test_the_index_is_that_in_the_split() -> None:
    class Halves(Images):
        def val_dataloader(self) -> Any:
            return DataLoader(Subset(self.data("train"), range(10, 20)), 4)

    base = Halves()
    assert torch.equal(images(suite(corrupted(base), "val")["fog/1"]), expected(base.x["train"][10:], "fog", 1))


@pytest.mark.parametrize("collate", [to_list, to_namedtuple, to_dict, to_ordered, to_frozen])
def test_the_batch_keeps_its_type(collate: Callable[[Any], Any]) -> None:
    base = Images(collate=collate)
    is_sequence = collate in (to_list, to_namedtuple)
    key: Any = 0 if is_sequence else "image"
    data, net = corrupted(base, input_key=key), Watcher(key)
    quiet_trainer().test(net, datamodule=data, verbose=False)
    (plain, *_) = base.test_dataloader()
    assert torch.equal(net.images("test", 3), expected(base.x["test"], "fog", 1))
    first = net.seen["test", 3][0]
    assert type(first) is type(plain)
    assert torch.equal(first[1 if is_sequence else "label"], torch.arange(8) % 3)
    assert is_sequence or (list(first) == list(plain) and first["name"] == "batch")


def test_batches_that_are_tensors() -> None:
    class Bare(Images):
        def test_dataloader(self) -> Any:
            return DataLoader(self.x["test"], 4)  # type: ignore[arg-type]  # anything with indices

    base, net = Bare(), Watcher()
    quiet_trainer().test(net, datamodule=corrupted(base), verbose=False)
    assert torch.equal(net.images("test", 4), expected(base.x["test"], "fog", 5))


# inside the Trainer


def test_fit_and_predict_see_the_clean_data_validate_and_test_the_suite() -> None:
    base, net = Images(), Watcher()
    data = corrupted(base)
    quiet_trainer(max_epochs=1, num_sanity_val_steps=0, log_every_n_steps=1).fit(net, datamodule=data)
    assert torch.equal(net.images("fit"), base.x["train"])
    assert torch.equal(net.images("validate"), base.x["val"])
    assert list(net.seen) == [("fit", 0), ("validate", 0)]  # one validation loader, whose metrics keep their names
    for loop, split in (("validate", "val"), ("test", "test")):
        net.seen.clear()
        getattr(quiet_trainer(), loop)(net, datamodule=data, verbose=False)
        assert list(net.seen) == [(loop, index) for index in range(5)]
        assert torch.equal(net.images(loop, 0), base.x[split])
        assert torch.equal(net.images(loop, 2), expected(base.x[split], "gaussian_noise", 5))
    assert torch.equal(torch.cat(quiet_trainer().predict(net, datamodule=data)), base.x["test"])  # type: ignore[arg-type]
    assert base.calls == [("setup", stage) for stage in ("fit", "validate", "test", "predict")]


def test_loaders_handed_to_the_trainer_without_the_datamodule_are_corrupted_too() -> None:
    base, net = Images(), Watcher()
    quiet_trainer().test(net, dataloaders=corrupted(base).test_dataloader(), verbose=False)
    assert torch.equal(net.images("test", 4), expected(base.x["test"], "fog", 5))


def test_fit_without_validation_data_stays_without() -> None:
    class Training(LightningDataModule):
        def train_dataloader(self) -> Any:
            return Images().train_dataloader()

    net = Watcher()
    quiet_trainer(max_epochs=1, log_every_n_steps=1).fit(net, datamodule=corrupted(Training()))
    assert list(net.seen) == [("fit", 0)]


class Hooked(Images):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.calls.append(("before", type(batch)))
        return [batch[0].flip(3), batch[1]]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        self.calls.append(("transfer", type(batch)))
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.calls.append(("after", type(batch)))
        return [batch[0] * 2 - 1, batch[1]]  # normalizes


def test_the_bases_hooks_are_called_and_the_corruption_lies_between_transfer_and_after() -> None:
    base, net = Hooked(batch_size=30), Watcher()
    quiet_trainer().test(net, datamodule=corrupted(base, severities=[2]), verbose=False)
    assert base.calls[1:] == [("before", list), ("transfer", list), ("after", list)] * 3
    flipped = base.x["test"].flip(3)
    assert torch.equal(net.images("test", 0), flipped * 2 - 1)
    assert torch.equal(net.images("test", 2), expected(flipped, "fog", 2) * 2 - 1)


class HookedWatcher(Watcher):
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        x, y = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return [x.flip(3), y]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * 2 - 1, batch[1]]


@pytest.mark.filterwarnings("ignore:You have overridden `transfer_batch_to_device` in both:UserWarning")
@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer` in `LightningModule`:UserWarning")
def test_the_modules_hooks_are_called_where_the_base_has_none() -> None:
    base, net = Images(), HookedWatcher()
    quiet_trainer().test(net, datamodule=corrupted(base, severities=[2]), verbose=False)
    flipped = base.x["test"].flip(3)
    assert torch.equal(net.images("test", 0), flipped * 2 - 1)
    assert torch.equal(net.images("test", 2), expected(flipped, "fog", 2) * 2 - 1)


@pytest.mark.skipif(OLD, reason="Lightning 1.9 has no half precision on CPUs")
def test_half_precision_comes_behind_the_corruption() -> None:
    base, net = Images(), Watcher()
    quiet_trainer(precision="bf16-true").test(net, datamodule=corrupted(base), verbose=False)
    assert net.images("test", 0).dtype == torch.bfloat16
    assert torch.equal(net.images("test", 4), expected(base.x["test"], "fog", 5).bfloat16())


def _test_on_ranks(folder: Path, ranks: int) -> list[dict[str, float]]:
    torch.manual_seed(0)
    base = Images(batch_size=4)
    base.x["test"] = base.x["test"][..., :16, :16].contiguous()
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    module = AdversarialTraining(net, FGSM(0.01), num_classes=3, eval_attacks={})
    found = []
    for data in (corrupted(base), corrupted(base, data_dir=folder, batch_size=2)):
        trainer = quiet_trainer(**({"strategy": "ddp", "devices": ranks} if ranks > 1 else {}))
        trainer.test(module, datamodule=data, verbose=False)
        found.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    return found


@pytest.mark.filterwarnings("ignore:Using `DistributedSampler` with the dataloaders")
def test_two_ranks_count_what_one_counts(tmp_path: Path) -> None:
    """21 images of the base, 9 of the files: neither divides by 2, nor by the batch size."""
    folder = write_arrays(tmp_path / "c", CHOICE, side=16)
    alone = _test_on_ranks(folder, 1)
    assert [len(metrics) for metrics in alone] == [3 * 5, 3 * 5]  # loss, acc and acc_adv of clean and 2 x 2
    for together in run_ranks(_test_on_ranks, 2, folder, 2):
        for metrics, wanted in zip(together, alone, strict=True):
            assert metrics == pytest.approx(wanted, abs=1e-6)


# read from files: test_corruption_arrays.py and test_corruption_folders.py show what is read


@pytest.mark.parametrize("loop", ["validate", "test"])
def test_files_stand_beside_the_clean_test_images(loop: str, tmp_path: Path) -> None:
    base, net = Images(), Watcher()
    data = corrupted(base, data_dir=write_arrays(tmp_path / "c"), corruptions=list(NAMES), batch_size=4)
    getattr(quiet_trainer(), loop)(net, datamodule=data, verbose=False)
    assert len(net.seen) == 5
    assert torch.equal(net.images(loop, 0), base.x["test"])
    values = (net.images(loop, 2)[:, 0, 0, 0] * 255).round()
    assert values.tolist() == [pixel("fog", 5, index) for index in range(COUNT)]
    assert base.calls == [("setup", stage) for stage in dict.fromkeys((loop, "test"))]


def test_files_pass_the_bases_hooks_and_fit_does_not_look_at_them(tmp_path: Path) -> None:
    base, net = Hooked(), Watcher()
    data = corrupted(base, data_dir=tmp_path / "nowhere")
    quiet_trainer(max_epochs=1, num_sanity_val_steps=0, log_every_n_steps=1).fit(net, datamodule=data)
    assert torch.equal(net.images("validate"), base.x["val"].flip(3) * 2 - 1)
    net.seen.clear()
    data = corrupted(base, data_dir=write_arrays(tmp_path / "c", CHOICE))
    quiet_trainer().test(net, datamodule=data, verbose=False)
    plain = images(suite(data)["fog/5"])
    assert torch.equal(net.images("test", 4), plain.flip(3) * 2 - 1)


def test_files_need_no_base(tmp_path: Path) -> None:
    net = Watcher()
    data = corrupted(data_dir=write_arrays(tmp_path / "c", CHOICE))
    assert (data.num_classes, data.image_shape) == (3, (3, 6, 4))
    for loop in ("validate", "test"):
        getattr(quiet_trainer(), loop)(net, datamodule=data, verbose=False)
        assert len(net.images(loop, 3)) == COUNT
    with pytest.raises(ValueError, match=r"`base` must be given to `fit`|train_dataloader"):
        quiet_trainer(max_epochs=1).fit(net, datamodule=data)


def test_files_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = corrupted(data_dir=write_arrays(tmp_path / "c", CHOICE))
    for _ in range(2):
        data.setup("test")
    monkeypatch.setattr(np.lib.format, "open_memmap", None)  # a second check would call it
    data.setup("test")
    assert data._is_checked


# around and inside other datamodules


def test_corrupts_what_other_datamodules_make() -> None:
    base = Images()
    base.x["test"] = base.x["test"] * 0.5 + 0.25
    data = corrupted(LowPassDataModule(base, 16))
    assert data.num_classes == 3
    low = torch.cat([dct_low_pass(part, 16) for part in torch.split(base.x["test"], 8)])
    assert torch.equal(images(suite(data)["fog/5"]), expected(low, "fog", 5))


def test_other_datamodules_change_what_files_hold_but_not_what_is_still_to_be_corrupted(tmp_path: Path) -> None:
    data = corrupted(data_dir=write_arrays(tmp_path / "c", CHOICE))
    stored = images(suite(data)["fog/5"])
    around = LowPassDataModule(data, 2)
    assert around.num_classes == 3
    sets = around.test_dataloader()
    low = images(sets["fog/5"] if isinstance(sets, dict) else sets[-1])
    assert torch.equal(low, dct_low_pass(stored, 2))
    wrong = InjectedFeatureDataModule(corrupted(Images()), 0.1).test_dataloader()
    with pytest.raises(TypeError, match=r"a batch must be a tuple.*got PendingCorruption"):
        list(wrong["fog/5"] if isinstance(wrong, dict) else wrong[-1])


def test_hyperparameters_are_plain_and_copies_work(tmp_path: Path) -> None:
    data = corrupted(ImageDataModule("digits"), data_dir=tmp_path)
    assert data.hparams["data_dir"] == str(tmp_path)
    assert "base" not in data.hparams
    data = corrupted(Images())
    pickle.dumps(suite(data)["fog/5"])  # what workers that are spawned rather than forked get
    for clone in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):  # noqa: S301  # our own bytes
        assert clone.base is not data.base
        assert torch.equal(images(suite(clone)["fog/5"]), images(suite(data)["fog/5"]))


def test_agrees_with_the_evaluator() -> None:
    torch.manual_seed(0)
    module = AdversarialTraining(
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3)), FGSM(0.01), num_classes=3, eval_attacks={}
    )
    evaluator = CorruptionEvaluator(CHOICE, severities=[1, 5])
    quiet_trainer(callbacks=[evaluator]).test(module, datamodule=Images(batch_size=5), verbose=False)
    trainer = quiet_trainer()
    trainer.test(module, datamodule=corrupted(Images()), verbose=False)
    for number, name in enumerate(f"{name}/{severity}" for name in CHOICE for severity in (1, 5)):
        end = f"dataloader_idx_{number + 1}" if OLD else name
        accuracy = float(trainer.callback_metrics[f"test/acc/{end}"])
        kind, _, severity = name.partition("/")
        assert accuracy == pytest.approx(evaluator.history[0]["acc"][kind][severity == "5"], abs=1e-6)


# the command line


@pytest.mark.skipif(OLD, reason="Lightning 1.9 takes no dict of loaders, and a table needs their names")
def test_the_command_prints_a_table_by_corruption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_arrays(tmp_path / "c", NAMES, side=32)
    path = tmp_path / "run.yaml"
    path.write_text(
        """
        trainer:
          accelerator: cpu
          logger: false
          enable_progress_bar: false
          enable_model_summary: false
          limit_test_batches: 1
        model:
          class_path: AdversarialTraining
          init_args:
            net: {class_path: SmallCNN, init_args: {in_channels: 1}}
            eval_attacks: {}
            attack: {class_path: FGSM, init_args: {eps: 8/255}}
        data:
          class_path: CorruptedImageDataModule
          init_args:
            corruptions: [fog, gaussian_noise]
            severities: [2, 5]
            base: {class_path: ImageDataModule, init_args: {name: digits, image_size: 32, eval_batch_size: 32}}
        """
    )
    suite = ["fog/2", "fog/5", "gaussian_noise/2", "gaussian_noise/5"]
    files_only = path.read_text().replace("in_channels: 1", "in_channels: 3").split("            base:")[0]
    for content, names in ((path.read_text(), ["clean", *suite]), (files_only + "            data_dir: c\n", suite)):
        path.write_text(content)
        cli = run(["test", "--config", "run.yaml"])
        assert cli.model.num_classes == (10 if "clean" in names else 3)
        table = capsys.readouterr().out.splitlines()
        rows = [line.split() for line in table if line.split()[:1] and line.split()[0] in ("clean", *suite)]
        accuracies = [float(cli.trainer.callback_metrics[f"test/acc/{name}"]) for name in names]
        assert [row[:2] for row in rows] == [[name, f"{acc:.1%}"] for name, acc in zip(names, accuracies, strict=True)]
    with pytest.raises(SystemExit, match="2"):
        main(["test", "--config", "run.yaml", "--data.data_dir=nowhere"])
    assert "error: `data_dir`='nowhere' is no folder; it must be the one" in capsys.readouterr().err


# what it refuses


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"base": None}, ValueError, "give `base`, whose images are to be corrupted, or `data_dir`"),
        ({"base": nn.Linear(1, 1)}, TypeError, "must be a LightningDataModule, got Linear without"),
        ({"corruptions": "fog"}, ValueError, "must be 'benchmark', 'all' or a list of names, got 'fog'"),
        ({"corruptions": ["fogg"]}, ValueError, r"must be among gaussian_noise, .*got 'fogg' \(did you mean 'fog'\?\)"),
        ({"corruptions": ["fog", "fog"]}, ValueError, "`corruptions` must hold .* none of them twice"),
        ({"severities": [0]}, ValueError, r"`severities` must be some of 1 to 5, .*got \[0\]"),
        ({"severities": ["3"]}, TypeError, r"`severities` must be a list of integers, got \['3'\]"),
        ({"table": "cifar10"}, ValueError, "`table` must be one of cifar, tiny_imagenet, imagenet or None"),
        ({"base": None, "data_dir": "c", "clean": True}, ValueError, "`clean`=True takes the clean images from `base`"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1, got 0"),
        ({"num_workers": -1}, ValueError, "`num_workers` must be 0 or more, got -1"),
    ],
)
def test_refuses_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CorruptedImageDataModule(**{"base": Images(), **arguments})


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        ([], ValueError, "`base` must have one test loader, whose images are corrupted, Images gives 0"),
        ([1, 2], ValueError, "Images gives 2"),
        (iter([]), TypeError, "images can be corrupted that come from a torch DataLoader, got list_iterator"),
        (DataLoader(Stream()), TypeError, r"and an IterableDataset has none \(Stream\)"),
        (DataLoader(TensorDataset(torch.rand(2)), batch_size=None), ValueError, "let the DataLoader make the batches"),
    ],
)
def test_refuses_loaders_without_indices(loader: Any, error: type[Exception], message: str) -> None:
    base = Images()
    base.test_dataloader = lambda: loader  # type: ignore[method-assign]
    with pytest.raises(error, match=message):
        corrupted(base).test_dataloader()


def test_refuses_images_that_are_normalized_already() -> None:
    base = Images()
    base.x["test"] = base.x["test"] * 2 - 1
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\] to be corrupted, got values from -1 to 1; leave it to"):
        quiet_trainer().test(Watcher(), datamodule=corrupted(base), verbose=False)


def test_refuses_integer_images_and_other_keys() -> None:
    base = Images()
    base.x["test"] = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"torch.uint8; divide uint8 images by 255"):
        quiet_trainer().test(Watcher(), datamodule=corrupted(base), verbose=False)
    with pytest.raises(KeyError, match="`input_key`='image' is not in the batch, which has"):
        quiet_trainer().test(Watcher(), datamodule=corrupted(Images(), input_key="image"), verbose=False)
