from __future__ import annotations

import pytest

from pl_robust.callbacks._collapse import has_collapsed


def test_collapse_of_pgd_with_high_single_step_accuracy_is_catastrophic_overfitting() -> None:
    assert has_collapsed(0.95, 0.02, 0.40, chance=0.1, samples=512)


@pytest.mark.parametrize(
    ("single", "pgd", "best", "samples", "why"),
    [
        (0.95, 0.02, 0.12, 512, "it was never robust"),
        (0.30, 0.02, 0.40, 512, "single-step accuracy is lost too: divergence"),
        (0.60, 0.30, 0.40, 512, "most of it is left"),
        (0.60, 0.18, 0.40, 24, "so few samples may dip so far"),
        (0.95, 0.00, 0.25, 16, "so few samples may reach 0.25 by chance"),
    ],
)
def test_what_only_looks_like_it_is_not(single: float, pgd: float, best: float, samples: int, why: str) -> None:
    assert not has_collapsed(single, pgd, best, chance=0.1, samples=samples), why


def test_the_same_dip_counts_on_a_larger_probe_set() -> None:
    assert has_collapsed(0.60, 0.18, 0.40, chance=0.1, samples=512)
