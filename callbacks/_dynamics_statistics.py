"""What a sample's training history says about it: confidence, variability, when it was learned, how often forgotten.

Toneva, Sordoni, Tachet des Combes, Trischler, Bengio, Gordon, "An empirical study of example forgetting during deep
neural network learning", ICLR 2019, https://arxiv.org/abs/1812.05159. Swayamdipta, Schwartz, Lourie, Wang, Hajishirzi,
Smith, Choi, "Dataset cartography", EMNLP 2020, https://arxiv.org/abs/2009.10795.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

UNSEEN = -1
"""Correctness of a sample that was not looked at; else it is 0 or 1."""

_STATE = ("looks", "confidence", "_squares", "right", "first_learned", "forgetting", "is_right")


class SampleStatistics:
    """The history of N samples, added up look by look in O(N) memory.

    A look is one epoch's; an epoch in which a sample was not looked at leaves it as it is. What is not yet known of a
    sample without any look is NaN, or -1.

    Args:
        samples: N.

    Attributes:
        looks: number of looks, int32 [N].
        confidence: mean probability of the label over the looks, float64 [N] (Swayamdipta et al., section 2).
        right: number of looks at which the answer was right, int32 [N].
        first_learned: epoch of the first look at which it was right, int32 [N]; -1: never.
        forgetting: number of forgetting events, right at one look and wrong at the next, int32 [N] (Toneva et al.,
            section 3). A sample that was never right has none; ``ranking`` puts it on top, as the paper does.
        is_right: at the last look, int8 [N]: 1, 0, or -1 without a look.
    """

    def __init__(self, samples: int) -> None:
        self.looks = np.zeros(samples, np.int32)
        self.confidence = np.full(samples, np.nan)
        self._squares = np.zeros(samples)  # of the deviations from the mean
        self.right = np.zeros(samples, np.int32)
        self.first_learned = np.full(samples, -1, np.int32)
        self.forgetting = np.zeros(samples, np.int32)
        self.is_right = np.full(samples, UNSEEN, np.int8)

    def __len__(self) -> int:
        return len(self.looks)

    def update(self, epoch: int, confidence: NDArray[Any], correct: NDArray[Any]) -> None:
        """Add a look.

        Args:
            epoch: its epoch.
            confidence: probability of each label, [N]; of samples not looked at it is not read.
            correct: 1 right, 0 wrong, -1 not looked at, [N].
        """
        seen = correct != UNSEEN
        right = correct == 1
        self.looks += seen
        mean = np.where(self.looks == 1, 0.0, self.confidence)  # Welford's recursion; of one look it starts at zero
        deviation = np.where(seen, confidence - mean, 0.0)
        mean = mean + deviation / np.maximum(self.looks, 1)
        self._squares += np.where(seen, deviation * (confidence - mean), 0.0)
        self.confidence = np.where(seen, mean, self.confidence)
        self.right += right
        self.first_learned[right & (self.first_learned < 0)] = epoch
        self.forgetting += seen & ~right & (self.is_right == 1)
        self.is_right[seen] = correct[seen]

    @property
    def variability(self) -> NDArray[np.float64]:
        """Standard deviation of the label's probability over the looks, dividing by their number, [N]."""
        return np.sqrt(np.where(self.looks > 0, self._squares, np.nan) / np.maximum(self.looks, 1))

    @property
    def correctness(self) -> NDArray[np.float64]:
        """Share of the looks at which the answer was right, [N]."""
        return np.where(self.looks > 0, self.right, np.nan) / np.maximum(self.looks, 1)

    @property
    def never_learned(self) -> NDArray[np.bool_]:
        """Samples that were looked at and never right, bool [N]."""
        never: NDArray[np.bool_] = (self.looks > 0) & (self.first_learned < 0)
        return never

    @property
    def unforgettable(self) -> NDArray[np.bool_]:
        """Samples that were learned and never forgotten, bool [N] (Toneva et al., section 3)."""
        kept: NDArray[np.bool_] = (self.first_learned >= 0) & (self.forgetting == 0)
        return kept

    def ranking(self) -> NDArray[np.int64]:
        """Samples that were looked at, those first that a network has to memorize if it is to fit them at all.

        By forgetting events, of which a sample that was never learned counts as having infinitely many (Toneva et al.,
        section 4); among equals the later learned, then the less confident first. Mislabelled samples come to stand at
        the top of this order, and the best part of the data set can be dropped from its bottom (their figures 3 and 5).
        """
        events = np.where(self.never_learned, np.inf, self.forgetting)
        order = np.lexsort((self.confidence, -self.first_learned, -events))
        return order[self.looks[order] > 0]

    def summary(self) -> dict[str, float]:
        """Means over the samples that were looked at: forgetting events, and the share that was right at least once."""
        seen = max(1, int((self.looks > 0).sum()))
        return {
            "forgetting": int(self.forgetting.sum()) / seen,
            "learned": int((self.first_learned >= 0).sum()) / seen,
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as tensors."""
        return {name: torch.from_numpy(getattr(self, name).copy()) for name in _STATE}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> SampleStatistics:
        """Undo ``state_dict``."""
        statistics = cls(0)
        for name in _STATE:
            setattr(statistics, name, state[name].cpu().numpy().copy())
        return statistics


def sample_statistics(epochs: Sequence[int], confidence: NDArray[Any], correct: NDArray[Any]) -> SampleStatistics:
    """Sum up whole histories.

    Args:
        epochs: the epochs of the E looks, rising.
        confidence: probability of each label at each look, [E, N].
        correct: 1 right, 0 wrong, -1 not looked at, [E, N].
    """
    statistics = SampleStatistics(confidence.shape[1])
    for epoch, *row in zip(epochs, confidence, correct, strict=True):
        statistics.update(int(epoch), *row)
    return statistics
