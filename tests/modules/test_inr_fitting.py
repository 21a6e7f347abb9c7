from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.image import PeakSignalNoiseRatio

from pl_robust._lightning import MisconfigurationException
from pl_robust._probe import probe
from pl_robust._signal import grid_coordinates
from pl_robust.callbacks import INRVisualizer
from pl_robust.cli import main
from pl_robust.datamodules import SignalDataModule
from pl_robust.models import SIREN, FourierFeatureNetwork, MultiplicativeFilterNetwork
from pl_robust.modules import INRFitting
from pl_robust.modules._net_group import NetGroup
from pl_robust.modules._signal_batch import split_signals
from pl_robust.modules.inr_fitting import published_adam
from tests._processes import run_ranks
from tests.toys import assert_identical, needs_named_loaders, needs_rebuilding, needs_torch_2_6, quiet_trainer

pytestmark = pytest.mark.lightning


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def siren(out_features: int = 1, seed: int = 0) -> SIREN:
    torch.manual_seed(seed)
    return SIREN(out_features=out_features, hidden_features=16, num_layers=3)


def pictures(count: int, side: int = 8) -> Tensor:
    return torch.rand(count, side, side, generator=torch.Generator().manual_seed(0))


def data(values: Tensor, steps: int = 5, **arguments: Any) -> SignalDataModule:
    """Of one picture [H, W] or of several [S, H, W]."""
    signal = values.numpy() if values.ndim == 2 else [one.numpy() for one in values]
    return SignalDataModule(signal, **{"steps_per_epoch": steps, **arguments})


def fit(net: nn.Module, values: Tensor, trainer: dict[str, Any] | None = None, **arguments: Any) -> INRFitting:
    several = {"num_signals": len(values)} if values.ndim == 3 else {}
    module = INRFitting(net, **{"optimizer": adam, **several, **arguments})
    quiet_trainer(**{"max_epochs": 2, "limit_val_batches": 0, **(trainer or {})}).fit(module, data(values))
    return module


def assert_close(left: nn.Module, right: nn.Module, tolerance: float = 1e-6) -> None:
    expected = right.state_dict()
    for name, tensor in left.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=tolerance, msg=name)


def test_the_published_recipe_is_a_plain_loop_on_half_the_mean_squared_error() -> None:
    expected, values = siren(), pictures(1)[0]
    coordinates, target = grid_coordinates((8, 8)), values.reshape(-1, 1)
    optimizer = torch.optim.Adam(expected.parameters(), lr=1e-4)
    for _ in range(10):
        optimizer.zero_grad()
        loss = 0.5 * (expected(coordinates) - target).square().mean()
        loss.backward()
        optimizer.step()
    net = siren()
    module = INRFitting(net)
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(module, data(values))
    assert module.net is net
    assert_close(net, expected)
    moved = dict(net.named_parameters())["layers.1.weight"] - dict(siren().named_parameters())["layers.1.weight"]
    assert moved.abs().max() > 5e-4
    assert trainer.callback_metrics["train/loss"] == pytest.approx(loss.item())
    assert trainer.callback_metrics["train/psnr"] == pytest.approx(-10 * math.log10(2 * loss.item()), abs=1e-4)


@pytest.mark.parametrize(
    ("build", "at_once"),
    [
        (siren, None),
        (siren, 1),
        (siren, 5),
        (lambda: FourierFeatureNetwork(num_frequencies=8, sigma=2.0, hidden_features=16, num_layers=2), 2),
        (
            lambda: MultiplicativeFilterNetwork(hidden_features=16, num_layers=3, input_scale=16.0, filters="gabor"),
            2,
        ),
    ],
)
def test_each_of_several_networks_is_trained_as_it_is_alone(build: Any, at_once: int | None) -> None:
    values = pictures(5)
    module = INRFitting(build(), num_signals=5, signals_at_once=at_once, optimizer=adam)
    nets = [module.net_of(index) for index in range(5)]
    first = next(iter(nets[0].parameters()))
    assert not any(torch.equal(first, next(iter(net.parameters()))) for net in nets[1:])
    quiet_trainer(max_epochs=2, limit_val_batches=0).fit(module, data(values))
    for index, net in enumerate(nets):
        start = copy.deepcopy(net)
        fit(net, values[index])
        assert_close(module.net_of(index), net)
        with pytest.raises(AssertionError):
            assert_close(net, start, 1e-3)


