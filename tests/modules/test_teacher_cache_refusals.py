"""What a teachers' cache refuses: other inputs, other teachers, and what it cannot store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from pl_robust._lightning import Callback, MisconfigurationException
from pl_robust.attacks import FGSM
from pl_robust.losses import ARD
from pl_robust.modules import AKDStudent
from pl_robust.modules._teacher_cache import TeacherCache, prepare_cache
from tests.modules.test_adversarial_training import small_net
from tests.modules.test_akd_student import teacher
from tests.modules.test_teacher_cache import Indexed, fit
from tests.toys import needs_lightning, quiet_trainer, stripes


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
@needs_lightning("2.0", "precisions have other names")
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


class Scaled(nn.Module):
    """A teacher with an attribute that neither its weights nor its layers show."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.net, self.factor = teacher(), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.net(x)  # type: ignore[no-any-return]


@pytest.mark.lightning
def test_answers_of_an_earlier_run_are_compared_with_the_teachers_own() -> None:
    fit("cache", teachers=[teacher(), Scaled(1)])
    fit("cache", teachers=[teacher(), Scaled(1.001)])  # as rounding may do
    told = r"`cache`='.*' holds other answers than teacher \[1\] \(counted from 0\) gives now"
    with pytest.raises(ValueError, match=told):
        fit("cache", teachers=[teacher(), Scaled(2)])


def test_what_is_known_of_a_batch_is_compared(tmp_path: Path) -> None:
    prepare_cache(tmp_path, {"teachers": ["a", "b"], "samples": 8, "classes": 3, "precision": "32"})
    x, index, logits = torch.rand(8, 4), torch.arange(8), torch.randn(8, 2, 3)
    first = TeacherCache(tmp_path, torch.device("cpu"))
    first(index[:5], lambda _: logits[:5], x[:5])
    first.flush()
    first.reload()
    first(index, lambda _: -logits, x)  # its own answers are not looked at again
    other = logits.clone()
    other[4, 0] += torch.tensor([1.0, 0.0, -1.0])
    with pytest.raises(ValueError, match=r"than teacher \[0\] \(counted from 0\)"):
        TeacherCache(tmp_path, torch.device("cpu"))(index, lambda _: other, x)
    again = TeacherCache(tmp_path, torch.device("cpu"))
    again(index[5:], lambda _: logits[5:], x[5:])  # nothing to compare
    with pytest.raises(ValueError, match=r"than teacher \[0, 1\] .*answers at random"):
        again(index, lambda _: -logits, x)
    other[5:] += 1e3 * torch.randn(3, 2, 3)  # of which nothing is known
    other[:5] = logits[:5]
    assert torch.equal(TeacherCache(tmp_path, torch.device("cpu"))(index, lambda _: other, x), other)


class Never(Callback):
    """No batch should come here."""

    def on_train_batch_start(self, *_: Any) -> None:
        raise AssertionError("a batch")


@pytest.mark.lightning
def test_a_cache_that_cannot_be_written_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fit("cache")
    fit("part", epochs=1, limit_train_batches=2)
    load = np.load

    def read_only(path: Any, mmap_mode: Any, **arguments: Any) -> Any:
        if mmap_mode == "r+":
            raise PermissionError(13, "Permission denied", str(path))
        return load(path, mmap_mode=mmap_mode, **arguments)

    monkeypatch.setattr(np, "load", read_only)  # root may write everywhere
    assert fit("cache")[1] == 16  # complete
    with pytest.raises(PermissionError, match=r"part/teacher_logits.npy"):
        fit("part", callbacks=[Never()])


@pytest.mark.lightning
def test_a_cache_needs_one_data_set_of_known_length() -> None:
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(Indexed())

    one = AKDStudent(small_net(), teacher(), FGSM(0.1), distillation=ARD(), cache="cache", lr_scheduler="constant")
    loader = DataLoader(Indexed(), 16)
    for loaders in (DataLoader(Endless(), 16), [loader, loader], list(loader)):
        with pytest.raises(
            MisconfigurationException, match=r"`cache` needs one training dataloader .*leave `cache` out"
        ):
            quiet_trainer(max_epochs=1).fit(one, loaders)
