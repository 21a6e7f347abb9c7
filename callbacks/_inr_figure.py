"""What the fit of a signal looks like: the signal beside its reconstruction, the error, both spectra, the PSNR."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pl_robust._signal import grid_coordinates
from pl_robust.transforms.spectrum import spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

Array = npt.NDArray[Any]

_FLOOR = 1e-5  # of the target's largest amplitude: what is below is drawn like it
_SLENDER = 8  # a picture that is longer than so many times its width is drawn wider than it is
_FRAME_SIZE = (4.8, 2.7)  # of a curve in a film, in hundreds of pixels


@dataclass(frozen=True, eq=False)
class Fit:
    """A signal and what a network makes of it, on the CPU.

    Args:
        target: float32 [*shape, c], finite.
        reconstruction: float32 [*shape, c]; may hold NaN.
        coordinate_range: (low, high) of the grid's axes.
        psnr: of the reconstruction, in dB.
        step: optimizer steps that the network has had.
    """

    target: Tensor
    reconstruction: Tensor
    coordinate_range: tuple[float, float]
    psnr: float
    step: int

    @property
    def error(self) -> Tensor:
        """Absolute error, mean over channels: [*shape, 1]."""
        return (self.reconstruction - self.target).abs().mean(-1, keepdim=True)

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest value of the drawing: the nominal ones, [0, 1] or [-1, 1], if the target keeps to them."""
        low, high = float(self.target.min()), float(self.target.max())
        for nominal in ((0.0, 1.0), (-1.0, 1.0)):
            if nominal[0] <= low and high <= nominal[1]:
                return nominal
        return low, high if high > low else low + 1

    @property
    def shown_channels(self) -> str:
        """Which channels a picture or curve shows, for its title; empty if it shows all."""
        channels = self.target.shape[-1]
        is_curve = self.target.ndim == 2
        return "" if channels == 1 or (channels == 3 and not is_curve) else f", channel 1 of {channels}"


def draw_fit(fit: Fit, history: Sequence[Mapping[str, float]], name: str) -> Figure:
    """Draw a fit: a curve for one grid axis, a picture for two, the middle slices for three.

    Errors and spectra are those of all channels, spectra their root mean square; of volumes the spectrum's plane
    through 0 is shown. Of more than three axes the first ones are cut in their middle.

    Args:
        fit: the signal and its reconstruction.
        history: one row for each check, with step and psnr.
        name: what the figure is about, the prefix of the logged names.
    """
    from matplotlib.figure import Figure  # late: only rank zero draws

    is_curve = fit.target.ndim == 2
    figure = Figure(figsize=(9.6, 6.4) if is_curve else (11.2, 6.4), layout="constrained")
    figure.suptitle(f"{name}: step {fit.step}, {fit.psnr:.2f} dB")
    if is_curve:
        (values, errors), (spectra, progress) = figure.subplots(2, 2)
        _draw_curves(values, errors, spectra, fit)
    else:
        rows: Any = figure.subfigures(2, 1)  # so that one's colour bar leaves no hole in the other
        above, below = rows
        _draw_pictures(above, above.subplots(1, 3), fit)
        *panels, progress = below.subplots(1, 3)
        _draw_spectra(below, panels, fit)
    progress.plot([row["step"] for row in history], [row["psnr"] for row in history], marker=".")
    progress.set(title="PSNR", xlabel="step", ylabel="dB")
    progress.grid(alpha=0.3)
    return figure


def draw_frame(fit: Fit) -> npt.NDArray[np.uint8]:
    """Make a film's frame of a reconstruction: the picture itself, the middle slices, or the curve on its target.

    Args:
        fit: the signal and its reconstruction.

    Returns:
        uint8 [height, width, 3]; of a picture, height and width are its own.
    """
    if fit.target.ndim == 2:
        return _draw_curve_frame(fit)
    low, high = fit.limits
    picture = _scaled(_picture(fit.reconstruction), low, high)
    picture = (255 * picture).round().astype(np.uint8)
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=-1)


def _draw_curve_frame(fit: Fit) -> npt.NDArray[np.uint8]:
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=_FRAME_SIZE, dpi=100, layout="constrained")
    axes = figure.subplots()
    _draw_values(axes, fit)
    low, high = fit.limits
    margin = 0.1 * (high - low)
    axes.set(ylim=(low - margin, high + margin), title=f"step {fit.step}, {fit.psnr:.1f} dB")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


def _draw_values(axes: Axes, fit: Fit) -> Array:
    places = grid_coordinates((len(fit.target),), fit.coordinate_range)[:, 0].numpy()
    axes.plot(places, fit.target[:, 0].numpy(), color="tab:gray", linewidth=2, alpha=0.6, label="target")
    axes.plot(places, fit.reconstruction[:, 0].numpy(), color="tab:blue", linewidth=1, label="reconstruction")
    axes.margins(y=0.15)
    axes.legend(fontsize="small", loc="upper center", ncols=2)
    axes.set_xlabel("coordinate")
    return places


