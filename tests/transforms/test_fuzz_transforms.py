from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st
from scipy.fft import dctn, idctn
from torch import Tensor

from pl_robust.transforms import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    PRIME,
    AugMix,
    Corruption,
    DCTLowPass,
    RandomDiffeomorphism,
    RandomFilter,
    RandomSmoothColor,
    corrupt,
    dct_carrier,
    dct_low_pass,
    find_aliases,
    fold_frequencies,
    frequency_support,
    leaked_components,
    spectrum,
)
from pl_robust.transforms._primitive import BatchAugmentation
from pl_robust.transforms.augmix import AutoContrast, Equalize, Move, Posterize, Solarize
from tests.fuzz import (
    CONTEXTS,
    FLOATS,
    LAYOUTS,
    NOT_NUMBERS,
    SEEDS,
    batches,
    fuzz,
    inside,
    lay_out,
    made_inside,
    noise,
    outcome,
    source,
    untouched,
)

AUGMENTATIONS: dict[str, BatchAugmentation] = {
    "PRIME": PRIME((RandomDiffeomorphism(6), RandomSmoothColor(8, 0.05), RandomFilter(4.0)), width=2, depth=2),
    "AugMix": AugMix(severity=10),
    "diffeomorphism": RandomDiffeomorphism(8, 3.0),
    "color": RandomSmoothColor(20, 0.05, band=4),
    "filter": RandomFilter(4.0, 5),
    "autocontrast": AutoContrast(),
    "equalize": Equalize(),
    "posterize": Posterize(10),
    "solarize": Solarize(10),
    **{motion: Move(motion, 10) for motion in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")},
}
NAMES = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
LARGE = st.integers(16, 22)  # the corruptions' smallest side, and some more


def near(dtype: torch.dtype, rounding: float) -> float:
    return max(rounding, torch.finfo(dtype).eps)


@fuzz(
    1100,
    6,
    name=st.sampled_from(sorted(AUGMENTATIONS)),
    x=batches(sides=st.integers(3, 9)),
    seed=SEEDS,
    layout=st.sampled_from(LAYOUTS[:-1]),
    context=st.sampled_from(CONTEXTS),
)
def test_augmentations_give_images_and_follow_their_seed_alone(
    name: str, x: Tensor, seed: int, layout: str, context: str
) -> None:
    augment, x = AUGMENTATIONS[name], made_inside(context, x)
    with inside(context), untouched(x):
        result, again = (augment(x, source(seed)).detach() for _ in range(2))
        other = augment(lay_out(x, layout), source(seed)).detach()
    assert (result.shape, result.dtype) == (x.shape, x.dtype)
    torch.testing.assert_close(result, again, rtol=0, atol=0)
    torch.testing.assert_close(result, other, rtol=0, atol=near(x.dtype, 2e-5))
    assert not x.numel() or result.data_ptr() != x.data_ptr()
    assert not x.numel() or (float(result.min()) >= -1e-6 and float(result.max()) <= 1 + 1e-6)


@fuzz(
    500,
    5,
    name=st.sampled_from(sorted(AUGMENTATIONS)),
    x=batches(sides=st.integers(3, 9), least=1),
    seed=SEEDS,
    value=st.sampled_from([math.nan, math.inf, -math.inf, 1e4, -3.0, 1.5]),
    whole=st.booleans(),
)
def test_a_broken_image_breaks_no_other_and_nan_stays(
    name: str, x: Tensor, seed: int, value: float, whole: bool
) -> None:
    augment, bad = AUGMENTATIONS[name], seed % len(x)
    broken = x.clone()
    broken[bad, :, slice(None) if whole else 0] = value
    one, other = (augment(same, source(seed)) for same in (x, broken))
    others = torch.arange(len(x)) != bad
    torch.testing.assert_close(one[others], other[others], rtol=0, atol=near(x.dtype, 2e-5))
    if math.isnan(value) and whole and not name.startswith(("translate", "rotate", "shear")):
        assert other[bad].isnan().any()
    if math.isnan(value) and whole and name in ("PRIME", "color", "equalize", "posterize", "solarize", "autocontrast"):
        assert other[bad].isnan().all()


@fuzz(
    500,
    8,
    name=st.sampled_from(NAMES),
    severity=st.integers(1, 5),
    table=st.sampled_from(["cifar", "tiny_imagenet", "imagenet"]),
    x=batches(channels=st.sampled_from([1, 3]), sides=LARGE, most=3),
    seed=st.integers(-(2**63), 2**63 - 4),
    layout=st.sampled_from(LAYOUTS[:-1]),
    context=st.sampled_from(CONTEXTS),
)
def test_corruptions_are_of_the_image_and_its_seed_to_the_last_bit(
    name: str, severity: int, table: Any, x: Tensor, seed: int, layout: str, context: str
) -> None:
    x = made_inside(context, x)
    seeds = torch.arange(len(x)) + seed
    with inside(context), untouched(x, seeds):
        result = corrupt(x, name, severity, table=table, seeds=seeds)
        same = Corruption(name, severity, table)(lay_out(x, layout), seeds)
        alone = [corrupt(x[i : i + 1], name, severity, table=table, seeds=seeds[i : i + 1]) for i in range(len(x))]
    assert (result.shape, result.dtype, result.requires_grad) == (x.shape, x.dtype, False)
    assert torch.equal(result, same)
    assert torch.equal(result, torch.cat([x[:0].detach(), *alone]))
    assert not x.numel() or 0 <= float(result.min()) <= float(result.max()) <= 1
    levels = result.double() * 255
    assert ((levels - levels.round()).abs() <= 255 * max(torch.finfo(x.dtype).eps, 2.0**-23)).all()


@fuzz(
    500,
    8,
    name=st.sampled_from(NAMES),
    severity=st.integers(1, 5),
    x=batches(channels=st.sampled_from([1, 3]), sides=LARGE, least=2, most=3, dtypes=FLOATS[:2]),
    seed=SEEDS,
    value=st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -3.0, 1.5]),
    whole=st.booleans(),
)
def test_a_broken_image_corrupts_no_other(
    name: str, severity: int, x: Tensor, seed: int, value: float, whole: bool
) -> None:
    bad, broken, seeds = seed % len(x), x.clone(), torch.arange(len(x)) + seed
    broken[bad, :, slice(None) if whole else 8] = value
    one, other = (corrupt(same, name, severity, table="cifar", seeds=seeds) for same in (x, broken))
    others = torch.arange(len(x)) != bad
    assert torch.equal(one[others], other[others])
    if math.isnan(value) and whole:
        # Where the weather, a drop or impulse lies over it a pixel need not be the image's.
        assert other[bad].isnan().float().mean() > 0.5
    elif math.isfinite(value) and abs(value) < 10:
        assert 0 <= float(other[bad].min()) <= float(other[bad].max()) <= 1


