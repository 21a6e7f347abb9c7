from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pl_robust.metrics import MeanCorruptionError, mean_corruption_error
from pl_robust.metrics._alexnet import ALEXNET_CLEAN_ERROR, ALEXNET_ERRORS
from pl_robust.transforms.corruption import CORRUPTIONS, EXTRA_CORRUPTIONS
from tests._processes import run_ranks

# Top-1 accuracy in percent of torchvision's ResNet-50, mean over severities, as published with "A simple way to make
# neural networks robust against diverse image corruptions" (Rusak et al. 2020), whose authors get an mCE of 76.70.
RESNET50 = {
    "gaussian_noise": 29.29,
    "shot_noise": 27.03,
    "impulse_noise": 23.81,
    "defocus_blur": 38.75,
    "glass_blur": 26.79,
    "motion_blur": 38.67,
    "zoom_blur": 36.24,
    "snow": 32.53,
    "frost": 38.14,
    "fog": 45.83,
    "brightness": 68.02,
    "contrast": 39.06,
    "elastic_transform": 45.25,
    "pixelate": 44.79,
    "jpeg_compression": 53.41,
}
RESNET50_CE = [79.77, 81.58, 82.58, 74.71, 88.61, 78.03, 79.86, 77.83, 74.84, 66.11, 56.64, 71.43, 84.75, 76.92, 76.82]


def answers(total: int, wrong: int) -> tuple[Tensor, Tensor]:
    """Classes that are right but for the first ``wrong`` ones."""
    target = torch.arange(total) % 7
    preds = target.clone()
    preds[:wrong] += 1
    return preds, target


def fill(metric: MeanCorruptionError, errors: Any, total: int, clean: float | None = None) -> MeanCorruptionError:
    """Feed a network with these error rates, [K, S], that are multiples of 1 / ``total``."""
    for name, row in zip(metric.corruptions, errors, strict=True):
        for severity, error in zip(metric.severities, row, strict=True):
            metric.update(*answers(total, round(float(error) * total)), name, severity)
    if clean is not None:
        metric.update(*answers(total, round(clean * total)), "clean", 0)
    return metric


def random_batches(seed: int) -> Iterator[tuple[Tensor, Tensor, str, int]]:
    """Logits of batches of any type and severity, and of clean images, in any order and of any size."""
    generator = torch.Generator().manual_seed(seed)
    cells = [(name, severity) for name in CORRUPTIONS for severity in range(1, 6)] * 2 + [("clean", 0)] * 3
    for index in torch.randperm(len(cells), generator=generator).tolist():
        size = int(torch.randint(1, 9, (), generator=generator))
        logits = torch.randn(size, 4, generator=generator)
        yield logits, torch.randint(4, (size,), generator=generator), *cells[index]


def oracle(batches: list[tuple[Tensor, Tensor, str, int]], baseline: Any, relative: bool) -> float:
    """The definition, in NumPy."""

    def error(name: str, severity: int) -> float:
        wrong = [np.argmax(p.numpy(), 1) != y.numpy() for p, y, n, s in batches if (n, s) == (name, severity)]
        return float(np.mean(np.concatenate(wrong)))

    ces = []
    for name in CORRUPTIONS:
        own = np.array([error(name, severity) for severity in range(1, 6)])
        theirs = np.full(5, 0.2) if baseline is None else np.array(baseline[name])
        if relative:
            own = own - error("clean", 0)
            theirs = theirs if baseline is None else theirs - baseline["clean"]
        ces.append(own.sum() / theirs.sum() * (0.2 if baseline is None else 1))
    return float(100 * np.mean(ces))


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("baseline", [None, "alexnet", "own"])
def test_it_is_what_its_definition_says(baseline: Any, relative: bool) -> None:
    rows = np.random.default_rng(1).uniform(0.5, 1, (15, 5)).tolist()
    own = {"clean": 0.4, **dict(zip(CORRUPTIONS, rows, strict=True))}
    errors: Any = {None: None, "alexnet": {"clean": 0.43478, **ALEXNET_ERRORS}, "own": own}[baseline]
    metric = MeanCorruptionError(baseline=own if baseline == "own" else baseline, relative=relative)
    batches = list(random_batches(0))
    for batch in batches:
        metric.update(*batch)
    assert float(metric.compute()) == pytest.approx(oracle(batches, errors, relative), rel=1e-5)
    assert float(metric.corruption_errors().mean()) == float(metric.compute())


