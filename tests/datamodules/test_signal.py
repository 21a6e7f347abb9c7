from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile
from torch import Tensor, nn

from pl_robust._lightning import Callback, LightningModule, Trainer
from pl_robust._signal import grid_coordinates
from pl_robust.callbacks import ExactResume
from pl_robust.datamodules import SignalDataModule
from pl_robust.datamodules._signal_loaders import Piece, StepLoader, cut
from tests._processes import run_ranks
from tests.toys import assert_identical, needs_exact_middle, quiet_trainer

pytestmark = pytest.mark.lightning
random = np.random.default_rng(0)


def _levels(*shape: int) -> np.ndarray[Any, Any]:
    return random.integers(0, 256, shape, dtype=np.uint8)


def _values(signal: Any, **arguments: Any) -> Tensor:
    data = SignalDataModule(signal, **arguments)
    data.setup()
    return data.signal.values


class _Fit(LightningModule):
    """A small network, and what the loops handed it."""

    def __init__(self, in_features: int = 2, out_features: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(in_features, 8), nn.Tanh(), nn.Linear(8, out_features))
        self.register_buffer("used", torch.zeros(()))  # DDP synchronizes buffers before each forward pass
        self.batches: list[Any] = []
        self.held_out: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batches.append(batch)
        loss: Tensor = (self(batch[0]) - batch[1]).square().mean()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.held_out.append(batch[0])
        loss = (self(batch[0]) - batch[1]).square().mean()
        self.log("val/loss", loss, batch_size=len(batch[0]), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        loss = (self(batch[0]) - batch[1]).square().mean()
        self.log("test/loss", loss, batch_size=len(batch[0]), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


def _fit(data: SignalDataModule, seed: int = 0, ckpt_path: str | None = None, **arguments: Any) -> _Fit:
    torch.manual_seed(seed)
    module = _Fit(data.in_features, data.out_features)
    trainer = quiet_trainer(**{"max_epochs": 2, **arguments})
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module


# where signals come from


@pytest.mark.parametrize(("name", "shape"), [("camera", (512, 512, 1)), ("astronaut", (512, 512, 3))])
def test_scikit_images_pictures(name: str, shape: tuple[int, ...]) -> None:
    from skimage import data

    levels = getattr(data, name)().reshape(shape)
    assert torch.equal(_values(name), torch.from_numpy(levels).float() / 255)


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_scikit_learns_pictures(name: str) -> None:
    from sklearn.datasets import load_sample_image

    assert torch.equal(_values(name), torch.from_numpy(np.array(load_sample_image(name))).float() / 255)


def test_without_scikit_image_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"camera ships with scikit-image: `pip install \"pl_robust\[inr\]\"`"):
        SignalDataModule("camera").setup()


def test_a_tone_is_one_line_of_the_spectrum() -> None:
    data = SignalDataModule("tone")
    values = data.signal.values
    assert (values.shape, data.data_range, data.in_features, data.out_features) == ((256, 1), 2.0, 1, 1)
    spectrum = torch.fft.rfft(values[:, 0].double()) / 128
    assert spectrum[23].imag == pytest.approx(-1.0, abs=1e-6)  # a sine
    spectrum[23] = 0
    assert spectrum.abs().max() < 1e-6
    assert torch.allclose(_values("tone", frequency=1.5, length=6)[:2, 0], torch.tensor([0.0, 1.0]))


def test_resizing_is_pils() -> None:
    camera = Image.fromarray((_values("camera")[..., 0] * 255).byte().numpy())
    resized = np.asarray(camera.resize((64, 64), Image.Resampling.BILINEAR)) / 255
    # PIL rounds to levels after each of its two passes.
    assert np.abs(_values("camera", size=64)[..., 0].numpy() - resized).max() <= 1.01 / 255
    china = Image.fromarray((_values("china.jpg") * 255).round().byte().numpy())
    resized = np.asarray(china.resize((90, 60), Image.Resampling.BILINEAR)) / 255
    assert np.abs(_values("china.jpg", size=(60, 90)).numpy() - resized).max() <= 1.01 / 255
    assert _values("china.jpg", size=61).shape == (61, 91, 3)  # 61 * 640 / 427 = 91.4: aspect kept
    left = (640 - 427) / 2
    square = china.crop((round(left), 0, round(left) + 427, 427)).resize((32, 32), Image.Resampling.BILINEAR)
    ours = _values("china.jpg", size=32, center_crop=True)
    assert np.abs(ours.numpy() - np.asarray(square) / 255).max() <= 1.01 / 255


def test_resizing_keeps_to_the_range() -> None:
    white = np.ones((40, 50), dtype=np.float32)
    assert torch.equal(_values(white, size=(7, 9)), torch.ones(7, 9, 1))


def test_gray_is_pils_luminance() -> None:
    astronaut = Image.fromarray((_values("astronaut") * 255).round().byte().numpy())
    gray = _values("astronaut", gray=True)
    assert gray.shape == (512, 512, 1)
    assert np.abs(gray[..., 0].numpy() - np.asarray(astronaut.convert("L")) / 255).max() <= 0.51 / 255
    assert torch.equal(_values("camera", gray=True), _values("camera"))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK"])
def test_picture_files(mode: str, tmp_path: Path) -> None:
    picture = Image.fromarray(_levels(7, 9, 3)).convert(mode)
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.PNG")
    picture.save(path)
    kept = "L" if mode in ("L", "1", "LA") else "RGB"
    expected = np.asarray(picture.convert(kept), dtype=np.float32).reshape(7, 9, -1) / 255
    np.testing.assert_allclose(_values(path).numpy(), expected, atol=1e-7)
    assert torch.equal(_values(path), _values(str(path)))


def test_pictures_of_16_bits_and_of_floats(tmp_path: Path) -> None:
    levels = random.integers(0, 65536, (5, 6), dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    np.testing.assert_allclose(_values(tmp_path / "deep.png")[..., 0].numpy(), levels / 65535, atol=1e-7)
    floats = random.random((5, 6), dtype=np.float32)
    Image.fromarray(floats).save(tmp_path / "deep.tif")
    assert torch.equal(_values(tmp_path / "deep.tif")[..., 0], torch.from_numpy(floats))
    Image.fromarray(random.integers(0, 2**31, (5, 6), dtype=np.int32)).save(tmp_path / "deeper.tif")
    with pytest.raises(ValueError, match=r"deeper.tif' is no picture that PIL can read \(32-bit integers"):
        _values(tmp_path / "deeper.tif")


def test_a_photo_taken_sideways_is_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    levels = _levels(4, 6)
    Image.fromarray(levels).save(tmp_path / "photo.png", exif=exif)
    assert torch.equal(_values(tmp_path / "photo.png")[..., 0], torch.from_numpy(np.rot90(levels, -1) / 255).float())


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([-32768, 0, 16384], np.int16), [[-1.0], [0.0], [0.5]]),
        (np.array([[0, 128], [192, 255]], np.uint8), [[-1.0, 0.0], [0.5, 127 / 128]]),
        (np.array([2**30, -(2**31)], np.int32), [[0.5], [-1.0]]),
        (np.array([[0.25, -0.5], [0.0, 0.125]], np.float32), [[0.25, -0.5], [0.0, 0.125]]),
        (np.array([0.25, 0.5], np.float64), [[0.25], [0.5]]),
    ],
)
def test_wav_files(samples: np.ndarray[Any, Any], expected: Any, tmp_path: Path) -> None:
    wavfile.write(tmp_path / "sound.wav", 8000, samples)
    data = SignalDataModule(tmp_path / "sound.wav")
    assert torch.equal(data.signal.values, torch.tensor(expected))
    assert data.data_range == 2.0
    assert torch.equal(_values(tmp_path / "sound.wav", length=1), torch.tensor(expected)[:1])


