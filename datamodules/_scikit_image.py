"""The pictures that ship with scikit-image, an optional dependency."""

from __future__ import annotations

from typing import Any

import numpy as np


def scikit_image_data(name: str) -> np.ndarray[Any, Any]:
    """Read one of ``skimage.data``'s pictures that come with the package, without a download.

    Args:
        name: such as "camera" or "lfw_subset".

    Raises:
        ImportError: if scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError(f'{name} ships with scikit-image: `pip install "pl_robust[inr]"`') from error
    picture: np.ndarray[Any, Any] = getattr(data, name)()
    return picture