@pytest.mark.parametrize(
    "trainer",
    [
        {"gradient_clip_val": 0.01},
        {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 2},
    ],
)
@pytest.mark.parametrize("at_once", [2, 4])
def test_clipping_and_accumulation_treat_each_network_by_itself(trainer: dict[str, Any], at_once: int) -> None:
    values = pictures(4) * torch.tensor([0.1, 0.3, 1.0, 3.0])[:, None, None]
    module = INRFitting(siren(), num_signals=4, signals_at_once=at_once, optimizer=sgd)
    nets = [module.net_of(index) for index in range(4)]
    quiet_trainer(max_epochs=1, limit_val_batches=0, **trainer).fit(module, data(values))
    for index, net in enumerate(nets):
        fit(net, values[index], {"max_epochs": 1, **trainer}, optimizer=sgd)
        assert_close(module.net_of(index), net)


@pytest.mark.parametrize("at_once", [1, 3])
def test_the_networks_initialization_is_its_own(at_once: int) -> None:
    torch.manual_seed(3)
    module = INRFitting(siren(seed=3), num_signals=3, signals_at_once=at_once)
    nets = [module.net_of(index) for index in range(3)]
    x = grid_coordinates((5, 5))
    torch.testing.assert_close(module(x), torch.stack([net(x) for net in nets]))
    bound = math.sqrt(6 / 16) / 30
    spread = torch.stack([net.state_dict()["layers.1.weight"] for net in nets])
    assert 0.98 * bound < spread.abs().max() <= bound
    assert set(dict(module.net.named_parameters())) == {f"stacked.{name}" for name, _ in nets[0].named_parameters()}


def test_a_shared_initialization_is_that_of_the_net() -> None:
    net = siren()
    module = INRFitting(net, num_signals=3, shared_init=True)
    for index in range(3):
        assert_identical(dict(module.net_of(index).state_dict()), dict(net.state_dict()))
    with pytest.raises(IndexError, match=r"one of the 3 signals, from 0, got 3"):
        module.net_of(3)


class Tied(nn.Module):
    """Uses one layer twice, has a frozen one, an unused parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 8)
        self.hidden = nn.Linear(8, 8)
        self.again = self.hidden
        self.last = nn.Linear(8, 1).requires_grad_(False)
        self.unused = nn.Parameter(torch.zeros(3))
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(2.0))

    def reset_parameters(self) -> None:
        for layer in (self.first, self.hidden, self.last):
            layer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.again(self.hidden(self.first(x * self.scale).tanh()).tanh()).tanh())
        return out


class Offsets(nn.Module):
    """Its layer's product is the same for all networks, whose biases are their own."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.rand(2))

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x @ nn.functional.linear(torch.eye(2), torch.eye(2), self.bias)


def test_networks_that_share_all_but_a_bias() -> None:
    module, x = INRFitting(Offsets(), num_signals=3, signals_at_once=3), grid_coordinates((3, 3))
    torch.testing.assert_close(module(x), torch.stack([module.net_of(index)(x) for index in range(3)]))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's compiler
@needs_torch_2_6
def test_a_compiled_module_trains_as_it_does_itself() -> None:
    def run(compiled: bool) -> INRFitting:
        torch.manual_seed(0)
        module = INRFitting(siren(), num_signals=3, optimizer=adam)
        trained: Any = torch.compile(module, backend="eager") if compiled else module
        quiet_trainer(max_epochs=1, callbacks=[INRVisualizer(2)] if compiled else []).fit(trained, data(pictures(3)))
        return module

    assert_close(run(True), run(False))


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_tied_frozen_and_unused_parameters(at_once: int) -> None:
    values = pictures(3)
    module = INRFitting(Tied(), num_signals=3, signals_at_once=at_once, optimizer=adam)
    starts: list[Any] = [module.net_of(index) for index in range(3)]
    quiet_trainer(max_epochs=1, limit_val_batches=0).fit(module, data(values))
    for index, start in enumerate(starts):
        fit(start, values[index], {"max_epochs": 1})
        trained: Any = module.net_of(index)
        assert trained.again is trained.hidden
        assert_close(trained, start)