X = torch.rand(2, 3, 16, 16)
BAD_CALLS: list[tuple[str, Any]] = [
    *((name, lambda f=f, x=x: f(x)) for name, x in [
        ("images", X[0]), ("images", X.byte()), ("images", X.numpy()), ("images", None), ("images", X + 0j),
        ("images", X[:, :, :0]), ("images", X[:, :0]), ("images", X > 0), ("images", X[..., None]),
    ] for f in (*AUGMENTATIONS.values(), Corruption("fog", 1))),
    *(("images", lambda x=x: corrupt(x, "snow", 1)) for x in (X[:, :2], X[..., :15], X[:, :, :15])),
    *(("`name`", lambda name=name: corrupt(X, name, 1)) for name in ("", "Fog", None, 3, ["fog"])),
    *(("`severity`", lambda s=s: corrupt(X, "fog", s)) for s in (0, 6, -1, 1.0, True, None, "3", math.nan)),
    *(("`table`", lambda t=t: corrupt(X, "fog", 1, table=t)) for t in ("", None, "cifar10", 3)),
    *(("`seeds`", lambda s=s: corrupt(X, "fog", 1, seeds=s))
      for s in (torch.zeros(1).long(), torch.zeros(2), torch.zeros(2).int(), [0, 1], 0, torch.zeros(2, 1).long())),
    *(("`bandwidth`", lambda b=b: dct_low_pass(X, b)) for b in (0, -1, 17, 2.0, True, None, (1,), (1, 2, 3), (1, 17),
      "4")),
    *(("`x`", lambda x=x: dct_low_pass(x, 1)) for x in (X.long(), X.numpy(), None, X[0, 0, 0], X + 0j)),
    *(("`size`", lambda s=s: dct_carrier(2, s)) for s in (0, -1, 2.5, True, None, (1,), (2, 2, 2), (4, 0), (4, 2.0),
      "8")),
    *(("`num_classes`", lambda n=n: dct_carrier(n, 4)) for n in (0, -1, 2.5, True, None, "2", 10_000, math.nan)),
    *(("`sigma`", lambda v=v: RandomFilter(v)) for v in (-1, math.nan, math.inf, "4", None, True)),
    *(("`kernel_size`", lambda v=v: RandomFilter(1, v)) for v in (0, 2, -1, 3.0, True, None, "3")),
    *(("`max_cut`", lambda v=v: RandomDiffeomorphism(v)) for v in (2, 0, 3.5, math.nan, None, True, "9")),
    *(("`strength`", lambda v=v: RandomDiffeomorphism(9, v)) for v in (-1, math.nan, math.inf, "4", None)),
    *(("`cut`", lambda v=v: RandomSmoothColor(v)) for v in (0, 2.5, math.nan, None, True)),
    *(("`max_strength`", lambda v=v: RandomSmoothColor(9, v)) for v in (-1, math.nan, math.inf, "1", None)),
    *(("`severity`", lambda v=v: AugMix(severity=v)) for v in (0, 11, math.nan, None, "3", True)),
    *(("`width`", lambda v=v: AugMix(width=v)) for v in (0, 1.5, None, True)),
    *(("`primitives`", lambda v=v: PRIME(v)) for v in ((), (1,), (AugMix(),), (RandomFilter,))),
    *(("`values`", lambda v=v: spectrum(v)) for v in (X.long(), X.numpy(), None, X + 0j, X[:0])),
    *(("`dim`", lambda v=v: spectrum(X, v)) for v in (4, -5, (0, 0), (0, -4), 1.5, (1.5,), (), "0", (None,), True)),
    *(("`threshold`", lambda v=v: leaked_components(spectrum(X), spectrum(X), threshold=v))
      for v in (0, -1, math.nan, math.inf, None, "1")),
    *(("frequencies", lambda v=v: fold_frequencies(v, 8))
      for v in (None, "a", [[1], [1, 2]], [math.nan], [1j], X > 0, X, torch.zeros(2, 0), 3)),
    *(("`sampling_rate`", lambda v=v: find_aliases([1, 2], v)) for v in (0, -1, None, "x", [1, 2], math.nan, math.inf)),
    *(("`order`", lambda v=v: frequency_support([1, 2], v)) for v in (0, 1.5, None, True)),
    *(("`max_count`", lambda v=v: frequency_support([1, 2.5], 9, max_count=v)) for v in (0, 1.5, None, True)),
]  # fmt: skip


