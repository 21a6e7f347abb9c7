from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from pl_robust.metrics import Calibration, MeanCorruptionError, brier_score, mean_corruption_error, reliability
from tests.fuzz import (
    CONTEXTS,
    FLOATS,
    NOT_NUMBERS,
    SEEDS,
    fuzz,
    inside,
    lay_out,
    made_inside,
    noise,
    outcome,
    untouched,
)

Array = np.ndarray[Any, np.dtype[np.float64]]
LAYOUTS = st.sampled_from(["contiguous", "transposed", "strided", "sliced"])
LABELS = st.sampled_from([torch.int64, torch.int32, torch.uint8])


def answers(seed: int, count: int, classes: int, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits and labels; with scale 0 the first of equal classes is the answer."""
    logits = ((noise(seed, count, classes) - 0.5) * 2 * scale).to(dtype)
    return logits, (noise(seed + 1, count) * classes).long()


def softmax(logits: Tensor) -> Array:
    scores = logits.double().numpy()
    powers = np.exp(scores - scores.max(1, keepdims=True))
    shares: Array = powers / powers.sum(1, keepdims=True)
    return shares


def parts(data: st.DataObject, count: int) -> list[Tensor]:
    """Indices 0 .. count - 1 in any order, cut at random, also into nothing."""
    order = torch.tensor(data.draw(st.permutations(range(count)), label="order"), dtype=torch.int64)
    cuts = data.draw(st.lists(st.integers(0, count), max_size=3), label="cuts")
    return list(order.tensor_split(sorted(cuts)))


@fuzz(
    700,
    5,
    count=st.integers(1, 12),
    classes=st.integers(2, 6),
    bins=st.integers(1, 20),
    seed=SEEDS,
    scale=st.sampled_from([0.0, 1.0, 5.0, 1e4]),
    dtype=st.sampled_from(FLOATS),
    labels=LABELS,
    layout=LAYOUTS,
    context=st.sampled_from(CONTEXTS),
    data=st.data(),
)
def test_calibration_is_numpy_s_however_it_is_split(
    count: int,
    classes: int,
    bins: int,
    seed: int,
    scale: float,
    dtype: torch.dtype,
    labels: torch.dtype,
    layout: str,
    context: str,
    data: st.DataObject,
) -> None:
    logits, y = answers(seed, count, classes, scale, dtype)
    one, other = Calibration(bins), Calibration(bins)
    with inside(context), untouched(logits, y):
        one.update(made_inside(context, lay_out(logits, layout)), y.to(labels))
        for part in parts(data, count):
            other.update(logits[part], y[part])
    found, split = one.summary(), other.summary()
    for name in ("ece", "nll", "brier", "accuracy", "samples", "undefined"):
        torch.testing.assert_close(getattr(found, name), getattr(split, name), rtol=1e-9, atol=1e-9)
    # In float32, as the metric has it: next to a bin's edge the precision decides.
    p = logits.to(torch.promote_types(dtype, torch.float32)).softmax(1)
    right = p.argmax(1).numpy() == y.numpy()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    member = np.clip(np.searchsorted(edges.numpy(), p.max(1).values.double().numpy(), side="left") - 1, 0, bins - 1)
    confidence = p.max(1).values.double().numpy()
    gaps = [abs((right[member == m] - confidence[member == m]).sum()) / count for m in set(member.tolist())]
    expected = softmax(logits)
    nll = -np.log(np.maximum(expected[np.arange(count), y.numpy()], 1e-300))
    assert float(found.ece) == pytest.approx(sum(gaps), abs=1e-9)
    assert float(found.accuracy) == right.mean()
    if scale < 1e4:
        assert float(found.nll) == pytest.approx(nll.mean(), rel=1e-4, abs=1e-6)
    assert float(found.brier) == pytest.approx(((expected - np.eye(classes)[y]) ** 2).sum(1).mean(), rel=1e-4, abs=1e-5)
    assert 0 <= float(found.ece) <= 1 + 1e-9
    assert 0 <= float(found.brier) <= 2 + 1e-6
    assert int(found.reliability.counts.sum()) == count == int(found.samples)
    diagram = reliability(p, y, bins)
    assert diagram.counts.tolist() == found.reliability.counts.tolist()
    torch.testing.assert_close(brier_score(p, y).double().mean(), found.brier, rtol=1e-6, atol=1e-9)


@fuzz(
    300,
    count=st.integers(1, 6),
    classes=st.integers(2, 5),
    seed=SEEDS,
    value=st.sampled_from([math.nan, math.inf]),
    whole=st.booleans(),
    dtype=st.sampled_from(FLOATS),
)
def test_nan_counts_as_wrong_and_is_seen(
    count: int, classes: int, seed: int, value: float, whole: bool, dtype: torch.dtype
) -> None:
    logits, y = answers(seed, count, classes, 3.0, dtype)
    bad = seed % count
    logits[bad, slice(None) if whole else int(y[bad])] = value
    others = torch.arange(count) != bad
    right = int((logits.argmax(1) == y)[others].sum())
    calibration, error = Calibration(), MeanCorruptionError(["fog"], [1])
    calibration.update(logits, y)
    error.update(logits, y, "fog", 1)
    found = calibration.summary()
    assert (int(found.undefined), int(found.samples)) == (1, count)
    assert bool(found.ece.isnan() & found.nll.isnan() & found.brier.isnan())
    assert float(found.accuracy) == pytest.approx(right / count)
    if math.isnan(value):
        assert float(error.compute()) == pytest.approx(100 * (1 - right / count))
        assert float(error(logits[bad : bad + 1], y[bad : bad + 1], "fog", 1)) == 100
    assert int(reliability(logits.float().softmax(1), y).counts.sum()) == count - 1


@fuzz(
    500,
    5,
    types=st.lists(st.sampled_from(["fog", "snow", "own"]), min_size=1, unique=True),
    severities=st.lists(st.integers(1, 5), min_size=1, unique=True),
    counts=st.integers(1, 9),
    seed=SEEDS,
    scores=st.booleans(),
    relative=st.booleans(),
    baseline=st.sampled_from([None, "number", "rows"]),
    dtype=st.sampled_from(FLOATS),
    layout=LAYOUTS,
    context=st.sampled_from(CONTEXTS),
    data=st.data(),
)
def test_mce_is_numpy_s_however_it_is_split(
    types: list[str],
    severities: list[int],
    counts: int,
    seed: int,
    scores: bool,
    relative: bool,
    baseline: str | None,
    dtype: torch.dtype,
    layout: str,
    context: str,
    data: st.DataObject,
) -> None:
    rows = {name: [0.5 + 0.04 * i + 0.02 * j for j in range(5)] for i, name in enumerate(types)}
    given: Any = (
        None
        if baseline is None
        else {"clean": 0.25, **({n: r[0] for n, r in rows.items()} if baseline == "number" else rows)}
    )
    metric = MeanCorruptionError(types, severities, baseline=given, relative=relative)
    cells = [(name, severity) for name in types for severity in severities] + [("clean", 0)] * relative
    updates, errors = [], {}
    for i, cell in enumerate(cells):
        logits, y = answers(seed + 2 * i, counts, 4, 1.0, dtype)
        errors[cell] = float(np.mean(logits.float().numpy().argmax(1) != y.numpy()))
        preds = lay_out(logits, layout) if scores else logits.argmax(1).to(torch.int32)
        updates += [(preds[part], y[part], *cell) for part in parts(data, counts)]
    with inside(context):
        for i in data.draw(st.permutations(range(len(updates))), label="updates"):
            metric.update(*updates[i])
    table = np.array([[errors[name, s] for s in severities] for name in types])
    table -= errors["clean", 0] if relative else 0
    expected = 100 * table.mean(1)
    if given is not None:
        base = np.array([[given[n] if baseline == "number" else given[n][s - 1] for s in severities] for n in types])
        base -= 0.25 if relative else 0
        expected = 100 * table.sum(1) / base.sum(1)
    np.testing.assert_allclose(metric.corruption_errors().numpy(), expected, rtol=1e-4, atol=1e-3)
    assert float(metric.compute()) == pytest.approx(expected.mean(), rel=1e-4, abs=1e-3)
    assert bool((metric.accuracies() >= 0).all() & (metric.accuracies() <= 1).all())


L, Y = torch.rand(3, 4), torch.tensor([0, 1, 3])
R = torch.rand(2, 5)
ONE_TYPE: dict[str, Any] = {"corruptions": ["fog"], "severities": [1]}
BAD_SCORES = (L[0], L[:2], L[:, :0], L[None], L > 0, L + 0j, L.numpy(), None, L.tolist())
BAD_CALLS: list[tuple[tuple[str, ...], Any]] = [
    *((("logits", "`preds`", "`probabilities`"), lambda f=f, v=v: f(v, Y)) for v in BAD_SCORES for f in (
        Calibration().update, brier_score, reliability, lambda v, y: MeanCorruptionError().update(v, y, "fog", 1),
        lambda v, y: MeanCorruptionError().forward(v, y, "fog", 1))),
    *((("`y`", "labels", "`target`"), lambda f=f, v=v: f(L, v)) for v in
      (Y[:2], Y.float(), Y > 0, Y[:, None], Y + 0j, Y.numpy(), None, [0, 1, 3]) for f in (
        Calibration().update, brier_score, reliability, lambda v, y: MeanCorruptionError().update(v, y, "fog", 1))),
    *((("labels",), lambda f=f, v=v: f(L, v)) for v in (Y + 1, Y - 1, Y - 100)
      for f in (Calibration().update, brier_score, reliability)),
    *((("`probabilities`",), lambda v=v: reliability(v, Y)) for v in (L * 3, L - 1, L + math.inf)),
    *((("`bins`",), lambda v=v: Calibration(v)) for v in (0, -1, 1.5, None, True, "3")),
    *((("`bins`",), lambda v=v: reliability(L, Y, v)) for v in (0, -1, 1.5, None, True, "3")),
    *((("`corruptions`",), lambda v=v: MeanCorruptionError(v)) for v in ([], "fog", [1], ["fog", "fog"], ["clean"], 3)),
    *((("`severities`",), lambda v=v: MeanCorruptionError(None, v))
      for v in ([], [0], [6], [1, 1], ["1"], [1.0], 3, None, [True], "12")),
    *((("`baseline`",), lambda v=v: MeanCorruptionError(baseline=v, **ONE_TYPE)) for v in (
        "alex", {}, {"fog": 0}, {"fog": 2}, {"fog": math.nan}, {"fog": "1"}, {"fog": [0.1] * 4}, 3, {"fog": None},
        {"fog": True}, [0.5])),
    *((("`relative`",), lambda v=v: MeanCorruptionError(relative=True, baseline=v,
      **ONE_TYPE)) for v in ({"fog": 0.5},)),
    *((("`name` and `severity`",), lambda v=v: MeanCorruptionError().update(L, Y, *v))
      for v in (("fig", 1), ("fog", 0), ("fog", 6), ("clean", 1), (None, 1), ("fog", None), ("fog", "1"), (["fog"],
        1))),
    *((("`errors`",), lambda v=v: mean_corruption_error(v)) for v in (R[0], R[:0], R[:, :0], R.long(), R.numpy(),
      None)),
    *((("`baseline`",), lambda v=v: mean_corruption_error(R, v))
      for v in (R[:1], R[:, :1], R * 0, R.numpy(), R.T, R - 2, R * math.nan)),
]  # fmt: skip


@fuzz(len(BAD_CALLS), 10, place=st.integers(0, len(BAD_CALLS) - 1))
def test_bad_arguments_are_refused(place: int) -> None:
    names, call = BAD_CALLS[place]
    assert outcome(call, *names) is None
    with pytest.raises((TypeError, ValueError), match=r"got|holds"):
        call()


@fuzz(150, value=st.one_of(NOT_NUMBERS, st.floats(0, 1)), dtype=st.sampled_from(FLOATS), classes=st.integers(2, 4))
def test_empty_batches_count_for_nothing(value: Any, dtype: torch.dtype, classes: int) -> None:
    none, y = torch.zeros(0, classes, dtype=dtype), torch.zeros(0, dtype=torch.int64)
    calibration = Calibration()
    calibration.update(none, y)
    found = calibration.summary()
    assert int(found.samples) == 0
    assert bool(found.ece.isnan() & found.nll.isnan() & found.accuracy.isnan())
    assert brier_score(none, y).shape == (0,)
    assert reliability(none, y).counts.sum() == 0
    error = MeanCorruptionError(**ONE_TYPE)
    assert error(none, y, "fog", 1).isnan()
    with pytest.raises(ValueError, match="nothing has been counted of fog at severity 1"):
        error.compute()
    made = outcome(lambda: MeanCorruptionError(baseline={"fog": value}, **ONE_TYPE), "`baseline`")
    assert (made is not None) == (isinstance(value, float) and 0 < value <= 1)