def test_passes_are_chosen_by_the_size_of_what_the_networks_keep() -> None:
    small = NetGroup(SIREN(hidden_features=32, num_layers=4), 16)
    assert small.passes(torch.rand(32**2, 2)) == 1
    assert small.passes(torch.rand(8**2, 2)) == 1
    # Before and behind each sine 32 float32, and the inputs of the first layer and the output's difference.
    kept = small._measure(torch.rand(100, 2))
    assert 6 * 32 * 4 <= kept <= 7 * 32 * 4
    assert small.passes(torch.rand(64**2, 2)) == 4
    assert small.passes(torch.rand(128**2, 2)) == 16
    assert NetGroup(SIREN(hidden_features=64, num_layers=4), 16).passes(torch.rand(64**2, 2)) == 16


def test_held_out_points_are_scored_in_pieces_as_torchmetrics_does() -> None:
    values = pictures(1, 16)[0] * 3
    signal = data(values, split="random", eval_points=50, data_range=3.0)
    module = INRFitting(siren(), data_range=3.0)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, signal)
    x, target = grid_coordinates((16, 16)), values.reshape(-1, 1)
    held_out = ~signal.train_mask.flatten()
    with torch.no_grad():
        outputs = module(x)
    expected = PeakSignalNoiseRatio(data_range=3.0)
    assert trainer.callback_metrics["val/psnr"] == pytest.approx(
        expected(outputs[held_out], target[held_out]).item(), abs=1e-4
    )
    (metrics,) = trainer.test(module, signal, verbose=False)
    assert metrics["test/psnr"] == pytest.approx(expected(outputs, target).item(), abs=1e-4)


def test_of_several_signals_the_psnr_is_the_mean() -> None:
    values = pictures(3) * torch.tensor([0.2, 0.6, 1.0])[:, None, None]
    signal = data(values, eval_points=60)  # pieces of 20
    module = INRFitting(siren(), num_signals=3)
    trainer = quiet_trainer()
    (metrics,) = trainer.validate(module, signal, verbose=False)
    outputs = module.reconstruct(grid_coordinates((8, 8)))[..., 0]
    errors = (outputs - values.flatten(1)).square().mean(1)
    expected = (-10 * errors.log10()).mean().item()
    assert metrics["val/psnr"] == pytest.approx(expected, abs=1e-4)
    assert abs(expected + 10 * math.log10(errors.mean())) > 0.5  # the mean is not that of the mean error
    predictions: Any = trainer.predict(module, signal)
    torch.testing.assert_close(torch.cat(predictions, dim=1)[..., 0], outputs)


def test_two_validation_loaders_have_a_psnr_each() -> None:
    module = INRFitting(siren())
    points = grid_coordinates((8, 8))
    loaders = [DataLoader(TensorDataset(points, torch.full((64, 1), level)), batch_size=30) for level in (0.0, 1.0)]
    trainer = quiet_trainer()
    trainer.validate(module, loaders, verbose=False)
    for index, level in enumerate((0.0, 1.0)):
        error = (module.reconstruct(points) - level).square().mean()
        logged = trainer.callback_metrics[f"val/psnr/dataloader_idx_{index}"]
        assert logged == pytest.approx(-10 * math.log10(error), abs=1e-4)


@needs_named_loaders
def test_dataloaders_of_a_dict_give_their_names() -> None:
    points = grid_coordinates((4, 4))
    loaders: Any = {name: DataLoader(TensorDataset(points, points[:, :1]), batch_size=5) for name in ("low", "high")}
    metrics = quiet_trainer().test(INRFitting(siren()), loaders, verbose=False)
    assert {key for one in metrics for key in one} == {"test/psnr/low", "test/psnr/high"}


