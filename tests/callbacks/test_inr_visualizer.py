from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pl_robust._lightning import (
    NAMESPACE,
    Callback,
    LightningDataModule,
    LightningModule,
    MisconfigurationException,
    Trainer,
)
from pl_robust._signal import Signal, grid_coordinates
from pl_robust.callbacks import INRVisualizer
from pl_robust.callbacks._filmstrip import Filmstrip
from pl_robust.callbacks._inr_figure import Fit, draw_fit, draw_frame
from pl_robust.datamodules import SignalDataModule
from pl_robust.models import SIREN
from pl_robust.modules import INRFitting
from tests._processes import run_ranks
from tests.toys import assert_identical, quiet_trainer, training_state

pytestmark = pytest.mark.lightning


class Fitting(LightningModule):
    """A fit as users write one: knows nothing of pl_robust; has batch-norm, dropout and momentum."""

    def __init__(self, net: nn.Module | None = None, lr: float = 0.05, noise: float = 0.01) -> None:
        super().__init__()
        layers = [nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1)]
        self.net = nn.Sequential(*layers) if net is None else net
        self.lr = lr
        self.noise = noise
        self.asked: list[int] = []

    def forward(self, coordinates: Tensor) -> Tensor:
        self.asked.append(coordinates.shape[0])
        values: Tensor = self.net(coordinates)
        return values

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        noise = torch.randn_like(batch[0])  # the global generator is in use
        error: Tensor = self.net(batch[0] + self.noise * noise) - batch[1]
        return error.square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", (self.net(batch[0]) - batch[1]).square().mean(), sync_dist=True, batch_size=1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


class Planes(nn.Module):
    """S planes over the coordinates, in closed form: [N, d] -> [S, N, 1], of one plane [N, 1]."""

    def __init__(self, slopes: Tensor, offsets: list[float]) -> None:
        super().__init__()
        self.slopes = nn.Parameter(slopes)
        self.offsets = nn.Parameter(torch.tensor(offsets), requires_grad=False)

    def forward(self, coordinates: Tensor) -> Tensor:
        values = torch.einsum("nd,sd->sn", coordinates, self.slopes) + self.offsets[:, None]
        return values[..., None] if len(values) > 1 else values[0, :, None]


def plane(shape: tuple[int, ...] = (6, 8), slope: float = 0.2) -> Tensor:
    """0.5 + slope * (sum of the coordinates), [*shape, 1]."""
    return 0.5 + slope * grid_coordinates(shape).sum(1).reshape(*shape, 1)


def fit(*callbacks: Callback, module: LightningModule | None = None, ckpt_path: Any = None, **arguments: Any) -> Any:
    """Train for two epochs of four steps on the plane."""
    torch.manual_seed(0)
    module = Fitting() if module is None else module
    trainer = quiet_trainer(**{"max_epochs": 2, **arguments}, callbacks=list(callbacks))
    trainer.fit(module, datamodule=SignalDataModule(plane()[..., 0], steps_per_epoch=4), ckpt_path=ckpt_path)
    return trainer, module


def frozen(offsets: list[float]) -> Fitting:
    return Fitting(Planes(torch.full((len(offsets), 2), 0.2), offsets), lr=0.0)


@pytest.mark.parametrize(
    ("cadence", "arguments", "checks"),
    [
        ({"every_n_steps": 1}, {}, 9),
        ({"every_n_epochs": 1}, {}, 3),
        ({"every_n_steps": 1}, {"accumulate_grad_batches": 2}, 5),
        ({"every_n_epochs": 1}, {"precision": "bf16-mixed"}, 3),
        ({"every_n_steps": 2}, {"precision": 64}, 5),
    ],
    ids=["steps", "epochs", "accumulate", "bf16-mixed", "float64"],
)
def test_training_is_bit_identical_with_and_without_it(
    cadence: dict[str, Any], arguments: dict[str, Any], checks: int
) -> None:
    visualizer = INRVisualizer(**cadence, chunk_size=11, gif=True)
    with_it = training_state(*fit(visualizer, **arguments))
    assert len(visualizer.history) == checks
    assert_identical(with_it, training_state(*fit(**arguments)))


