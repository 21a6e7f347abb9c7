from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.image import peak_signal_noise_ratio

from pl_robust._signal import grid_coordinates
from pl_robust.cli import main
from pl_robust.models import MLP, SIREN, FourierFeatureNetwork, load_siren, save_siren
from pl_robust.modules import INRFitting, INRMetaLearning
from pl_robust.modules._inner_loop import inner_loop
from pl_robust.modules.inr_meta_learning import published_adam
from tests.toys import assert_identical, loader, needs_named_loaders, needs_rebuilding, quiet_trainer, stripes

pytestmark = pytest.mark.lightning

RELEASED = Path(__file__).parents[3] / "shared" / "data" / "siren_celeba_maml.npz"


def siren(seed: int = 0, out_features: int = 1, **arguments: Any) -> SIREN:
    torch.manual_seed(seed)
    return SIREN(2, out_features, **{"hidden_features": 12, "num_layers": 3, "output_offset": 0.5, **arguments})


def images(count: int = 4, channels: int = 1, seed: int = 3) -> Tensor:
    return torch.rand(count, channels, 6, 5, generator=torch.Generator().manual_seed(seed))


def sgd(lr: float) -> Callable[[Any], SGD]:
    return lambda parameters: SGD(parameters, lr=lr)


def pixels(picture: Tensor) -> Tensor:
    """Values [N, C] of an image [C, H, W], pixel by pixel: row by row."""
    return torch.stack(
        [picture[:, row, column] for row in range(picture.shape[1]) for column in range(picture.shape[2])]
    )


def unrolled(
    net: nn.Module, picture: Tensor, steps: int, lr: float, coordinate_range: tuple[float, float] = (-1.0, 1.0)
) -> tuple[dict[str, Tensor], Tensor]:
    """The inner loop by hand, on one image; its graph goes back to the network's parameters."""
    parameters: dict[str, Tensor] = {name: value for name, value in net.named_parameters() if value.requires_grad}
    x = grid_coordinates(picture.shape[1:], coordinate_range).to(picture)
    for _ in range(steps):
        error = F.mse_loss(functional_call(net, parameters, (x,)), pixels(picture))
        gradients = torch.autograd.grad(error, list(parameters.values()), create_graph=True)
        parameters = {key: value - lr * g for (key, value), g in zip(parameters.items(), gradients, strict=True)}
    return parameters, F.mse_loss(functional_call(net, parameters, (x,)), pixels(picture))


def loss_of(module: INRMetaLearning, batch: Any) -> Tensor:
    """What training_step gives, without a Trainer to log to."""
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    return module.training_step(batch, 0)


def gradients(module: INRMetaLearning, batch: Any) -> dict[str, Tensor]:
    """What training_step gives the optimizer."""
    module.zero_grad()
    loss_of(module, batch).backward()  # type: ignore[no-untyped-call]
    return {name: value.grad.clone() for name, value in module.net.named_parameters() if value.grad is not None}


def assert_close(left: dict[str, Tensor], right: dict[str, Tensor], **tolerance: Any) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], **tolerance)


NETS: dict[str, Callable[[], nn.Module]] = {
    "siren": lambda: siren(out_features=2),
    "fourier features": lambda: FourierFeatureNetwork(2, 2, num_frequencies=6, sigma=1.0, hidden_features=8),
    "mlp": lambda: MLP(2, 2, (8, 8), activation="tanh"),
}


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_maml_has_the_gradient_through_the_unrolled_loop(kind: str, steps: int) -> None:
    net = NETS[kind]().double()
    x = images(channels=2).double()
    module = INRMetaLearning(net, inner_steps=steps, inner_lr=0.05)
    got = gradients(module, [x, torch.zeros(4)])
    loss = torch.stack([unrolled(net, picture, steps, 0.05)[1] for picture in x]).mean()
    net.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    expected = {name: value.grad for name, value in net.named_parameters() if value.grad is not None}
    assert_close(got, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss_of(module, x), loss, rtol=1e-12, atol=0)
    first_order = gradients(INRMetaLearning(net, inner_steps=0), x)
    assert max(float((got[name] - first_order[name]).abs().max()) for name in got) > 1e-4  # another gradient


