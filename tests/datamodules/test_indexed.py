from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
)

from pl_robust._lightning import LightningDataModule
from pl_robust.datamodules import CorruptedImageDataModule, ImageDataModule, IndexedDataModule, LowPassDataModule
from pl_robust.transforms import dct_low_pass
from tests._processes import run_ranks
from tests.datamodules.toys import Base, Recorder, WithClasses, to_dict, to_frozen, to_list, to_namedtuple, to_ordered
from tests.toys import needs_lightning, quiet_trainer

pytestmark = [
    pytest.mark.lightning,
    pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`:UserWarning"),
]

X = torch.arange(40.0)[:, None]  # a sample is its own position


class Data(LightningDataModule):
    """One loader for training."""

    def __init__(self, loader: Any) -> None:
        super().__init__()
        self.loader = loader

    def train_dataloader(self) -> Any:
        return self.loader


class Counting(Dataset[Tensor]):
    """Gives bare tensors, one by one, and takes part in what users do to data sets."""

    offset = 0

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Tensor:
        return X[index] + self.offset


class Bulk(Counting):
    """Makes the batch itself."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return X[indices], X[indices, 0].long() % 3


def as_it_is(batch: Any) -> Any:
    return batch


def shift_by_100(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    info.dataset.offset = 100  # type: ignore[attr-defined]


def batches(loader: Any) -> list[Any]:
    return list(IndexedDataModule(Data(loader)).train_dataloader())


# the positions are those of the samples


PAIRS = TensorDataset(X, torch.arange(40) % 3)
LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "in order": lambda: DataLoader(PAIRS, 7),
    "shuffled": lambda: DataLoader(PAIRS, 7, shuffle=True, drop_last=True),
    "repeating": lambda: DataLoader(PAIRS, 7, sampler=WeightedRandomSampler([*[1.0] * 39, 50.0], 30)),
    "tensors as indices": lambda: DataLoader(PAIRS, 7, sampler=torch.randperm(40)),
    "batch sampler": lambda: DataLoader(PAIRS, batch_sampler=BatchSampler(RandomSampler(PAIRS), 9, False)),
    "asks for lists": lambda: DataLoader(PAIRS, None, sampler=BatchSampler(RandomSampler(PAIRS), 9, False)),
    "batches of its own": lambda: DataLoader(Bulk(), 7, shuffle=True, collate_fn=as_it_is),
    "one": lambda: DataLoader(TensorDataset(X[:1], torch.zeros(1).long()), 7, shuffle=True),
}


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_each_sample_stands_beside_its_position(make: Callable[[], DataLoader[Any]]) -> None:
    torch.manual_seed(1)
    plain = list(make())
    torch.manual_seed(1)
    indexed = batches(make())
    assert len(indexed) == len(plain)
    for (x, y, index), (x_plain, y_plain) in zip(indexed, plain, strict=True):
        assert index.dtype == torch.int64
        assert torch.equal(index, x[:, 0].long())
        assert torch.equal(x, x_plain)
        assert torch.equal(y, y_plain)


def test_positions_are_those_of_the_loaders_own_data_set() -> None:
    chosen = Subset(PAIRS, [30, 10, 20, 39, 0])
    (x, _, index), *rest = batches(DataLoader(chosen, 5))
    assert index.tolist() == [0, 1, 2, 3, 4]
    assert x[:, 0].tolist() == [30, 10, 20, 39, 0]
    assert not rest
    joined = batches(DataLoader(ConcatDataset([chosen, PAIRS]), 9, shuffle=True))
    for x, _, index in joined:
        expected = [float(chosen.indices[i]) if i < 5 else i - 5.0 for i in index.tolist()]
        assert x[:, 0].tolist() == expected
    assert sorted(torch.cat([index for *_, index in joined]).tolist()) == list(range(45))


def test_a_batch_that_is_a_tensor_becomes_a_pair() -> None:
    for x, index in batches(DataLoader(Counting(), 8, shuffle=True)):
        assert torch.equal(x[:, 0].long(), index)


@pytest.mark.parametrize("collate", [default_collate, to_list, to_dict, to_ordered, to_frozen])
def test_the_batch_keeps_its_type(collate: Callable[[Any], Any]) -> None:
    base = Base(collate)
    (first, *_), (plain, *_) = list(IndexedDataModule(base).train_dataloader()), list(base.loader)
    assert type(first) is type(plain)
    is_sequence = collate in (default_collate, to_list)
    assert torch.equal(first[2 if is_sequence else "index"], torch.arange(8))
    assert torch.equal(first[0 if is_sequence else "image"], base.x[:8])
    assert len(first) == len(plain) + 1


@pytest.mark.slow  # once a Trainer has run, torch takes its full five seconds to give each worker up
def test_works_in_workers_that_change_the_data_set_and_with_loaders_that_keep_them() -> None:
    data = DataLoader(Counting(), 8, num_workers=1, persistent_workers=True, worker_init_fn=shift_by_100)
    assert torch.equal(next(iter(data))[:, 0], X[:8, 0] + 100)  # starts a worker that knows nothing of positions
    for x, index in batches(data):
        assert torch.equal(x[:, 0].long() - 100, index)
    pairs = batches(DataLoader(PAIRS, 8, num_workers=1, multiprocessing_context="spawn"))  # what is pickled
    assert torch.equal(torch.cat([index for *_, index in pairs]), torch.arange(40))


# around and inside other datamodules, and inside the Trainer


def test_other_splits_have_positions_and_predictions_have_not() -> None:
    class Predicting(WithClasses):
        def predict_dataloader(self) -> Any:
            return DataLoader(self.x, 8)  # type: ignore[arg-type]  # a tensor has what it takes

    base = Predicting()
    data = IndexedDataModule(base)
    test = data.test_dataloader()
    for loader in (*data.val_dataloader(), test["a"], test["b"][0]):
        assert torch.equal(torch.cat([index for *_, index in loader]), torch.arange(20))
    assert torch.equal(torch.cat(list(data.predict_dataloader())), base.x)
    assert len(next(iter(base.loader))) == 2  # the base's loader is as it was
    assert data.num_classes == 4


def test_works_around_and_inside_other_datamodules() -> None:
    base = WithClasses()
    for data in (IndexedDataModule(LowPassDataModule(base, 4)), LowPassDataModule(IndexedDataModule(base), 4)):
        x, y, index = next(iter(data.train_dataloader()))
        assert torch.equal(x, dct_low_pass(base.x[:8], 4))
        assert torch.equal(y, base.y[:8])
        assert torch.equal(index, torch.arange(8))
    digits = ImageDataModule("digits", batch_size=50)
    corrupted = CorruptedImageDataModule(IndexedDataModule(digits), corruptions=["brightness"], severities=[1])
    corrupted.setup("test")
    loaders = corrupted.test_dataloader()
    loader = next(iter(loaders.values())) if isinstance(loaders, dict) else loaders[0]
    assert torch.equal(next(iter(loader))[2], torch.arange(len(next(iter(loader))[0])))


def test_a_data_set_is_still_itself() -> None:
    loader = IndexedDataModule(Data(DataLoader(PAIRS, 8))).train_dataloader()
    assert len(loader.dataset) == 40
    assert loader.dataset.tensors is PAIRS.tensors
    assert torch.equal(loader.dataset[3][0], PAIRS[3][0])
    for clone in (copy.deepcopy(loader.dataset), pickle.loads(pickle.dumps(loader.dataset))):  # noqa: S301  # our own
        assert torch.equal(clone.tensors[0], X)
    with pytest.raises(AttributeError, match="targets"):
        _ = loader.dataset.targets


class Own(DataLoader[Any]):
    """A user's loader with arguments of its own, which Lightning remembers to make it anew."""

    def __init__(self, data: Dataset[Any], size: int, **arguments: Any) -> None:
        super().__init__(data, batch_size=size, **arguments)
        self.size = size


class Hooked(LightningDataModule):
    """Loaders made inside the hook, where Lightning watches."""

    def __init__(self, kind: type[DataLoader[Any]], keyword: bool) -> None:
        super().__init__()
        self.make = (
            (lambda: DataLoader(dataset=PAIRS, batch_size=4, shuffle=True))
            if keyword
            else (lambda: kind(PAIRS, 4, shuffle=True))
        )

    def train_dataloader(self) -> Any:
        return self.make()


def _ranks(ranks: int, kind: type[DataLoader[Any]], keyword: bool) -> list[list[list[int]]]:
    net = Recorder()
    arguments = {"strategy": "ddp", "devices": ranks} if ranks > 1 else {"overfit_batches": 1.0}
    trainer = quiet_trainer(max_epochs=1, log_every_n_steps=1, **arguments)
    trainer.fit(net, datamodule=IndexedDataModule(Hooked(kind, keyword)))
    assert type(trainer.train_dataloader) is kind
    assert not isinstance(trainer.train_dataloader.sampler, RandomSampler)  # it has been made anew
    return [[x[:, 0].long().tolist(), index.tolist()] for x, _, index in net.batches]


@pytest.mark.filterwarnings("ignore:You requested to overfit")
@pytest.mark.parametrize(("kind", "keyword"), [(DataLoader, False), (DataLoader, True), (Own, False)])
@needs_lightning("2.0", "the trainer holds a CombinedLoader of any training dataloader")
def test_positions_survive_the_loader_that_lightning_makes_anew(kind: Any, keyword: bool) -> None:
    assert all(x == index for x, index in _ranks(1, kind, keyword))


@needs_lightning("2.0", "the trainer holds a CombinedLoader of any training dataloader")
def test_positions_survive_the_distributed_sampler() -> None:
    ranks = run_ranks(_ranks, 2, 2, Own, False)
    assert all(x == index for batches in ranks for x, index in batches)
    seen = [{position for _, index in batches for position in index} for batches in ranks]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(40))


# what it refuses


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(X)


class Named(Counting):
    def __getitem__(self, index: Any) -> Tensor:
        return X[0]


def of_keys(samples: Any) -> Any:
    return {"x": default_collate(samples), "index": torch.zeros(len(samples))}


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        ([1, 2], TypeError, "must give torch DataLoaders.*got int; give out the samples' positions in its data set"),
        (DataLoader(Endless(), 4), TypeError, r"samples of an IterableDataset \(Endless\) have no positions"),
        (DataLoader(Counting(), None), TypeError, "whole batches \\(batch_size=None\\).*let a torch DataLoader make"),
        (DataLoader(Named(), 2, sampler=["a", "b"]), TypeError, r"positions of samples, integers, got \['a', 'b'\]"),
        (DataLoader(Counting(), 4, collate_fn=of_keys), ValueError, "has an entry 'index' already"),
        (DataLoader(PAIRS, 4, collate_fn=to_namedtuple), TypeError, "tuples, lists, dicts or tensors, got Pair"),
        (DataLoader(PAIRS, 4, collate_fn=str), TypeError, "tuples, lists, dicts or tensors, got str"),
    ],
)
def test_refuses_what_has_no_positions_or_no_place_for_them(loader: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        batches(loader)


def test_refuses_what_is_no_datamodule() -> None:
    with pytest.raises(TypeError, match="must be a LightningDataModule, got DataLoader without"):
        IndexedDataModule(DataLoader(PAIRS))  # type: ignore[arg-type]