@pytest.mark.parametrize(
    ("shape", "grid_dims", "grid"),
    [
        ((9,), None, 1),
        ((3,), None, 1),
        ((9, 8), None, 2),
        ((9, 8, 3), None, 2),
        ((3, 8, 3), None, 2),
        ((9, 8, 7), None, 3),
        ((9, 8, 7, 2), None, 3),
        ((9, 2), 1, 1),
        ((9, 2), 2, 2),
        ((3, 8, 7), 3, 3),
        ((9, 8, 7), 2, 2),
        ((9, 8, 7, 6), 3, 3),
        ((5, 5, 5, 5), 4, 4),
        ((5, 5, 5, 5, 2), 4, 4),
    ],
)
def test_arrays_tell_their_grid(shape: tuple[int, ...], grid_dims: int | None, grid: int, tmp_path: Path) -> None:
    array = random.random(shape, dtype=np.float32)
    np.save(tmp_path / "array.npy", array)
    for source in (array, torch.from_numpy(array), tmp_path / "array.npy"):
        data = SignalDataModule(source, grid_dims=grid_dims)
        assert data.in_features == grid
        assert data.out_features == (1 if len(shape) == grid else shape[-1])
        assert torch.equal(data.signal.values.flatten(), torch.from_numpy(array).flatten())