def test_maml_without_inner_steps_is_training_on_all_images() -> None:
    net, x = siren().double(), images().double()
    got = gradients(INRMetaLearning(net, inner_steps=0), x)
    net.zero_grad()
    prediction = net(grid_coordinates((6, 5)).double())
    F.mse_loss(prediction.expand(4, -1, -1), torch.stack([pixels(one) for one in x])).backward()  # type: ignore[no-untyped-call]
    assert_close(got, {name: value.grad for name, value in net.named_parameters() if value.grad is not None})


def test_reptile_goes_where_the_inner_steps_lead() -> None:
    net, x = siren().double(), images().double()
    module = INRMetaLearning(net, method="reptile", inner_steps=3, inner_lr=0.05)
    ends = [unrolled(net, picture, 3, 0.05)[0] for picture in x]
    expected = {
        name: (start - torch.stack([end[name] for end in ends]).mean(0)).detach()
        for name, start in net.named_parameters()
    }
    assert_close(gradients(module, x), expected, rtol=1e-9, atol=1e-13)
    loss = torch.stack([unrolled(net, picture, 3, 0.05)[1] for picture in x]).mean()
    torch.testing.assert_close(loss_of(module, x), loss)  # the value is the error all the same


def test_reptile_with_one_step_has_the_gradient_of_the_mean_error() -> None:
    net, x = siren(), images()
    got = gradients(INRMetaLearning(net, method="reptile", inner_steps=1, inner_lr=1e-6), x)
    expected = gradients(INRMetaLearning(net, inner_steps=0), x)
    # In float32, and a step far below the parameters' precision: theta - theta_1 would be noise.
    assert_close({name: 1e6 * value for name, value in got.items()}, expected, rtol=1e-4, atol=1e-7)