def test_alexnet_gets_exactly_100_and_a_perfect_network_0() -> None:
    names = [*CORRUPTIONS, *EXTRA_CORRUPTIONS]
    assert list(ALEXNET_ERRORS) == names
    alexnet = [ALEXNET_ERRORS[name] for name in names]
    for relative in (False, True):
        metric = MeanCorruptionError(names, baseline="alexnet", relative=relative)
        exact = 100.0 if not relative else pytest.approx(100, abs=1e-3)
        assert float(fill(metric, alexnet, 50_000, ALEXNET_CLEAN_ERROR).compute()) == exact
        metric.reset()
        assert float(fill(metric, torch.zeros(19, 5), 50, None if not relative else 0.0).compute()) == 0
    some = MeanCorruptionError(("snow", "fog"), (1, 4), baseline="alexnet")
    assert float(fill(some, [[0.71726, 0.9187], [0.67474, 0.8726]], 50_000).compute()) == 100


def test_alexnets_errors_are_the_published_ones() -> None:
    from torchvision.models import AlexNet_Weights

    means = {"gaussian_noise": 0.886428, "glass_blur": 0.826268, "fog": 0.819324, "jpeg_compression": 0.6065}
    means |= {"speckle_noise": 0.845388, "gaussian_blur": 0.787108, "spatter": 0.717512, "saturate": 0.658248}
    for name, mean in means.items():
        assert np.mean(ALEXNET_ERRORS[name]) == pytest.approx(mean, abs=1e-9)
    acc = AlexNet_Weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    assert pytest.approx(1 - acc / 100) == ALEXNET_CLEAN_ERROR


def test_resnet50_gets_its_published_numbers() -> None:
    accuracies = torch.tensor(list(RESNET50.values())) / 100
    errors = (1 - accuracies)[:, None].expand(15, 5)
    metric = fill(MeanCorruptionError(baseline="alexnet"), errors, 10_000)
    assert float(metric.compute()) == pytest.approx(76.70, abs=0.01)
    assert metric.corruption_errors().tolist() == pytest.approx(RESNET50_CE, abs=0.02)
    assert float(mean_corruption_error(errors, torch.tensor([ALEXNET_ERRORS[n] for n in RESNET50]))) == pytest.approx(
        float(metric.compute())
    )
    relative = fill(MeanCorruptionError(baseline="alexnet", relative=True), errors, 10_000, clean=1 - 0.7613)
    assert float(relative.compute()) == pytest.approx(105.0, abs=0.1)  # Hendrycks & Dietterich's own


def test_without_a_baseline_it_is_the_mean_error_in_percent() -> None:
    errors = torch.tensor([[0.1, 0.2], [0.5, 0.6]])
    metric = fill(MeanCorruptionError(["fog", "my_own_noise"], (2, 5)), errors, 10, clean=0.1)
    assert float(metric.compute()) == pytest.approx(35)
    assert metric.corruption_errors().tolist() == pytest.approx([15, 55])
    torch.testing.assert_close(metric.accuracies(), 1 - errors)
    assert float(metric.clean_accuracy()) == pytest.approx(0.9)
    assert float(mean_corruption_error(errors)) == pytest.approx(35)
    losses = fill(MeanCorruptionError(["fog", "snow"], (2, 5), relative=True), errors, 10, clean=0.1)
    assert float(losses.compute()) == pytest.approx(25)


def test_one_number_of_a_baseline_is_its_mean_over_the_severities() -> None:
    as_numbers = MeanCorruptionError(["fog", "snow"], baseline={"fog": 0.5, "snow": 0.25, "frost": 1.0})
    as_rows = MeanCorruptionError(["fog", "snow"], baseline={"fog": [0.3, 0.4, 0.5, 0.6, 0.7], "snow": (0.25,) * 5})
    errors = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5], [0.0, 0.0, 0.0, 0.0, 0.5]])
    for metric in (as_numbers, as_rows):
        assert fill(metric, errors, 10).corruption_errors().tolist() == pytest.approx([60, 40])


