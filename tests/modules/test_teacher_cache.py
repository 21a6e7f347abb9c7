"""The cache of a student's teachers: the same training, fewer questions, and never the answer to another question."""

from __future__ import annotations

import copy
import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pl_robust._lightning import Callback, LightningDataModule, MisconfigurationException
from pl_robust.attacks import FGSM
from pl_robust.datamodules import IndexedDataModule
from pl_robust.losses import AKD, ARD, Distillation
from pl_robust.modules import AKDStudent
from pl_robust.modules._teacher_cache import TeacherCache, bit_checksum, fingerprint, prepare_cache
from tests._processes import run_and_kill
from tests.modules.test_adversarial_training import small_net
from tests.modules.test_akd_student import sgd, teacher
from tests.toys import assert_identical, quiet_trainer, stripes

N = 48  # three batches


class Indexed(Dataset[Any]):
    """(x, y, index), the images changed as told."""

    def __init__(self, count: int = N, change: Any = None, shift: int = 0) -> None:
        self.data, self.change, self.shift = stripes(count), change, shift

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        x, y = self.data[index]
        return x if self.change is None else self.change(x), y, index + self.shift


class Counting(nn.Module):
    """A teacher that counts the samples it is asked about."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        logits: Tensor = self.net(x)
        return logits


def fit(
    cache: str | None,
    data: Dataset[Any] | None = None,
    *,
    teachers: list[nn.Module] | None = None,
    distillation: Distillation | None = None,
    num_classes: int = 3,
    epochs: int = 3,
    drop_last: bool = False,
    callbacks: Any = (),
    **arguments: Any,
) -> tuple[dict[str, Tensor], int]:
    """Train; return the student's state, and how many samples the first teacher was asked about."""
    asked = [Counting(one).eval() for one in (teachers or [teacher(1), teacher(2)])]
    module = AKDStudent(
        small_net(),
        list(asked),
        FGSM(0.1),
        distillation=distillation or ARD(),
        cache=cache,
        num_classes=num_classes,
        optimizer=sgd,
    )
    loader = DataLoader(data or Indexed(), batch_size=16, shuffle=True, drop_last=drop_last)
    torch.manual_seed(3)
    quiet_trainer(max_epochs=epochs, callbacks=callbacks, **arguments).fit(module, loader)
    return dict(module.state_dict()), asked[0].asked


@pytest.mark.lightning
@pytest.mark.parametrize(
    "distillation", [ARD(), AKD(teacher_input="clean", attack_objective="mixture")], ids=["ard", "akd"]
)
def test_training_is_the_same_bit_for_bit_and_nobody_is_asked_twice(distillation: Distillation) -> None:
    alone, asked = fit(None, distillation=distillation)
    assert asked == 3 * N
    for expected in (N, 0):  # filled, and there already
        state, asked = fit("cache", distillation=distillation)
        assert asked == expected
        assert_identical(state, alone)


@pytest.mark.lightning
def test_what_an_epoch_leaves_out_is_asked_when_it_is_met() -> None:
    arguments: Any
    for arguments in ({"limit_train_batches": 2}, {"precision": "bf16-mixed"}):
        alone, _ = fit(None, **arguments)
        name = "-".join(arguments)
        state, asked = fit(name, **arguments)
        assert asked <= (96 if name == "limit_train_batches" else N)
        assert_identical(state, alone)
        assert_identical(fit(name, **arguments)[0], alone)
        assert fit(name, **arguments)[1] == 0
    # Of a smaller batch, the last one, kernels may round an answer in another way.
    ragged: Any = Indexed(41)
    for drop_last in (False, True):
        alone, _ = fit(None, ragged, drop_last=drop_last)
        for state, asked in (fit(f"ragged{drop_last}", ragged, drop_last=drop_last) for _ in range(2)):
            assert asked <= 41 + 32
            for one, other in zip(state.values(), alone.values(), strict=True):
                torch.testing.assert_close(one, other)