def test_reptile_with_sgd_of_1_lands_on_the_mean_of_the_tasks() -> None:
    net = siren()
    module = INRMetaLearning(net, method="reptile", inner_lr=0.1, optimizer=sgd(1.0))
    ends = module.adapt(images())
    quiet_trainer(max_epochs=1).fit(module, DataLoader(images(), batch_size=4))  # type: ignore[arg-type]
    assert_close(dict(net.named_parameters()), {name: end.mean(0) for name, end in ends.items()}, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("coordinate_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_adapted_networks_are_those_of_the_loop_by_hand(coordinate_range: tuple[float, float]) -> None:
    net, x = siren(out_features=3).double(), images(channels=3).double()
    module = INRMetaLearning(net, coordinate_range=coordinate_range)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for steps in (0, 2, 7):
        adapted = module.adapt(x, steps)
        for index, picture in enumerate(x):
            expected, _ = unrolled(net, picture, steps, 0.01, coordinate_range)
            assert_close({name: value[index] for name, value in adapted.items()}, expected, rtol=1e-9, atol=1e-12)
        assert not any(value.requires_grad for value in adapted.values())
    assert_identical(dict(net.state_dict()), before)
    assert all(value.grad is None for value in net.parameters())
    with torch.inference_mode():
        assert_close(module.adapt(x), {name: value.clone() for name, value in module.adapt(x, 2).items()})


@pytest.mark.parametrize("points_at_once", [30, 70, 2**16])
def test_tasks_do_not_see_each_other(points_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pl_robust.modules._inner_loop._POINTS_AT_ONCE", points_at_once)  # groups of 1, 2 and all
    net, x = siren().double(), images(5).double()
    module = INRMetaLearning(net, inner_lr=0.1)
    adapted = module.adapt(x)
    for index in range(5):
        alone = module.adapt(x[index : index + 1])
        assert_close({name: value[0] for name, value in alone.items()}, {n: v[index] for n, v in adapted.items()})
    turned = module.adapt(x.flip(0))
    assert_close({name: value.flip(0) for name, value in turned.items()}, adapted)


def test_fixed_parameters_stay_in_both_loops() -> None:
    net = siren()
    net.layers[0].requires_grad_(False)
    module = INRMetaLearning(net, inner_lr=0.1, optimizer=sgd(0.1))
    first = net.layers[0].weight.clone()  # type: ignore[operator]
    adapted = module.adapt(images())
    assert set(adapted) == {f"layers.{index}.{name}" for index in (1, 2) for name in ("weight", "bias")}
    expected, _ = unrolled(net, images()[1], 2, 0.1)
    assert_close({name: value[1] for name, value in adapted.items()}, expected, rtol=1e-4, atol=1e-6)
    quiet_trainer(max_epochs=1).fit(module, DataLoader(images(), batch_size=2))  # type: ignore[arg-type]
    assert torch.equal(net.layers[0].weight, first)  # type: ignore[arg-type]
    assert set(gradients(module, images())) == set(adapted)


class Tied(nn.Module):
    """One matrix used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(2, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.last.weight = self.middle.weight
        self.out = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.out(self.last(self.middle(self.first(x).tanh()).tanh()).tanh())
        return values


def test_tied_weights_stay_tied() -> None:
    net, x = Tied().double(), images().double()
    got = gradients(INRMetaLearning(net, inner_lr=0.1), x)
    net.zero_grad()
    torch.stack([unrolled(net, picture, 2, 0.1)[1] for picture in x]).mean().backward()  # type: ignore[no-untyped-call]
    assert_close(got, {name: value.grad for name, value in net.named_parameters() if value.grad is not None})


class MeanFree(nn.Module):
    """A network whose forward mixes the points."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.body(x)
        return values


def test_points_may_be_mixed_but_not_tasks() -> None:
    net, x = MeanFree().double(), images().double()
    adapted = INRMetaLearning(net, inner_lr=0.1).adapt(x)
    expected, _ = unrolled(net, x[2], 2, 0.1)
    assert_close({name: value[2] for name, value in adapted.items()}, expected)


def test_logged_numbers_are_those_of_the_loop_by_hand() -> None:
    net = siren()
    module = INRMetaLearning(net, inner_lr=0.1, optimizer=sgd(0.0))
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, DataLoader(images(), batch_size=4), DataLoader(images(5, seed=4), batch_size=2))  # type: ignore[arg-type]
    logged = {key: value.item() for key, value in trainer.callback_metrics.items()}
    errors = [torch.stack([unrolled(net, one, steps, 0.1)[1] for one in images(5, seed=4)]) for steps in range(3)]
    ratios = [(-10 * error.log10()).mean().item() for error in errors]
    train = torch.stack([unrolled(net, one, 2, 0.1)[1] for one in images()])
    expected = {
        "train/loss": train.mean().item(),
        "train/psnr": (-10 * train.log10()).mean().item(),
        "val/loss": errors[2].mean().item(),
        "val/psnr_0": ratios[0],
        "val/psnr_1": ratios[1],
        "val/psnr": ratios[2],
    }
    assert logged == pytest.approx(expected, rel=1e-4)
    assert logged["val/psnr_0"] < logged["val/psnr_1"] < logged["val/psnr"]


def test_predictions_are_the_adapted_images() -> None:
    net, x = siren(out_features=3), images(6, channels=3)
    module = INRMetaLearning(net, inner_steps=30, inner_lr=0.05)
    trainer = quiet_trainer()
    rebuilt: Any = trainer.predict(module, DataLoader(TensorDataset(x), batch_size=4))
    (metrics,) = trainer.test(module, DataLoader(x, batch_size=4), verbose=False)  # type: ignore[arg-type]
    together = torch.cat(rebuilt)
    assert together.shape == x.shape
    ratios = [peak_signal_noise_ratio(ours, theirs, data_range=1.0) for ours, theirs in zip(together, x, strict=True)]
    assert metrics["test/psnr"] == pytest.approx(torch.stack(ratios).mean().item(), rel=1e-4)


def test_batches_of_every_kind() -> None:
    x, y = stripes(32).tensors

    def fit(batches: Any, **arguments: Any) -> dict[str, Tensor]:
        module = INRMetaLearning(siren(), inner_lr=0.1, optimizer=sgd(0.1), **arguments)
        trainer = quiet_trainer(max_epochs=1)
        trainer.fit(module, batches, batches)
        return dict(module.net.state_dict())

    expected = fit(DataLoader(x, batch_size=16))  # type: ignore[arg-type]
    assert_identical(fit(loader(32)), expected)
    records: Any = [{"image": one, "label": label} for one, label in zip(x, y, strict=True)]
    assert_identical(fit(DataLoader(records, batch_size=16), input_key="image"), expected)


@needs_named_loaders
def test_dataloaders_of_a_dict_give_their_names_and_sizes() -> None:
    module = INRMetaLearning(siren())
    loaders: Any = {"large": DataLoader(torch.rand(3, 1, 9, 7)), "small": DataLoader(images(2))}  # type: ignore[arg-type]
    metrics = quiet_trainer().test(module, loaders, verbose=False)
    names = {key for one in metrics for key in one}
    assert names == {
        f"test/{metric}/{name}" for metric in ("loss", "psnr", "psnr_0", "psnr_1") for name in ("large", "small")
    }
    assert len(module.tasks.grids) == 2


@pytest.mark.parametrize("method", ["maml", "reptile"])
@pytest.mark.parametrize(
    "arguments",
    [{"precision": "bf16-mixed"}, {"precision": "64-true"}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}],
    ids=["bf16", "double", "accumulation", "clipping"],
)
def test_it_learns_everywhere(method: Any, arguments: dict[str, Any]) -> None:
    torch.manual_seed(1)
    pictures = 0.2 * torch.rand(32, 1, 1, 1) + 0.8 * stripes(1).tensors[0]  # one picture, more and less bright
    train: Any = DataLoader(pictures[:24], batch_size=4)  # type: ignore[arg-type]
    unseen: Any = DataLoader(pictures[24:], batch_size=8)  # type: ignore[arg-type]
    module = INRMetaLearning(
        siren(hidden_features=32),
        method=method,
        inner_lr=0.05,
        inner_steps=2 if method == "maml" else 5,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
    )
    trainer = quiet_trainer(max_epochs=10, **arguments)
    (before,) = trainer.validate(module, unseen, verbose=False)  # in inference mode
    trainer.fit(module, train, unseen)
    (after,) = trainer.validate(module, unseen, verbose=False)
    assert after["val/psnr"] > before["val/psnr"] + 5
    assert after["val/psnr"] > after["val/psnr_0"]


def test_mixed_precision_has_the_gradient_within_its_precision() -> None:
    net, x = siren(w0=5.0, hidden_w0=5.0), images()
    expected = gradients(INRMetaLearning(net, inner_lr=0.1), x)
    with torch.autocast("cpu", torch.bfloat16):
        got = [gradients(INRMetaLearning(net, inner_lr=0.1), x) for _ in range(2)]
    assert_identical(got[0], got[1])  # no cast of another pass is reused
    for name, value in expected.items():
        assert (got[0][name] - value).norm() < 0.05 * value.norm(), name


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    class Stopping(INRMetaLearning):
        def on_train_epoch_end(self) -> None:
            self.trainer.should_stop = self.current_epoch == 1

    def start(kind: type[INRMetaLearning], seed: int, checkpoint: str | None = None) -> dict[str, Any]:
        module = kind(siren(seed), optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
        trainer = quiet_trainer(max_epochs=4)
        trainer.fit(module, loader(48), loader(16), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return {**module.net.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}

    whole = start(INRMetaLearning, 0)
    stopped = start(Stopping, 0)
    assert not torch.equal(stopped["layers.1.weight"], whole["layers.1.weight"])
    assert_identical(start(INRMetaLearning, 1, str(tmp_path / "last.ckpt")), whole)


def test_the_initialization_is_exported_and_comes_back(tmp_path: Path) -> None:
    module = INRMetaLearning(siren(), method="reptile", inner_lr=0.02, coordinate_range=(0.0, 1.0))
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, loader(32), loader(16))
    trainer.save_checkpoint(tmp_path / "meta.ckpt")
    torch.load(tmp_path / "meta.ckpt", weights_only=True)
    again = INRMetaLearning.load_from_checkpoint(tmp_path / "meta.ckpt", net=siren(1))
    assert (again.method, again.inner_lr, tuple(again.coordinate_range)) == ("reptile", 0.02, (0.0, 1.0))
    assert_identical(dict(again.state_dict()), dict(module.state_dict()))
    save_siren(again.net, tmp_path / "init.npz")  # type: ignore[arg-type]
    exported = load_siren(tmp_path / "init.npz")
    x, _ = stripes(8).tensors
    assert_identical(INRMetaLearning(exported).adapt(x), INRMetaLearning(module.net).adapt(x))
    assert torch.equal(module(grid_coordinates((4, 4))), exported(grid_coordinates((4, 4))))


def test_the_inner_steps_are_those_of_a_fit_with_sgd() -> None:
    net, x = siren(out_features=3), images(3, channels=3)
    values = torch.stack([pixels(picture) for picture in x])
    adapted = INRMetaLearning(net, inner_steps=3, inner_lr=0.05).adapt(x)
    batches: Any = DataLoader([(grid_coordinates((6, 5)), values)] * 3, batch_size=None)  # type: ignore[arg-type]
    module = INRFitting(net, num_signals=3, shared_init=True, optimizer=sgd(0.1))
    quiet_trainer(max_epochs=1).fit(module, batches)
    for index in range(3):
        fitted: dict[str, Tensor] = dict(module.net_of(index).named_parameters())
        assert_close(fitted, {name: value[index] for name, value in adapted.items()}, rtol=1e-4, atol=1e-6)


def test_the_schedule_and_the_published_optimizer() -> None:
    seen: list[float] = []

    class Watching(INRMetaLearning):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            seen.append(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]

    def halve(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    for interval in ("epoch", "step"):
        module = Watching(siren(), lr_scheduler=halve, lr_scheduler_interval=interval)
        quiet_trainer(max_epochs=2).fit(module, loader(32))
    assert seen == pytest.approx([1e-5, 1e-5, 5e-6, 5e-6, 1e-5, 5e-6, 2.5e-6, 1.25e-6])
    assert published_adam(siren().parameters()).defaults["betas"] == (0.9, 0.999)


def faces() -> Tensor:
    """25 unseen faces of 25x25 pixels, and as many pieces of photos without one."""
    pytest.importorskip("skimage")
    from pl_robust.datamodules import ImageDataModule

    data = ImageDataModule("lfw", val_fraction=0.0)
    data.setup("test")
    x, y = next(iter(data.test_dataloader()))
    return torch.cat([x[y == 1], x[y == 0]])


@pytest.mark.skipif(not RELEASED.exists(), reason="the released weights are not here")
def test_the_released_weights_fit_faces_in_two_steps() -> None:
    x = F.interpolate(faces()[:8], (32, 32), mode="bilinear", antialias=True)
    new = siren(hidden_features=256, num_layers=5, bias_init="zeros")
    ratios = {}
    for name, net in {"released": load_siren(RELEASED), "new": new}.items():
        module = INRMetaLearning(net, coordinate_range=(0.0, 1.0))
        (metrics,) = quiet_trainer().test(module, DataLoader(x, batch_size=8), verbose=False)  # type: ignore[arg-type]
        ratios[name] = metrics["test/psnr"]
    print(ratios)
    assert ratios["released"] > ratios["new"] + 3


@needs_rebuilding
def test_a_configuration_starts_from_a_file(tmp_path: Path) -> None:
    save_siren(siren(), tmp_path / "init.npz")
    net = {"class_path": "pl_robust.models.load_siren", "init_args": {"path": str(tmp_path / "init.npz")}}
    content = {
        "trainer": {"max_epochs": 1, "limit_train_batches": 2, "accelerator": "cpu", "logger": False},
        "model": {"class_path": "INRMetaLearning", "init_args": {"net": net, "method": "reptile", "inner_lr": 0.02}},
        "data": {"class_path": "ImageDataModule", "init_args": {"name": "digits", "batch_size": 4}},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    main(["fit", "--config", str(tmp_path / "run.yaml"), "--trainer.enable_progress_bar=false"])
    (checkpoint,) = tmp_path.glob("checkpoints/*.ckpt")
    again = INRMetaLearning.load_from_checkpoint(checkpoint)
    again_from_the_command = ["test", "--config", str(tmp_path / "run.yaml"), "--ckpt_path", str(checkpoint)]
    main([*again_from_the_command, "--trainer.limit_test_batches=1", "--trainer.enable_progress_bar=false"])
    assert not torch.equal(again.net.layers[1].weight, siren().layers[1].weight)  # type: ignore[union-attr,index,arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "fomaml"}, r"`method` must be one of \('maml', 'reptile'\), got 'fomaml'"),
        ({"inner_steps": -1}, "`inner_steps` must be at least 0, got -1"),
        ({"inner_steps": 1.5}, "`inner_steps` must be an integer, got 1.5"),
        ({"inner_steps": 0, "method": "reptile"}, "`inner_steps` must be at least 1 for 'reptile'"),
        ({"inner_lr": 0}, "`inner_lr` must be positive and finite, got 0"),
        ({"inner_lr": float("inf")}, "`inner_lr` must be positive and finite, got inf"),
        ({"inner_lr": "fast"}, "`inner_lr` must be a number or a fraction"),
        ({"optimizer": 0.1}, "`optimizer` must be a callable parameters -> optimizer, got 0.1"),
        ({"lr_scheduler": "cosine"}, "`lr_scheduler` must be a callable optimizer -> scheduler or None, got 'cosine'"),
        ({"lr_scheduler_interval": "day"}, "`lr_scheduler_interval` must be 'epoch' or 'step', got 'day'"),
        ({"coordinate_range": (1.0, 0.0)}, r"`coordinate_range` must be finite \(low, high\) with low < high"),
        ({"net": SIREN(3, 1, 8, 2)}, "`net` must take the 2 coordinates of images, got one with in_features=3"),
        ({"net": SIREN(2, 1, 8, 2).requires_grad_(False)}, "`net` must have parameters with requires_grad=True"),
        ({"net": "SIREN"}, r"`net` must be an nn.Module, coordinates \[N, 2\] -> values \[N, C\], got str"),
    ],
)
def test_errors_speak(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        INRMetaLearning(**{"net": siren(), **arguments})


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.rand(3, 6, 5), r"images must be \[B, C, H, W\] with at least one pixel, got \[3, 6, 5\]"),
        (torch.rand(0, 1, 6, 5), r"with at least one pixel, got \[0, 1, 6, 5\]"),
        (torch.zeros(2, 1, 6, 5, dtype=torch.uint8), "images must be floating point, in .*got torch.uint8; uint8 ones"),
        (images(channels=3), r"`net` must give 3 values, the channels .* 30 points: \[30, 3\], got \[30, 1\]; set its"),
        ({"x": images()}, "`input_key`=0 is not in the batch"),
    ],
)
def test_batches_that_do_not_fit_are_refused(batch: Any, message: str) -> None:
    for method in ("maml", "reptile"):
        with pytest.raises((ValueError, TypeError, KeyError), match=message):
            INRMetaLearning(siren(), method=method).training_step(batch, 0)


