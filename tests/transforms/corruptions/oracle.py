"""The PyPI package imagecorruptions as oracle, and photos to corrupt.

The package (1.1.2) uses names that today's numpy, scipy, scikit-image and setuptools no longer have. Its source runs
here with an import of its own, which gives it these names and a random generator of its own; no other module sees
them.
"""

from __future__ import annotations

import builtins
import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import skimage.color
import skimage.data
import skimage.filters
import skimage.util
import sklearn.datasets
import torch
from PIL import Image
from torch import Tensor

Uint8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
_skimage: Any = skimage  # has types in part


class _Numpy(SimpleNamespace):
    """numpy as the package knew it, with legacy random functions that do not touch the global generator."""

    def __init__(self) -> None:
        super().__init__(float_=np.float64, random=np.random.RandomState(0))

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@cache
def _package() -> tuple[_Numpy, dict[str, Any]]:
    """Run the package's source: its numpy and its functions."""
    spec = importlib.util.find_spec("imagecorruptions")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the oracle of the corruptions is missing: pip install imagecorruptions==1.1.2")
    folder = Path(spec.submodule_search_locations[0])
    old_numpy = _Numpy()

    def gaussian(image: Floats, sigma: Any, multichannel: bool = False, **options: Any) -> Any:
        return _skimage.filters.gaussian(image, sigma, channel_axis=-1 if multichannel else None, **options)

    def random_noise(image: Floats, **options: Any) -> Any:
        return _skimage.util.random_noise(image, rng=old_numpy.random.randint(2**31), **options)

    supplied = {
        "numpy": old_numpy,
        "skimage": SimpleNamespace(util=SimpleNamespace(random_noise=random_noise), color=skimage.color),
        "skimage.filters": SimpleNamespace(gaussian=gaussian),
        "scipy.ndimage.interpolation": scipy.ndimage,
        "pkg_resources": SimpleNamespace(resource_filename=lambda _, name: str(folder / name)),
    }

    def importing(name: str, *where: Any) -> Any:
        return supplied[name] if name in supplied else builtins.__import__(name, *where)

    file = folder / "corruptions.py"
    names = {"__name__": "imagecorruptions", "__builtins__": {**vars(builtins), "__import__": importing}}
    environment = dict(os.environ)
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), names)  # noqa: S102  # an installed package
    os.environ.clear()  # importing OpenCV sets variables
    os.environ.update(environment)
    return old_numpy, names


def oracle(name: str, image: Uint8, severity: int, seed: int) -> Uint8:
    """Corrupt an image as imagecorruptions does: uint8 [H, W, 3], or gray as [H, W] -> the same."""
    old_numpy, names = _package()
    old_numpy.random.seed(seed)
    corrupted: Uint8 = np.uint8(names[name](Image.fromarray(image), severity))
    return corrupted  # truncated, as by the package's `corrupt`


def peer(name: str, severity: int) -> Callable[[Uint8], Uint8]:
    """Give the package's own way for one image, without seeding: for timing."""
    _, names = _package()
    effect = names[name]
    return lambda image: np.uint8(effect(Image.fromarray(image), severity))


def psnr(clean: Uint8 | Tensor, corrupted: Uint8 | Tensor) -> float:
    """Give the peak signal-to-noise ratio in dB: uint8 images, or float ones in [0, 1]."""
    first, second = (
        image.double() if isinstance(image, Tensor) else torch.tensor(image, dtype=torch.float64) / 255
        for image in (clean, corrupted)
    )
    return float(-10 * (first - second).square().mean().log10())


@cache
def photos(side: int = 224) -> tuple[Uint8, ...]:
    """Give six square photos of a side in pixels, uint8 [side, side, 3], that installed packages ship."""
    whole: Sequence[npt.NDArray[Any]] = (
        sklearn.datasets.load_sample_image("china.jpg"),
        sklearn.datasets.load_sample_image("flower.jpg"),
        _skimage.data.astronaut(),
        _skimage.data.coffee(),
        _skimage.data.rocket(),
        _skimage.data.chelsea(),
    )
    return tuple(_square(np.asarray(image, dtype=np.uint8), side) for image in whole)


def _square(image: Uint8, side: int) -> Uint8:
    """Cut the middle square out and resize it."""
    short = min(image.shape[:2])
    top, left = ((length - short) // 2 for length in image.shape[:2])
    middle = Image.fromarray(image[top : top + short, left : left + short])
    return np.asarray(middle.resize((side, side), Image.Resampling.LANCZOS))


def to_batch(images: Sequence[Uint8]) -> Tensor:
    """Make a batch, float32 [B, C, H, W] in [0, 1], of uint8 [H, W, C] images."""
    return torch.stack([torch.tensor(image).permute(2, 0, 1) for image in images]).float() / 255
