from __future__ import annotations

import copy
import math
import pickle
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from pl_robust.metrics import Calibration, brier_score, reliability
from tests._processes import run_ranks


def answers(count: int, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of all degrees of confidence, right more often than not, and labels."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (count,), generator=generator)
    scale = torch.rand(count, 1, generator=generator) * 4
    return scale * (torch.randn(count, classes, generator=generator) + F.one_hot(y, classes)), y


def oracle(logits: Tensor, y: Tensor, bins: int) -> dict[str, float]:
    """The definitions in NumPy, sample by sample."""
    scores = logits.double().numpy()
    exponentials = np.exp(scores - scores.max(1, keepdims=True))
    p = exponentials / exponentials.sum(1, keepdims=True)
    members: list[list[int]] = [[] for _ in range(bins)]
    for i in range(len(p)):
        members[max(0, math.ceil(p[i].max() * bins) - 1)].append(i)
    right = p.argmax(1) == y.numpy()
    gaps = [len(m) / len(p) * abs(right[m].mean() - p[m].max(1).mean()) for m in members if m]
    nll = -np.log(p[np.arange(len(p)), y.numpy()])
    brier = ((p - np.eye(p.shape[1])[y.numpy()]) ** 2).sum(1)
    return {"ece": sum(gaps), "nll": nll.mean(), "brier": brier.mean(), "accuracy": right.mean()}


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_what_the_definitions_say(bins: int, dtype: torch.dtype) -> None:
    logits, y = answers(700)
    logits = logits.to(dtype)
    metric = Calibration(bins)
    for part in zip(torch.split(logits, 64), torch.split(y, 64), strict=True):
        metric.update(*part)
    found = metric.summary()
    expected = oracle(logits, y, bins)
    assert 0.1 < expected["ece"] < expected["accuracy"] < 1
    assert {key: float(getattr(found, key)) for key in expected} == pytest.approx(expected, rel=1e-5)
    assert (int(found.samples), int(found.undefined)) == (700, 0)
    assert float(metric.compute()) == float(found.ece)
    diagram = reliability(logits.softmax(1), y, bins)
    assert float(diagram.ece) == pytest.approx(expected["ece"], rel=1e-5)
    assert diagram.counts.tolist() == found.reliability.counts.tolist()
    torch.testing.assert_close(diagram.confidence, found.reliability.confidence, equal_nan=True)
    assert float(brier_score(logits.softmax(1), y).mean()) == pytest.approx(expected["brier"], rel=1e-5)
    # On no border of a bin both conventions agree.
    theirs = multiclass_calibration_error(logits.softmax(1), y, 5, bins)
    assert float(found.ece) == pytest.approx(float(theirs), rel=1e-5)


def confident(p: float, right: int, wrong: int) -> tuple[Tensor, Tensor]:
    """Logits of two classes that give class 0 the probability p, and so many labels 0 and 1."""
    logits = torch.tensor([[math.log(p / (1 - p)), 0.0]], dtype=torch.float64).repeat(right + wrong, 1)
    return logits, torch.tensor([0] * right + [1] * wrong)


def test_a_calibrated_network_has_no_error_and_an_overconfident_one_its_excess() -> None:
    metric = Calibration()
    for p, right in ((0.57, 57), (0.7, 70), (0.9, 90)):
        metric.update(*confident(p, right, 100 - right))
    found = metric.summary()
    assert float(found.ece) == pytest.approx(0, abs=1e-12)
    entropy = [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.57, 0.7, 0.9)]
    assert float(found.nll) == pytest.approx(np.mean(entropy))
    assert float(found.brier) == pytest.approx(np.mean([2 * p * (1 - p) for p in (0.57, 0.7, 0.9)]))
    metric.reset()
    metric.update(*confident(0.95, 5, 5))
    found = metric.summary()
    assert float(found.ece) == pytest.approx(0.45)
    assert float(found.nll) == pytest.approx(-(math.log(0.95) + math.log(0.05)) / 2)
    assert float(found.brier) == pytest.approx(0.05**2 + 0.95**2)
    assert found.reliability.counts.tolist() == [0] * 14 + [10]
    assert float(found.reliability.accuracy[14]) == 0.5
    assert found.reliability.accuracy[:14].isnan().all()


def test_who_knows_nothing_gets_log_k() -> None:
    metric = Calibration()
    metric.update(torch.zeros(8, 4), torch.tensor([0, 1, 2, 3] * 2))
    found = metric.summary()
    assert float(found.nll) == pytest.approx(math.log(4))
    assert float(found.brier) == pytest.approx(0.75)
    assert float(found.ece) == 0


def test_bins_are_closed_on_the_right_and_certainty_has_none_of_its_own() -> None:
    p = torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.751, 0.249], [1.0, 0.0], [0.9999, 0.0001]])
    y = torch.tensor([0, 0, 1, 0, 1])
    found = reliability(p, y, 4)
    assert found.counts.tolist() == [0, 1, 1, 3]
    assert found.accuracy[1:].tolist() == [1, 1, pytest.approx(1 / 3)]
    assert float(found.confidence[3]) == pytest.approx((0.751 + 1 + 0.9999) / 3)
    assert torch.equal(reliability(p.half(), y, 4).counts, found.counts)
    empty = reliability(p[:0], y[:0], 4)
    assert empty.counts.tolist() == [0] * 4
    assert empty.ece.isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_taken_to_float32_before_the_softmax(dtype: torch.dtype) -> None:
    logits, y = answers(300)
    metric, expected = Calibration(), Calibration()
    metric.update(logits.to(dtype), y)
    expected.update(logits.to(dtype).float(), y.int())
    assert torch.equal(metric.sums, expected.sums)
    assert torch.equal(metric.table, expected.table)