class Batches(LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(stripes(N), batch_size=16)


@pytest.mark.lightning
def test_indices_come_from_the_indexed_datamodule() -> None:
    one = Counting(teacher()).eval()
    module = AKDStudent(small_net(), one, FGSM(0.1), distillation=ARD(), cache="cache", num_classes=3)
    quiet_trainer(max_epochs=2).fit(module, datamodule=IndexedDataModule(Batches()))
    assert one.asked == N
    with pytest.raises(KeyError, match=r"`index_key`=2 is not in the batch.*wrap the datamodule in IndexedDataModule"):
        quiet_trainer(max_epochs=1).fit(module, datamodule=Batches())


def small_set(index: Any) -> Any:
    """Sixteen samples of one index."""
    return [(x, y, index) for x, y in zip(*stripes(16).tensors, strict=True)]


def flipped(x: Tensor) -> Tensor:
    return x.flip(-1) if torch.rand(()) < 0.5 else x


@pytest.mark.lightning
def test_other_inputs_are_an_error() -> None:
    fit("cache")
    told = r"holds the teachers' answers to other inputs than these at the same `index_key`"
    with pytest.raises(ValueError, match=told):
        fit("cache", Indexed(change=lambda x: torch.nextafter(x, torch.ones(()))))  # the last bit of each pixel
    with pytest.raises(ValueError, match=told + r", or fewer than there are indices \(48\)"):
        fit("cache", Indexed(shift=1))  # one of them is N
    with pytest.raises(ValueError, match=told):
        fit("new", Indexed(change=flipped))  # random augmentation, in the second epoch
    with pytest.raises(ValueError, match=told):
        fit("twice", Indexed(shift=-1), epochs=1)  # -1, whose place is nobody's
    with pytest.raises(
        TypeError, match=r"`index_key` must say where a batch has integers, int64 \[B\], got torch.float"
    ):
        fit("floats", small_set(0.5))
    with pytest.raises(ValueError, match=r"`index_key` must say where a batch has indices \[16\], got \[16, 2\]"):
        fit("pairs", small_set(torch.zeros(2).long()))
    with pytest.raises(ValueError, match=told):
        fit("same", small_set(0), epochs=1)  # sixteen zeroth samples


@pytest.mark.lightning
def test_a_cache_of_something_else_is_an_error() -> None:
    fit("cache", epochs=1)
    other = teacher(1)
    other[1].running_mean[0] += 1e-6  # type: ignore[index]
    for teachers in ([other, teacher(2)], [teacher(2), teacher(1)], [teacher(1)]):
        with pytest.raises(ValueError, match=r"`cache`='cache' is of other teachers, or of the same in another order"):
            fit("cache", teachers=teachers)
    with pytest.raises(ValueError, match=r"made for samples 48, and this run has 47: name another folder"):
        fit("cache", Indexed(47))
    with pytest.raises(ValueError, match=r"made for precision '32-true', and this run has 'bf16-mixed'"):
        fit("cache", precision="bf16-mixed")
    with pytest.raises(ValueError, match=r"made for classes 3, and this run has 4"):
        fit("cache", num_classes=4)


@pytest.mark.lightning
def test_a_cache_needs_one_data_set_of_known_length() -> None:
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(Indexed())

    one = AKDStudent(small_net(), teacher(), FGSM(0.1), distillation=ARD(), cache="cache", lr_scheduler="constant")
    loader = DataLoader(Indexed(), 16)
    for loaders in (DataLoader(Endless(), 16), [loader, loader]):
        with pytest.raises(
            MisconfigurationException, match=r"`cache` needs one training dataloader .*leave `cache` out"
        ):
            quiet_trainer(max_epochs=1).fit(one, loaders)


@pytest.mark.lightning
def test_what_was_written_in_part_counts_as_missing() -> None:
    alone, _ = fit(None)
    fit("cache")
    for name, row in (("teacher_logits.npy", 5), ("teacher_checksums.npy", 7)):
        rows = np.load(f"cache/{name}", mmap_mode="r+")
        rows[row].flat[1] += 1
        rows.flush()
    state, asked = fit("cache")
    assert 0 < asked <= 32  # one or two batches
    assert_identical(state, alone)
    assert fit("cache")[1] == 0
    Path("cache/teacher_logits.npy").write_bytes(Path("cache/teacher_logits.npy").read_bytes()[:-7])
    with pytest.raises(
        ValueError, match=r"`cache`='cache' is damaged: teacher_logits.npy must hold float32 \[48, 2, 3\]"
    ):
        fit("cache")
    Path("cache/teacher_cache.json").write_text("{")
    with pytest.raises(ValueError, match=r"`cache`='cache' is damaged: delete teacher_cache.json there"):
        fit("cache")
    Path("cache/teacher_cache.json").unlink()  # as after a kill before the last file was there
    state, asked = fit("cache")
    assert asked == N
    assert_identical(state, alone)
    Path("file").touch()
    with pytest.raises(OSError, match="file"):
        fit("file")


class Sleep(Callback):
    """Says that it is in the second epoch, and waits to be killed."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (1, 1):
            Path("here").touch()
            time.sleep(60)


def fit_and_sleep() -> None:
    fit("cache", callbacks=[Sleep()])


@pytest.mark.lightning
def test_killed_it_goes_on_with_what_was_written() -> None:
    assert run_and_kill(fit_and_sleep, Path("here").exists) == -signal.SIGKILL
    state, asked = fit("cache")
    assert asked == 0
    assert_identical(state, fit(None)[0])


def test_a_complete_cache_waits_for_no_device(tmp_path: Path) -> None:
    """On the meta device, which has shapes and no values, waiting for one is an error."""
    prepare_cache(tmp_path, {"teachers": ["a", "b"], "samples": 8, "classes": 3, "precision": "32"})
    x, index, logits = torch.rand(8, 4), torch.arange(8), torch.rand(8, 2, 3)
    cache = TeacherCache(tmp_path, torch.device("cpu"))
    complete = [cache.is_complete]
    assert torch.equal(cache(index, lambda _: logits, x), logits)
    cache.flush()
    cache.reload()
    assert [*complete, cache.is_complete] == [False, True]
    order = torch.tensor([3, 0, 3, 7])
    assert torch.equal(cache(order, torch.linalg.inv, x[order]), logits[order])
    meta = TeacherCache(tmp_path, torch.device("meta"))
    with pytest.raises(RuntimeError, match=r"meta|Tensor.item"):
        meta(order.to("meta"), lambda _: logits, x[order].to("meta"))  # the first of an epoch is looked at
    meta._asked = 1
    for _ in range(5):
        answer = meta(order.to("meta"), lambda _: logits, x[order].to("meta"))
    assert list(answer.shape) == [4, 2, 3]
    assert answer.device.type == "meta"


def test_between_looks_a_wrong_answer_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_cache(tmp_path, {"teachers": ["a"], "samples": 4, "classes": 2, "precision": "32"})
    x, index, logits = torch.rand(4, 5), torch.arange(4), torch.rand(4, 1, 2)
    cache = TeacherCache(tmp_path, torch.device("cpu"))
    cache(index, lambda _: logits, x)
    cache.flush()
    cache.reload()
    monkeypatch.setattr(TeacherCache, "check", lambda self: None)  # as on a GPU, most of the time
    x[2, 3] += 0.1
    given = cache(torch.tensor([0, 1, 2, 4]), lambda _: logits, x)
    assert torch.equal(given[:2], logits[:2])
    assert bool(given[2:].isnan().all())
    assert cache.has_stale


def test_the_checksum_is_a_sum_of_splitmix64() -> None:
    """With Python's integers, which do not wrap around by themselves."""
    x = torch.randn(3, 2, 5)
    mask, totals = 2**64 - 1, []
    for row in x.reshape(3, -1).numpy().view(np.int32).astype(object):
        total = 0
        for place, word in enumerate(row, start=1):
            z = (int(word) + place * 0x9E3779B97F4A7C15) & mask
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            total = (total + z) & mask
        totals.append(total - 2**64 if total >= 2**63 else total)
    assert bit_checksum(x).tolist() == totals
    assert bit_checksum(x.double()).tolist() != totals


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_checksum_tells_inputs_apart(dtype: torch.dtype) -> None:
    x = torch.rand(1, 3, 8, 8).to(dtype)
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    seen = {int(bit_checksum(one)) for one in (x, -x, x.flip(-1), x.roll(1, -1))}
    for bit in (0, 5, 8 * dtype.itemsize - 1):
        for place in (0, 100, 191):
            other = x.clone().view(kinds[dtype.itemsize])
            other.view(-1)[place] ^= torch.tensor(1 << bit if bit < 63 else -(1 << 63)).to(other.dtype)
            seen.add(int(bit_checksum(other.view(dtype))))
    assert len(seen) == 4 + 9
    batch = torch.cat([x, x.flip(-1)])
    strided = batch.to(memory_format=torch.channels_last)
    assert torch.equal(bit_checksum(strided), bit_checksum(batch))
    assert bit_checksum(batch)[0] == bit_checksum(x)[0]
    assert bit_checksum(torch.zeros(0, 3, dtype=dtype)).shape == (0,)


def test_the_fingerprint_is_the_networks_own() -> None:
    net = teacher()
    with torch.no_grad():
        others = [copy.deepcopy(net) for _ in range(3)]
        others[0][0].weight[0, 0, 0, 0] += 1e-6  # type: ignore[index]
        others[1][1].running_var[1] += 1e-6  # type: ignore[index]
        others[2][2] = nn.GELU()  # type: ignore[operator]
    assert len({fingerprint(one) for one in (net, *others)}) == 4
    same = [copy.deepcopy(net), torch.compile(net, backend="eager")]
    assert {fingerprint(one) for one in same} == {fingerprint(net)}  # type: ignore[arg-type]
    assert fingerprint(net.bfloat16()) != fingerprint(teacher())
    assert json.dumps(fingerprint(nn.Identity()))
