from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy import stats
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from pl_robust.transforms import AugMix
from pl_robust.transforms.augmix import (
    AutoContrast,
    Equalize,
    Levels,
    Maps,
    Motion,
    Move,
    Posterize,
    Solarize,
    draw_strength,
    move,
)
from pl_robust.transforms.prime import PRIMEParameters, Turn

OPERATIONS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y", Posterize, Solarize, AutoContrast, Equalize)


def images(*shape: int) -> Tensor:
    return torch.rand(*(shape or (6, 3, 12, 10)), generator=torch.Generator().manual_seed(1))


def from_seed(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_of(batch: int, severity: int = 3) -> PRIMEParameters:
    return AugMix(severity=severity).draw(torch.Size([batch, 1, 30, 60]), generator=from_seed(1))


def drawn_by(parameters: PRIMEParameters, number: int) -> Tensor:
    """What one of the operations drew, in all of its turns."""
    return torch.cat([turn.parameters[0] for turn in parameters.turns if turn.primitive == number])


def warp(*matrix: float) -> Callable[[Any], Any]:
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def moved(motion: Motion, amount: float) -> Callable[[Tensor], Tensor]:
    def ours(x: Tensor) -> Tensor:
        maps = move(motion, torch.full((len(x),), amount), *x.shape[2:])
        return Move(motion, severity=3).apply(x, Maps(maps))

    return ours


# What the released code calls, and how far Pillow's way to 8 bits may take a pixel: it cuts off, by a level at most.
PILLOW: dict[str, tuple[Callable[[Any], Any], Callable[[Tensor], Tensor], float]] = {
    "rotate": (lambda image: image.rotate(7, Image.Resampling.BILINEAR), moved("rotate", 7.0), 1.0),
    "rotate back": (lambda image: image.rotate(-30, Image.Resampling.BILINEAR), moved("rotate", -30.0), 1.0),
    "shear_x": (warp(1, 0.09, 0, 0, 1, 0), moved("shear_x", 0.09), 1.0),
    "shear_y": (warp(1, 0, 0, -0.3, 1, 0), moved("shear_y", -0.3), 1.0),
    "translate_x": (warp(1, 0, 3, 0, 1, 0), moved("translate_x", 3.0), 0.0),
    "translate_y": (warp(1, 0, 0, 0, 1, -5), moved("translate_y", -5.0), 0.0),
    "posterize": (
        lambda image: ImageOps.posterize(image, 3),
        lambda x: Posterize(3).apply(x, Levels(torch.full((len(x),), 32.0))),
        0.0,
    ),
    "solarize": (
        lambda image: ImageOps.solarize(image, 180),
        lambda x: Solarize(3).apply(x, Levels(torch.full((len(x),), 180.0))),
        0.0,
    ),
    "autocontrast": (ImageOps.autocontrast, lambda x: AutoContrast().apply(x, ()), 1.0),
    "equalize": (ImageOps.equalize, lambda x: Equalize().apply(x, ()), 0.0),
}


@pytest.mark.parametrize("shape", [(17, 23, 3), (32, 32, 3), (16, 16)])
@pytest.mark.parametrize("name", PILLOW)
def test_each_operation_is_that_of_pillow(name: str, shape: tuple[int, ...]) -> None:
    theirs, ours, levels = PILLOW[name]
    pixels = np.random.default_rng(0).integers(20, 200, (2, *shape), dtype=np.uint8)
    pixels[1] //= 2  # the second image is darker: nothing may be shared by the batch
    tensors = [torch.from_numpy(one).reshape(*shape[:2], -1).permute(2, 0, 1) for one in pixels]
    results = ours(torch.stack(tensors) / 255)
    for one, result in zip(pixels, results, strict=True):
        expected = torch.from_numpy(np.array(theirs(Image.fromarray(one)))).reshape(*shape[:2], -1).permute(2, 0, 1)
        torch.testing.assert_close(result * 255, expected.float(), atol=levels + 1e-2, rtol=0)


def test_equalize_and_autocontrast_are_those_of_torchvision() -> None:
    x = (images(20, 3, 12, 10) * 130 + 50).round() / 255
    torch.testing.assert_close(Equalize().apply(x, ()), vision.equalize((x * 255).round().to(torch.uint8)) / 255)
    torch.testing.assert_close(AutoContrast().apply(x, ()), vision.autocontrast(x))


def test_one_value_has_no_contrast_to_spread() -> None:
    x = torch.full((1, 3, 4, 4), 0.4)
    for operation in (AutoContrast(), Equalize()):
        torch.testing.assert_close(operation.apply(x, ()), x)


def test_strengths_are_drawn_as_published() -> None:
    """A level uniform in [0.1, severity], times a tenth of the largest; cut to whole degrees, pixels, bits, levels."""
    for severity in (1, 3, 10):
        strength = draw_strength(severity, 0.3, 4000, "cpu", from_seed())
        span = stats.uniform(0.003, 0.03 * severity - 0.003)
        assert stats.kstest(strength.numpy(), span.cdf).pvalue > 0.01
    parameters = draw_of(6000)
    shear = drawn_by(parameters, 1)[:, 0, 1]
    assert stats.kstest(shear.abs().numpy(), stats.uniform(0.003, 0.087).cdf).pvalue > 0.01
    assert (shear > 0).float().mean().item() == pytest.approx(0.5, abs=0.04)
    degrees = torch.atan2(drawn_by(parameters, 0)[:, 1, 0], drawn_by(parameters, 0)[:, 0, 0]).rad2deg()
    across, down = drawn_by(parameters, 3)[:, 0, 2], drawn_by(parameters, 4)[:, 1, 2]
    for amount, bound in ((degrees, 8), (across, 5), (down, 2)):  # of 9 degrees, 6 and 3 pixels, not reached
        torch.testing.assert_close(amount, amount.round(), atol=1e-4, rtol=0)
        assert set(amount.round().int().tolist()) == set(range(-bound, bound + 1))
    assert set(drawn_by(parameters, 5).tolist()) == {16.0, 32.0}  # 4 or 3 bits
    thresholds = drawn_by(parameters, 6)
    assert (thresholds.min().item(), thresholds.max().item()) == (256 - 76, 256 - 2)
    assert set(drawn_by(draw_of(500, severity=1), 5).tolist()) == {16.0}


def test_operations_chains_and_mixture_are_drawn_as_published() -> None:
    parameters = draw_of(3000)
    chosen = torch.zeros(9, dtype=torch.long)
    steps = torch.zeros(3 * 3000, dtype=torch.long)
    for turn in parameters.turns:
        chosen[turn.primitive] += len(turn.rows)
        steps[turn.rows] += 1
    assert stats.chisquare(chosen.numpy()).pvalue > 0.01
    assert stats.chisquare(torch.bincount(steps, minlength=4)[1:].numpy()).pvalue > 0.01
    assert steps.min() == 1
    assert stats.kstest(parameters.share.numpy(), "uniform").pvalue > 0.01
    for chain in range(3):  # the marginals of Dirichlet(1, 1, 1) are Beta(1, 2)
        assert stats.kstest(parameters.weights[chain].numpy(), stats.beta(1, 2).cdf).pvalue > 0.01


def test_its_operations_are_the_nine_in_this_order() -> None:
    for operation, expected in zip(AugMix(severity=2)._chains.primitives, OPERATIONS, strict=True):
        if isinstance(expected, str):
            assert isinstance(operation, Move)
            assert (operation.motion, operation.severity) == (expected, 2)
        else:
            assert type(operation) is expected
            assert getattr(operation, "severity", 2) == 2


def test_an_image_does_not_see_the_others() -> None:
    augmix, x = AugMix(severity=10), images()
    parameters = augmix.draw(x.shape, generator=from_seed())
    whole = augmix.apply(x, parameters)
    for image in range(len(x)):
        turns = []
        for turn in parameters.turns:
            (places,) = (turn.rows % len(x) == image).nonzero(as_tuple=True)
            if len(places):
                kept = tuple(tensor[places] for tensor in turn.parameters)
                own = kept if type(turn.parameters) is tuple else type(turn.parameters)(*kept)
                turns.append(Turn(turn.primitive, turn.rows[places] // len(x), own))
        alone = PRIMEParameters(
            tuple(turns), parameters.weights[:, image : image + 1], parameters.share[image : image + 1]
        )
        torch.testing.assert_close(augmix.apply(x[image : image + 1], alone)[0], whole[image], atol=1e-6, rtol=0)


def test_equal_images_come_out_different_and_a_generator_repeats_them() -> None:
    x = images(1, 3, 12, 10).repeat(8, 1, 1, 1)
    y = AugMix()(x, from_seed())
    for one in range(8):
        for other in range(one):
            assert (y[one] - y[other]).abs().max() > 1e-3
    before = torch.get_rng_state()
    assert torch.equal(y, AugMix()(x, from_seed()))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(y, AugMix()(x, from_seed(1)))
    assert not torch.equal(AugMix()(x), AugMix()(x))


@pytest.mark.parametrize("shape", [(40, 3, 16, 12), (40, 1, 9, 9), (0, 3, 8, 8), (1, 3, 8, 8)])
def test_shape_range_and_input_are_kept(shape: tuple[int, ...]) -> None:
    x = images(*shape)
    before = x.clone()
    y = AugMix(severity=10)(x)
    assert y.shape == x.shape
    assert ((y >= 0) & (y <= 1)).all()
    assert torch.equal(x, before)


def test_it_computes_in_float32_whatever_the_autocast() -> None:
    augmix, x = AugMix(), images(20, 3, 8, 8)
    plain = augmix(x, from_seed())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augmix(x, from_seed()), plain)
    half = augmix(x.bfloat16(), from_seed())
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, augmix(x.bfloat16().float(), from_seed()).bfloat16())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AugMix(severity=0), r"`severity` must lie between 1 and 10 \(published: 3 for CIFAR.*got 0"),
        (lambda: AugMix(severity=11), r"`severity` must lie between 1 and 10 .*got 11"),
        (lambda: AugMix(width=0), "`width` must be at least 1, got 0"),
        (lambda: AugMix(depth=2.5), "`depth` must be an integer, got 2.5"),  # type: ignore[arg-type]
        (lambda: AugMix()(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)), "got torch.uint8; divide uint8 images by"),
        (lambda: AugMix()(torch.zeros(3, 8, 8)), r"batch \[B, C, H, W\], got shape \[3, 8, 8\]"),
    ],
)
def test_errors_speak(call: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()
