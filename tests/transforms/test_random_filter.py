from __future__ import annotations

import numpy as np
import torch
from scipy import integrate, ndimage, stats

from pl_robust.transforms import RandomFilter
from tests.transforms.test_primitive import SIZE, from_seed, images, is_distributed


def test_a_filter_is_scipys_correlation() -> None:
    x, primitive = images(), RandomFilter(1.0)
    parameters = primitive.draw(x.shape, generator=from_seed())
    y = primitive.apply(x, parameters)
    for image, kernel, filtered in zip(x, parameters.kernels, y, strict=True):
        for channel in range(3):
            expected = ndimage.correlate(image[channel].numpy(), kernel.numpy(), mode="constant")
            np.testing.assert_allclose(filtered[channel], expected.clip(0, 1), atol=1e-5)


def test_a_kernel_is_a_centred_delta_with_noise() -> None:
    """The released one has its delta in the corner, and shifts images by a pixel."""
    kernels = RandomFilter(4.0).draw(SIZE, generator=from_seed()).kernels
    assert torch.equal(RandomFilter(0.0).draw(SIZE).kernels[0], torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]))
    points = np.linspace(-20, 20, 401)
    density = [integrate.quad(lambda sigma, t=t: stats.norm.cdf(t / sigma) / 4, 1e-9, 4)[0] for t in points]
    for entry, centre in ((kernels[:, 1, 1], 1.0), (kernels[:, 0, 2], 0.0)):
        assert is_distributed(entry - centre, lambda t: np.interp(t, points, density))