def test_what_was_never_seen_is_named() -> None:
    metric = MeanCorruptionError(["fog", "snow"], (1, 2), relative=True)
    metric.update(*answers(4, 1), "fog", 1)
    message = (
        r"nothing has been counted of clean images \(`relative`=True\), fog at severity 2, snow at severity 1 and 1"
    )
    with pytest.raises(ValueError, match=message):
        metric.compute()
    seen = metric.accuracies()
    assert seen[0, 0] == 0.75
    assert seen.isnan().tolist() == [[False, True], [True, True]]
    assert metric.clean_accuracy().isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_logits_of_any_precision_and_classes_count_alike(dtype: torch.dtype) -> None:
    logits, y = torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 3, 1]]), torch.tensor([0, 1, 1])
    metric = MeanCorruptionError(["fog"], [1])
    metric.update(logits.to(dtype), y, "fog", 1)
    metric.update(logits.argmax(1), y.int(), "fog", 1)
    assert metric.total.tolist() == [[6]]
    assert metric.correct.tolist() == [[4]]


def test_calling_it_counts_and_gives_the_error_of_the_batch() -> None:
    metric = MeanCorruptionError(["fog"], [1, 2])
    assert float(metric(*answers(10, 3), "fog", 1)) == pytest.approx(30)
    assert float(metric(*answers(10, 1), "fog", 2)) == pytest.approx(10)
    assert float(metric.compute()) == pytest.approx(20)


def test_it_is_cloned_pickled_reset_saved_and_merged(tmp_path: Path) -> None:
    def counted(seed: int) -> MeanCorruptionError:
        metric = MeanCorruptionError(baseline="alexnet")
        for batch in random_batches(seed):
            metric.update(*batch)
        return metric

    metric, other = counted(0), counted(1)
    value = metric.compute()
    for again in (metric.clone(), copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):  # noqa: S301
        assert torch.equal(again.compute(), value)
    assert metric.state_dict() == {}  # as all of torchmetrics, unless it is asked for
    metric.persistent(True)
    torch.save(metric.state_dict(), tmp_path / "metric.pt")
    loaded = MeanCorruptionError(baseline="alexnet")
    loaded.persistent(True)
    loaded.load_state_dict(torch.load(tmp_path / "metric.pt", weights_only=True))
    assert torch.equal(loaded.accuracies(), metric.accuracies())
    assert torch.equal(loaded.clean_total, metric.clean_total)
    both = MeanCorruptionError(baseline="alexnet")
    for batch in [*random_batches(0), *random_batches(1)]:
        both.update(*batch)
    if not hasattr(metric, "merge_state"):
        pytest.skip("needs torchmetrics 1.5")
    metric.merge_state(other)
    assert torch.equal(metric.compute(), both.compute())
    metric.reset()
    assert int(metric.total.sum()) == int(metric.clean_total) == 0


def test_what_was_reset_in_inference_mode_goes_on_counting_outside() -> None:
    metric = MeanCorruptionError(["fog"], [1])
    with torch.inference_mode():
        metric.reset()
        metric.update(*answers(4, 1), "fog", 1)
        metric.update(*answers(4, 1), "clean", 0)
    metric.update(*answers(4, 2), "fog", 1)
    metric.update(*answers(4, 2), "clean", 0)
    assert metric.total.tolist() == [[8]]
    assert float(metric.clean_accuracy()) == pytest.approx(5 / 8)


def half_of_the_batches() -> tuple[list[Any], list[Any]]:
    from torch import distributed

    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    metric = MeanCorruptionError(baseline="alexnet", relative=True)
    for batch in list(random_batches(0))[rank::2]:
        metric.update(*batch)
    whole = [metric.compute(), metric.corruption_errors(), metric.accuracies(), metric.clean_accuracy()]
    return [part.tolist() for part in whole], [int(metric.total.sum()), int(metric.clean_total)]