def _draw_curves(values: Axes, errors: Axes, spectra: Axes, fit: Fit) -> None:
    places = _draw_values(values, fit)
    values.set_title(f"signal{fit.shown_channels}")
    errors.plot(places, fit.error[:, 0].numpy(), color="tab:red", linewidth=1)
    errors.set(title="absolute error", xlabel="coordinate", ylim=(0, None))
    floor = _floor(_amplitudes(fit.target))
    for part, color, label in (
        (fit.target, "tab:gray", "target"),
        (fit.reconstruction, "tab:blue", "reconstruction"),
    ):
        half = _amplitudes(part)[: len(part) // 2 + 1].clamp(min=floor)  # f and -f are one frequency
        spectra.plot(half.numpy(), color=color, label=label, marker="." if len(half) < 200 else None, linewidth=1)
    spectra.set(title="spectra", xlabel="cycles per domain", ylabel="amplitude", yscale="log")
    spectra.legend(fontsize="small")


def _draw_pictures(figure: FigureBase, panels: Sequence[Axes], fit: Fit) -> None:
    low, high = fit.limits
    slices = ", middle slices" if fit.target.ndim > 3 else ""
    pictures = {
        f"target{slices}{fit.shown_channels}": _picture(fit.target),
        f"reconstruction{slices}": _picture(fit.reconstruction),
    }
    for axes, (title, picture) in zip(panels, pictures.items(), strict=False):
        drawn = _scaled(picture, low, high) if picture.ndim == 3 else picture
        axes.imshow(drawn, cmap="gray", vmin=low, vmax=high, aspect=_aspect(picture))
        axes.set_title(title)
    error = _picture(fit.error)
    finite = error[np.isfinite(error)]
    largest = float(finite.max()) if finite.size and finite.max() > 0 else high - low
    image = panels[2].imshow(error, cmap="magma", vmin=0, vmax=largest, aspect=_aspect(error))
    panels[2].set_title("absolute error")
    figure.colorbar(image, ax=panels[2])
    for axes in panels:
        axes.set_axis_off()


def _draw_spectra(figure: FigureBase, panels: Sequence[Axes], fit: Fit) -> None:
    from matplotlib.colors import LogNorm

    target = _amplitudes(fit.target)
    floor = _floor(target)
    scale = LogNorm(floor, max(float(target.max()), 2 * floor))
    height, width = target.shape[-2:]
    extent = (-(width // 2) - 0.5, (width + 1) // 2 - 0.5, (height + 1) // 2 - 0.5, -(height // 2) - 0.5)
    images = []
    for axes, part, title in zip(panels, (fit.target, fit.reconstruction), ("target", "reconstruction"), strict=True):
        plane = _amplitudes(part)
        while plane.ndim > 2:
            plane = plane[0]
        plane = torch.fft.fftshift(plane).clamp(min=floor)
        images.append(axes.imshow(plane.numpy(), norm=scale, extent=extent, aspect=_aspect(plane.numpy())))
        axes.set(title=f"spectrum of the {title}", xlabel="cycles per domain")
    figure.colorbar(images[0], ax=list(panels), label="amplitude")


def _amplitudes(values: Tensor) -> Tensor:
    """Amplitudes of the frequencies, root mean square over channels: [*shape]."""
    return spectrum(values, range(values.ndim - 1)).amplitudes.square().mean(-1).sqrt()


def _floor(amplitudes: Tensor) -> float:
    """Lowest amplitude of a logarithmic axis."""
    return _FLOOR * (float(amplitudes.max()) or 1.0)


def _picture(values: Tensor) -> Array:
    """[*shape, c] of two axes or more as gray [h, w] or RGB [h, w, 3]; NaN between the slices of a volume."""
    shown = values if values.shape[-1] == 3 else values[..., :1]
    while shown.ndim > 4:
        shown = shown[len(shown) // 2]
    if shown.ndim == 4:
        slices = [shown.select(axis, shown.shape[axis] // 2) for axis in range(3)]
        height = max(len(part) for part in slices)
        gap = max(1, max(part.shape[1] for part in slices) // 32)
        canvas = torch.full((height, sum(part.shape[1] + gap for part in slices) - gap, shown.shape[-1]), torch.nan)
        left = 0
        for part in slices:
            canvas[: len(part), left : left + part.shape[1]] = part
            left += part.shape[1] + gap
        shown = canvas
    picture: Array = shown.numpy()
    return picture if picture.shape[-1] == 3 else picture[..., 0]


def _scaled(picture: Array, low: float, high: float) -> Array:
    """To [0, 1]; NaN becomes white, as in pictures whose colours matplotlib chooses."""
    scaled: Array = np.nan_to_num((picture - low) / (high - low), nan=1.0).clip(0, 1)
    return scaled


def _aspect(picture: Array) -> Any:
    height, width = picture.shape[:2]
    return "equal" if max(height, width) <= _SLENDER * min(height, width) else "auto"