def test_psnr_is_the_closed_forms_at_each_check_on_the_whole_grid() -> None:
    visualizer = INRVisualizer(every_n_steps=3, chunk_size=10)
    trainer, module = fit(visualizer, module=frozen([0.6]))  # off by 0.1 everywhere
    assert [row["step"] for row in visualizer.history] == [0, 3, 6, 8]
    assert [row["epoch"] for row in visualizer.history] == [-1, 0, 1, 1]
    assert [row["psnr"] for row in visualizer.history] == pytest.approx([20.0] * 4, abs=1e-4)
    assert trainer.callback_metrics["inr/psnr"] == pytest.approx(20.0, abs=1e-4)
    assert module.asked == [2] + [10, 10, 10, 10, 8] * 4


def test_psnr_follows_the_data_range_and_the_held_out_points_count() -> None:
    wide = Signal(plane(), data_range=2.0)
    visualizer = INRVisualizer(every_n_epochs=1, signal=wide)
    trainer = quiet_trainer(max_epochs=1, callbacks=[visualizer])
    half = DataLoader(TensorDataset(wide.coordinates[::2], wide.samples[::2]), batch_size=24)
    trainer.fit(frozen([0.6]), half)
    assert visualizer.history[-1]["psnr"] == pytest.approx(20 + 20 * math.log10(2), abs=1e-4)


def test_of_several_signals_psnr_is_the_mean_and_the_figure_shows_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Fit] = []

    def keep(fit: Fit) -> Any:
        shown.append(fit)
        return draw_frame(fit)

    monkeypatch.setattr("pl_robust.callbacks._inr_record.draw_frame", keep)
    visualizer = INRVisualizer(every_n_epochs=1, signal_index=1, gif=True, save_dir=".", chunk_size=10)
    trainer = quiet_trainer(max_epochs=1, callbacks=[visualizer])
    data = SignalDataModule([plane()[..., 0], 1 - plane()[..., 0]], steps_per_epoch=2)
    net = Planes(torch.tensor([[0.2, 0.2], [-0.2, -0.2]]), [0.6, 0.51])  # 20 dB and 40 dB
    module = Fitting(net, lr=0.0)
    trainer.fit(module, datamodule=data)
    assert visualizer.history[-1]["psnr"] == pytest.approx(30.0, abs=1e-3)
    assert shown[-1].psnr == pytest.approx(40.0, abs=1e-3)
    torch.testing.assert_close(shown[-1].target, 1 - plane())
    torch.testing.assert_close(shown[-1].reconstruction, 1.01 - plane())
    assert module.asked[:4] == [2, 5, 5, 5]  # two networks at each point


@pytest.mark.parametrize("signals", [1, 3])
def test_it_agrees_with_the_modules_own_validation_and_leaves_it_alone(signals: int) -> None:
    def run(*callbacks: Callback) -> tuple[Trainer, INRFitting]:
        torch.manual_seed(0)
        module = INRFitting(SIREN(2, 1, 8, num_layers=3), num_signals=signals)
        data = SignalDataModule([plane(slope=0.05 * k)[..., 0] for k in range(1, signals + 1)], steps_per_epoch=4)
        trainer = quiet_trainer(max_epochs=2, callbacks=list(callbacks))
        trainer.fit(module, datamodule=data)
        return trainer, module

    visualizer = INRVisualizer(every_n_epochs=1)
    trainer, module = run(visualizer)
    assert float(trainer.callback_metrics["val/psnr"]) == pytest.approx(visualizer.history[-1]["psnr"], rel=1e-5)
    assert_identical(training_state(trainer, module), training_state(*run()))


def test_it_looks_in_eval_mode_and_in_the_modules_precision() -> None:
    visualizer = INRVisualizer(every_n_epochs=1)
    _, module = fit(visualizer, precision=64)
    module.eval().double()
    with torch.no_grad():
        error = module.net(grid_coordinates((6, 8)).double()) - plane().reshape(-1, 1)
    assert visualizer.history[-1]["psnr"] == pytest.approx(-10 * math.log10(float(error.square().mean())), abs=1e-4)