@pytest.mark.parametrize(
    ("array", "expected", "data_range"),
    [
        (np.array([0, 51, 255], np.uint8), [0, 0.2, 1], 1.0),
        (np.array([0, 13107, 65535], np.uint16), [0, 0.2, 1], 1.0),
        (np.array([True, False]), [1, 0], 1.0),
        (np.array([0.5, -0.5]), [0.5, -0.5], 2.0),
        (np.array([0.5, 0.25], ">f8"), [0.5, 0.25], 1.0),
        (np.array([0.5, 0.25, 0.1], np.float16)[::-1], [0.1, 0.25, 0.5], 1.0),
        (np.array([-1.0, 4.0]), [-1, 4], 5.0),
        (torch.tensor([0.5, 0.25], dtype=torch.bfloat16), [0.5, 0.25], 1.0),
        (torch.tensor([0.5, 0.25], dtype=torch.float64, requires_grad=True), [0.5, 0.25], 1.0),
        (torch.tensor([0, 255], dtype=torch.uint8), [0, 1], 1.0),
    ],
)
def test_arrays_tell_their_range(array: Any, expected: list[float], data_range: float) -> None:
    data = SignalDataModule(array)
    torch.testing.assert_close(data.signal.values[:, 0], torch.tensor(expected), atol=1e-4, rtol=0, check_dtype=False)
    assert data.signal.values.dtype == torch.float32
    assert not data.signal.values.requires_grad
    assert data.data_range == pytest.approx(data_range)
    assert SignalDataModule(array, data_range=3.0).data_range == 3.0


@pytest.mark.parametrize("dtype", [">u2", ">f4", ">f8"])
def test_arrays_may_have_the_other_order_of_bytes(dtype: str) -> None:
    array = _levels(9, 8) // 2 / (1 if dtype[1] == "u" else 256)
    assert torch.equal(_values(array.astype(dtype)), _values(array.astype(dtype[1:])))


@pytest.mark.parametrize("array", [np.zeros(4, np.float32), torch.zeros(4)])
def test_the_users_array_may_change(array: Any) -> None:
    data = SignalDataModule(array)
    data.setup()
    array += 1
    assert torch.equal(data.signal.values, torch.zeros(4, 1))


def test_values_of_another_scale_are_warned_about() -> None:
    with pytest.warns(UserWarning, match="values run from 0 to 255: .* scale it"):
        SignalDataModule(np.array([0.0, 255.0])).setup()


def test_several_signals_share_their_coordinates() -> None:
    data = SignalDataModule(["camera", "astronaut", Path("china.jpg")], size=16, center_crop=True, gray=True)
    assert (data.num_signals, data.in_features, data.out_features) == (3, 2, 1)
    coordinates, values = data.batch(0)
    assert (coordinates.shape, values.shape) == ((256, 2), (3, 256, 1))
    for index, name in enumerate(("camera", "astronaut", "china.jpg")):
        alone = SignalDataModule(name, size=16, center_crop=True, gray=True)
        assert torch.equal(values[index], alone.batch(0)[1])
    one = SignalDataModule(["tone"])
    assert (one.num_signals, one.batch(0)[1].shape) == (1, (256, 1))


def test_several_signals_draw_the_same_points() -> None:
    first, second = random.random((2, 40, 2), dtype=np.float32)
    arguments: Any = {"grid_dims": 1, "points_per_step": 7, "split": "random"}
    coordinates, values = SignalDataModule([first, second], **arguments).batch(5)
    for index, one in enumerate((first, second)):
        alone = SignalDataModule(one, **arguments).batch(5)
        assert torch.equal(coordinates, alone[0])
        assert torch.equal(values[index], alone[1])


# which points are trained on


def _everything(data: SignalDataModule, loop: str) -> tuple[Tensor, Tensor]:
    loader = getattr(data, f"{loop}_dataloader")()
    pieces = [data.transfer_batch_to_device(piece, torch.device("cpu"), 0) for piece in loader]
    return torch.cat([x for x, _ in pieces]), torch.cat([y for _, y in pieces], -2)


@pytest.mark.parametrize(("shape", "stride"), [((8,), 2), ((9, 8), 2), ((9, 8), 3), ((5, 6, 7), 4)])
def test_every_kth_point_along_each_axis(shape: tuple[int, ...], stride: int) -> None:
    array = random.random((*shape, 2), dtype=np.float32)
    data = SignalDataModule(array, grid_dims=len(shape), split="every", stride=stride, coordinate_range=(0, 1))
    data.setup()
    kth = (slice(None, None, stride),) * len(shape)
    grid = grid_coordinates(shape, (0, 1)).view(*shape, -1)
    coordinates, values = data.batch(0)
    assert torch.equal(coordinates, grid[kth].reshape(-1, len(shape)))
    assert torch.equal(values, torch.from_numpy(array[kth]).reshape(-1, 2))
    held_out = np.ones(shape, bool)
    held_out[kth] = False
    x, y = _everything(data, "val")
    assert torch.equal(x, grid[torch.from_numpy(held_out)])
    assert torch.equal(y, torch.from_numpy(array[held_out]))
    assert torch.equal(data.train_mask, torch.from_numpy(~held_out))


