from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

import pytest
import sklearn.datasets  # noqa: F401  # sets environment variables when it is imported: not inside a test
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pl_robust._lightning import NAMESPACE, LightningModule
from pl_robust.datamodules import ImageDataModule, InjectedFeatureDataModule
from pl_robust.datamodules._injection import class_shift, span
from pl_robust.datamodules.injected_feature import TestSet
from pl_robust.transforms import dct_carrier
from tests.datamodules.toys import Base, Recorder, WithClasses, to_dict
from tests.toys import quiet_trainer

pytestmark = pytest.mark.lightning

ALL: tuple[TestSet, ...] = ("clean", "injected", "carrier_only", "shuffled_carrier")


def _images(loader: Any) -> Tensor:
    return torch.cat([x for x, _ in loader])


def _photos(channels: int = 3, count: int = 20) -> Base:
    base = Base()
    base.x, base.y = torch.rand(count, channels, 32, 32), torch.arange(count) % 10
    base.loader = DataLoader(TensorDataset(base.x, base.y), 8)
    return base


def _sets(base: Base, **arguments: Any) -> dict[str, Any]:
    """Test sets by name, over the base's one loader."""
    base.test_dataloader = lambda: base.loader  # type: ignore[method-assign]
    data = InjectedFeatureDataModule(base, num_classes=10, test_sets=ALL, **arguments)
    return _by_name(data.test_dataloader())


def _by_name(loaders: Any) -> dict[str, Any]:
    """Under Lightning 1 the sets come as a list, in the order in which they were asked for."""
    return loaders if isinstance(loaders, dict) else dict(zip(ALL, loaders, strict=False))


def _digits() -> tuple[Tensor, Tensor]:
    data = ImageDataModule("digits")
    data.setup("fit")
    x, y = zip(*data.train_dataloader(), strict=True)
    return torch.cat(x), torch.cat(y)


# the modes


def test_reverse_subtracts() -> None:
    base = WithClasses()
    x = _images(InjectedFeatureDataModule(base, 0.1, mode="reverse").train_dataloader())
    assert torch.equal(x, base.x - 0.1 * dct_carrier(4, 8)[base.y])


def test_reverse_with_beta_zero_leaves_every_bit() -> None:
    base = WithClasses()
    base.x[:5] = -0.0
    x = _images(InjectedFeatureDataModule(base, 0, mode="reverse").train_dataloader())
    assert torch.equal(x.view(torch.int32), base.x.view(torch.int32))