def test_a_checkpoint_by_steps_finds_the_value_and_two_live_in_one_trainer(tmp_path: Path) -> None:
    callbacks = pytest.importorskip(f"{NAMESPACE}.callbacks")
    checkpoint = callbacks.ModelCheckpoint(tmp_path, monitor="inr/psnr", mode="max", every_n_train_steps=2)
    other = INRVisualizer(every_n_epochs=2)
    trainer, _ = fit(INRVisualizer(2), other, checkpoint, enable_checkpointing=True)
    assert float(checkpoint.best_model_score) > 0
    assert float(trainer.callback_metrics["inr_2/psnr"]) == pytest.approx(other.history[-1]["psnr"])


def test_the_whole_grid_and_a_finer_one_are_watched_side_by_side() -> None:
    finer = Signal(plane((12, 16)))
    coarse, fine = INRVisualizer(4), INRVisualizer(4, signal=finer)
    fit(coarse, fine, module=frozen([0.6]))
    assert coarse.history == fine.history
    assert coarse.state_key != fine.state_key


def test_groups_of_networks_are_the_same_with_and_without_it() -> None:
    """In mixed precision the callback's look, outside autocast, comes before the first step's, inside it."""

    def run(*callbacks: Callback) -> dict[str, Any]:
        torch.manual_seed(0)
        module = INRFitting(SIREN(2, 1, 64, num_layers=4), num_signals=9, optimizer=lambda p: torch.optim.Adam(p, 1e-3))
        data = SignalDataModule([torch.rand(32, 32).numpy() for _ in range(9)], steps_per_epoch=2)
        trainer = quiet_trainer(max_epochs=1, precision="bf16-mixed", limit_val_batches=0, callbacks=list(callbacks))
        trainer.fit(module, datamodule=data)
        return {"passes": torch.tensor(module.net.passes(torch.rand(3300, 2))), **training_state(trainer, module)}  # type: ignore[operator]

    assert_identical(run(INRVisualizer(1)), run())


def test_a_resumed_run_has_the_history_of_an_uninterrupted_one(tmp_path: Path) -> None:
    def module() -> Fitting:
        return Fitting(Planes(torch.zeros(1, 2), [0.4]), noise=0)

    whole, first, second = INRVisualizer(2), INRVisualizer(2), INRVisualizer(2, gif=True, save_dir=tmp_path)
    fit(whole, module=module())
    trainer, _ = fit(first, module=module(), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    assert torch.load(tmp_path / "half.ckpt", weights_only=True)["epoch"] == 1
    fit(second, module=module(), ckpt_path=tmp_path / "half.ckpt")
    assert second.history == whole.history
    assert [step for step, _ in second._record.film.frames] == [6, 8]


def test_a_second_run_starts_from_scratch() -> None:
    visualizer = INRVisualizer(4, gif=True, save_dir=".")
    fit(visualizer)
    fit(visualizer)
    assert [row["step"] for row in visualizer.history] == [0, 4, 8]
    assert [step for step, _ in visualizer._record.film.frames] == [0, 4, 8]


def test_numbers_figures_and_film_find_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = pytest.importorskip(f"{NAMESPACE}.loggers")
    logger = loggers.TensorBoardLogger(tmp_path)
    trainer, _ = fit(INRVisualizer(5, png=True, gif=True), logger=logger, log_every_n_steps=50)
    folder = Path(trainer.log_dir or "")
    steps = [f"inr_fit_{step:06d}.png" for step in (0, 5, 8)]
    assert sorted(path.name for path in folder.glob("inr_*")) == sorted(["inr_fit.png", "inr_fit.gif", *steps])
    assert (folder / "inr_fit.png").stat().st_size > 5000
    with Image.open(folder / "inr_fit.gif") as film:
        assert film.n_frames == 3
        assert film.size == (256, 192)  # 8 x 6 pixels, 32 times
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Images("inr/fit")] == [0, 5, 8]
    assert len(events.Scalars("inr/psnr")) == 3
    said = capsys.readouterr().out
    assert "last, step 8" in said
    assert "inr_fit.gif" in said


