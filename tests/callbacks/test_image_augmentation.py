from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pl_robust.callbacks._image_augmentation import ImageAugmentation
from pl_robust.transforms import PRIME

GENERATOR = torch.Generator()
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def images(channels: int = 3) -> Tensor:
    """Images that reach both ends of [0, 1]."""
    x = torch.rand(4, channels, 8, 8)
    x[0], x[1] = 0.0, 1.0
    return x


def normalized(x: Tensor) -> Tensor:
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_normalized_images_are_augmented_as_they_were_before(dtype: torch.dtype) -> None:
    x, seen = images(), []

    def square(x: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(x)
        return x**2

    augmentation = ImageAugmentation(square, (MEAN, STD))
    (view,) = augmentation.views(normalized(x).to(dtype), 1, GENERATOR)
    assert seen[0].dtype == torch.float32
    assert view.dtype == dtype
    tolerance = max(1e-6, 4 * torch.finfo(dtype).eps)  # of numbers up to 2.2
    torch.testing.assert_close(seen[0], x, rtol=0, atol=tolerance)
    torch.testing.assert_close(view.double(), normalized(x**2).double(), rtol=0, atol=8 * tolerance)


def test_the_published_normalization_gives_primes_own_answer() -> None:
    x = images()
    (wanted,) = ImageAugmentation("cifar", None).views(x, 1, GENERATOR.manual_seed(0))
    assert torch.equal(wanted, PRIME.cifar()(x, GENERATOR.manual_seed(0)))
    (view,) = ImageAugmentation("cifar", (MEAN, STD)).views(normalized(x), 1, GENERATOR.manual_seed(0))
    torch.testing.assert_close(view, normalized(wanted), rtol=0, atol=1e-4)


def test_views_are_drawn_one_after_the_other() -> None:
    x = images()
    first, second = ImageAugmentation("imagenet", None).views(x, 2, GENERATOR.manual_seed(0))
    GENERATOR.manual_seed(0)
    prime = PRIME.imagenet()
    assert torch.equal(first, prime(x, GENERATOR))
    assert torch.equal(second, prime(x, GENERATOR))
    assert not torch.equal(first, second)


def test_gradients_stay_outside() -> None:
    gain = nn.Parameter(torch.tensor(0.5))
    (view,) = ImageAugmentation(lambda x, generator: x * gain, None).views(images(), 1, GENERATOR)
    assert not view.requires_grad


@pytest.mark.parametrize(
    ("x", "normalization", "message"),
    [
        (images() * 255, None, r"must lie in \[0, 1\], got values from 0 to 255: divide them by 255, pass `normaliz"),
        (normalized(images()), None, r"got values from -1\.989 to 2\.126: .* network \(pl_robust\.models\.Normalize\)"),
        (images() - 1e-5, None, r"got values from -1e-05 to 1"),
        (images() * torch.nan, None, "got values from nan to nan"),
        (images() * 3, (MEAN, STD), r"got values from 0\.4465 to 1\.232: `normalization`=\(\(0\.4914, .* is not what"),
        (images(1), (MEAN, STD), r"`normalization` has 3 channels, the input \[4, 1, 8, 8\] has 1"),
    ],
)
def test_values_are_checked_at_the_first_batch(x: Tensor, normalization: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageAugmentation(lambda x, generator: x * 1, normalization).views(x, 1, GENERATOR)


def test_rounding_is_no_fault_and_later_batches_are_not_looked_at() -> None:
    augmentation = ImageAugmentation(lambda x, generator: x * 1, None)
    augmentation.views(images()[:0], 1, GENERATOR)  # says nothing about the values
    with pytest.raises(ValueError, match="must lie in"):
        augmentation.views(images() * 2, 1, GENERATOR)
    augmentation.views(images() * (1 + 2e-7) - 1e-7, 1, GENERATOR)
    augmentation.views(images() * 2, 1, GENERATOR)
    augmentation.start()
    with pytest.raises(ValueError, match="must lie in"):
        augmentation.views(images() * 2, 1, GENERATOR)


def crop(x: Tensor, generator: torch.Generator) -> Tensor:
    return x[..., 1:]


def halve_in_place(x: Tensor, generator: torch.Generator) -> Tensor:
    return x.mul_(0.5)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (crop, r"must give images of the shape \[4, 3, 8, 8\] that it takes, got shape \[4, 3, 8, 7\]"),
        (lambda x, generator: (x, x), r"must give images of the shape .*, got tuple"),
        (halve_in_place, "must not change the images it takes in place, and halve_in_place does"),
    ],
)
def test_a_transform_that_is_none_is_named(transform: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageAugmentation(transform, None).views(images(), 1, GENERATOR)


def test_a_modules_signature_is_that_of_its_forward() -> None:
    class Layer(nn.Module):
        def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
            return x / 2

    x = images()
    (view,) = ImageAugmentation(Layer(), None).views(x, 1, GENERATOR)
    assert torch.equal(view, x / 2)
    assert ImageAugmentation(Layer(), None).name.endswith("Layer")
