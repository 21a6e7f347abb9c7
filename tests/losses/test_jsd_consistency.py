from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pl_robust.losses import jsd_consistency


def logits(views: int = 3, *, batch: int = 7, classes: int = 5, scale: float = 2.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(views)
    return list(scale * torch.randn(views, batch, classes, generator=generator, dtype=torch.float64))


def by_numpy(views: list[Tensor]) -> float:
    """The paper's formula, in float64 and in words."""
    values = np.stack([one.detach().double().numpy() for one in views])
    values = np.exp(values - values.max(-1, keepdims=True))
    p = values / values.sum(-1, keepdims=True)
    log_mixture = np.log(np.clip(p.mean(0), 1e-7, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        divergences = np.where(p > 0, p * (np.log(p) - log_mixture), 0).sum(-1)
    return float(divergences.mean())


def released(clean: Tensor, one: Tensor, two: Tensor) -> Tensor:
    """The three terms as the released code of AugMix and PRIME has them."""
    p_clean, p_one, p_two = (F.softmax(view, dim=1) for view in (clean, one, two))
    mixture = torch.clamp((p_clean + p_one + p_two) / 3.0, 1e-7, 1).log()
    terms = [F.kl_div(mixture, p, reduction="batchmean") for p in (p_clean, p_one, p_two)]
    return (terms[0] + terms[1] + terms[2]) / 3.0


@pytest.mark.parametrize("views", [2, 3, 5])
@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])  # at 300 nearly all probabilities underflow or are clamped
def test_it_is_the_mean_divergence_from_the_mixture(views: int, scale: float) -> None:
    given = logits(views, scale=scale)
    assert jsd_consistency(*given).item() == pytest.approx(by_numpy(given), rel=1e-9, abs=1e-12)
    single = [one.float() for one in given]
    assert jsd_consistency(*single).item() == pytest.approx(by_numpy(single), rel=1e-5)


def test_value_and_gradients_are_those_of_the_released_code() -> None:
    given = [view.requires_grad_() for view in logits()]
    ours, theirs = jsd_consistency(*given), released(*given)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, given), torch.autograd.grad(theirs, given))


def test_two_certain_answers() -> None:
    """JSD((1, 0), (p, 1 - p)), in pencil."""
    p = 0.2
    mixture = (1 + p) / 2
    expected = (-math.log(mixture) + p * math.log(p / mixture) + (1 - p) * math.log(2)) / 2
    sure, other = torch.tensor([[40.0, 0.0]]), torch.tensor([[p, 1 - p]]).log()
    assert jsd_consistency(sure, other).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("views", [2, 3, 4])
def test_its_range_is_from_equal_views_to_log_n(views: int) -> None:
    same = logits(1)[0]
    assert jsd_consistency(*[same] * views).item() == pytest.approx(0, abs=1e-12)
    shifted = [same + shift for shift in range(views)]  # a constant changes no answer
    assert jsd_consistency(*shifted).item() == pytest.approx(0, abs=1e-12)
    certain = [1000 * torch.eye(5)[[view] * 7] for view in range(views)]
    assert jsd_consistency(*certain).item() == pytest.approx(math.log(views), rel=1e-6)
    for scale in (0.1, 1.0, 10.0, 100.0):
        assert 0 < jsd_consistency(*logits(views, scale=scale)).item() < math.log(views)


def test_the_order_of_the_views_does_not_matter() -> None:
    given = logits()
    values = [jsd_consistency(*order).item() for order in itertools.permutations(given)]
    assert max(values) - min(values) < 1e-15


def test_gradients_are_right_and_flow_through_all_views() -> None:
    given = [view.requires_grad_() for view in logits()]
    assert torch.autograd.gradcheck(jsd_consistency, given)
    gradients = torch.autograd.grad(jsd_consistency(*given), given)
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients)


def test_gradients_are_finite_where_probabilities_underflow() -> None:
    """Where the released code, in float32, gives NaN."""
    given = [view.float().requires_grad_() for view in logits(scale=300.0)]
    assert any(bool((F.softmax(view, dim=1) == 0).any()) for view in given)
    assert not all(bool(part.isfinite().all()) for part in torch.autograd.grad(released(*given), given))
    assert all(bool(part.isfinite().all()) for part in torch.autograd.grad(jsd_consistency(*given), given))


def test_it_computes_in_float32_whatever_the_autocast() -> None:
    given = [view.float() for view in logits()]
    with torch.autocast("cpu", torch.bfloat16):
        inside = jsd_consistency(*given)
        assert torch.equal(inside, jsd_consistency(*given))
    assert inside.dtype == torch.float32
    assert torch.equal(inside, jsd_consistency(*given))
    halves = [view.bfloat16() for view in given]
    answer = jsd_consistency(*halves)
    assert answer.dtype == torch.float32
    assert answer.item() == pytest.approx(by_numpy(halves), rel=1e-5)


def test_errors_speak() -> None:
    one, two, _ = logits()
    with pytest.raises(ValueError, match="compares at least 2 views, got the logits of 1"):
        jsd_consistency(one)
    with pytest.raises(ValueError, match=r"must have one shape \[B, K\], got \[\[7, 5\], \[6, 5\]\]"):
        jsd_consistency(one, two[:6])
    with pytest.raises(ValueError, match=r"must have one shape \[B, K\], got \[\[5\], \[5\]\]"):
        jsd_consistency(one[0], two[0])