def test_random_points() -> None:
    array = random.random((20, 30), dtype=np.float32)
    data = SignalDataModule(array, split="random", train_fraction=0.3, seed=4)
    _, values = data.batch(0)
    _, others = _everything(data, "val")
    assert (len(values), len(others)) == (180, 420)
    assert torch.equal(torch.cat([values, others]).flatten().sort()[0], torch.from_numpy(array).flatten().sort()[0])
    torch.manual_seed(9)
    assert torch.equal(SignalDataModule(array, split="random", train_fraction=0.3, seed=4).train_mask, data.train_mask)
    other = SignalDataModule(array, split="random", train_fraction=0.3, seed=5)
    assert not torch.equal(other.train_mask, data.train_mask)


def test_all_points_are_validated_where_none_are_held_out() -> None:
    array = random.random((5, 6), dtype=np.float32)
    data = SignalDataModule(array, eval_points=7)
    x, y = _everything(data, "val")
    assert torch.equal(x, data.signal.coordinates)
    assert torch.equal(y, data.signal.samples)
    assert torch.equal(_everything(data, "test")[1], y)


# the points of a step


def test_drawn_points_are_training_points_uniformly() -> None:
    array = random.random((6, 8), dtype=np.float32)
    data = SignalDataModule(array, split="every", points_per_step=12)
    known = {tuple(x.tolist()): y.item() for x, y in zip(*_whole(data), strict=True)}
    counts: dict[tuple[float, ...], int] = {}
    for step in range(400):
        coordinates, values = data.batch(step)
        assert (coordinates.shape, values.shape) == ((12, 2), (12, 1))
        for x, y in zip(coordinates, values, strict=True):
            point = tuple(x.tolist())
            assert known[point] == y.item()
            counts[point] = counts.get(point, 0) + 1
    assert len(counts) == 12  # of 48: every second row and column
    # 4800 draws of 12 points, 400 each: 5 standard deviations are 96.
    assert all(abs(count - 400) < 96 for count in counts.values())


def _whole(data: SignalDataModule) -> tuple[Tensor, Tensor]:
    return data.signal.coordinates, data.signal.samples


def test_a_step_always_draws_the_same_and_moves_no_random_state() -> None:
    data = SignalDataModule("tone", points_per_step=16, seed=1)
    before = torch.get_rng_state()
    first, second = data.batch(3), data.batch(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first[0], second[0])
    assert torch.equal(SignalDataModule("tone", points_per_step=16, seed=1).batch(3)[0], first[0])
    assert not torch.equal(SignalDataModule("tone", points_per_step=16, seed=2).batch(3)[0], first[0])


def test_steps_are_numbered_without_a_trainer() -> None:
    loader = SignalDataModule("tone", steps_per_epoch=3).train_dataloader()
    assert [list(loader), list(loader)] == [[0, 1, 2], [3, 4, 5]]
    assert next(iter(loader)) == 6
    assert list(loader) == [7, 8, 9]
    assert len(loader) == 3


