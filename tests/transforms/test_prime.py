from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from pl_robust.transforms import PRIME, RandomDiffeomorphism, RandomFilter, RandomSmoothColor
from pl_robust.transforms.prime import PRIMEParameters, Turn
from tests.benchmarks.prime import peak_memory


def small() -> PRIME:
    return PRIME((RandomDiffeomorphism(8), RandomSmoothColor(10, 0.05), RandomFilter(1.0)))


def images(*shape: int) -> Tensor:
    return torch.rand(*(shape or (6, 3, 8, 10)), generator=torch.Generator().manual_seed(1))


def from_seed(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_hand(prime: PRIME, x: Tensor, parameters: PRIMEParameters) -> Tensor:
    """Image by image and chain by chain."""
    batch = len(x)
    result = torch.empty_like(x)
    for image in range(batch):
        mixture = torch.zeros_like(x[image])
        for chain in range(prime.width):
            y = x[image : image + 1]
            for turn in parameters.turns:
                (place,) = (turn.rows == chain * batch + image).nonzero(as_tuple=True)
                if len(place):
                    own = type(turn.parameters)(*(tensor[place] for tensor in turn.parameters))
                    y = prime.primitives[turn.primitive].apply(y, own)
            mixture += parameters.weights[chain, image] * y[0]
        share = parameters.share[image]
        result[image] = (1 - share) * x[image] + share * mixture
    return result


def alone(parameters: PRIMEParameters, image: int, batch: int, width: int) -> PRIMEParameters:
    """What was drawn for one image of a batch, as a batch of one."""
    turns = []
    for turn in parameters.turns:
        (places,) = (turn.rows % batch == image).nonzero(as_tuple=True)
        if len(places):
            own = type(turn.parameters)(*(tensor[places] for tensor in turn.parameters))
            turns.append(Turn(turn.primitive, turn.rows[places] // batch, own))
    return PRIMEParameters(tuple(turns), parameters.weights[:, image : image + 1], parameters.share[image : image + 1])


def test_it_is_the_mixture_of_the_chains() -> None:
    prime, x = small(), images()
    parameters = prime.draw(x.shape, generator=from_seed())
    torch.testing.assert_close(prime.apply(x, parameters), by_hand(prime, x, parameters), atol=1e-5, rtol=0)


def test_an_image_does_not_see_the_others() -> None:
    prime, x = small(), images()
    parameters = prime.draw(x.shape, generator=from_seed())
    whole = prime.apply(x, parameters)
    for image in range(len(x)):
        single = prime.apply(x[image : image + 1], alone(parameters, image, len(x), prime.width))
        torch.testing.assert_close(single[0], whole[image], atol=1e-6, rtol=0)


def test_mixture_weights_are_dirichlet_and_beta() -> None:
    parameters = small().draw(torch.Size([4000, 1, 4, 4]), generator=from_seed())
    torch.testing.assert_close(parameters.weights.sum(0), torch.ones(4000))
    assert stats.kstest(parameters.share.numpy(), "uniform").pvalue > 0.01
    for chain in range(3):  # the marginals of Dirichlet(1, 1, 1) are Beta(1, 2)
        assert stats.kstest(parameters.weights[chain].numpy(), stats.beta(1, 2).cdf).pvalue > 0.01
    correlation = torch.corrcoef(parameters.weights)[0, 1].item()
    assert correlation == pytest.approx(-0.5, abs=0.05)


def test_depth_and_choice_are_uniform_and_a_step_computes_what_was_drawn_only() -> None:
    prime, batch = small(), 1000
    parameters = prime.draw(torch.Size([batch, 1, 4, 4]), generator=from_seed())
    steps = torch.zeros(3 * batch, dtype=torch.long)
    chosen = torch.zeros(3, dtype=torch.long)
    for turn in parameters.turns:
        assert len(turn.rows) == len(set(turn.rows.tolist())) == len(turn.parameters[0])
        steps[turn.rows] += 1
        chosen[turn.primitive] += len(turn.rows)
    assert stats.chisquare(torch.bincount(steps, minlength=4)[1:].numpy()).pvalue > 0.01
    assert stats.chisquare(chosen.numpy()).pvalue > 0.01
    assert steps.min() == 1  # identity is no primitive


def test_without_strength_it_is_the_identity() -> None:
    x = images()
    prime = PRIME((RandomDiffeomorphism(8, 0.0), RandomSmoothColor(10, 0.0), RandomFilter(0.0)))
    torch.testing.assert_close(prime(x), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prime", [small(), PRIME.cifar(), PRIME.imagenet()], ids=["small", "cifar", "imagenet"])
@pytest.mark.parametrize("shape", [(4, 3, 16, 12), (3, 1, 9, 9), (0, 3, 8, 8), (1, 3, 8, 8)])
def test_shape_range_and_input_are_kept(prime: PRIME, shape: tuple[int, ...]) -> None:
    x = images(*shape)
    before = x.clone()
    y = prime(x)
    assert y.shape == x.shape
    assert ((y >= 0) & (y <= 1)).all()
    assert torch.equal(x, before)


def test_equal_images_come_out_different_and_a_generator_repeats_them() -> None:
    x = images(1, 3, 8, 10).repeat(5, 1, 1, 1)
    y = small()(x, generator=from_seed())
    for one in range(5):
        for other in range(one):
            assert (y[one] - y[other]).abs().max() > 1e-3
    before = torch.get_rng_state()
    assert torch.equal(y, small()(x, generator=from_seed()))
    assert torch.equal(before, torch.get_rng_state())


def test_it_computes_in_float32_whatever_the_autocast() -> None:
    prime, x = small(), images()
    parameters = prime.draw(x.shape, generator=from_seed())
    with torch.autocast("cpu", torch.bfloat16):
        assert prime.apply(x, parameters).dtype == torch.float32
        inside = prime.apply(x, parameters)
    assert torch.equal(inside, prime.apply(x, parameters))
    assert prime.apply(x.bfloat16(), parameters).dtype == torch.bfloat16


def test_the_presets_are_the_published_ones() -> None:
    cifar, imagenet = PRIME.cifar(), PRIME.imagenet()
    kinds = [RandomDiffeomorphism, RandomSmoothColor, RandomFilter]
    for prime, cut, strength, band in ((cifar, 100, 0.01, None), (imagenet, 500, 0.05, 20)):
        deformation, color, kernel = prime.primitives
        assert [type(part) for part in prime.primitives] == kinds
        assert (deformation.max_cut, color.cut, color.max_strength, color.band) == (cut, cut, strength, band)  # type: ignore[attr-defined]
        assert (kernel.sigma, kernel.kernel_size, prime.width, prime.depth) == (4.0, 3, 3, 3)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PRIME(()), "`primitives` must have at least one"),
        (lambda: PRIME((RandomFilter,)), "`primitives` must be primitives such as RandomFilter"),  # type: ignore[arg-type]
        (lambda: PRIME((RandomFilter(),), width=0), "`width` must be at least 1, got 0"),
        (lambda: PRIME((RandomFilter(),), depth=0), "`depth` must be at least 1, got 0"),
        (lambda: PRIME.cifar()(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)), "got torch.uint8; divide uint8 images by"),
        (lambda: PRIME.cifar()(torch.zeros(3, 8, 8)), r"batch \[B, C, H, W\], got shape \[3, 8, 8\]"),
    ],
)
def test_errors_speak(call: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_memory_is_bounded() -> None:
    x = torch.rand(64, 3, 32, 32)
    assert max(peak_memory(PRIME.cifar(), x, seed) for seed in range(3)) <= 8


def test_the_default_dtype_changes_nothing() -> None:
    x = images()
    expected = small()(x, from_seed())
    try:
        torch.set_default_dtype(torch.bfloat16)
        assert torch.equal(small()(x, from_seed()), expected)
    finally:
        torch.set_default_dtype(torch.float32)