def test_two_processes_add_up_to_one() -> None:
    alone = MeanCorruptionError(baseline="alexnet", relative=True)
    for batch in random_batches(0):
        alone.update(*batch)
    whole = [alone.compute(), alone.corruption_errors(), alone.accuracies(), alone.clean_accuracy()]
    results = run_ranks(half_of_the_batches, 2)
    for found, _ in results:
        assert found == [part.tolist() for part in whole]
    # Afterwards each rank holds its own counts again.
    counts = [sum(pair) for pair in zip(*(own for _, own in results), strict=True)]
    assert counts == [int(alone.total.sum()), int(alone.clean_total)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corruptions": []}, r"`corruptions` must hold at least one name.*got \[\]"),
        ({"corruptions": ["fog", "fog"]}, r"none of them twice.*got \['fog', 'fog'\]"),
        ({"corruptions": ["clean"]}, r"and not 'clean', got \['clean'\]"),
        ({"severities": [0, 1]}, r"`severities` must be some of 1 to 5, none of them twice, got \[0, 1\]"),
        ({"severities": []}, r"`severities` must be some of 1 to 5"),
        ({"baseline": "resnet50"}, r"`baseline` must be 'alexnet', a dict of error rates, or None, got 'resnet50'"),
        (
            {"corruptions": ["fog", "mist"], "baseline": "alexnet"},
            r"AlexNet's errors must hold every type of `corruptions`, there are gaussian_noise.*missing: mist\. Give",
        ),
        ({"corruptions": ["fog", "snow"], "baseline": {"fog": 0.5}}, r"there are fog; missing: snow"),
        ({"corruptions": ["fog"], "baseline": {"fog": 81.9}}, r"error rates in \(0, 1\], got 81.9; divide percents by"),
        ({"corruptions": ["fog"], "baseline": {"fog": [0.5] * 4}}, r"one error rate, or five for severities 1 to 5"),
        (
            {"corruptions": ["fog"], "baseline": {"fog": 0.5}, "relative": True},
            r"needs the baseline's error on clean images: `baseline\['clean'\]`",
        ),
        (
            {"corruptions": ["fog"], "baseline": {"fog": 0.5, "clean": 0.5}, "relative": True},
            r"must be worse on fog than on clean images for the relative mCE, got a mean error of 0.5 and 0.5",
        ),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeanCorruptionError(**arguments)


def test_types_of_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match=r"`corruptions` must be a list of names such as \['fog', 'snow'\], got 'fog'"):
        MeanCorruptionError("fog")
    with pytest.raises(TypeError, match=r"`severities` must be a list of integers, got \(1.5,\)"):
        MeanCorruptionError(severities=(1.5,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`baseline` must be 'alexnet', a dict of error rates, or None, got 0.5"):
        MeanCorruptionError(baseline=0.5)  # type: ignore[arg-type]


def test_batches_are_checked() -> None:
    metric = MeanCorruptionError(["fog"], [1])
    logits, y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"or of fog and \[1\], got 'snow' and 1"):
        metric.update(logits, y, "snow", 1)
    with pytest.raises(ValueError, match=r"must be 'clean' and 0, or of .*got 'clean' and 1"):
        metric.update(logits, y, "clean", 1)
    with pytest.raises(ValueError, match=r"`preds` must be scores, floating point \[4, classes\].*float32 \[3, 3\]"):
        metric.update(logits[:3], y, "fog", 1)
    with pytest.raises(ValueError, match=r"got torch.float32 \[4\]"):
        metric.update(logits[:, 0], y, "fog", 1)
    with pytest.raises(ValueError, match=r"`target` must be classes, integer \[B\], got torch.float32 \[4, 3\]"):
        metric.update(logits, logits, "fog", 1)
    assert int(metric.total.sum()) == 0


def test_scores_of_nan_count_as_wrong() -> None:
    metric = MeanCorruptionError(["fog"], [1])
    metric.update(torch.full((2, 3), torch.nan), torch.tensor([0, 1]), "fog", 1)
    assert float(metric.compute()) == 100