@pytest.mark.parametrize(
    ("arguments", "trainer_arguments", "files"),
    [
        ({}, {}, []),
        ({"gif": True}, {"fast_dev_run": True}, []),
        ({"save_dir": "here"}, {}, ["here/inr_fit.png"]),
        ({"gif": True}, {}, ["inr_fit.gif", "inr_fit.png"]),
    ],
    ids=["no logger", "fast_dev_run", "save_dir", "gif"],
)
def test_files_are_written_where_asked(
    arguments: dict[str, Any], trainer_arguments: dict[str, Any], files: list[str], tmp_path: Path
) -> None:
    visualizer = INRVisualizer(**arguments)
    fit(visualizer, **trainer_arguments)
    assert visualizer.history[-1]["step"] == (1 if "fast_dev_run" in trainer_arguments else 8)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == files


class Breaks(Fitting):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.global_step == 3:
            raise RuntimeError("broken off")
        return super().training_step(batch, batch_idx)


def test_a_run_that_is_broken_off_leaves_its_files(tmp_path: Path) -> None:
    from PIL import Image

    with pytest.raises(RuntimeError, match="broken off"):
        fit(INRVisualizer(1, gif=True, save_dir=tmp_path), module=Breaks())
    assert (tmp_path / "inr_fit.png").exists()
    with Image.open(tmp_path / "inr_fit.gif") as film:
        assert film.n_frames > 1  # steps 0 to 3; PIL makes one of those that do not differ


def test_an_error_on_saving_does_not_hide_the_one_before(tmp_path: Path) -> None:
    visualizer = INRVisualizer(1, save_dir=tmp_path / "file" / "inside")
    (tmp_path / "file").write_text("")
    with (
        pytest.warns(UserWarning, match="could not save its files"),
        pytest.raises(RuntimeError, match="broken off"),
    ):
        fit(visualizer, module=Breaks())


def test_a_network_that_gives_nan_is_drawn(tmp_path: Path) -> None:
    visualizer = INRVisualizer(8, gif=True, save_dir=tmp_path)
    trainer, _ = fit(visualizer, module=frozen([math.nan]))
    assert all(math.isnan(row["psnr"]) for row in visualizer.history)
    assert math.isnan(trainer.callback_metrics["inr/psnr"])
    assert (tmp_path / "inr_fit.gif").exists()


def test_validation_alone_and_the_sanity_check_need_no_signal() -> None:
    visualizer = INRVisualizer()
    data = DataLoader(TensorDataset(torch.zeros(4, 2), torch.zeros(4, 1)), batch_size=2)
    quiet_trainer(callbacks=[visualizer]).validate(Fitting(), data, verbose=False)
    assert not visualizer.history


class Signalless(LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.zeros(4, 2), torch.zeros(4, 1)), batch_size=2)


