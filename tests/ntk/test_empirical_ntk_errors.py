from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import weight_norm
from torch.utils.checkpoint import checkpoint

from pl_robust.models import LeNet
from pl_robust.ntk import _memory, empirical_ntk
from tests.ntk import zoo

# At its first use torch loads its compiler, which sets environment variables: not inside a test.
checkpoint(torch.sin, torch.zeros(1), use_reentrant=False)


def lenet() -> nn.Module:
    return LeNet(1, num_classes=3, image_size=8).eval()


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 1, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"outputs": "mean"}, ValueError, '`outputs` must be "trace", "full", the index of an output, or a function'),
        ({"outputs": 3}, ValueError, "`outputs` must be an output of the model, 0 to 2, got 3"),
        ({"outputs": 0.5}, TypeError, '`outputs` must be "trace", "full", the index of an output, or a function'),
        ({"outputs": lambda given: given}, ValueError, r"must make one value per sample .*, \[4\] of \[4, 3\]"),
        ({"outputs": lambda given: given[:, 0].detach()}, ValueError, "do not depend .* through autograd"),
        ({"outputs": lambda given: given.argmax(1)}, ValueError, "do not depend .* through autograd"),
        ({"outputs": lambda given: given[:, 0] - given[0, 0]}, ValueError, "must take the samples one by one"),
        ({"chunk_size": 0}, ValueError, "`chunk_size` must be at least 1, got 0"),
        ({"chunk_size": 2.5}, TypeError, "`chunk_size` must be an integer, got 2.5"),
        ({"dtype": "float64"}, TypeError, "`dtype` must be a real floating-point dtype of torch"),
        ({"dtype": torch.int64}, TypeError, "`dtype` must be a real floating-point dtype of torch"),
        ({"x2": torch.rand(0, 1, 8, 8)}, ValueError, "`x2` must be inputs .* of at least one sample"),
        ({"x2": torch.rand(2, 1, 8, 8).double()}, TypeError, "`x2` must be torch.float32"),
        ({"x2": "images"}, TypeError, "`x2` must be a tensor"),
    ],
)
def test_what_is_wrong_is_said(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        empirical_ntk(lenet(), images(), **arguments)


def test_the_model_must_be_one_in_eval_mode() -> None:
    with pytest.raises(TypeError, match=r"`model` must be an nn\.Module"):
        empirical_ntk(torch.sin, images(), dtype=torch.float64)  # type: ignore[arg-type]
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 2))
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        empirical_ntk(model, images())
    with pytest.raises(ValueError, match="requires_grad=True"):
        empirical_ntk(lenet().requires_grad_(False), images())
    with pytest.raises(ValueError, match=r"does not take integers.* \(uint8 images divided by 255\)"):
        empirical_ntk(lenet(), torch.zeros(4, 1, 8, 8, dtype=torch.uint8))


def test_a_kernel_that_does_not_fit_is_refused_before_the_work() -> None:
    model, many = nn.Linear(2, 3).eval(), torch.zeros(10**6, 2)
    message = (
        r"the kernel of 1000000 inputs with 1000000, \[1000000, 1000000, 3, 3\], needs 3\.35e\+04 GiB, and .* GiB are "
        r"free on cpu: outputs='trace' needs 3\.73e\+03 GiB; or compute it by blocks of `x1` and `x2`, or take fewer"
    )
    with pytest.raises(ValueError, match=message):
        empirical_ntk(model, many, outputs="full")
    with pytest.raises(ValueError, match=r"\[1000000, 1000000\], needs 3\.73e\+03 GiB.*: compute it by blocks"):
        empirical_ntk(model, many)


def test_a_chunk_that_does_not_fit_is_refused_and_the_one_that_fits_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "free_bytes", lambda device: 2**19)
    with pytest.raises(ValueError, match=r"40 samples need about .* are free on cpu: chunk_size=\d+ fits") as caught:
        empirical_ntk(lenet(), images(40), chunk_size=40)
    fitting = int(str(caught.value).split("chunk_size=")[1].split()[0])
    assert 1 <= fitting < 40
    assert empirical_ntk(lenet(), images(40), chunk_size=fitting).shape == (40, 40)
    assert empirical_ntk(lenet(), images(40)).shape == (40, 40)
    monkeypatch.setattr(_memory, "free_bytes", lambda device: 2**11)
    with pytest.raises(ValueError, match="not even one sample fits"):
        empirical_ntk(lenet(), images(4))


def test_where_nobody_tells_the_free_memory_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = empirical_ntk(lenet_of(0), images_of(0))
    monkeypatch.setattr(_memory, "free_bytes", lambda device: None)
    assert torch.equal(empirical_ntk(lenet_of(0), images_of(0)), expected)


def lenet_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return lenet()


def images_of(seed: int) -> Tensor:
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_hidden_parameters_are_refused() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        hidden: Tensor = checkpoint(net.first, x.clone().requires_grad_(), use_reentrant=True)
        out: Tensor = net.second(hidden)
        return out

    model = zoo.Lambda(run, first=nn.Linear(3, 4), second=nn.Linear(4, 2)).eval()
    with pytest.raises(ValueError, match=r"give torch\.utils\.checkpoint use_reentrant=False"):
        empirical_ntk(model, torch.rand(4, 3))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_what_cannot_be_copied_must_be_cast_by_its_owner() -> None:
    model = weight_norm(nn.Linear(3, 2)).eval()
    x = torch.rand(4, 3)
    with pytest.raises(ValueError, match=r"`dtype` takes a copy of `model`.* cast it yourself"):
        empirical_ntk(model, x, dtype=torch.float64)
    assert empirical_ntk(model.double(), x.double()).dtype == torch.float64