def test_steps_are_numbered_right_by_a_loop_that_fetches_ahead() -> None:
    done = 0
    loader = StepLoader(3, lambda: done)
    used = []
    for _ in range(2):
        steps = iter(loader)
        waiting = [next(steps), next(steps)]
        while waiting:
            used.append(waiting.pop(0))
            done += 1
            waiting += [step for step in [next(steps, None)] if step is not None]
    assert used == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("points", "size", "ranks"), [(10, 4, 1), (10, 4, 3), (3, 1, 2), (65, 64, 1), (1, 9, 1), (100, 9, 4)]
)
def test_evaluation_shares_the_points_out(points: int, size: int, ranks: int) -> None:
    shares = [cut("val", points, size, rank, ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1  # or DDP would wait for ever
    pieces = [piece for share in shares for piece in share]
    assert [i for piece in pieces for i in range(piece.start, piece.stop)] == list(range(points))
    lengths = [piece.stop - piece.start for piece in pieces]
    assert min(lengths) >= 1
    assert max(lengths) <= max(size, -(-points // ranks) if size * ranks > points else size + (size == 1))
    assert max(lengths) - min(lengths) <= 1


# the Trainer's loops


def test_the_full_batch_is_the_same_memory_at_every_step() -> None:
    data = SignalDataModule("camera", size=16, split="every", steps_per_epoch=3)
    module = _fit(data)
    assert len(module.batches) == 6
    for part in (0, 1):
        assert len({batch[part].data_ptr() for batch in module.batches}) == 1
        assert len({id(batch[part]) for batch in module.batches}) == 6  # but not the same tensor: see below
    assert torch.equal(module.batches[0][1], data.signal.values[::2, ::2].reshape(-1, 1))


def test_gradients_asked_of_coordinates_stay_with_the_step() -> None:
    data = SignalDataModule("tone")
    coordinates, _ = data.batch(0)
    coordinates.requires_grad_().square().sum().backward()  # type: ignore[no-untyped-call]
    again, _ = data.batch(1)
    assert not again.requires_grad
    assert again.grad is None
    assert again.data_ptr() == coordinates.data_ptr()


def test_training_works_after_an_evaluation_in_inference_mode() -> None:
    data = SignalDataModule("tone")
    with torch.inference_mode():
        data.transfer_batch_to_device(Piece("val", 0, 9), torch.device("cpu"), 0)
    coordinates, values = data.batch(0)
    net = nn.Linear(1, 1)
    (net(coordinates) * values).sum().backward()
    assert net.weight.grad is not None


def test_every_loop_runs_over_its_own_points() -> None:
    data = SignalDataModule("camera", size=16, split="every", steps_per_epoch=4, eval_points=50)
    module = _Fit()
    trainer = quiet_trainer(max_epochs=2, num_sanity_val_steps=0)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 8
    assert [len(x) for x in module.held_out] == [48] * 8  # 192 points, twice
    whole, truth = _whole(data)
    with torch.no_grad():
        expected = (module(whole) - truth).square()
    mask = data.train_mask.flatten()
    validated = trainer.validate(module, datamodule=data, verbose=False)[0]["val/loss"]
    assert validated == pytest.approx(expected[~mask].mean().item(), rel=1e-5)
    tested = trainer.test(module, datamodule=data, verbose=False)[0]["test/loss"]
    assert tested == pytest.approx(expected.mean().item(), rel=1e-5)
    predicted = torch.cat(trainer.predict(module, datamodule=data))  # type: ignore[arg-type]
    torch.testing.assert_close(data.signal.on_grid(predicted), data.signal.on_grid(module(whole).detach()))


def test_several_signals_are_evaluated_in_smaller_pieces() -> None:
    data = SignalDataModule(["tone", "tone"], eval_points=128)
    assert [piece.stop - piece.start for piece in data.test_dataloader()] == [64] * 4


@pytest.mark.parametrize("arguments", [{"accumulate_grad_batches": 2}, {"limit_train_batches": 3, "max_epochs": 4}])
def test_no_step_is_used_twice(arguments: dict[str, Any]) -> None:
    data = SignalDataModule("tone", points_per_step=32, steps_per_epoch=6)
    module = _fit(data, **arguments)
    assert len(module.batches) == 12
    for step, batch in enumerate(module.batches):
        assert torch.equal(batch[0], data.batch(step)[0])


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_batches_have_the_trainers_precision(precision: Any) -> None:
    module = _fit(SignalDataModule("tone", length=128), precision=precision)
    dtypes = {"64-true": torch.float64, "bf16-true": torch.bfloat16}
    assert {part.dtype for batch in module.batches for part in batch} == {dtypes.get(precision, torch.float32)}
    assert module.held_out[0].dtype == module.batches[0][0].dtype


def test_coordinates_that_collapse_in_half_precision_are_refused() -> None:
    with pytest.raises(ValueError, match=r"an axis of 1000 points are equal in torch.bfloat16: .*'32-true'"):
        _fit(SignalDataModule("tone", length=1000), precision="bf16-true")


def test_the_precision_of_another_trainer_is_forgotten() -> None:
    data = SignalDataModule("tone")
    _fit(data, precision="64-true")
    assert _fit(data).batches[0][0].dtype == torch.float32


def test_other_batches_go_their_usual_way() -> None:
    data = SignalDataModule("tone")
    batch = {"x": torch.zeros(2)}
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["x"].device.type == "meta"


# resuming


class _Saver(Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.at:
            trainer.save_checkpoint("killed.ckpt")


class _EpochSaver(Callback):
    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint("killed.ckpt")


def _points(**arguments: Any) -> SignalDataModule:
    return SignalDataModule("tone", points_per_step=32, steps_per_epoch=5, **arguments)


def test_resumed_at_an_epochs_end_it_ends_with_the_same_bits() -> None:
    straight = _fit(_points(), max_epochs=4, callbacks=[ExactResume(), _EpochSaver()])
    resumed = _fit(_points(), seed=1, max_epochs=4, ckpt_path="killed.ckpt", callbacks=[ExactResume(), _EpochSaver()])
    assert len(resumed.batches) == 10
    assert_identical(resumed.batches, straight.batches[10:])
    assert_identical(dict(resumed.state_dict()), dict(straight.state_dict()))


@pytest.mark.parametrize("at", [3, 7])
@needs_exact_middle
def test_resumed_inside_an_epoch_it_ends_with_the_same_bits(at: int) -> None:
    straight = _fit(_points(), max_epochs=3, callbacks=[_Saver(at)])
    resumed = _fit(_points(), seed=1, max_epochs=3, ckpt_path="killed.ckpt")
    assert_identical(resumed.batches, straight.batches[at:])
    assert_identical(dict(resumed.state_dict()), dict(straight.state_dict()))


class _NoisyFit(_Fit):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch[0], batch[1] + 0.1 * torch.randn_like(batch[1])), batch_idx)


@pytest.mark.parametrize("accumulated", [1, 2])
@needs_exact_middle
def test_resumed_inside_an_epoch_with_its_random_state_nothing_stands_in_the_way(
    accumulated: int, recwarn: pytest.WarningsRecorder
) -> None:
    runs = []
    for seed, resume in ((0, None), (1, "killed.ckpt")):
        torch.manual_seed(seed)
        callbacks = [ExactResume(), _Once(4)] if resume is None else [ExactResume()]
        trainer = quiet_trainer(max_epochs=3, callbacks=callbacks, accumulate_grad_batches=accumulated)
        module = _NoisyFit(1)
        trainer.fit(module, datamodule=_points(), ckpt_path=resume)
        runs.append(module)
    straight, resumed = runs
    assert 0 < len(resumed.batches) < len(straight.batches)
    assert_identical(resumed.batches, straight.batches[-len(resumed.batches) :])
    assert_identical(dict(resumed.state_dict()), dict(straight.state_dict()))
    assert not [str(one.message) for one in recwarn if "ExactResume" in str(one.message)]


@needs_exact_middle
def test_gradients_that_were_being_accumulated_are_missed() -> None:
    arguments: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": 3}
    _fit(_points(), callbacks=[ExactResume(), _Saver(1)], **arguments)  # behind batch 3, and again behind batch 4
    with pytest.warns(UserWarning, match="gradients were being accumulated, which no checkpoint holds"):
        _fit(_points(), callbacks=[ExactResume()], ckpt_path="killed.ckpt", **arguments)


class _Once(_Saver):
    """Saves behind the step, as ModelCheckpoint does, not behind each batch that is accumulated after it."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_batch_end(trainer)
        self.at = -1 if trainer.global_step == self.at else self.at


class _Breaks(_Fit):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if len(self.batches) == 7:
            raise RuntimeError("out of memory")
        return super().training_step(batch, batch_idx)


class _Rescue(Callback):
    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint("killed.ckpt")


@needs_exact_middle
def test_a_step_that_broke_off_is_trained_again_on_its_points() -> None:
    straight = _fit(_points(), max_epochs=3)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="out of memory"):
        quiet_trainer(max_epochs=3, callbacks=[_Rescue()]).fit(_Breaks(1), datamodule=_points())
    resumed = _fit(_points(), seed=1, max_epochs=3, ckpt_path="killed.ckpt")
    assert_identical(resumed.batches, straight.batches[7:])
    assert_identical(dict(resumed.state_dict()), dict(straight.state_dict()))


def test_hyperparameters_are_plain_and_come_back(tmp_path: Path) -> None:
    Image.fromarray(_levels(6, 7)).save(tmp_path / "picture.png")
    data = SignalDataModule([tmp_path / "picture.png", str(tmp_path / "picture.png")], size=(4, 5), steps_per_epoch=2)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(_TwoSignals(), datamodule=data)
    trainer.save_checkpoint("last.ckpt")
    held = torch.load("last.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert held["signal"] == [str(tmp_path / "picture.png")] * 2
    again = SignalDataModule.load_from_checkpoint("last.ckpt")
    assert torch.equal(again.signal.values, data.signal.values)
    with_array = SignalDataModule(np.zeros(9))
    assert "signal" not in with_array.hparams


class _TwoSignals(_Fit):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


def test_configurations_name_signals_and_lists_of_them() -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SignalDataModule, "data")
    for signal in ("camera", ["camera", "tone"]):
        config = parser.parse_object({"data": {"signal": signal, "size": [4, 5], "coordinate_range": [0, 1]}})
        data = parser.instantiate_classes(config).data
        assert data.hparams.signal == signal
        assert (data.recipe.size, data.coordinate_range) == ((4, 5), (0.0, 1.0))


def test_the_command_line_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    from pl_robust.cli import main

    Path("fit.yaml").write_text(
        f"""
        trainer: {{max_epochs: 2, accelerator: cpu, logger: false, enable_checkpointing: false,
            enable_progress_bar: false, enable_model_summary: false}}
        model: {{class_path: {__name__}._OneDimension}}
        data: {{class_path: SignalDataModule, init_args: {{signal: [tone, tone], length: 64, steps_per_epoch: 3}}}}
        """
    )
    main(["fit", "--config", "fit.yaml"])
    with pytest.raises(SystemExit):
        main(["fit", "--config", "fit.yaml", "--data.split", "every", "--data.stride", "1"])
    assert "`stride` must be at least 2, got 1" in capsys.readouterr().err.strip().splitlines()[-1]
    data = SignalDataModule(["tone", np.zeros((9, 8))])
    assert str(data) == "SignalDataModule(signal='tone', an array [9, 8], split='all')"


class _OneDimension(_Fit):
    def __init__(self) -> None:
        super().__init__(1)


# several processes


def _two_ranks(points: int | None) -> Any:
    torch.manual_seed(0)
    data = SignalDataModule("camera", size=8, split="every", steps_per_epoch=3, points_per_step=points, eval_points=20)
    module = _Fit()
    trainer = quiet_trainer(max_epochs=2, devices=int(os.environ.get("WORLD_SIZE", 1)), strategy="auto")
    trainer.fit(module, datamodule=data)
    result = {
        "batches": module.batches,
        "weights": {key: value.detach() for key, value in module.net.state_dict().items()},
        "val": trainer.callback_metrics["val/loss"],
        "pieces": [piece.stop - piece.start for piece in data.val_dataloader()],
        "test": trainer.test(module, datamodule=data, verbose=False)[0]["test/loss"],
    }
    return result


@pytest.mark.parametrize("points", [None, 6])
def test_two_ranks_draw_their_own_points_and_share_the_evaluation(points: int | None) -> None:
    alone = _two_ranks(points)
    left, right = run_ranks(_two_ranks, 2, points)
    assert_identical(left["weights"], right["weights"])
    assert left["pieces"] == right["pieces"] == [12, 12]
    for result in (left, right):
        assert torch.equal(result["val"], left["val"])
        assert result["test"] == left["test"]
    if points is None:
        for name, weights in alone["weights"].items():
            torch.testing.assert_close(left["weights"][name], weights)
        assert left["val"] == pytest.approx(alone["val"].item(), rel=1e-5)
        assert left["test"] == pytest.approx(alone["test"], rel=1e-5)
        assert_identical(left["batches"], right["batches"])
    else:
        assert all(not torch.equal(a[0], b[0]) for a, b in zip(left["batches"], right["batches"], strict=True))
        assert_identical(left["batches"], alone["batches"])  # rank 0 draws what one process does


# arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"signal": 3}, TypeError, "`signal` must be a name, a path, an array, or a list .* got 3"),
        ({"signal": []}, TypeError, r"`signal` must be .* got \[\]"),
        ({"signal": ["camera", 3]}, TypeError, "`signal` must be"),
        ({"grid_dims": 0}, ValueError, "`grid_dims` must be at least 1, got 0"),
        ({"size": 0}, ValueError, "`size` must be at least 1, got 0"),
        ({"size": (4, -1)}, ValueError, "`size` must be at least 1, got -1"),
        ({"size": (4, 5, 6)}, ValueError, r"`size` must be the shorter side or \(height, width\), got \(4, 5, 6\)"),
        ({"size": 1.5}, TypeError, "`size` must be an integer, got 1.5"),
        ({"length": 0}, ValueError, "`length` must be at least 1"),
        ({"data_range": -1.0}, ValueError, "`data_range` must be positive, got -1.0"),
        ({"data_range": "1"}, TypeError, "`data_range` must be a number, got '1'"),
        ({"coordinate_range": None}, TypeError, r"`coordinate_range` must be \(low, high\), two numbers, got None"),
        ({"frequency": 0.0}, ValueError, "`frequency` must be positive, got 0.0"),
        ({"frequency": "23"}, TypeError, "`frequency` must be a number, got '23'"),
        ({"train_fraction": "half"}, TypeError, "`train_fraction` must be a number, got 'half'"),
        ({"coordinate_range": (0, 256)}, ValueError, r"must lie in \[-1, 1\], got `coordinate_range`=\(0, 256\)"),
        ({"coordinate_range": (1, -1)}, ValueError, "low < high"),
        ({"split": "half"}, ValueError, "`split` must be one of all, every, random, got 'half'"),
        ({"split": "every", "stride": 1}, ValueError, "`stride` must be at least 2, got 1; .* split='all'"),
        ({"train_fraction": 0.0}, ValueError, r"`train_fraction` must lie in \(0, 1\), got 0.0; .* split='all'"),
        ({"train_fraction": 1.0}, ValueError, r"`train_fraction` must lie in \(0, 1\), got 1.0"),
        ({"points_per_step": 0}, ValueError, "`points_per_step` must be at least 1, got 0"),
        ({"steps_per_epoch": 0}, ValueError, "`steps_per_epoch` must be at least 1, got 0"),
        ({"eval_points": 0}, ValueError, "`eval_points` must be at least 1, got 0"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0, got -1"),
        ({"seed": True}, TypeError, "`seed` must be an integer, got True"),
        ({"seed": 2**70}, ValueError, r"`seed` must be less than 2\*\*64"),
    ],
)
def test_refuses_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SignalDataModule(**{"signal": "tone", **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"signal": "camra"}, FileNotFoundError, "no file 'camra': did you mean camera?"),
        ({"signal": "nowhere/x.png"}, FileNotFoundError, r"no file 'nowhere/x.png' \(working folder: "),
        ({"signal": "."}, FileNotFoundError, "`signal` must be one of tone, camera, .* no file '.'"),
        ({"frequency": 128.0}, ValueError, "`frequency` must lie between 0 and 128, half the `length` of 256 samples"),
        ({"signal": "camera", "frequency": 3.0}, ValueError, "`frequency` is for signal='tone', got 3.0 for 'camera'"),
        ({"signal": "camera", "length": 3}, ValueError, "`length` is for sounds and tones, got 3 for 'camera'"),
        ({"signal": "camera", "grid_dims": 1}, ValueError, "`grid_dims`=1 does not fit 'camera', which has 2"),
        ({"signal": np.zeros(9), "length": 10}, ValueError, "`length` must be at most 9, the samples of an array"),
        ({"size": 8}, ValueError, "`size`, `center_crop` and `gray` are for pictures, got 'tone' of 1 grid axes"),
        ({"gray": True}, ValueError, "are for pictures, got 'tone'"),
        ({"center_crop": True}, ValueError, "are for pictures, got 'tone'"),
        ({"signal": np.zeros((9, 9, 2)), "gray": True}, ValueError, "`gray` needs a picture of 1 or 3 channels, got 2"),
        ({"signal": np.zeros((3, 9, 9))}, ValueError, r"may be a picture \[C, H, W\], whose channels belong last"),
        ({"signal": np.zeros((9, 2))}, ValueError, r"may be a sound \[N, c\] \(grid_dims=1\) or a picture"),
        ({"signal": np.zeros((9, 9, 9, 9))}, ValueError, "may be a volume .* of many channels"),
        (
            {"signal": np.zeros((9, 9)), "grid_dims": 3},
            ValueError,
            r"must have 3 grid axes and perhaps one .* \[9, 9\]",
        ),
        ({"signal": np.zeros(())}, ValueError, r"shape \[\] may be anything"),
        ({"signal": np.zeros(0)}, ValueError, r"an array \[0\] is empty: its shape is \[0\]"),
        (
            {"signal": np.zeros(9, np.int64)},
            ValueError,
            "must hold floats, uint8, uint16 or bool, .* got int64: scale it",
        ),
        ({"signal": np.zeros(9, np.complex64)}, ValueError, "must hold floats, .* got complex64"),
        ({"signal": torch.zeros(9, dtype=torch.complex64)}, ValueError, "got complex64"),
        ({"signal": np.array(["a"])}, ValueError, "must hold floats"),
        ({"signal": np.array([1.0, np.nan])}, ValueError, r"an array \[2\] holds NaN or infinite values: cut them out"),
        ({"signal": np.array([1.0, 1e300])}, ValueError, "holds NaN or infinite values"),
        (
            {"split": "every", "stride": 256},
            ValueError,
            r"`stride` must be less than 256, .*\[256\].*two points, got 256",
        ),
        (
            {"signal": np.zeros((2, 9)), "grid_dims": 2, "split": "every"},
            ValueError,
            r"split='every' needs at least 3 points along each axis, got a grid \[2, 9\]: 'random' holds out",
        ),
        ({"split": "random", "train_fraction": 1e-6}, ValueError, "of 256 points is 0; both parts need at least one"),
        (
            {"split": "every", "points_per_step": 129},
            ValueError,
            "`points_per_step` must be at most 128, .* got 129; None",
        ),
        (
            {"signal": ["camera", "astronaut"]},
            ValueError,
            r"one shape .* got \[512, 512, 1\] of 'camera' and \[512, 512, 3\] of 'astronaut'; .*`gray`",
        ),
    ],
)
def test_refuses_signals(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    data = SignalDataModule(**{"signal": "tone", **arguments})
    with pytest.raises(error, match=message):
        data.setup("fit")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.png", b"no picture", r"x.png' is no picture that PIL can read \(cannot identify image file"),
        ("x.png", b"", "no picture that PIL can read"),
        ("x.wav", b"RIFF", "x.wav' is no sound that scipy can read"),
        ("x.npy", b"spoilt", "x.npy' is no array that numpy can read"),
    ],
)
def test_unreadable_files_are_named_with_the_reason(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        SignalDataModule(tmp_path / name).setup()


def test_truncated_pictures_and_pickled_arrays_are_refused(tmp_path: Path) -> None:
    Image.fromarray(_levels(64, 64)).save(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.jpg").read_bytes()[:-900])
    with pytest.raises(ValueError, match=r"x.jpg' is no picture that PIL can read \(image file is truncated"):
        SignalDataModule(tmp_path / "x.jpg").setup()
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"no array that numpy can read \(Object arrays cannot be loaded"):
        SignalDataModule(tmp_path / "x.npy").setup()