def test_without_a_signal_fit_says_where_to_get_one() -> None:
    data = Signalless()
    with pytest.raises(MisconfigurationException, match=r"there is no datamodule: train with .*SignalDataModule"):
        quiet_trainer(max_epochs=1, callbacks=[INRVisualizer()]).fit(Fitting(), data.train_dataloader())
    with pytest.raises(MisconfigurationException, match=r"Signalless has none: train with .* or give it `signal`"):
        quiet_trainer(max_epochs=1, callbacks=[INRVisualizer()]).fit(Fitting(), datamodule=data)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Linear(2, 3), r"values \[N, 1\], for N = 2 it gave \[2, 3\].*`out_features` to 1"),
        (Planes(torch.ones(2, 2), [0.0, 0.0]), r"it gave \[2, 2, 1\].*number of signals to 1"),
        (nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), r"it gave \[2\]"),
    ],
)
def test_values_unlike_the_signals_are_refused_before_the_first_step(net: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(INRVisualizer(), module=Fitting(net))


def test_a_signal_index_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="`signal_index` must be less than the number of signals, 1, got 1"):
        fit(INRVisualizer(signal_index=1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every_n_steps": 0}, ValueError, "`every_n_steps` must be at least 1, got 0"),
        ({"every_n_epochs": 0}, ValueError, "`every_n_epochs` must be at least 1, got 0"),
        ({"chunk_size": 0}, ValueError, "`chunk_size` must be at least 1, got 0"),
        ({"every_n_steps": 1.5}, TypeError, "`every_n_steps` must be an integer, got 1.5"),
        ({"signal_index": -1}, ValueError, "`signal_index` must be at least 0, got -1"),
        ({"signal_index": True}, TypeError, "`signal_index` must be an integer, got True"),
        ({"signal": torch.zeros(4, 4, 1)}, TypeError, "`signal` must be a Signal or None, got Tensor"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        INRVisualizer(**arguments)


def two_ranks(ranks: int, watched: bool, lr: float) -> tuple[list[dict[str, float]], dict[str, float], Any]:
    torch.manual_seed(0)
    visualizer = INRVisualizer(2, chunk_size=10, gif=True, save_dir=f"ranks{ranks}")
    arguments = {"strategy": "ddp", "devices": ranks} if ranks > 1 else {}
    module = Fitting(lr=lr)
    trainer = quiet_trainer(max_epochs=2, callbacks=[visualizer] if watched else [], **arguments)
    trainer.fit(module, datamodule=SignalDataModule(plane()[..., 0], steps_per_epoch=4))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("inr")}
    return visualizer.history, logged, training_state(trainer, module)


def test_two_ranks_log_what_one_process_logs_and_leave_no_trace() -> None:
    # Statistics of batch-norm differ after a step, the ranks' random numbers being their own: compare before it.
    first = two_ranks(1, True, 0.05)[0][0]
    watched = run_ranks(two_ranks, 2, 2, True, 0.05)
    assert watched[0][0] == watched[1][0]
    assert watched[0][1] == watched[1][1] == {"inr/psnr": pytest.approx(watched[0][0][-1]["psnr"])}
    assert watched[0][0][0] == first
    assert Path("ranks2/inr_fit.gif").exists()
    alone = run_ranks(two_ranks, 2, 2, False, 0.05)
    assert_identical([state for *_, state in watched], [state for *_, state in alone])


# The drawing


HISTORY = [{"step": 0, "psnr": 5.0}, {"step": 10, "psnr": math.nan}, {"step": 20, "psnr": math.inf}]


def as_fit(target: Tensor, reconstruction: Tensor) -> Fit:
    return Fit(target, reconstruction, (-1.0, 1.0), 20.0, 20)


def panels(figure: Any) -> dict[str, Any]:
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def test_a_picture_is_drawn_with_its_error_and_both_spectra() -> None:
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    target = (0.5 + 0.25 * torch.cos(2 * math.pi * (3 * rows / 32 + 5 * columns / 48)))[..., None]
    drawn = panels(draw_fit(as_fit(target, torch.full_like(target, 0.5)), HISTORY, "inr"))
    assert set(drawn) == {
        "target", "reconstruction", "absolute error", "spectrum of the target", "spectrum of the reconstruction", "PSNR"
    }  # fmt: skip
    images = {title: np.asarray(axes.images[0].get_array()) for title, axes in drawn.items() if axes.images}
    np.testing.assert_array_equal(images["target"], target[..., 0].numpy())
    np.testing.assert_array_equal(images["reconstruction"], np.full((32, 48), 0.5, np.float32))
    np.testing.assert_allclose(images["absolute error"], (target - 0.5).abs()[..., 0].numpy())
    spectrum = images["spectrum of the target"]
    left, right, bottom, top = drawn["spectrum of the target"].images[0].get_extent()
    peaks = {(row + top + 0.5, column + left + 0.5) for row, column in np.argwhere(spectrum > 0.1)}
    assert peaks == {(0, 0), (3, 5), (-3, -5)}
    assert spectrum[19, 29] == pytest.approx(0.25, rel=1e-4)
    assert images["spectrum of the reconstruction"].max() == pytest.approx(0.5)
    assert np.sum(images["spectrum of the reconstruction"] > 1e-4) == 1
    assert (right, bottom) == (23.5, 15.5)


def test_a_curve_is_drawn_with_its_error_and_both_spectra() -> None:
    target = torch.sin(2 * math.pi * 23 * torch.arange(256) / 256)[:, None]
    leak = target + 0.1 * torch.sin(2 * math.pi * 105 * torch.arange(256) / 256)[:, None]
    drawn = panels(draw_fit(as_fit(target, leak), HISTORY, "inr"))
    assert set(drawn) == {"signal", "absolute error", "spectra", "PSNR"}
    lines = {line.get_label(): line for line in drawn["signal"].get_lines()}
    np.testing.assert_array_equal(lines["target"].get_ydata(), target[:, 0].numpy())
    np.testing.assert_array_equal(lines["reconstruction"].get_ydata(), leak[:, 0].numpy())
    assert lines["target"].get_xdata()[[0, -1]].tolist() == [-1, 1 - 2 / 256]
    spectra = {line.get_label(): np.asarray(line.get_ydata()) for line in drawn["spectra"].get_lines()}
    assert spectra["target"][[23, 105]] == pytest.approx([1, 1e-5], rel=1e-3)
    assert spectra["reconstruction"][[23, 105]] == pytest.approx([1, 0.1], rel=1e-3)


def test_of_a_volume_the_middle_slices_are_drawn() -> None:
    volume = torch.rand(4, 6, 8, 1)
    drawn = panels(draw_fit(as_fit(volume, volume), HISTORY, "inr"))
    montage = np.asarray(drawn["target, middle slices"].images[0].get_array().filled(-1))
    assert montage.shape == (6, 8 + 1 + 8 + 1 + 6)
    np.testing.assert_array_equal(montage[:, :8], volume[2, ..., 0].numpy())
    np.testing.assert_array_equal(montage[:4, 9:17], volume[:, 3, :, 0].numpy())
    np.testing.assert_array_equal(montage[:4, 18:], volume[:, :, 4, 0].numpy())
    spectrum = np.asarray(drawn["spectrum of the target"].images[0].get_array())
    projection = np.abs(np.fft.fftshift(np.fft.fft2(volume.mean(0)[..., 0].numpy(), norm="forward")))
    assert spectrum[3, 4] == pytest.approx(projection[3, 4], rel=1e-4)  # the mean
    assert spectrum[4, 5] == pytest.approx(2 * projection[4, 5], rel=1e-4)


SHAPES = [(9, 7, 3), (1, 60, 2), (5, 2), (1, 1), (2, 3, 4, 5, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whatever_a_network_gives_can_be_drawn(shape: tuple[int, ...], tmp_path: Path) -> None:
    target = 3 * torch.rand(shape)
    for value in (math.nan, math.inf, 0.0):
        reconstruction = torch.where(torch.rand(shape) < 0.5, value, target)
        fitted = as_fit(target, reconstruction)
        frame = draw_frame(fitted)
        assert frame.dtype == np.uint8
        assert frame.shape[2:] == (3,)
    draw_fit(as_fit(target, torch.full(shape, math.nan)), HISTORY, "inr").savefig(tmp_path / "nan.png")


def test_a_frame_is_the_picture() -> None:
    picture = torch.linspace(0, 1, 256).reshape(16, 16, 1)
    frame = draw_frame(as_fit(picture, picture))
    np.testing.assert_array_equal(frame, np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2))
    beyond = draw_frame(as_fit(picture, picture + 2))
    assert (beyond == 255).all()


def test_a_film_stays_bounded_evenly_spaced_and_keeps_its_ends(tmp_path: Path) -> None:
    from PIL import Image

    film = Filmstrip(max_frames=8, max_side=20)
    for step in range(0, 1000, 10):
        film.add(step, np.full((40, 10, 3), step // 5, np.uint8))
    steps = [step for step, _ in film.frames]
    assert len(steps) == 8
    assert (steps[0], steps[-1]) == (0, 990)
    assert np.diff(steps).max() <= 2 * 990 / 7
    assert all(frame.shape == (20, 5, 3) for _, frame in film.frames)
    assert film.frames[-1][1][0, 0, 0] == 198
    film.write(tmp_path / "new" / "film.gif")
    with Image.open(tmp_path / "new" / "film.gif") as written:
        assert (written.n_frames, written.size) == (8, (65, 260))
    film.cut_after(500)
    assert film.frames
    assert all(step <= 500 for step, _ in film.frames)
