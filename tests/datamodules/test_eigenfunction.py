from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, default_collate, random_split

from pl_robust._lightning import LightningDataModule
from pl_robust.cli import main, run
from pl_robust.datamodules import (
    EigenfunctionDataModule,
    ImageDataModule,
    InjectedFeatureDataModule,
    LinearlySeparableDataModule,
)
from pl_robust.models import MLP, BinaryLogits
from pl_robust.modules import LinearizedTraining
from pl_robust.ntk import ntk_eigh
from pl_robust.transforms import dct_carrier
from tests._processes import run_ranks
from tests.datamodules.toys import Base, Recorder, WithClasses, to_dict, to_frozen, to_list, to_namedtuple
from tests.ntk._dense import kernel
from tests.toys import needs_lightning, needs_shared_shuffling, quiet_trainer

pytestmark = [
    pytest.mark.lightning,
    pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`:UserWarning"),
    pytest.mark.filterwarnings(
        "ignore:the task is made from (Module|Flat).net, without:UserWarning"
    ),  # the toy's scale
]


class Splits(LightningDataModule):
    """Vectors of 6 entries: 14 to train on, shuffled, 5 to validate and 8 to test."""

    def __init__(self, collate: Callable[[Any], Any] = default_collate, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(27, 6, generator=generator)
        self.collate = collate
        self.stages: list[str | None] = []

    def part(self, first: int, last: int) -> TensorDataset:
        return TensorDataset(self.x[first:last], torch.full((last - first,), 7))

    def setup(self, stage: str | None = None) -> None:
        self.stages.append(stage)

    def train_dataloader(self) -> Any:
        return DataLoader(self.part(0, 14), 4, shuffle=True, collate_fn=self.collate)

    def val_dataloader(self) -> Any:
        return DataLoader(self.part(14, 19), 4, collate_fn=self.collate)

    def test_dataloader(self) -> Any:
        return DataLoader(self.part(19, 27), 4, collate_fn=self.collate)


class Module(Recorder):
    """A module as users write them, with its network as ``net``."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = MLP(6, 1, hidden=(5,), activation="tanh")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batches.append(batch)
        loss: Tensor = (self.net(batch[0])[:, 0] - batch[1]).square().mean()
        return self.scale * loss  # DDP wants all parameters used

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def linear() -> nn.Module:
    return nn.Linear(6, 1, bias=False)  # its kernel is x xᵀ


def labels_of(kernel_matrix: Tensor, index: int) -> Tensor:
    _, vectors = torch.linalg.eigh(kernel_matrix.double())
    vector = vectors[:, -1 - index]
    sign = vector[vector.abs().argmax()].sign()
    labels: Tensor = (sign * vector > 0).long()
    return labels


def task(data: Any) -> dict[bytes, int]:
    """Sample -> label, over all splits."""
    if data.eigen is None:
        data.setup()
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    pairs = [pair for loader in loaders for x, y in loader for pair in zip(x, y.tolist(), strict=True)]
    return {x.numpy().tobytes(): y for x, y in pairs}


def in_order(data: Any) -> Tensor:
    """The labels in the order of the toy's points."""
    found = task(data)
    return torch.tensor([found[x.numpy().tobytes()] for x in data.base.x])


# the labels


@pytest.mark.parametrize("index", [0, 1, 5])
def test_labels_are_the_signs_of_the_eigenvectors_over_all_points(index: int) -> None:
    base = Splits()
    data = EigenfunctionDataModule(base, linear(), index)
    assert torch.equal(in_order(data), labels_of(base.x @ base.x.mT, index))
    assert data.num_classes == 2
    x, y = next(iter(data.test_dataloader()))
    assert torch.equal(x, base.x[19:23])
    assert (y.dtype, y.shape) == (torch.int64, (4,))
    assert data.eigen is not None
    torch.testing.assert_close(data.eigen.values[0], torch.linalg.eigvalsh(base.x @ base.x.mT)[-1])
    assert data.eigen.vectors.shape == (27, index + 1)  # rows in the points' order
    assert torch.equal(in_order(data), (data.eigen.vectors[:, index] > 0).long())


def test_the_network_counts_as_it_is_when_it_is_given_and_in_eval_mode() -> None:
    net: Any = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    data = EigenfunctionDataModule(Splits(), net, 2)
    frozen = copy.deepcopy(net).eval()
    nn.init.zeros_(net[0].weight)
    expected = kernel(frozen.double(), data.base.x.double()).diagonal(dim1=2, dim2=3).sum(2)  # type: ignore[attr-defined]
    assert torch.equal(in_order(data), labels_of(expected, 2))
    assert net.training
    data = EigenfunctionDataModule(Splits(), frozen.float(), 1, outputs=1)
    expected = kernel(frozen.double(), data.base.x.double())[:, :, 1, 1]  # type: ignore[attr-defined]
    assert torch.equal(in_order(data), labels_of(expected, 1))


@pytest.mark.parametrize("settings", [{"method": "lanczos"}, {"method": "nystrom", "landmarks": list(range(27))}])
def test_the_methods_agree_where_they_are_exact(settings: dict[str, Any]) -> None:
    base = Splits()
    found = in_order(EigenfunctionDataModule(base, linear(), 2, **settings))
    assert torch.equal(found, labels_of(base.x @ base.x.mT, 2))


def test_nystroms_landmarks_are_drawn_by_the_seed() -> None:
    net = linear()
    found = {}
    for seed in (0, 1):
        data = EigenfunctionDataModule(Splits(), net, 1, method="nystrom", landmarks=9, seed=seed)
        found[seed] = in_order(data)
        generator = torch.Generator().manual_seed(seed)
        expected = ntk_eigh(net.eval(), data.base.x, 2, method="nystrom", landmarks=9, generator=generator)  # type: ignore[attr-defined]
        assert torch.equal(found[seed], (expected.vectors[:, 1] > 0).long())
    assert not torch.equal(found[0], found[1])


def test_digits_as_they_come() -> None:
    base = ImageDataModule("digits", eval_batch_size=130)
    net = MLP(64, 1, hidden=(6,), activation="gelu").eval()
    data = EigenfunctionDataModule(base, net, 3)
    data.setup("fit")
    assert data.image_shape == (1, 8, 8)
    plain: Any = ImageDataModule("digits", eval_batch_size=130)
    plain.setup()
    sets: list[Any] = [
        plain.train_dataloader().dataset,
        plain.val_dataloader().dataset,
        plain.test_dataloader().dataset,
    ]
    x = torch.cat([part.__getitems__(list(range(len(part))))[0] for part in sets])
    assert len(x) == 1797
    expected = labels_of(kernel(net, x)[..., 0, 0], 3)
    ((images, labels),) = data.val_dataloader()
    assert torch.equal(images, x[1170:1300])
    assert torch.equal(labels, expected[1170:1300])
    assert 0.2 < expected.float().mean() < 0.8


# which points there are


def test_validation_data_that_is_part_of_the_other_data_adds_no_points() -> None:
    class Overlapping(Splits):
        def val_dataloader(self) -> Any:
            again = Subset(self.part(0, 27), [13, 2, 26, 2])
            return [DataLoader(again, 3), self.test_dataloader()]

    base = Overlapping()
    data = EigenfunctionDataModule(base, linear(), 1)
    data.setup("fit")
    used = torch.cat([base.x[:14], base.x[[26]], base.x[19:26]])  # in the order of their first appearance
    expected = labels_of(used @ used.mT, 1)
    assert data.eigen is not None
    assert data.eigen.vectors.shape == (22, 2)
    first, second = data.val_dataloader()
    assert torch.cat([y for _, y in first]).tolist() == expected[[13, 2, 14, 2]].tolist()
    assert torch.cat([y for _, y in second]).tolist() == [*expected[15:].tolist(), expected[14].item()]


def test_equal_samples_of_one_data_set_are_points_of_their_own() -> None:
    base = Splits()
    base.x[3] = base.x[2]
    data = EigenfunctionDataModule(base, linear(), 0)
    data.setup()
    assert data.eigen is not None
    assert len(data.eigen.vectors) == 27


def test_a_base_without_validation_and_test_data() -> None:
    class Training(LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(Splits().part(0, 27), 9)

    data = EigenfunctionDataModule(Training(), linear(), 2)
    module = Module()
    quiet_trainer(max_epochs=1, log_every_n_steps=1).fit(module, datamodule=data)
    x = Splits().x
    assert torch.equal(torch.cat([y for _, y in module.batches]), labels_of(x @ x.mT, 2))


def test_inputs_are_standardized_by_the_training_data_and_so_is_the_kernel() -> None:
    base = Splits()
    base.x = 3 * base.x + torch.arange(6)
    base.x[:14, 2] = 5  # constant where it is trained on
    plain = base.x.clone()
    data = EigenfunctionDataModule(base, linear(), 1, standardize=True)
    data.setup("fit")
    mean, std = plain[:14].mean(0), plain[:14].std(0, correction=0)
    std[2] = 1
    expected = (plain - mean) / std
    x = torch.cat([x for x, _ in data.test_dataloader()])
    torch.testing.assert_close(x, expected[19:])
    labels = torch.cat([y for _, y in data.test_dataloader()])
    assert torch.equal(labels, labels_of(expected @ expected.mT, 1)[19:])
    assert data.mean is not None
    torch.testing.assert_close(data.mean, mean)
    assert torch.equal(base.x, plain)


def test_images_are_standardized_per_channel() -> None:
    base: Any = Base()
    base.x = base.x * torch.tensor([1.0, 2, 3])[:, None, None] + 1
    base.loader = DataLoader(TensorDataset(base.x, base.y), 20)
    data = EigenfunctionDataModule(base, nn.Sequential(nn.Flatten(), nn.Linear(192, 1)), 0, standardize=True)
    data.setup()
    ((x, _),) = data.train_dataloader()
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3))


# the batches


@pytest.mark.parametrize("collate", [to_list, to_namedtuple, to_dict, to_frozen])
def test_batches_and_nested_loaders_keep_their_types(collate: Callable[[Any], Any]) -> None:
    base = Base(collate)
    is_sequence = collate in (to_list, to_namedtuple)
    keys: Any = (0, 1) if is_sequence else ("image", "label")
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
    data = EigenfunctionDataModule(base, net, 1, input_key=keys[0], label_key=keys[1])
    data.setup("fit")
    flat = base.x.flatten(1)
    expected = labels_of(1 + flat @ flat.mT, 1)
    test = data.test_dataloader()
    for loader in (data.train_dataloader(), *data.val_dataloader(), test["a"], test["b"][0]):
        batches = list(loader)
        plain = next(iter(base.loader))
        assert type(batches[0]) is type(plain)
        assert torch.equal(batches[0][keys[0]], base.x[:8])
        assert torch.equal(torch.cat([batch[keys[1]] for batch in batches]), expected)
        assert is_sequence or batches[0]["name"] == "batch"
    assert torch.equal(next(iter(base.loader))[keys[1]], base.y[:8])  # the base's own loader is left alone


def test_around_and_inside_other_datamodules() -> None:
    images = WithClasses()
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
    inside = EigenfunctionDataModule(InjectedFeatureDataModule(images, 0.5), net, 1)
    inside.setup("test")
    x = images.x + 0.5 * dct_carrier(4, 8)[images.y]
    batches = list(inside.train_dataloader())
    assert torch.equal(torch.cat([x for x, _ in batches]), x)
    assert torch.equal(torch.cat([y for _, y in batches]), labels_of(1 + x.flatten(1) @ x.flatten(1).mT, 1))
    around = InjectedFeatureDataModule(EigenfunctionDataModule(images, net, 1), 0.5)
    assert around.num_classes == 2
    around.setup("test")
    y = labels_of(1 + images.x.flatten(1) @ images.x.flatten(1).mT, 1)
    batches = list(around.train_dataloader())
    assert torch.equal(torch.cat([y for _, y in batches]), y)
    torch.testing.assert_close(torch.cat([x for x, _ in batches]), images.x + 0.5 * dct_carrier(2, 8)[y])


@pytest.mark.slow  # once a Trainer has run, torch takes its full five seconds to give each worker up
def test_works_in_worker_processes() -> None:
    base: Any = Base(workers=1)
    data = EigenfunctionDataModule(base, nn.Sequential(nn.Flatten(), nn.Linear(192, 1)), 1, standardize=True)
    data.setup()
    flat = (base.x - data.mean[:, None, None]).div(data.std[:, None, None]).flatten(1)  # type: ignore[index]
    labels = torch.cat([y for _, y in data.train_dataloader()])
    assert torch.equal(labels, labels_of(1 + flat @ flat.mT, 1))


def test_random_numbers_are_as_without_it() -> None:
    class Drawing(Splits):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator().manual_seed(1)

        def train_dataloader(self) -> Any:
            return DataLoader(self.part(0, 14), 4, shuffle=True, generator=self.generator)

    base, net = Drawing(), linear()
    before = torch.get_rng_state(), base.generator.get_state()
    data = EigenfunctionDataModule(base, net, 0, method="lanczos")
    data.setup("fit")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(base.generator.get_state(), before[1])


def test_can_be_copied_and_pickled() -> None:
    data = EigenfunctionDataModule(Splits(), linear(), 1)
    data.setup("test")
    expected = task(data)
    pickle.dumps(data.test_dataloader())  # what workers that are spawned rather than forked get
    for clone in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):  # noqa: S301  # our own bytes
        assert clone.base is not data.base
        assert task(clone) == expected


# inside the Trainer


def test_without_a_model_it_is_the_network_under_training() -> None:
    module = Module()
    before = copy.deepcopy(module.net)
    data = EigenfunctionDataModule(Splits(), None, 1)
    with pytest.raises(RuntimeError, match=r"`model`=None takes the network that the Trainer trains.*or give `model`"):
        data.setup("fit")
    quiet_trainer(max_epochs=3, log_every_n_steps=1).fit(module, datamodule=data)
    assert not torch.equal(module.net(data.base.x), before(data.base.x))  # type: ignore[attr-defined]
    found = task(data)
    assert found == task(EigenfunctionDataModule(Splits(), before, 1))
    for x, y in module.batches:
        assert [found[sample.numpy().tobytes()] for sample in x] == y.tolist()


def test_a_linearized_network_has_the_labels_of_the_network() -> None:
    net = BinaryLogits(MLP(6, 1, hidden=(5,), activation="tanh"))
    data = EigenfunctionDataModule(Splits(), None, 2)
    module = LinearizedTraining(net, num_classes=2)
    quiet_trainer(max_epochs=1, log_every_n_steps=1).fit(module, datamodule=data)
    assert task(data) == task(EigenfunctionDataModule(Splits(), net.net, 2))


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_any_stage_may_come_first_and_the_last_setup_is_its_own(stage: str) -> None:
    expected = task(EigenfunctionDataModule(Splits(), linear(), 0))
    base = Splits()
    data = EigenfunctionDataModule(base, linear(), 0)
    data.setup("predict")  # needs no labels
    assert data.eigen is None
    assert base.stages == ["predict"]
    data.setup(stage)
    assert base.stages[-1] == stage
    assert set(base.stages) == {"predict", "fit", "test", stage}
    data.setup("fit")
    assert base.stages.count("test") == 1
    assert task(data) == expected


def test_a_resumed_run_keeps_its_labels_whatever_the_network_is_now() -> None:
    data, module = EigenfunctionDataModule(Splits(), None, 2), Module(seed=0)
    trainer = quiet_trainer(max_epochs=1, log_every_n_steps=1)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint("last.ckpt")
    first = task(data)
    other, resumed = EigenfunctionDataModule(Splits(), None, 2), Module(seed=1)
    quiet_trainer(max_epochs=2, log_every_n_steps=1).fit(resumed, datamodule=other, ckpt_path="last.ckpt")
    assert other.eigen is None  # that of seed 1 has other labels
    assert len(resumed.batches) == 4
    for x, y in resumed.batches:
        assert [first[sample.numpy().tobytes()] for sample in x] == y.tolist()
    tested, tester = EigenfunctionDataModule(Splits(), None, 2), Module(seed=2)
    quiet_trainer().test(tester, datamodule=tested, ckpt_path="last.ckpt", verbose=False)
    for x, y in tester.batches:
        assert [first[sample.numpy().tobytes()] for sample in x] == y.tolist()
    same, again = EigenfunctionDataModule(Splits(), None, 2), Module(seed=0)
    quiet_trainer(max_epochs=2, log_every_n_steps=1).fit(again, datamodule=same, ckpt_path="last.ckpt")
    assert same.eigen is None  # nothing was decomposed
    assert task(EigenfunctionDataModule(Splits(), Module(seed=1).net, 2)) != first


def test_other_data_than_the_checkpoints_is_refused() -> None:
    data = EigenfunctionDataModule(Splits(), linear(), 0)
    data.setup()
    state = data.state_dict()
    state["labels"] = {**state["labels"], "test": [torch.zeros(7).long()]}
    data.load_state_dict(state)
    with pytest.raises(RuntimeError, match="the test data of `base` has 8 samples, and the task has 7 labels"):
        data.test_dataloader()


def test_hyperparameters_are_plain(tmp_path: Path) -> None:
    data = EigenfunctionDataModule(Splits(), linear(), 1, cache_dir=tmp_path)
    assert "model" not in data.hparams
    assert "base" not in data.hparams
    assert data.hparams["cache_dir"] == str(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": 1}, "task has `index`=0, this one has 1: give index=0, or load the weights only .load_from"),
        ({"seed": 3, "outputs": 0}, "has `outputs`='trace', `seed`=0, this one has 0, 3: give outputs='trace', seed=0"),
        ({"method": "lanczos"}, "`method`='dense'"),
        ({"method": "nystrom", "landmarks": [0, 1, 2]}, r"`landmarks`=None, this one has 'nystrom', \[0, 1, 2\]"),
        ({"standardize": True}, "`standardize`=False"),
    ],
)
def test_another_task_than_the_checkpoints_is_refused(arguments: dict[str, Any], message: str) -> None:
    data = EigenfunctionDataModule(Splits(), linear(), 0)
    data.setup()
    other = EigenfunctionDataModule(**{"base": Splits(), "model": linear(), "index": 0, **arguments})
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(data.state_dict())


def test_a_trainer_refuses_another_index_and_other_splits_and_decomposes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(Module(), datamodule=EigenfunctionDataModule(Splits(), None, 2))
    trainer.save_checkpoint("last.ckpt")
    monkeypatch.setattr("pl_robust.datamodules.eigenfunction.eigenfunctions", lambda *_: pytest.fail("decomposed"))
    with pytest.raises(ValueError, match="`index`=2, this one has 3"):
        quiet_trainer().test(Module(), datamodule=EigenfunctionDataModule(Splits(), None, 3), ckpt_path="last.ckpt")
    moved = Splits()
    moved.x[[3, 5]] = moved.x[[5, 3]]  # the same samples, two of them in each other's place
    with pytest.raises(ValueError, match="the train inputs of `base` are not those of the checkpoint"):
        quiet_trainer(max_epochs=2).fit(
            Module(), datamodule=EigenfunctionDataModule(moved, None, 2), ckpt_path="last.ckpt"
        )
    data = EigenfunctionDataModule(Splits(), None, 2)
    quiet_trainer().test(Module(), datamodule=data, ckpt_path="last.ckpt", verbose=False)
    assert data.eigen is None
    for base, is_same in ((Splits(), True), (moved, False)):  # the state first
        late = EigenfunctionDataModule(base, None, 2)
        late.load_state_dict(data.state_dict())
        before = torch.get_rng_state()
        if is_same:
            late.setup()
        else:
            with pytest.raises(ValueError, match="the train inputs of `base` are not those of the checkpoint"):
                late.setup()
        assert torch.equal(torch.get_rng_state(), before)


def test_a_base_that_restores_its_data_from_the_checkpoint_is_compared_as_restored() -> None:
    def nested() -> EigenfunctionDataModule:
        base = LinearlySeparableDataModule(index=1, image_shape=(1, 2, 3), train_size=20, val_size=0, test_size=9)
        return EigenfunctionDataModule(base, None, 1)

    class Flat(Module):
        def __init__(self, seed: int) -> None:
            super().__init__(seed)
            self.net = nn.Sequential(nn.Flatten(), self.net)  # type: ignore[assignment]

    trainer = quiet_trainer(max_epochs=1, limit_val_batches=0)
    trainer.fit(Flat(0), datamodule=nested())
    trainer.save_checkpoint("last.ckpt")
    data = nested()
    quiet_trainer().test(Flat(1), datamodule=data, ckpt_path="last.ckpt", verbose=False)
    assert data.eigen is None


def test_a_checkpoint_without_labels_leaves_them_to_be_made() -> None:
    data, module = EigenfunctionDataModule(Splits(), None, 2), Module()
    trainer = quiet_trainer()
    trainer.test(module, datamodule=data, verbose=False)
    expected = [y.tolist() for _, y in module.batches]
    trainer.save_checkpoint("weights.ckpt", weights_only=True)
    state = torch.load("weights.ckpt", weights_only=True)
    state.pop("EigenfunctionDataModule", None)
    torch.save(state, "weights.ckpt")
    again, data = Module(), EigenfunctionDataModule(Splits(), None, 2)
    quiet_trainer().test(again, datamodule=data, ckpt_path="weights.ckpt", verbose=False)
    assert [y.tolist() for _, y in again.batches] == expected
    assert data.eigen is not None
    assert not data.eigen.vectors.is_inference()


# the stored decompositions


def test_one_decomposition_serves_all_indices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net: Any = linear()
    tasks = {
        index: task(EigenfunctionDataModule(Splits(), net, index, k=4, cache_dir=tmp_path / "kernels"))
        for index in (0, 3)
    }
    (path,) = (tmp_path / "kernels").iterdir()
    expected = {index: task(EigenfunctionDataModule(Splits(), net, index)) for index in (0, 3)}

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("computed anew")

    with monkeypatch.context() as patch:
        patch.setattr("pl_robust.datamodules._stored_eigen.ntk_eigh", refuse)
        data = EigenfunctionDataModule(Splits(), net, 3, k=4, cache_dir=tmp_path / "kernels")
        assert tasks == expected
        assert task(data) == expected[3]
        changed = copy.deepcopy(net)
        with torch.no_grad():
            changed.weight[0, 0] += 1e-6
        others: list[dict[str, Any]] = [
            {"model": changed},
            {"base": Splits(seed=1)},
            {"k": 5},
            {"method": "lanczos"},
            {"standardize": True},
            {"outputs": 0},
            {"seed": 1},
        ]
        for other in others:
            arguments = {"base": Splits(), "model": net, "index": 3, "k": 4, "cache_dir": tmp_path / "kernels", **other}
            with pytest.raises(AssertionError, match="computed anew"):
                EigenfunctionDataModule(**arguments).setup()
    for damage in (path.read_bytes()[:-100], b"spoilt", pickle.dumps([1])):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"eigenfunctions-\w+\.pt holds no eigenfunctions .*: delete it"):
            EigenfunctionDataModule(Splits(), net, 3, k=4, cache_dir=tmp_path / "kernels").setup()


# two processes


def _fit(seeds: tuple[int, int]) -> tuple[list[int], list[Any], list[float]]:
    import os

    rank = int(os.environ["RANK"])
    data, module = EigenfunctionDataModule(Splits(), None, 2), Module(seeds[rank])
    trainer = quiet_trainer(devices=2, strategy="ddp", max_epochs=1, log_every_n_steps=1)
    trainer.fit(module, datamodule=data)
    assert data.eigen is not None
    pairs = [pair for x, y in module.batches for pair in zip(x.tolist(), y.tolist(), strict=True)]
    return in_order(data).tolist(), pairs, data.eigen.values.tolist()


@needs_shared_shuffling
def test_all_ranks_have_the_labels_of_rank_zero() -> None:
    expected = in_order(EigenfunctionDataModule(Splits(), Module(0).net, 2)).tolist()
    results = run_ranks(_fit, 2, (0, 1))  # DDP gives rank 1 the weights of rank 0, later
    by_sample = {tuple(x.tolist()): y for x, y in zip(Splits().x, expected, strict=True)}
    for labels, pairs, values in results:
        assert labels == expected
        assert values == results[0][2]
        assert len(pairs) == 7  # half of 14
        assert all(by_sample[tuple(x)] == y for x, y in pairs)
    assert not {tuple(x) for x, _ in results[0][1]} & {tuple(x) for x, _ in results[1][1]}


def _fail() -> str:
    try:
        quiet_trainer(devices=2, strategy="ddp").fit(Module(), datamodule=EigenfunctionDataModule(Splits(), None, 27))
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_no_rank_waits_when_rank_zero_fails() -> None:
    first, second = run_ranks(_fail, 2)
    assert first.startswith("ValueError: `index` must be 0 to 26, because there are as many eigenfunctions as points")
    assert second.startswith("RuntimeError: rank zero could not make the task: ValueError: `index` must be 0 to 26")


# the command line


@pytest.mark.filterwarnings("ignore:(?s).*:DeprecationWarning")  # how Lightning calls jsonargparse
def test_runs_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        """
        trainer:
          max_epochs: 1
          accelerator: cpu
          logger: false
          enable_checkpointing: false
          enable_progress_bar: false
          enable_model_summary: false
        model:
          class_path: LinearizedTraining
          init_args:
            linearized: false
            net: {class_path: BinaryLogits, init_args: {net: {class_path: pl_robust.models.MLP, init_args: {in_features: 16, out_features: 1, hidden: [4]}}}}
        data:
          class_path: EigenfunctionDataModule
          init_args:
            base: {class_path: ImageDataModule, init_args: {name: digits, image_size: 4}}
            model: null
            index: 1
            method: lanczos
            standardize: true
        """  # noqa: E501
    )
    cli = run(["fit", "--config", "run.yaml"])
    assert isinstance(cli.datamodule, EigenfunctionDataModule)
    assert cli.model.num_classes == 2
    assert float(cli.trainer.callback_metrics["val/acc"]) > 0.6
    net = {"class_path": "pl_robust.models.MLP", "init_args": {"in_features": 16, "out_features": 1}}
    main(["fit", "--config", "run.yaml", f"--data.model={net}", "--data.index=0", "--trainer.fast_dev_run=1"])


# what it refuses


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"base": nn.Linear(1, 1)}, TypeError, "must be a LightningDataModule, got Linear without"),
        ({"model": "MLP"}, TypeError, "`model` must be an nn.Module, or None for the network .* got str"),
        ({"index": -1}, ValueError, "`index` must be at least 0, got -1"),
        ({"seed": "x"}, TypeError, "`seed` must be an integer, got 'x'"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0, got -1"),
        ({"seed": 2**64}, ValueError, r"`seed` must be less than 2\*\*64, got"),
        ({"method": "nystrom", "landmarks": "x"}, TypeError, "`landmarks` must be an integer, or a list.*got 'x'"),
        ({"method": "nystrom", "landmarks": [1, 1]}, ValueError, r"list of different indices.*got \[1, 1\]"),
        ({"method": "nystrom", "landmarks": 0}, ValueError, "`landmarks` must be at least 1.*got 0"),
        ({"cache_dir": 3}, TypeError, "`cache_dir` must be a folder or None, got 3"),
        ({"cache_dir": __file__}, ValueError, "`cache_dir` must be a folder, got the file"),
        ({"label_key": 0}, ValueError, "`input_key` and `label_key` must be different entries of a batch, got 0 twice"),
        ({"index": 1.0}, TypeError, "`index` must be an integer, got 1.0"),
        ({"index": 3, "k": 3}, ValueError, "`k` must be more than `index`=3, which counts from 0, got 3"),
        ({"k": 0}, ValueError, "`k` must be at least 1, got 0"),
        ({"chunk_size": 0}, ValueError, "`chunk_size` must be at least 1, got 0"),
        ({"method": "qr"}, ValueError, "`method` must be one of .*'nystrom'.*got 'qr'"),
        ({"method": "nystrom"}, ValueError, "`landmarks`.* must come with method='nystrom'.*landmarks=None"),
        ({"landmarks": 5}, ValueError, "`landmarks`.*got method='dense', landmarks=5"),
        ({"outputs": "full"}, ValueError, "`outputs` must be 'trace' or the index of an output, got 'full'"),
        ({"standardize": "yes"}, TypeError, "`standardize` must be true or false, got 'yes'"),
    ],
)
def test_refuses_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        EigenfunctionDataModule(**{"base": Splits(), "model": linear(), "index": 0, **arguments})


def test_refuses_inputs_that_change() -> None:
    base = ImageDataModule("digits", augment=True)
    with pytest.raises(ValueError, match=r"the train inputs of `base` change .*ImageDataModule: augment=False"):
        EigenfunctionDataModule(base, MLP(64, 1), 0).setup("fit")

    class Redrawn(Splits):
        def val_dataloader(self) -> Any:
            return DataLoader(random_split(self.part(0, 27), [13, 14])[0], 4)

    with pytest.raises(ValueError, match=r"the validation inputs of `base` change.*draw splits by a seed"):
        EigenfunctionDataModule(Redrawn(), linear(), 0).setup("fit")


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (DataLoader(Stream(), 4), TypeError, r"label by its index.*got a DataLoader over an IterableDataset \(Stream"),
        (DataLoader(Splits().part(0, 9), None), TypeError, "got a DataLoader with batch_size=None"),
        ([iter([])], TypeError, "must come from torch DataLoaders .* got a list_iterator"),
        ([], ValueError, "`base` must have training data, Odd has none"),
        (DataLoader(TensorDataset(torch.zeros(9, 5), torch.zeros(9)), 4), ValueError, "the inputs of all splits must"),
        (DataLoader(TensorDataset(torch.full((9, 6), torch.nan), torch.zeros(9)), 4), ValueError, "NaN or infinite"),
    ],
)
def test_refuses_data(loader: Any, error: type[Exception], message: str) -> None:
    class Odd(Splits):
        def train_dataloader(self) -> Any:
            return loader

    with pytest.raises(error, match=message):
        EigenfunctionDataModule(Odd(), linear(), 0).setup("fit")


@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_refuses_eigenfunctions_of_rounding(method: Any) -> None:
    with pytest.raises(ValueError, match=r"number of eigenvalues above rounding, 6, got 20: the others"):
        EigenfunctionDataModule(Splits(), linear(), 20, method=method).setup()


@needs_lightning("2.0", "CombinedLoader is no public name")
def test_refuses_a_combined_loader_before_it_decomposes(monkeypatch: pytest.MonkeyPatch) -> None:
    from pl_robust._lightning import NAMESPACE

    combined = pytest.importorskip(f"{NAMESPACE}.utilities").CombinedLoader

    class Combining(Splits):
        def train_dataloader(self) -> Any:
            return combined([super().train_dataloader()])

    monkeypatch.setattr("pl_robust.datamodules.eigenfunction.eigenfunctions", lambda *_: pytest.fail("decomposed"))
    with pytest.raises(TypeError, match=r"the train data of `base` must come from .* got a CombinedLoader"):
        EigenfunctionDataModule(Combining(), linear(), 0).setup("fit")


def test_a_base_without_test_data_is_not_set_up_for_a_test() -> None:
    class Untested(LightningDataModule):
        def setup(self, stage: str | None = None) -> None:
            assert stage == "fit"

        def train_dataloader(self) -> Any:
            return DataLoader(Splits().part(0, 14), 4)

    data = EigenfunctionDataModule(Untested(), linear(), 0)
    data.setup("fit")
    assert data.eigen is not None


def test_a_net_that_is_no_module_or_not_all_of_it() -> None:
    class Odd(Module):
        def __init__(self, *, keeps: bool) -> None:
            super().__init__()
            self.body = self.net
            if not keeps:
                del self.net
                self.__dict__["net"] = "MLP"

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.body(x)
            return outputs

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss: Tensor = self.scale * self(batch[0]).square().mean()
            return loss

    with pytest.warns(UserWarning, match=r"made from Odd.net, without the parameters \['scale'\], which are trained"):
        quiet_trainer(max_epochs=1).fit(Odd(keeps=True), datamodule=EigenfunctionDataModule(Splits(), None, 1))
    whole = EigenfunctionDataModule(Splits(), None, 1)
    quiet_trainer(max_epochs=1).fit(Odd(keeps=False), datamodule=whole)
    assert task(whole) == task(EigenfunctionDataModule(Splits(), Module().net, 1))


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(
        ValueError, match=r"`index` must be 0 to 26, because there are as many eigenfunctions .* got 27"
    ):
        EigenfunctionDataModule(Splits(), linear(), 27).setup()
    with pytest.raises(RuntimeError, match="the train data has no labels yet: call setup"):
        EigenfunctionDataModule(Splits(), linear(), 0).train_dataloader()
    data = EigenfunctionDataModule(Splits(), linear(), 0, label_key="label")
    data.setup()
    with pytest.raises(KeyError, match=r"`label_key`='label' is not in the batch, which has \[0, 1\]"):
        next(iter(data.train_dataloader()))
    integers: Any = Splits()
    integers.x = integers.x.long()
    with pytest.raises(TypeError, match="`standardize` needs floating-point inputs"):
        EigenfunctionDataModule(integers, linear(), 0, standardize=True).setup()