@fuzz(len(BAD_CALLS), 10, place=st.integers(0, len(BAD_CALLS) - 1))
def test_bad_arguments_are_refused(place: int) -> None:
    name, call = BAD_CALLS[place]
    assert outcome(call, name) is None


@fuzz(
    400,
    x=batches(sides=st.integers(1, 9)),
    data=st.data(),
    layout=st.sampled_from(LAYOUTS[:-1]),
    context=st.sampled_from(CONTEXTS),
)
def test_the_low_pass_is_scipy_s_and_a_projection(x: Tensor, data: st.DataObject, layout: str, context: str) -> None:
    bandwidth = (data.draw(st.integers(1, x.shape[2])), data.draw(st.integers(1, x.shape[3])))
    x = made_inside(context, x)
    with inside(context), untouched(x):
        low, other = DCTLowPass(bandwidth)(x), dct_low_pass(lay_out(x, layout), bandwidth)
        twice = dct_low_pass(low.double(), bandwidth)
    assert (low.shape, low.dtype) == (x.shape, x.dtype)
    coefficients = (
        dctn(x.detach().double().numpy(), axes=(2, 3), norm="ortho") if len(x) else x.detach().double().numpy()
    )
    coefficients[:, :, bandwidth[0] :] = 0
    coefficients[:, :, :, bandwidth[1] :] = 0
    expected = torch.from_numpy(idctn(coefficients, axes=(2, 3), norm="ortho")) if len(x) else x.detach()
    rounding = near(x.dtype, 4e-6 if x.dtype != torch.float64 else 1e-12)
    torch.testing.assert_close(low.detach().double(), expected.double(), rtol=0, atol=rounding)
    torch.testing.assert_close(low.detach(), other.detach(), rtol=0, atol=rounding)
    torch.testing.assert_close(low.detach().double(), twice.detach(), rtol=0, atol=4 * rounding)
    if low.requires_grad:
        (gradient,) = torch.autograd.grad(low.sum(), x)
        assert gradient.isfinite().all()


@fuzz(200, height=st.integers(1, 12), width=st.integers(1, 12), classes=st.integers(1, 40))
def test_carriers_differ_and_are_signs(height: int, width: int, classes: int) -> None:
    carriers = outcome(lambda: dct_carrier(classes, (height, width)), "`num_classes`")
    if carriers is None:
        return
    assert carriers.shape == (classes, 1, height, width)
    assert (carriers.abs() == 1).all()
    assert len({tuple(carrier) for carrier in carriers.flatten(1).tolist()}) == classes
    half = (classes + 1) // 2
    assert torch.equal(carriers[half:], -carriers[: classes - half])


