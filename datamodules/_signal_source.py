"""Where the signals of ``SignalDataModule`` come from: tones, shipped pictures, files, arrays."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pl_robust._number import check_count, check_positive
from pl_robust.datamodules._luminance import luminance
from pl_robust.datamodules._scikit_image import scikit_image_data
from pl_robust.datamodules._signal_array import Reading, from_array

Source: TypeAlias = str | os.PathLike[str] | Tensor | np.ndarray[Any, Any]

PICTURES = ("camera", "astronaut", "china.jpg", "flower.jpg")


def as_list(signal: Any) -> list[Source]:
    """List the signals, paths as strings.

    Raises:
        TypeError: if one of them is of another kind, or there is none.
    """
    is_one = isinstance(signal, str | os.PathLike | Tensor | np.ndarray)
    sources = [signal] if is_one else list(signal) if isinstance(signal, Sequence) else []
    if not sources or not all(isinstance(source, str | os.PathLike | Tensor | np.ndarray) for source in sources):
        raise TypeError(f"`signal` must be a name, a path, an array, or a list of some of these, got {signal!r}")
    return [os.fspath(source) if isinstance(source, os.PathLike) else source for source in sources]


class Recipe(NamedTuple):
    """What is made of each source; the arguments of ``SignalDataModule``."""

    grid_dims: int | None
    size: int | Sequence[int] | None
    center_crop: bool
    gray: bool
    frequency: float | None
    length: int | None


def check_recipe(recipe: Recipe) -> Recipe:
    """Give a recipe back, if its numbers can be.

    Raises:
        TypeError: if one is no number, or no integer where it counts something.
        ValueError: if one is not positive, or ``size`` has other than one or two of them.
    """
    size = recipe.size
    sizes = list(size) if isinstance(size, Sequence) else [size]
    for name, value in (
        ("grid_dims", recipe.grid_dims),
        *(("size", side) for side in sizes),
        ("length", recipe.length),
    ):
        if value is not None:
            check_count(value, name)
    if len(sizes) != 1 + isinstance(size, Sequence):
        raise ValueError(f"`size` must be the shorter side or (height, width), got {size!r}")
    if recipe.frequency is not None:
        check_positive(recipe.frequency, "frequency")
    return recipe


def read_signals(sources: Sequence[Source], recipe: Recipe) -> tuple[Tensor, float]:
    """Read signals of one shape.

    Args:
        sources: "tone", names of PICTURES, paths of files, or arrays.
        recipe: what is made of each.

    Returns:
        Values, float32 [*shape, c] or, of several sources, [S, *shape, c]; and their nominal range.

    Raises:
        FileNotFoundError: if a file is not there.
        ImportError: if scikit-image's pictures are asked for without it.
        ValueError: if a file is unreadable, an argument does not fit a signal, or shapes differ.
    """
    names = [describe(source) for source in sources]
    readings = [_prepare(_read(source, recipe), name, recipe) for source, name in zip(sources, names, strict=True)]
    shape = readings[0].values.shape
    for name, reading in zip(names, readings, strict=True):
        if reading.values.shape != shape:
            raise ValueError(
                "signals that are fitted at once must have one shape [*grid, channels], got "
                f"{list(shape)} of {names[0]} and {list(reading.values.shape)} of {name}; "
                "`size`, `center_crop`, `gray` and `length` make them alike"
            )
    values = torch.stack([reading.values for reading in readings]) if len(readings) > 1 else readings[0].values
    return values, max(reading.data_range for reading in readings)


def _read(source: Source, recipe: Recipe) -> Reading:
    """Read one signal, whole, but for a sound's length, and in its own size."""
    name, dims, length = describe(source), recipe.grid_dims, recipe.length
    is_tone = isinstance(source, str) and source == "tone"
    if recipe.frequency is not None and not is_tone:
        raise ValueError(f"`frequency` is for signal='tone', got {recipe.frequency!r} for {name}")
    if isinstance(source, Tensor | np.ndarray):
        reading = from_array(source, dims, name)
    elif is_tone:
        reading = _tone(23.0 if recipe.frequency is None else recipe.frequency, 256 if length is None else length)
    elif source in PICTURES:
        reading = from_array(_shipped(str(source)), 2, name)
    else:
        reading = _from_file(Path(source), dims)
    if dims not in (None, reading.dims):
        raise ValueError(f"`grid_dims`={dims} does not fit {name}, which has {reading.dims} grid axes")
    if length is None or is_tone:
        return reading
    if reading.dims != 1:
        raise ValueError(f"`length` is for sounds and tones, got {length!r} for {name} of {reading.dims} grid axes")
    if length > len(reading.values):
        raise ValueError(f"`length` must be at most {len(reading.values)}, the samples of {name}, got {length}")
    return reading._replace(values=reading.values[:length].clone())


