from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from pl_robust.transforms._sample_random import SampleRandom

KNOWN = [
    [463808496, 1190243356, -2044046045],
    [263957003, -1993322892, -1241778518],
    [-1535967618, 1431103868, -1748858494],
]


def test_row_depends_on_its_seed_only() -> None:
    seeds = torch.tensor([5, -3, 2**40 + 1, 5])
    full, part = SampleRandom(seeds, 2), SampleRandom(seeds[[2, 0]], 2)
    for draw in ("uniform", "normal", "uniform"):
        whole = getattr(full, draw)(3, 7)
        assert torch.equal(getattr(part, draw)(3, 7), whole[[2, 0]])
        assert torch.equal(whole[0], whole[3])
        assert not torch.equal(whole[0], whole[1])


def test_draws_streams_and_both_words_of_the_seed_differ() -> None:
    def one(seed: int, stream: int, draws: int) -> bytes:
        random = SampleRandom(torch.tensor([seed]), stream)
        for _ in range(draws - 1):
            random.uniform(8)
        return random.uniform(8).numpy().tobytes()

    cases = [(s, t, d) for s in (0, 1, 2**32, 2**32 + 1, -1, 2**63 - 1) for t in (0, 1, 2) for d in (1, 2)]
    assert len({one(*case) for case in cases}) == len(cases)


def test_known_words_stay_what_they_are() -> None:
    # Stored corruptions could not be made again if these moved.
    words = SampleRandom(torch.tensor([0, 1, 123456789]), 0)._words(3)
    assert words.tolist() == KNOWN


@pytest.mark.parametrize("seeds", [range(64), [n << 32 for n in range(64)], [n * 977 for n in range(64)]])
def test_distributions(seeds: list[int]) -> None:
    random = SampleRandom(torch.tensor(list(seeds)), 1)
    uniform = random.uniform(4096).double()
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(random.normal(4095).flatten().double().numpy(), "norm").pvalue > 1e-3
    numbers = random.integers(-2, 5, 4096).flatten().numpy()
    counts = np.bincount(numbers + 2, minlength=7)
    assert len(counts) == 7
    assert stats.chisquare(counts).pvalue > 1e-3
    # Neighbours in a row, and rows of neighbouring seeds, shifted or not, know nothing of each other.
    noise = (uniform - 0.5) * 12**0.5
    lags = torch.stack(
        [(noise[:, lag:] * noise[:, : 4096 - lag]).sum() / (64 * (4096 - lag)) ** 0.5 for lag in (1, 2, 3, 32)]
    )
    assert lags.abs().max() < 4.5
    spectrum = torch.fft.fft(noise)
    crossed = torch.fft.ifft(spectrum[1:] * spectrum[:-1].conj()).real / 4096**0.5
    assert crossed.abs().max() < 6.5  # 258,048 normal numbers; a shifted copy would give 64
    # Every bit is set half of the time.
    words = random._words(4096).flatten().numpy().view(np.uint32)
    shares = [((words >> bit) & 1).mean() for bit in range(32)]
    assert np.abs(np.array(shares) - 0.5).max() < 4.5 * 0.5 / len(words) ** 0.5


def test_one_bit_of_the_seed_turns_half_of_the_bits() -> None:
    base = SampleRandom(torch.tensor([12345]), 0)._words(4096).numpy().view(np.uint32)
    for bit in range(63):
        other = SampleRandom(torch.tensor([12345 ^ (1 << bit)]), 0)._words(4096).numpy().view(np.uint32)
        turned = np.bitwise_count(base ^ other).mean() if hasattr(np, "bitwise_count") else _popcount(base ^ other)
        assert turned == pytest.approx(16, abs=0.3)


def _popcount(words: np.ndarray) -> float:
    return float(np.unpackbits(words.view(np.uint8)).sum() / words.size)


def test_no_pair_of_rows_shares_bits() -> None:
    """A mixing that is too light shows in rare pairs only."""
    size, rows = 2**13, 700
    words = (SampleRandom(torch.arange(rows), 7).uniform(size) * 2**24).int()
    bounds, count = 5 * size**0.5, 0
    for bit in range(1, 24, 3):
        signs = ((words >> bit) & 1).float() * 2 - 1
        shared = torch.triu(signs @ signs.T, 1).abs()
        assert float(shared.max()) < 6.5 * size**0.5
        count += int((shared > bounds).sum())
    assert count <= 8  # 1.1 are expected
