from __future__ import annotations

from importlib import import_module

import pytest

from tests.fuzz import counts

ROOMS = ("attacks", "losses", "metrics", "ntk", "transforms")


@pytest.mark.slow
def test_the_slow_tier_tries_more_than_ten_thousand_examples(capsys: pytest.CaptureFixture[str]) -> None:
    modules = [import_module(f"tests.{room}.test_fuzz_{room}").__name__ for room in ROOMS]
    total = sum(many for name, many in counts.items() if name.startswith(tuple(modules)))
    with capsys.disabled():
        print(f"\n{total} examples of {len(counts)} properties")
    assert total >= 10_000