def _prepare(reading: Reading, name: str, recipe: Recipe) -> Reading:
    """Crop a picture's centred square, resize with anti-aliasing as PIL does, take the luminance: if asked, in turn."""
    size = recipe.size
    if size is None and not recipe.center_crop and not recipe.gray:
        return reading
    if reading.dims != 2:
        raise ValueError(
            f"`size`, `center_crop` and `gray` are for pictures, got {name} of {reading.dims} grid axes: "
            "change its values beforehand"
        )
    from torchvision.transforms.v2 import functional as vision

    image = reading.values.permute(2, 0, 1)
    if recipe.center_crop:
        image = vision.center_crop(image, [min(image.shape[1:])] * 2)
    if size is not None:
        low, high = image.min(), image.max()
        image = vision.resize(image, [size] if isinstance(size, int) else list(size), antialias=True)
        image = image.clamp(low, high)  # the weights add up to 1 but for rounding
    if recipe.gray and len(image) != 1:
        if len(image) != 3:
            raise ValueError(f"`gray` needs a picture of 1 or 3 channels, got {len(image)} in {name}")
        image = luminance(image)
    return reading._replace(values=image.permute(1, 2, 0).contiguous())


def describe(source: Source) -> str:
    """A signal's name for messages."""
    if isinstance(source, Tensor | np.ndarray):
        return f"an array {list(source.shape)}"
    return repr(os.fspath(source))


def _tone(frequency: float, length: int) -> Reading:
    if frequency >= length / 2:
        raise ValueError(
            f"`frequency` must lie between 0 and {length / 2:g}, half the `length` of {length} samples, got "
            f"{frequency!r}: what is higher looks like a lower one"
        )
    phase = torch.arange(length, dtype=torch.float64) * (2 * math.pi * frequency / length)
    return Reading(phase.sin().to(torch.float32)[:, None], 2.0)


def _shipped(name: str) -> np.ndarray[Any, Any]:
    if name in ("camera", "astronaut"):
        return scikit_image_data(name)
    from sklearn.datasets import load_sample_image

    picture: np.ndarray[Any, Any] = load_sample_image(name)
    return picture


def _from_file(path: Path, grid_dims: int | None) -> Reading:
    if not path.is_file():
        names = ("tone", *PICTURES)
        close = get_close_matches(str(path), names, n=1, cutoff=0.75)
        hint = f": did you mean {close[0]}?" if close else f" (working folder: {Path.cwd()})"
        raise FileNotFoundError(
            f"`signal` must be one of {', '.join(names)}, an array or the path of a picture, .npy or .wav file; "
            f"there is no file {os.fspath(path)!r}{hint}"
        )
    suffix = path.suffix.lower()
    kind = {".npy": "array that numpy", ".wav": "sound that scipy"}.get(suffix, "picture that PIL")
    try:
        if suffix == ".npy":
            array = np.load(path, allow_pickle=False)
        elif suffix == ".wav":
            array = _read_wav(path)
            grid_dims = 1 if grid_dims is None else grid_dims
        else:
            array = _read_picture(path)
            grid_dims = 2 if grid_dims is None else grid_dims
    except Exception as error:  # damaged files raise whatever their decoder meets
        raise ValueError(f"`signal`: {os.fspath(path)!r} is no {kind} can read ({error})") from error
    reading = from_array(array, grid_dims, repr(os.fspath(path)))
    return reading._replace(data_range=2.0) if suffix == ".wav" else reading


def _read_wav(path: Path) -> np.ndarray[Any, Any]:
    from scipy.io import wavfile

    samples: np.ndarray[Any, Any]
    _, samples = wavfile.read(path)
    if samples.dtype == np.uint8:  # the one unsigned format, with silence at 128
        return samples / 128.0 - 1.0
    # 24 bits come in the upper ones of 32.
    return samples / -float(np.iinfo(samples.dtype).min) if samples.dtype.kind == "i" else samples


def _read_picture(path: Path) -> np.ndarray[Any, Any]:
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        upright = ImageOps.exif_transpose(opened)  # what a camera held sideways notes down
        mode = upright.mode
        if mode == "I" and opened.format != "PNG":
            raise ValueError("32-bit integers have no agreed white: save it as .npy of floats")
        if mode.startswith("I"):  # a PNG of 16 bits is "I;16" or "I", by Pillow's version
            return np.array(upright).astype(np.uint16)
        return np.array(upright if mode == "F" else upright.convert("L" if mode in ("1", "L", "LA") else "RGB"))
