"""The constants of the common corruptions, severities 1 to 5.

Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
https://arxiv.org/abs/1903.12261: as in the code that made CIFAR-10-C and Tiny-ImageNet-C, and, for ImageNet, in the
package imagecorruptions (Michaelis et al. 2019, https://arxiv.org/abs/1907.07484).
"""

from __future__ import annotations

from typing import Literal

TableName = Literal["cifar", "tiny_imagenet", "imagenet"]
Row = tuple[float, ...]

# Each corruption: what its constants are; table -> five rows of them. "Sides" are units of the image's shorter side.
TABLES: dict[str, dict[TableName, tuple[Row, Row, Row, Row, Row]]] = {
    "gaussian_noise": {  # standard deviation
        "cifar": ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
        "tiny_imagenet": ((0.04,), (0.08,), (0.12,), (0.15,), (0.18,)),
        "imagenet": ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
    },
    "shot_noise": {  # photons per pixel of value 1
        "cifar": ((500,), (250,), (100,), (75,), (50,)),
        "tiny_imagenet": ((250,), (100,), (50,), (30,), (15,)),
        "imagenet": ((60,), (25,), (12,), (5,), (3,)),
    },
    "impulse_noise": {  # share of the values that become 0 or 1
        "cifar": ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
        "tiny_imagenet": ((0.01,), (0.02,), (0.05,), (0.08,), (0.14,)),
        "imagenet": ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
    },
    "defocus_blur": {  # radius of the disk, standard deviation of its smoothing, in pixels
        "cifar": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        "tiny_imagenet": ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        "imagenet": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    },
    "glass_blur": {  # standard deviation, largest shift in pixels, passes
        "cifar": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        "tiny_imagenet": ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        "imagenet": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    },
    "motion_blur": {  # radius and standard deviation of the trail, in pixels
        "cifar": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        "tiny_imagenet": ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        "imagenet": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    },
    "zoom_blur": {  # end (excluded) and step of the factors, from 1
        "cifar": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        "tiny_imagenet": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        "imagenet": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    },
    "snow": {  # mean, std, zoom, threshold, radius and std of the blur in pixels, weight of the image
        "cifar": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        "tiny_imagenet": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        "imagenet": (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    },
    "frost": {  # weights of the image and of the frost, size of the frost photo in units of its own
        "cifar": ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
        "tiny_imagenet": ((1, 0.3, 0.3), (0.9, 0.4, 0.3), (0.8, 0.45, 0.3), (0.75, 0.5, 0.3), (0.7, 0.55, 0.3)),
        "imagenet": ((1, 0.4, 1.1), (0.8, 0.6, 1.1), (0.7, 0.7, 1.1), (0.65, 0.7, 1.1), (0.6, 0.75, 1.1)),
    },
    "fog": {  # strength, decay of the fractal's finer parts
        "cifar": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        "tiny_imagenet": ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        "imagenet": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    },
    "brightness": {  # added to HSV's value
        "cifar": ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
        "tiny_imagenet": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
        "imagenet": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
    },
    "contrast": {  # factor of the distance from each channel's mean
        "cifar": ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
        "tiny_imagenet": ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
        "imagenet": ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
    },
    "elastic_transform": {  # in sides: amplitude and smoothness of the displacement, largest shift of a corner
        "cifar": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        "tiny_imagenet": ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
        "imagenet": ((0.0625, 0.01, 0), (0.08125, 0.01, 0), (0.10625, 0.01, 0), (0.125, 0.01, 0), (0.15, 0.01, 0)),
    },
    "pixelate": {  # side after shrinking, in sides
        "cifar": ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
        "tiny_imagenet": ((0.9,), (0.8,), (0.7,), (0.6,), (0.5,)),
        "imagenet": ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
    },
    "jpeg_compression": {  # quality
        "cifar": ((80,), (65,), (58,), (50,), (40,)),
        "tiny_imagenet": ((65,), (58,), (50,), (40,), (25,)),
        "imagenet": ((25,), (18,), (15,), (10,), (7,)),
    },
    "speckle_noise": {  # standard deviation, in units of the pixel's value
        "cifar": ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,)),
        "tiny_imagenet": ((0.15,), (0.2,), (0.25,), (0.3,), (0.35,)),
        "imagenet": ((0.15,), (0.2,), (0.35,), (0.45,), (0.6,)),
    },
    "gaussian_blur": {  # standard deviation in pixels
        "cifar": ((0.4,), (0.6,), (0.7,), (0.8,), (1,)),
        "tiny_imagenet": ((0.5,), (0.75,), (1,), (1.25,), (1.5,)),
        "imagenet": ((1,), (2,), (3,), (4,), (6,)),
    },
    "spatter": {  # mean, std and smoothing of the liquid, threshold, strength (mud: smoothing), 0 water or 1 mud
        "cifar": (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        "tiny_imagenet": (
            (0.62, 0.1, 0.7, 0.7, 0.6, 0),
            (0.65, 0.1, 0.8, 0.7, 0.6, 0),
            (0.65, 0.3, 1, 0.69, 0.6, 0),
            (0.65, 0.1, 0.7, 0.68, 0.6, 1),
            (0.65, 0.1, 0.5, 0.67, 0.6, 1),
        ),
        "imagenet": (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
    },
    "saturate": {  # HSV's saturation: factor and shift
        "cifar": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        "tiny_imagenet": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
        "imagenet": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    },
}