def test_orthogonal_is_least_squares_residual_plus_the_carrier() -> None:
    base, carriers = _photos(), dct_carrier(10, 32).expand(-1, 3, -1, -1)
    x = _images(InjectedFeatureDataModule(base, 0.5, num_classes=10, mode="orthogonal").train_dataloader())
    five = carriers[:5].flatten(1).double().T
    fit = five @ torch.linalg.lstsq(five, base.x.flatten(1).double().T).solution
    expected = base.x.double() - fit.T.view_as(base.x) + 0.5 * carriers[base.y].double()
    torch.testing.assert_close(x.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("own", [False, True])
def test_orthogonal_leaves_nothing_in_the_span_but_the_carrier(channels: int, own: bool) -> None:
    base = _photos(channels)
    carriers = torch.randn(10, channels, 32, 32) if own else None
    data = InjectedFeatureDataModule(base, 0, carriers, num_classes=10, mode="orthogonal")
    x = _images(data.train_dataloader())  # beta = 0: projects only
    directions = (dct_carrier(10, 32).expand(-1, channels, -1, -1) if carriers is None else carriers).flatten(1)
    components = x.flatten(1).double() @ (directions / directions.norm(dim=1, keepdim=True)).double().T
    assert components.abs().max() < 1e-6
    assert (base.x - x).flatten(1).norm(dim=1).min() > 0.01  # there was something to remove


def test_orthogonal_leaves_a_constant_image_as_it_is() -> None:
    # The released code takes 8 % of it away.
    base = _photos()
    base.x[:] = torch.linspace(0, 1, len(base.x)).view(-1, 1, 1, 1)
    x = _images(InjectedFeatureDataModule(base, 0, num_classes=10, mode="orthogonal").train_dataloader())
    assert torch.equal(x, base.x)


@pytest.mark.parametrize(("channels", "num_classes", "rank"), [(1, 10, 5), (3, 10, 5), (3, 7, 4), (3, 100, 50)])
def test_the_span_of_the_carriers_has_their_rank(channels: int, num_classes: int, rank: int) -> None:
    # The released QR decomposition of the ten carriers removes ten dimensions.
    carriers = dct_carrier(num_classes, 32)
    basis = span(carriers, channels)
    identity = torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(
        basis @ basis.T, identity
    )  # orthonormal: B^T B is a projector, idempotent, of this trace
    assert torch.linalg.matrix_rank(carriers.flatten(1).double()) == rank
    images = carriers.expand(-1, channels, -1, -1).flatten(1).double()
    torch.testing.assert_close((images @ basis.T) @ basis, images)


def test_the_projector_is_idempotent_and_of_trace_five() -> None:
    base = _photos(1)
    base.x, base.y = torch.eye(1024).view(-1, 1, 32, 32), torch.zeros(1024).long()
    base.loader = DataLoader(TensorDataset(base.x, base.y), 1024)
    data = InjectedFeatureDataModule(base, 0, num_classes=10, mode="orthogonal")
    projector = _images(data.train_dataloader()).view(1024, 1024).double()  # its rows are the projected unit images
    assert projector.trace().item() == pytest.approx(1024 - 5, abs=1e-4)
    assert torch.linalg.matrix_rank(projector, atol=1e-3) == 1024 - 5
    torch.testing.assert_close(projector @ projector, projector, atol=1e-6, rtol=0)


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_carriers_that_depend_on_each_other_up_to_rounding_add_no_dimension(noise: float) -> None:
    a, b = torch.randn(2, 3, 8, 8)
    carriers = torch.stack([a, b, a - 2 * b, torch.zeros_like(a)])
    assert len(span(carriers + noise * torch.randn_like(carriers), 3)) == 2


def test_carriers_of_zeros_take_nothing_away() -> None:
    base = WithClasses()
    data = InjectedFeatureDataModule(base, 0.1, torch.zeros(4, 1, 8, 8), mode="orthogonal")
    assert torch.equal(_images(data.train_dataloader()), base.x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_batch_keeps_its_dtype(dtype: torch.dtype) -> None:
    base = _photos()
    base.x = base.x.to(dtype)
    base.loader = DataLoader(TensorDataset(base.x, base.y), 8)
    for name, loader in _sets(base, beta=0.1, mode="orthogonal").items():
        assert _images(loader).dtype == dtype, name


# the test sets


@pytest.mark.parametrize(("mode", "sign"), [("add", 1), ("reverse", -1), ("orthogonal", 1)])
@pytest.mark.parametrize("beta", [0, 0.25])
def test_the_four_sets(mode: Any, sign: int, beta: float) -> None:
    base, carriers = _photos(), dct_carrier(10, 32)
    sets = _sets(base, beta=beta, mode=mode)
    assert list(sets) == list(ALL)
    for name, loader in sets.items():
        assert torch.equal(torch.cat([y for _, y in loader]), base.y), name
    assert torch.equal(_images(sets["clean"]), base.x)
    carrier = sign * beta * carriers[base.y].expand(-1, 3, -1, -1)
    assert torch.equal(_images(sets["carrier_only"]), carrier)
    without = _images(InjectedFeatureDataModule(base, 0, num_classes=10, mode=mode).train_dataloader())
    assert torch.equal(_images(sets["injected"]), without + carrier)
    other = (base.y + class_shift(base.x, 10)) % 10
    assert (other != base.y).all()
    assert torch.equal(_images(sets["shuffled_carrier"]), without + sign * beta * carriers[other])


def test_sets_come_in_the_order_asked_for_and_the_default_is_the_bases_structure() -> None:
    base = WithClasses()
    assert list(InjectedFeatureDataModule(base, 0.1).test_dataloader()) == ["a", "b"]
    base.test_dataloader = lambda: base.loader  # type: ignore[method-assign]
    alone = InjectedFeatureDataModule(base, 0.1).test_dataloader()
    assert torch.equal(_images(alone), base.x + 0.1 * dct_carrier(4, 8)[base.y])
    two = InjectedFeatureDataModule(base, 0.1, test_sets=["shuffled_carrier", "clean"]).test_dataloader()
    shuffled, clean = two.values() if isinstance(two, dict) else two
    assert torch.equal(_images(clean), base.x)
    assert not torch.equal(_images(shuffled), base.x)


def test_the_shift_is_near_uniform_on_digits() -> None:
    x, y = _digits()
    shift = class_shift(x, 10)
    counts = shift.bincount(minlength=11)
    assert counts[0] == counts[10] == 0
    expected = len(x) / 9
    chi_squared = ((counts[1:10] - expected) ** 2 / expected).sum()
    assert chi_squared < 26.1  # 99.9 % of 8 degrees of freedom
    for label in range(10):  # within each class, too
        assert (shift[y == label].bincount(minlength=10)[1:] > 0).all(), label


def test_the_shift_of_an_image_is_its_own() -> None:
    x, _ = _digits()
    x = x[:100]
    shift = class_shift(x, 10)
    assert torch.equal(torch.cat([class_shift(image, 10) for image in torch.split(x, 1)]), shift)
    assert torch.equal(torch.cat([class_shift(part, 10) for part in torch.split(x, 33)]), shift)
    order = torch.randperm(100)
    assert torch.equal(class_shift(x[order], 10), shift[order])
    colours = torch.rand(100, 3, 8, 8)
    expected = class_shift(colours, 10)
    assert torch.equal(class_shift(colours.to(memory_format=torch.channels_last), 10), expected)
    before = torch.get_rng_state()
    assert torch.equal(class_shift(x.double(), 10), shift)
    assert torch.equal(torch.get_rng_state(), before)
    assert class_shift(x[:0], 10).shape == (0,)
    assert torch.equal(class_shift(x, 2), torch.ones(100).long())


def test_one_pixel_decides_the_shift() -> None:
    x = torch.rand(1, 3, 8, 8).repeat(193, 1, 1, 1)
    for index in range(192):
        x[index].view(-1)[index] += 1e-3
    counts = class_shift(x, 10)[:192].bincount(minlength=10)[1:]
    assert counts.min() > 8  # 21 on average


def test_sets_of_dict_batches_keep_all_else() -> None:
    base = Base(to_dict)
    base.test_dataloader = lambda: base.loader  # type: ignore[method-assign]
    keys: Any = {"input_key": "image", "label_key": "label"}
    data = InjectedFeatureDataModule(base, 0.1, num_classes=4, test_sets=ALL, **keys)
    for name, loader in _by_name(data.test_dataloader()).items():
        first = next(iter(loader))
        assert list(first) == ["name", "image", "label"], name
        assert first["name"] == "batch"
        assert torch.equal(first["label"], base.y[:8])


def test_one_test_run_gives_one_column_for_each_set() -> None:
    class Reader(LightningModule):
        """Knows the carriers and nothing else."""

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            x, y = batch
            scores = (x - x.mean((1, 2, 3), keepdim=True)).flatten(1) @ dct_carrier(10, 8).flatten(1).T
            self.log("test/acc", (scores.argmax(1) == y).float().mean(), batch_size=len(y))

    data = InjectedFeatureDataModule(ImageDataModule("digits"), 3, mode="orthogonal", test_sets=ALL)
    trainer = quiet_trainer()
    trainer.test(Reader(), datamodule=data, verbose=False)
    accuracies = [trainer.callback_metrics[f"test/acc/dataloader_idx_{index}"] for index in range(4)]
    assert accuracies[1:] == [1, 1, 0]
    assert accuracies[0] < 0.5


def test_a_copy_gives_the_same_sets() -> None:
    base = WithClasses()
    base.loader = [base.loader]  # a list of one loader is one loader
    base.test_dataloader = base.train_dataloader  # type: ignore[method-assign]
    data = InjectedFeatureDataModule(base, 0.1, test_sets=ALL)
    again = _by_name(copy.deepcopy(data).test_dataloader())
    for name, loader in _by_name(data.test_dataloader()).items():
        assert torch.equal(_images(loader), _images(again[name])), name


# the LightningCLI


@pytest.mark.filterwarnings("ignore:(?s).*:DeprecationWarning")  # how Lightning calls jsonargparse
def test_modes_and_sets_from_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["pl-robust"])  # LightningCLI warns of arguments on both sides
    cli: Any = import_module(f"{NAMESPACE}.cli")
    data = cli.LightningCLI(
        Recorder,
        InjectedFeatureDataModule,
        seed_everything_default=0,
        run=False,
        args=[
            "--data.base=ImageDataModule",
            "--data.base.name=digits",
            "--data.beta=8/255",
            "--data.mode=orthogonal",
            "--data.test_sets=[clean,injected]",
        ],
    ).datamodule
    assert data.hparams["mode"] == "orthogonal"
    assert data.hparams["test_sets"] == ["clean", "injected"]
    data.setup("test")
    clean, injected = _by_name(data.test_dataloader()).values()
    plain = ImageDataModule("digits")
    plain.setup("test")
    assert torch.equal(_images(clean), _images(plain.test_dataloader()))
    assert not torch.equal(_images(injected), _images(clean))


# what they refuse


def test_refuses_several_test_loaders() -> None:
    data = InjectedFeatureDataModule(WithClasses(), 0.1, test_sets=["clean", "injected"])
    with pytest.raises(ValueError, match=r"needs a base with one test loader, WithClasses gives 2; the default"):
        data.test_dataloader()


def test_refuses_to_shuffle_one_class() -> None:
    class OneClass(Base):
        num_classes = 1

    message = "'shuffled_carrier' takes the carrier of another class .* got 1; leave it out"
    for arguments in ({"num_classes": 1}, {"carriers": torch.ones(1, 1, 8, 8)}, {"base": OneClass()}):
        with pytest.raises(ValueError, match=message):
            InjectedFeatureDataModule(**{"base": Base(), "beta": 0.1, "test_sets": ALL, **arguments})  # type: ignore[arg-type]
    base: Any = Base()
    base.test_dataloader = lambda: base.loader
    data = InjectedFeatureDataModule(base, 0.1, test_sets=ALL)  # does not know yet how many classes there are
    base.num_classes = 1
    with pytest.raises(ValueError, match=message):
        data.test_dataloader()
