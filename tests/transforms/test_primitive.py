"""PRIME's primitives: what they draw follows the published distributions, what they do is what scipy does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from pl_robust.transforms import RandomDiffeomorphism, RandomFilter, RandomSmoothColor

PRIMITIVES: dict[str, Any] = {
    "filter": RandomFilter(),
    "color": RandomSmoothColor(20, 0.05),
    "banded": RandomSmoothColor(50, 0.05, band=5),
    "diffeomorphism": RandomDiffeomorphism(10),
}
IDENTITIES: dict[str, Any] = {
    "filter": RandomFilter(0.0),
    "color": RandomSmoothColor(20, 0.0),
    "diffeomorphism": RandomDiffeomorphism(10, 0.0),
}
SIZE = torch.Size([4000, 1, 8, 8])


def images(*shape: int) -> Tensor:
    return torch.rand(*(shape or (6, 3, 9, 12)), generator=torch.Generator().manual_seed(1))


def from_seed(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def is_distributed(sample: Tensor, cdf: Any) -> bool:
    return bool(stats.kstest(sample.numpy(), cdf).pvalue > 0.01)


@pytest.mark.parametrize("name", list(IDENTITIES))
def test_zero_strength_is_the_identity(name: str) -> None:
    x = images()
    torch.testing.assert_close(IDENTITIES[name](x), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", list(PRIMITIVES))
@pytest.mark.parametrize("shape", [(6, 3, 9, 12), (2, 1, 32, 32), (0, 3, 8, 8)])
def test_shape_and_range_are_kept_and_the_input_is_left_alone(name: str, shape: tuple[int, ...]) -> None:
    x = images(*shape)
    before = x.clone()
    y = PRIMITIVES[name](x)
    assert y.shape == x.shape
    assert torch.equal(x, before)
    assert ((y >= 0) & (y <= 1)).all()


@pytest.mark.parametrize("name", list(PRIMITIVES))
def test_equal_images_come_out_different_and_a_generator_repeats_them(name: str) -> None:
    x = images(1, 3, 9, 12).repeat(4, 1, 1, 1)
    y = PRIMITIVES[name](x, generator=from_seed())
    for one in range(4):
        for other in range(one):
            assert (y[one] - y[other]).abs().max() > 1e-3
    before = torch.get_rng_state()
    assert torch.equal(y, PRIMITIVES[name](x, generator=from_seed()))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", list(PRIMITIVES))
def test_an_image_does_not_see_the_others(name: str) -> None:
    x, primitive = images(), PRIMITIVES[name]
    parameters = primitive.draw(x.shape, generator=from_seed())
    whole = primitive.apply(x, parameters)
    rows = torch.tensor([4, 1])
    part = primitive.apply(x[rows], type(parameters)(*(tensor[rows] for tensor in parameters)))
    torch.testing.assert_close(part, whole[rows], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", list(PRIMITIVES))
def test_it_computes_in_float32_whatever_the_autocast(name: str) -> None:
    x, primitive = images(), PRIMITIVES[name]
    parameters = primitive.draw(x.shape, generator=from_seed())
    expected = primitive.apply(x, parameters)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(primitive.apply(x, parameters), expected)
    half = primitive.apply(x.bfloat16(), parameters)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, primitive.apply(x.bfloat16().float(), parameters).bfloat16())


@pytest.mark.parametrize("name", list(PRIMITIVES))
def test_what_is_no_batch_of_float_images_is_refused(name: str) -> None:
    with pytest.raises(
        TypeError, match=r"floating-point tensor in \[0, 1\], got torch.uint8; divide uint8 images by 255"
    ):
        PRIMITIVES[name](torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"batch \[B, C, H, W\], got shape \[3, 8, 8\]; a single one needs x\[None\]"):
        PRIMITIVES[name](torch.zeros(3, 8, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomFilter(-1), "`sigma` must be finite and at least 0, got -1"),
        (lambda: RandomFilter(1, kernel_size=2), "`kernel_size` must be a positive odd integer.*got 2"),
        (lambda: RandomSmoothColor(0), "`cut` must be at least 1, got 0"),
        (lambda: RandomSmoothColor(5, -1), "`max_strength` must be finite and at least 0, got -1"),
        (lambda: RandomSmoothColor(5, band=0), "`band` must be at least 1, got 0"),
        (lambda: RandomDiffeomorphism(2), "`max_cut` must be at least 3, got 2"),
        (lambda: RandomDiffeomorphism(5, -1), "`strength` must be finite and at least 0, got -1"),
        (lambda: RandomDiffeomorphism(5)(torch.zeros(1, 1, 2, 8)), "at least 3x3 to be deformed.*got 2x8"),
    ],
)
def test_errors_speak(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_nan_stays_and_leads_out_of_no_table() -> None:
    from pl_robust.transforms.augmix import Equalize

    x = torch.full((1, 1, 4, 4), torch.nan)
    assert RandomSmoothColor()(x).isnan().all()
    assert Equalize()(x).isnan().all()
    assert Equalize()(x.nan_to_num(1e6)).isfinite().all()