def test_certain_and_impossible_classes_are_no_trouble() -> None:
    logits, y = answers(100)
    masked = torch.cat([logits, torch.full((100, 1), -torch.inf)], dim=1)
    metric, expected = Calibration(), Calibration()
    metric.update(masked, y)
    expected.update(logits, y)
    torch.testing.assert_close(metric.sums, expected.sums)
    metric.reset()
    metric.update(1e4 * F.one_hot(y, 5).float(), y)
    found = metric.summary()
    assert [float(value) for value in found[:4]] == [0, 0, 0, 1]
    metric.update(masked, torch.full_like(y, 5))
    assert float(metric.summary().nll) == math.inf
    assert float(metric.summary().accuracy) == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_has_no_probabilities_is_counted_and_spoils_the_means(value: float) -> None:
    logits, y = answers(50)
    logits[[3, 7], 2] = value
    metric = Calibration()
    metric.update(logits, y)
    found = metric.summary()
    assert (int(found.samples), int(found.undefined), int(found.reliability.counts.sum())) == (50, 2, 48)
    assert all(math.isnan(float(mean)) for mean in found[:3])
    rest = torch.ones(50, dtype=torch.bool)
    rest[[3, 7]] = False
    assert float(found.accuracy) == pytest.approx(float((logits.argmax(1) == y)[rest].sum()) / 50)
    assert float(found.reliability.ece) == pytest.approx(oracle(logits[rest], y[rest], 15)["ece"], rel=1e-5)


def test_it_is_cloned_pickled_merged_and_goes_on_after_inference_mode() -> None:
    first, second, both = Calibration(), Calibration(), Calibration()
    with torch.inference_mode():
        both.reset()
        both.update(*answers(40))
    both.update(*answers(30, seed=1))
    first.update(*answers(40))
    second.update(*answers(30, seed=1))
    value = first.compute()
    for again in (first.clone(), copy.deepcopy(first), pickle.loads(pickle.dumps(first))):  # noqa: S301
        assert torch.equal(again.compute(), value)
    if not hasattr(first, "merge_state"):
        pytest.skip("needs torchmetrics 1.5")
    first.merge_state(second)
    assert float(first.compute()) == pytest.approx(float(both.compute())) != float(value)


def test_devices_without_float64_get_along_with_float32() -> None:
    metric, expected = Calibration().set_dtype(torch.float32), Calibration()
    assert isinstance(metric, Calibration)
    for _ in range(2):
        metric.reset()
        metric.update(*answers(500))
    expected.update(*answers(500))
    assert metric.sums.dtype == metric.table.dtype == torch.float32
    assert float(metric.compute()) == pytest.approx(float(expected.compute()), rel=1e-4)
    assert metric.summary().samples == 500


def own_share(counts: list[int]) -> tuple[list[float], list[int]]:
    from torch import distributed

    distributed.init_process_group("gloo")
    logits, y = answers(90)
    metric = Calibration()
    own = slice(*((0, counts[0]) if distributed.get_rank() == 0 else (counts[0], 90)))
    if counts[distributed.get_rank()]:
        metric.update(logits[own], y[own])
    found = metric.summary()
    return [float(value) for value in (metric.compute(), *found[:6])], found.reliability.counts.tolist()


@pytest.mark.parametrize("counts", [[60, 30], [90, 0]])
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric Calibration was called before")
def test_two_processes_add_up_to_one_also_if_one_has_seen_nothing(counts: list[int]) -> None:
    alone = Calibration()
    alone.update(*answers(90))
    whole = [float(value) for value in (alone.compute(), *alone.summary()[:6])]
    for found, bins in run_ranks(own_share, 2, counts):
        assert found == pytest.approx(whole, rel=1e-12)
        assert bins == alone.summary().reliability.counts.tolist()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p, y: Calibration(0), ValueError, r"`bins` must be at least 1, got 0"),
        (lambda p, y: reliability(p, y, cast(Any, 1.5)), TypeError, r"`bins` must be an integer, got 1.5"),
        (lambda p, y: reliability(4 * p, y), ValueError, r"must lie in \[0, 1\].*of logits take logits.softmax\(1\)"),
        (lambda p, y: reliability(p, y + 1), ValueError, r"labels must lie in 0..4 for 5 classes, got 1..5"),
        (
            lambda p, y: brier_score(p, F.one_hot(y)),
            ValueError,
            r"\[B, classes\] and `y` \[B\], got \[9, 5\] and \[9, 5",
        ),
        (lambda p, y: brier_score(p, y.float()), TypeError, r"`y` must be integer class labels, got torch.float32"),
        (lambda p, y: Calibration().update(p, y - 1), ValueError, r"labels must lie in 0..4 for 5 classes, got -1..3"),
        (
            lambda p, y: Calibration().update(p[:, :1], y),
            ValueError,
            r"got \[9, 1\], as a binary .*models.BinaryLogits",
        ),
        (lambda p, y: Calibration().update(p[:, 0], y), ValueError, r"got \[9\], as a binary network gives"),
        (
            lambda p, y: Calibration().update(p[:4], y),
            ValueError,
            r"must be \[B, classes\] and `y` \[B\], got \[4, 5\]",
        ),
        (
            lambda p, y: Calibration().update(p.long(), y),
            TypeError,
            r"`logits` must be of floating point, got torch.int",
        ),
        (lambda p, y: Calibration().update(cast(Any, [p]), y), TypeError, r"`logits` must be a tensor, got list"),
    ],
)
def test_arguments_are_checked(call: Any, error: Any, message: str) -> None:
    y = torch.arange(9) % 5
    with pytest.raises(error, match=message):
        call(torch.eye(5)[y] * 0.6 + 0.08, y)
