from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from pl_robust.ntk import plot_eigenfunctions, plot_spectrum

VECTORS = torch.linspace(-1, 2, 6 * 8).view(6, 8)


def test_a_spectrum_is_drawn_by_rank_without_what_is_below_zero() -> None:
    figure = plot_spectrum({"at the start": torch.tensor([9.0, 4, 1]), "at the end": torch.tensor([8.0, 2, -1e-9, 1])})
    (axes,) = figure.axes
    assert axes.get_xscale() == axes.get_yscale() == "log"
    first, second = axes.lines
    assert np.asarray(first.get_xydata()).tolist() == [[1, 9], [2, 4], [3, 1]]
    assert np.asarray(second.get_xydata()).tolist() == [[1, 8], [2, 2], [4, 1]]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["at the start", "at the end"]
    assert plot_spectrum(torch.ones(3)).axes[0].get_legend() is None
    assert plt.get_fignums() == []


def test_eigenfunctions_are_images_row_by_row() -> None:
    figure = plot_eigenfunctions(VECTORS, image_size=(2, 3), values=torch.arange(8.0), indices=[0, 7])
    drawn = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in drawn] == ["0: 0", "7: 7"]
    for axes, index in zip(drawn, (0, 7), strict=True):
        (image,) = axes.images
        assert np.allclose(np.asarray(image.get_array()), VECTORS[:, index].view(2, 3))
        low, high = image.get_clim()
        assert high == -low == pytest.approx(float(VECTORS[:, index].abs().max()))
    figure.canvas.draw()


def test_eigenfunctions_are_points_of_the_plane() -> None:
    points = torch.rand(6, 2)
    figure = plot_eigenfunctions(VECTORS.requires_grad_(), points=points)
    drawn = [axes for axes in figure.axes if axes.collections]
    assert len(drawn) == 8  # in more than one row
    for axes, column in zip(drawn, VECTORS.mT, strict=True):
        (dots,) = axes.collections
        assert np.allclose(np.asarray(dots.get_offsets()), points)
        assert np.allclose(np.asarray(dots.get_array()), column.detach())
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot_spectrum(torch.ones(2, 2)), r"`spectra` must be vectors \[k\].*got shape \[2, 2\]$"),
        (lambda: plot_spectrum({"b": torch.zeros(2)}), r"some positive, got shape \[2\] for 'b'"),
        (lambda: plot_spectrum({}), r"`spectra` must hold at least one"),
        (lambda: plot_eigenfunctions(VECTORS), r"give either `image_size`, for pixels, or `points`"),
        (
            lambda: plot_eigenfunctions(VECTORS, image_size=(2, 3), points=torch.ones(6, 2)),
            r"give either `image_size`",
        ),
        (lambda: plot_eigenfunctions(VECTORS, image_size=(2, 4)), r"H W = 6, the number of samples, got \(2, 4\)"),
        (
            lambda: plot_eigenfunctions(VECTORS, points=torch.ones(6, 3)),
            r"`points` must be \[6, 2\].*got shape \[6, 3\]",
        ),
        (
            lambda: plot_eigenfunctions(torch.ones(6, 3, 8), image_size=(2, 3)),
            r"columns \[N, k\], got shape \[6, 3, 8\]: of \[N, C, k\] take one output, vectors\[:, c\]",
        ),
        (
            lambda: plot_eigenfunctions(VECTORS, image_size=(2, 3), values=torch.ones(7)),
            r"`values` must be \[8\], one for each vector, got shape \[7\]",
        ),
        (
            lambda: plot_eigenfunctions(VECTORS, image_size=(2, 3), indices=[8]),
            r"`indices` must be columns of `vectors`, 0 to 7, got \[8\]",
        ),
    ],
)
def test_what_is_wrong_is_said(draw: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()
