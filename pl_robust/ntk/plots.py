"""Figures of a kernel's spectrum and of its eigenfunctions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 6


def plot_spectrum(
    spectra: Tensor | Mapping[str, Tensor], *, title: str = "Eigenvalues of the tangent kernel"
) -> Figure:
    """Draw eigenvalues against their rank, both axes logarithmic.

    What is not positive has no place there: a spectrum ends where rounding begins.

    Args:
        spectra: eigenvalues [k], largest first, or several of them by label; of any length.
        title: heading of the figure.

    Returns:
        A matplotlib figure, made without pyplot.

    Raises:
        ValueError: for a spectrum that is no vector, or has no positive eigenvalue.
    """
    from matplotlib.figure import Figure

    named = spectra if isinstance(spectra, Mapping) else {"": spectra}
    if not named:
        raise ValueError("`spectra` must hold at least one spectrum, got none")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, spectrum in named.items():
        values = torch.as_tensor(spectrum).detach().double().cpu()
        if values.dim() != 1 or not bool((values > 0).any()):
            raise ValueError(
                f"`spectra` must be vectors [k] of eigenvalues, some positive, got shape {list(values.shape)}"
                + (f" for {name!r}" if name else "")
            )
        ranks = torch.arange(1, len(values) + 1)
        axes.plot(ranks[values > 0].numpy(), values[values > 0].numpy(), marker=".", markersize=3, label=name)
    axes.set(xscale="log", yscale="log", xlabel="rank", ylabel="eigenvalue", title=title)
    axes.grid(True, which="major", alpha=0.3)
    if isinstance(spectra, Mapping):
        axes.legend()
    return figure


def plot_eigenfunctions(
    vectors: Tensor,
    *,
    image_size: tuple[int, int] | None = None,
    points: Tensor | None = None,
    values: Tensor | None = None,
    indices: Sequence[int] | None = None,
) -> Figure:
    """Draw eigenfunctions by their values at the samples: as images, or at points of the plane.

    Each has its own colours, white at zero, from minus to plus its largest magnitude.

    Args:
        vectors: eigenvectors as columns [N, k], as ``ntk_eigh`` gives them.
        image_size: (H, W), if the N = H W samples are the pixels of an image, row by row.
        points: where the samples are, [N, 2], if they are scattered. Either this or ``image_size``.
        values: eigenvalues [k], to be told in the titles.
        indices: which columns to draw; None means all.

    Returns:
        A matplotlib figure, made without pyplot.

    Raises:
        ValueError: for shapes that do not fit, neither or both of ``image_size`` and ``points``, or indices out of
            range.
    """
    from matplotlib.figure import Figure

    if vectors.dim() != 2 or vectors.numel() == 0:
        raise ValueError(
            f"`vectors` must be eigenvectors as columns [N, k], got shape {list(vectors.shape)}: of [N, C, k] take one "
            "output, vectors[:, c]"
        )
    count, width = vectors.shape
    if (image_size is None) == (points is None):
        raise ValueError("give either `image_size`, for pixels, or `points`, for samples of the plane")
    if image_size is not None and image_size[0] * image_size[1] != count:
        raise ValueError(f"`image_size` must be (H, W) with H W = {count}, the number of samples, got {image_size}")
    if points is not None and list(points.shape) != [count, 2]:
        raise ValueError(f"`points` must be [{count}, 2], one for each sample, got shape {list(points.shape)}")
    if values is not None and list(values.shape) != [width]:
        raise ValueError(f"`values` must be [{width}], one for each vector, got shape {list(values.shape)}")
    shown = range(width) if indices is None else indices
    if len(shown) == 0 or not all(0 <= index < width for index in shown):
        raise ValueError(f"`indices` must be columns of `vectors`, 0 to {width - 1}, got {list(shown)}")
    rows = -(-len(shown) // _COLUMNS)
    figure = Figure(figsize=(2.2 * min(len(shown), _COLUMNS), 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, min(len(shown), _COLUMNS), squeeze=False).flatten()
    for axes in panels:
        axes.set_axis_off()
    for index, axes in zip(shown, panels, strict=False):
        heights = vectors[:, index].detach().double().cpu()
        colours = {"cmap": "RdBu_r", "vmax": float(heights.abs().max()), "vmin": -float(heights.abs().max())}
        if image_size is not None:
            axes.imshow(heights.reshape(image_size).numpy(), interpolation="nearest", **colours)
        elif points is not None:
            across, up = points.detach().double().cpu().unbind(1)
            axes.scatter(across.numpy(), up.numpy(), c=heights.numpy(), s=6, **colours)
            axes.set_aspect("equal")
        axes.set_title(f"{index}" if values is None else f"{index}: {float(values[index]):.3g}", fontsize=9)
    return figure