@pytest.mark.parametrize("method", ["maml", "reptile"])
def test_a_loss_that_is_no_number_stops_with_its_step(method: Any) -> None:
    x = images(12)
    x[9, 0, 2, 3] = float("nan")  # in the batch of step 2
    module = INRMetaLearning(
        siren(),
        method=method,
        optimizer=sgd(0.5),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
        lr_scheduler_interval="step",
    )
    trainer = quiet_trainer(max_epochs=3, log_every_n_steps=50)
    wanted = r"NaN or infinite at step 2, at a learning rate of 0.125: .* lower `inner_lr` \(1e-2\).* NaN in the images"
    with pytest.raises(ValueError, match=wanted):
        trainer.fit(module, DataLoader(x, batch_size=4))  # type: ignore[arg-type]
    assert trainer.global_step == 3  # at the epoch's end


def test_one_pixel_and_no_steps() -> None:
    descent, errors = inner_loop(siren(), torch.zeros(1, 2), torch.rand(1, 1, 1), steps=0, lr=0.1)
    assert errors.shape == (1, 1)
    assert not any(bool(value.any()) for value in descent.values())


def test_a_broken_image_stays_among_itself() -> None:
    x = images()
    x[1, 0, 0, 0] = float("nan")
    adapted = INRMetaLearning(siren()).adapt(x)
    for value in adapted.values():
        assert value[1].isnan().any()
        assert value[[0, 2, 3]].isfinite().all()