def test_the_peak_of_the_psnr_is_the_datas() -> None:
    tone = SignalDataModule("tone", steps_per_epoch=2)  # in [-1, 1]
    torch.manual_seed(0)
    module = INRFitting(SIREN(1, hidden_features=8))
    visualizer = INRVisualizer(1)
    trainer = quiet_trainer(max_epochs=1, callbacks=[visualizer])
    trainer.fit(module, tone)
    expected = PeakSignalNoiseRatio(data_range=2.0)(module.reconstruct(tone.signal.coordinates), tone.signal.samples)
    for name in ("val/psnr", "inr/psnr"):
        assert trainer.callback_metrics[name] == pytest.approx(expected.item(), abs=1e-4)
    assert trainer.callback_metrics["train/psnr"] == pytest.approx(visualizer.history[-2]["psnr"], abs=1e-4)
    points = [(tone.signal.coordinates, tone.signal.samples)]
    (metrics,) = quiet_trainer().test(module, DataLoader(points, batch_size=None), verbose=False)  # type: ignore[arg-type]
    assert metrics["test/psnr"] == pytest.approx(expected.item() - 20 * math.log10(2), abs=1e-4)
    with pytest.raises(
        MisconfigurationException, match=r"`data_range`=1 contradicts SignalDataModule, which has 2: give"
    ):
        quiet_trainer(max_epochs=1).fit(INRFitting(SIREN(1), data_range=1.0), tone)


def test_predictions_of_bare_coordinates() -> None:
    module, points = INRFitting(siren()), grid_coordinates((3, 3))
    predictions: Any = quiet_trainer().predict(module, DataLoader(TensorDataset(points), batch_size=5))
    torch.testing.assert_close(torch.cat(predictions), module.reconstruct(points))


def test_reconstruct_takes_pieces_and_leaves_no_trace() -> None:
    net = nn.Sequential(siren(4), nn.Dropout(0.5))
    net[0].eval()
    module = INRFitting(net)
    x, rng = grid_coordinates((9, 9)), torch.get_rng_state()
    values = module.reconstruct(x, points=10)
    torch.testing.assert_close(values, net[0](x))
    assert not values.requires_grad
    assert torch.equal(rng, torch.get_rng_state())
    assert [part.training for part in (net, net[0], net[1])] == [True, False, True]
    several = INRFitting(siren(), num_signals=3)
    assert several.reconstruct(x, points=10).shape == (3, 81, 1)
    assert several.net.template.training  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"`coordinates` must be \[N, d\], got \[9\]"):
        module.reconstruct(x[:9, 0])


@pytest.mark.parametrize("at_once", [1, 3])
def test_mixed_precision_is_close_and_keeps_float32_parameters(at_once: int) -> None:
    values = pictures(3)
    results = []
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        trainer = {"precision": precision, "max_epochs": 1}
        results.append(fit(siren(), values, trainer, signals_at_once=at_once).reconstruct(grid_coordinates((8, 8))))
    assert results[1].dtype == torch.float32
    assert 0 < (results[0] - results[1]).abs().max() < 0.05


