"""Corrupted images in the published layouts, whose pixels tell their corruption, severity and place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ("fog", "gaussian_noise")
COUNT = 9  # images per severity, of 3 classes


def pixel(name: str, severity: int, index: int) -> int:
    return 100 * NAMES.index(name) + 10 * severity + index


def write_arrays(
    folder: Path, names: Sequence[str] = NAMES, channels: int = 3, side: int | None = None, **changed: Any
) -> Path:
    """CIFAR-10-C in small: 2 corruptions, 5 severities, 9 images; a file may be replaced by another array."""
    folder.mkdir(parents=True, exist_ok=True)
    height, width = (6, 4) if side is None else (side, side)
    arrays: dict[str, Any] = {"labels": np.tile(np.arange(COUNT) % 3, 5)}
    for name in names:
        values = [pixel(name, severity, index) for severity in range(1, 6) for index in range(COUNT)]
        arrays[name] = np.broadcast_to(
            np.array(values, dtype=np.uint8)[:, None, None, None], (5 * COUNT, height, width, channels)
        )
    for name, array in {**arrays, **changed}.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def write_folders(
    folder: Path, group: str = "", classes: Sequence[str] = ("ant", "bee", "cow"), names: Sequence[str] = NAMES
) -> Path:
    """ImageNet-C in small: the images of class k are k, k + 3 and k + 6 of those above; losslessly compressed."""
    for name in names:
        for severity in range(1, 6):
            for label, kind in enumerate(classes):
                part = folder / group / name / str(severity) / kind
                part.mkdir(parents=True)
                for index in range(label, COUNT, len(classes)):
                    value = pixel(name, severity, index)
                    Image.fromarray(np.full((6, 4, 3), value, dtype=np.uint8)).save(part / f"{index}.JPEG", "PNG")
    return folder