@fuzz(
    500,
    5,
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    seed=SEEDS,
    dtype=st.sampled_from(FLOATS),
    exponent=st.sampled_from([-35, -25, 0, 20, 35]),
    data=st.data(),
)
def test_spectra_keep_the_power_and_shares_do_not_depend_on_the_scale(
    shape: list[int], seed: int, dtype: torch.dtype, exponent: int, data: st.DataObject
) -> None:
    assume(exponent == 0 or dtype in (torch.float32, torch.float64, torch.bfloat16))
    values = lay_out((noise(seed, *shape) - 0.5).to(dtype), "transposed" if len(shape) > 1 else "strided")
    dims = data.draw(st.lists(st.sampled_from(range(len(shape))), min_size=1, unique=True), label="dim")
    found = spectrum(values, dims)
    assert found.amplitudes.shape == values.shape
    grid = [shape[axis] for axis in dims]
    power = found.amplitudes.double() ** 2
    # Of a pair both entries are there, each with the amplitude; alone are 0 and half the rate.
    alone = torch.ones(shape, dtype=torch.bool)
    for axis in dims:
        places = torch.arange(shape[axis])
        alone &= (2 * places % shape[axis] == 0).view([-1 if i == axis else 1 for i in range(len(shape))])
    total = torch.where(alone, power, power / 4).sum(dims)
    torch.testing.assert_close(total, values.double().square().mean(dims), rtol=1e-3, atol=1e-9)
    support = [[data.draw(st.integers(-p // 2, p // 2)) for p in grid] for _ in range(data.draw(st.integers(0, 3)))]
    rows = torch.tensor(support, dtype=torch.float64).view(-1, len(grid))
    share, scaled = found.energy_outside(rows), spectrum(values * 10.0**exponent, dims).energy_outside(rows)
    assert ((share >= -1e-6) & (share <= 1 + 1e-6)).all()
    if dtype != torch.bfloat16:
        torch.testing.assert_close(share, scaled, rtol=1e-3, atol=1e-5)
    elif math.prod(grid) > 1 and not len(support):
        torch.testing.assert_close(scaled, torch.ones_like(scaled), rtol=1e-3, atol=1e-5)
    if len(values.flatten()):
        broken = values.clone()
        broken[(0,) * len(shape)] = math.nan
        assert spectrum(broken, dims).energy_outside(rows).isnan().any()


INTEGERS = st.lists(st.integers(-30, 30), min_size=0, max_size=4)


@fuzz(
    500,
    5,
    frequencies=INTEGERS,
    rate=st.one_of(st.integers(1, 20), st.just(10**11)),
    unit=st.sampled_from([1.0, 0.1, 1e-6, 1e6]),
)
def test_aliases_are_what_looks_alike_on_the_grid(frequencies: list[int], rate: int, unit: float) -> None:
    folded = fold_frequencies([f * unit for f in frequencies], rate * unit)
    by_hand = [min(f % rate, -f % rate) for f in frequencies]
    torch.testing.assert_close(folded, torch.tensor(by_hand, dtype=torch.float64) * unit, rtol=1e-7, atol=1e-7 * unit)
    groups: dict[int, set[int]] = {}
    for f in frequencies:
        groups.setdefault(min(f % rate, -f % rate), set()).add(abs(f))
    expected = [sorted(groups[key]) for key in sorted(groups) if len(groups[key]) > 1]
    found = [
        (group / unit).round().int().tolist() for group in find_aliases([f * unit for f in frequencies], rate * unit)
    ]
    assert found == expected


@fuzz(300, frequencies=st.lists(st.integers(-9, 9), max_size=3), order=st.integers(1, 4), plane=st.booleans())
def test_the_support_is_all_combinations(frequencies: list[int], order: int, plane: bool) -> None:
    rows = [(f, 3 * f % 7) if plane else (f,) for f in frequencies]
    combinations = itertools.product(range(-order, order + 1), repeat=len(rows))
    sums = {(0,) * (2 if plane else 1)}
    for coefficients in combinations:
        if sum(map(abs, coefficients)) <= order and rows:
            one = tuple(sum(c * f for c, f in zip(coefficients, axis, strict=True)) for axis in zip(*rows, strict=True))
            sums.add(max(one, tuple(-part for part in one)))
    given = torch.tensor(rows, dtype=torch.float64).view(-1, 2) if plane else torch.tensor(frequencies)
    found = frequency_support(given, order)
    expected = torch.tensor(sorted(sums), dtype=torch.float64)
    assert torch.equal(found, expected if plane else expected[:, 0])


@fuzz(150, value=st.one_of(st.floats(), NOT_NUMBERS), rate=st.one_of(st.floats(), NOT_NUMBERS))
def test_folded_frequencies_are_finite_or_refused(value: Any, rate: Any) -> None:
    folded = outcome(lambda: fold_frequencies([value], rate), "frequencies", "`sampling_rate`")
    if folded is not None:
        assert folded.isfinite().all()
        assert (folded.abs() <= rate / 2 * (1 + 1e-9)).all()
        assert np.isfinite(value)