class Bursting(INRFitting):
    """Meets a value that is infinite at step 7: of the last signal, if there are several."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, values = batch
        if self.trainer.global_step == 7:
            values = values.clone()
            values.view(self.num_signals, -1, 1)[-1, 5] = math.inf
        return super().training_step((x, values), batch_idx)


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("several", [False, True])
def test_a_loss_that_is_infinite_stops_with_its_step(several: bool, at_once: int) -> None:
    values = pictures(3) if several else pictures(1)[0]
    module = Bursting(
        siren(),
        num_signals=3 if several else 1,
        signals_at_once=at_once,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.125),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5),
    )
    trainer = quiet_trainer(max_epochs=9, limit_val_batches=0, log_every_n_steps=4)
    which = r" of signals \[2\]" if several else ""
    with pytest.raises(
        ValueError, match=rf"the loss{which} was NaN or infinite at step 7, at a learning rate of 0.0625: .* lower `lr`"
    ):
        trainer.fit(module, data(values, steps=20))
    assert trainer.global_step == 8


def test_a_run_that_diverges_stops_at_the_end_of_an_epoch_at_the_latest() -> None:
    module = INRFitting(siren(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e9))
    trainer = quiet_trainer(max_epochs=3, limit_val_batches=0, log_every_n_steps=1000)
    # Sines of anything are finite: it is the gradients that grow until a weight is infinite.
    with pytest.raises(ValueError, match="NaN or infinite at step"):
        trainer.fit(module, data(pictures(1)[0], steps=60))
    assert trainer.global_step <= 120


def test_train_metrics_are_logged_where_loggers_take_them() -> None:
    logged: list[int] = []

    class Counting(INRFitting):
        def log(self, name: str, *arguments: Any, **named: Any) -> None:
            if name == "train/psnr":
                logged.append(self.trainer.global_step + 1)
            super().log(name, *arguments, **named)

    trainer = quiet_trainer(max_steps=17, limit_val_batches=0, log_every_n_steps=4)
    trainer.fit(Counting(siren()), data(pictures(1)[0], steps=10))
    assert logged == [4, 8, 10, 12, 16, 17]


def test_the_cosine_ends_at_zero() -> None:
    seen = []

    class Watching(INRFitting):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    trainer = quiet_trainer(max_epochs=2, limit_val_batches=0)
    trainer.fit(Watching(siren(), lr_scheduler="cosine"), data(pictures(1)[0]))
    assert seen == pytest.approx([1e-4 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)])
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    with pytest.raises(MisconfigurationException, match="needs to know where the run ends"):
        quiet_trainer(max_epochs=-1).fit(INRFitting(siren(), lr_scheduler="cosine"), data(pictures(1)[0]))


@pytest.mark.parametrize("count", [1, 3])
def test_a_checkpoint_brings_the_networks_back(count: int, tmp_path: Path) -> None:
    values = pictures(count) if count > 1 else pictures(1)[0]
    module = INRFitting(siren(), num_signals=count)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, data(values))
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    torch.load(tmp_path / "net.ckpt", weights_only=True)
    again = INRFitting.load_from_checkpoint(tmp_path / "net.ckpt", net=siren(seed=5))
    assert again.num_signals == count
    assert_identical(dict(module.state_dict()), dict(again.state_dict()))
    x = grid_coordinates((3, 3))
    assert torch.equal(module.reconstruct(x), again.reconstruct(x))


@pytest.mark.parametrize("count", [1, 3])
def test_a_resumed_run_ends_with_the_same_bits(count: int, tmp_path: Path) -> None:
    class Stopping(INRFitting):
        def on_train_epoch_end(self) -> None:
            super().on_train_epoch_end()
            self.trainer.should_stop = self.current_epoch == 1

    def start(kind: type[INRFitting], seed: int, checkpoint: str | None = None) -> dict[str, Any]:
        module = kind(siren(seed=seed), num_signals=count, optimizer=adam, lr_scheduler="cosine")
        values = pictures(count) if count > 1 else pictures(1)[0]
        trainer = quiet_trainer(max_epochs=4)
        trainer.fit(module, data(values, points_per_step=30), ckpt_path=checkpoint)
        if checkpoint is None:
            trainer.save_checkpoint(tmp_path / f"{kind.__name__}.ckpt")
        return dict(module.state_dict())

    straight = start(INRFitting, 0)
    broken_off = start(Stopping, 0)
    with pytest.raises(AssertionError):
        assert_identical(straight, broken_off)
    assert_identical(straight, start(INRFitting, 1, str(tmp_path / "Stopping.ckpt")))


@needs_rebuilding
def test_it_runs_from_a_configuration(tmp_path: Path) -> None:
    configuration = {
        "seed_everything": 1,
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,
        },
        "model": {
            "class_path": "INRFitting",
            "init_args": {
                "net": {"class_path": "SIREN", "init_args": {"in_features": 1, "hidden_features": 8, "num_layers": 3}},
                "num_signals": 2,
                "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}},
                "lr_scheduler": "cosine",
                "data_range": 2.0,
            },
        },
        "data": {
            "class_path": "SignalDataModule",
            "init_args": {"signal": ["tone", "tone"], "steps_per_epoch": 3},
        },
    }
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(configuration))
    main(["fit", "--config", str(tmp_path / "fit.yaml")])
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert INRFitting.load_from_checkpoint(checkpoint).reconstruct(grid_coordinates((7,))).shape == (2, 7, 1)


@pytest.mark.slow
def test_the_camera_is_fitted_as_fast_as_said() -> None:
    for optimizer, floors in ((published_adam, {100: 30.0, 400: 38.0}), (adam, {100: 50.0})):
        signal = SignalDataModule("camera", size=64, steps_per_epoch=100)
        for steps, floor in floors.items():
            trainer = quiet_trainer(max_steps=steps, limit_val_batches=0)
            torch.manual_seed(0)
            module = INRFitting(SIREN(hidden_features=256, num_layers=4), optimizer=optimizer)
            trainer.fit(module, signal)
            (metrics,) = trainer.test(module, signal, verbose=False)
            assert metrics["test/psnr"] >= floor


def fit_on_ranks(several: bool) -> tuple[dict[str, Tensor], dict[str, float], int]:
    torch.manual_seed(0)
    values = pictures(3) if several else pictures(1)[0]
    module = INRFitting(siren(), num_signals=3 if several else 1, signals_at_once=2, optimizer=sgd)
    trainer = quiet_trainer(max_epochs=1, limit_train_batches=1, devices=2, strategy="ddp")
    signal = data(values, points_per_step=20, eval_points=30)
    trainer.fit(module, signal)
    batch = signal.batch(0)
    (metrics,) = trainer.test(module, signal, verbose=False)
    if not several:  # an odd number of samples, of which the sampler repeats one
        points: Any = TensorDataset(grid_coordinates((8, 8))[:63], values.reshape(-1, 1)[:63])
        (mine,) = trainer.test(module, DataLoader(points, batch_size=20), verbose=False)
        metrics = {**metrics, "unrepeated": mine["test/psnr"]}
    return {"x": batch[0], "y": batch[1], **module.state_dict()}, dict(metrics), trainer.global_step


@pytest.mark.parametrize("several", [False, True])
def test_ranks_average_the_gradients_of_their_points(several: bool) -> None:
    (first, metrics, _), (second, others, _) = run_ranks(fit_on_ranks, 2, several)
    assert metrics == others
    assert not torch.equal(first["x"], second["x"])
    names = [name for name in first if name not in "xy"]
    assert_identical({name: first[name] for name in names}, {name: second[name] for name in names})
    module = INRFitting(siren(), num_signals=3 if several else 1)
    torch.manual_seed(0)
    module = INRFitting(siren(), num_signals=3 if several else 1)
    loss = sum(0.25 * (module(rank["x"]) - rank["y"]).square().mean((-2, -1)).sum() for rank in (first, second))
    assert isinstance(loss, Tensor)
    torch.autograd.backward(loss)
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(first[name], (parameter - 0.1 * parameter.grad).detach(), rtol=0, atol=1e-6)
    module.load_state_dict({name: first[name] for name in names})
    values = pictures(3) if several else pictures(1)
    errors = (module.reconstruct(grid_coordinates((8, 8))).reshape(len(values), -1) - values.flatten(1)).square()
    assert metrics["test/psnr"] == pytest.approx((-10 * errors.mean(1).log10()).mean().item(), abs=1e-4)
    if not several:
        assert metrics["unrepeated"] == pytest.approx(-10 * errors[0, :63].mean().log10().item(), abs=1e-5)


def diverge_on_ranks() -> str:
    class OnOneRank(Bursting):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            parent = Bursting if self.global_rank == 1 else INRFitting
            return parent.training_step(self, batch, batch_idx)

    trainer = quiet_trainer(max_epochs=1, devices=2, strategy="ddp", log_every_n_steps=8, limit_val_batches=0)
    try:
        trainer.fit(OnOneRank(siren()), data(pictures(1)[0], steps=20))
    except ValueError as error:
        return str(error)
    return "no error"


def test_ranks_stop_together() -> None:
    for message in run_ranks(diverge_on_ranks, 2):
        assert "was NaN or infinite at step 7, at a learning rate of 0.0001" in message


class NoReset(nn.Linear):
    reset_parameters = None  # type: ignore[assignment]

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"net": "SIREN"}, TypeError, "`net` must be an nn.Module, coordinates -> values, got str"),
        ({"num_signals": 0}, ValueError, "`num_signals` must be at least 1, got 0"),
        ({"num_signals": 2.0}, TypeError, "`num_signals` must be an integer, got 2.0"),
        ({"signals_at_once": 0}, ValueError, "`signals_at_once` must be at least 1, got 0"),
        ({"shared_init": 1}, TypeError, "`shared_init` must be true or false, got 1"),
        ({"optimizer": "Adam"}, TypeError, "`optimizer` must be a callable parameters -> optimizer, got 'Adam'"),
        ({"lr_scheduler": "linear"}, ValueError, "`lr_scheduler` must be 'constant', 'cosine' or a callable"),
        ({"lr_scheduler_interval": "batch"}, ValueError, "`lr_scheduler_interval` must be 'epoch' or 'step'"),
        ({"data_range": 0}, ValueError, "`data_range` must be positive and finite, got 0"),
        ({"net": siren().requires_grad_(False)}, ValueError, "unfreeze what is to be fitted"),
        ({"net": NoReset(), "num_signals": 4}, ValueError, r"each of the 4 signals, got NoReset without; or .*shared"),
        ({"net": nn.BatchNorm1d(2), "num_signals": 4}, ValueError, "batch norm cannot be stacked, got BatchNorm1d"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        INRFitting(**{"net": siren(), **arguments})


@pytest.mark.parametrize(
    ("count", "out_features", "batch", "error", "message"),
    [
        (1, 3, ((9, 2), (9, 1)), ValueError, "gives 3 values at each point, the signal has 1: set .*`out_features`"),
        (4, 3, ((9, 2), (4, 9, 1)), ValueError, "gives 3 values at each point, the signal has 1: set .*`out_features`"),
        (1, 1, ((9, 2), (4, 9, 1)), ValueError, r"got shapes \[9, 2\] and \[4, 9, 1\]; for these set num_signals=4"),
        (3, 1, ((9, 2), (4, 9, 1)), ValueError, r"`num_signals`=3 signals, got shapes .* set num_signals=4"),
        (3, 1, ((9, 2), (9, 1)), ValueError, r"`num_signals`=3 signals, got shapes .*; for these set num_signals=1$"),
        (3, 1, ((9, 2), (1, 9, 1)), ValueError, r"`num_signals`=3 signals, got shapes \[9, 2\] and \[1, 9, 1\]$"),
        (1, 1, ((9, 2), (8, 1)), ValueError, r"got shapes \[9, 2\] and \[8, 1\]"),
        (1, 1, ((0, 2), (0, 1)), ValueError, "a batch must have points"),
        (1, 1, ((9, 2),), TypeError, r"must be \(coordinates .*, got \['Tensor'\]; SignalDataModule makes such"),
    ],
)
def test_batches_that_do_not_fit(
    count: int, out_features: int, batch: tuple[tuple[int, ...], ...], error: type[Exception], message: str
) -> None:
    module = INRFitting(siren(out_features), num_signals=count)
    loader: Any = DataLoader([tuple(torch.zeros(shape) for shape in batch)], batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        quiet_trainer(max_epochs=1).fit(module, loader)
    if len(batch) == 2:
        with pytest.raises(error, match=message):
            quiet_trainer().validate(module, loader)


@pytest.mark.parametrize(
    ("scale", "dtype", "error", "message"),
    [
        (1, torch.uint8, TypeError, r"must be floating point, got torch.float32 and torch.uint8; .* uint8 ones / 255"),
        (8, torch.float32, ValueError, r"coordinates must lie in \[-1, 1\], got -8 to 4: scale them\. A network's w0"),
        (math.nan, torch.float32, ValueError, r"coordinates must lie in \[-1, 1\], got nan to nan"),
    ],
)
def test_pixels_as_they_come_out_of_files(scale: float, dtype: torch.dtype, error: Any, message: str) -> None:
    batch = (scale * grid_coordinates((4, 4)), torch.zeros(16, 1, dtype=dtype))
    loader: Any = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        quiet_trainer(max_epochs=1).fit(INRFitting(siren()), loader)


def test_a_batch_of_another_kind() -> None:
    with pytest.raises(TypeError, match=r"must be \(coordinates \[N, d\], values \[N, c\]\), got Tensor"):
        split_signals(torch.zeros(3, 2), 1)


def test_a_probe_leaves_the_modes_of_all_networks_as_they_were() -> None:
    """Dropout of a group must be on again after an observer's look."""
    net = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    module = INRFitting(net, num_signals=2, shared_init=True)
    x = torch.rand(50, 2)
    with probe(module):
        first, second = module(x), module(x)
    assert torch.equal(first, second)
    assert not torch.equal(module(x), module(x))


def test_fit_goes_on_after_validate() -> None:
    """Validation by itself is in inference mode, that of a fit is not."""
    module, data = INRFitting(SIREN(1, hidden_features=8)), SignalDataModule("tone", steps_per_epoch=2)
    for _ in range(2):
        quiet_trainer(max_epochs=1).validate(module, data, verbose=False)
        quiet_trainer(max_epochs=1).fit(module, data)
