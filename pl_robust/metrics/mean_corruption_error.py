"""How well a classifier stands common corruptions, in one number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from pl_robust.metrics._baseline import CLEAN, Baseline, read_baseline, read_clean
from pl_robust.transforms.corruption import CORRUPTIONS


def corruption_errors(errors: Tensor, baseline: Tensor | None = None) -> Tensor:
    """Corruption error (CE) of each type, in percent.

    The errors of all severities, added up, over those of the baseline; without a baseline their mean.

    Args:
        errors: error rates in [0, 1], one row per type, one column per severity, [K, S].
        baseline: those of the network to compare with, [K, S].

    Returns:
        [K]; 100 means as bad as the baseline, or, without one, always wrong.
    """
    return 100 * (errors.mean(1) if baseline is None else errors.sum(1) / baseline.sum(1))


def mean_corruption_error(errors: Tensor, baseline: Tensor | None = None) -> Tensor:
    """Mean corruption error (mCE): the mean of the types' corruption errors, in percent.

    With AlexNet's errors as the baseline it is ImageNet-C's mCE (Hendrycks & Dietterich, "Benchmarking Neural Network
    Robustness to Common Corruptions and Perturbations", ICLR 2019, https://arxiv.org/abs/1903.12261); without one it
    is the mean error, which papers on CIFAR-10-C call mCE. For the relative mCE take the clean errors of both networks
    from the arguments first.

    Args:
        errors: error rates in [0, 1], one row per type, one column per severity, [K, S].
        baseline: those of the network to compare with, [K, S].

    Returns:
        [], in percent.

    Raises:
        TypeError: if an argument is no floating-point tensor.
        ValueError: if they are not of one shape [K, S] with at least one type and severity, or a type's errors of the
            baseline do not sum to more than 0.

    Example:
        >>> errors, baseline = torch.tensor([[0.2, 0.4]]), torch.tensor([[0.5, 0.7]])  # one type, two severities
        >>> mean_corruption_error(errors, baseline)
        tensor(50.)
    """
    _check_rates(errors, "errors")
    if baseline is not None:
        _check_rates(baseline, "baseline")
        if baseline.shape != errors.shape:
            raise ValueError(
                f"`baseline` must have the shape of `errors`, {list(errors.shape)}, got {list(baseline.shape)}"
            )
        if not bool((baseline.sum(1) > 0).all()):
            raise ValueError(
                "`baseline` must hold errors of each type that sum to more than 0, to divide by, got sums "
                f"{baseline.sum(1).tolist()}"
            )
    return corruption_errors(errors, baseline).mean()


class MeanCorruptionError(Metric):
    """Mean corruption error (mCE) in percent, as a torchmetrics metric.

    ``update(preds, target, name, severity)`` counts a batch of one corruption type and severity, ``compute()`` gives
    ``mean_corruption_error`` over the types; ``accuracies``, ``clean_accuracy`` and ``corruption_errors`` give what
    stands in the usual tables. What is counted are integers, which add up over ranks: any split of the images gives the
    same result. It can be logged from a LightningModule like any metric, with ``on_epoch=True``.

    Args:
        corruptions: the types; None means the 15 of the benchmark (``CORRUPTIONS``).
        severities: the severities, of 1 to 5.
        baseline: what the errors are divided by: ``"alexnet"``, as ImageNet-C asks for, which knows the 15 types and
            the 4 extra ones; or your own: name of a type -> its error rates in (0, 1] at severities 1 to 5, or one
            number, their mean over the severities asked for (and ``"clean"`` for the relative mCE). None divides by
            nothing, as usual for CIFAR-10-C: mCE is then the mean error.
        relative: take the clean error from all errors, the baseline's from the baseline's: how much of the accuracy is
            lost, rather than how much there is. Needs clean images too: ``update(preds, target, "clean", 0)``.

    Attributes:
        corruptions: names of the types, the rows of what the methods give.
        severities: the columns.
        relative: as given.

    Raises:
        ValueError: at construction, if an argument is not as described; in ``update``, for a type or severity that was
            not asked for, or shapes that do not fit; in ``compute``, if one was asked for and never seen.
        TypeError: for a value of another type.
    """

    is_differentiable: bool = False
    higher_is_better: bool = False
    full_state_update: bool = False
    plot_lower_bound: float = 0.0

    correct: Tensor
    total: Tensor
    clean_correct: Tensor
    clean_total: Tensor

    def __init__(
        self,
        corruptions: Sequence[str] | None = None,
        severities: Sequence[int] = (1, 2, 3, 4, 5),
        *,
        baseline: Baseline | None = None,
        relative: bool = False,
    ) -> None:
        super().__init__(compute_with_cache=False)  # a cached value would outlive `merge_state` and `load_state_dict`
        self.corruptions = tuple(CORRUPTIONS) if corruptions is None else check_corruptions(corruptions)
        self.severities = check_severities(severities)
        self.relative = relative
        self._baseline = None if baseline is None else read_baseline(baseline, self.corruptions, self.severities)
        self._clean_baseline = 0.0
        if relative and baseline is not None:
            self._clean_baseline = read_clean(baseline)
            self._check_degradation()
        counts = torch.zeros(len(self.corruptions), len(self.severities), dtype=torch.long)
        for name in ("correct", "total"):
            self.add_state(name, counts.clone(), dist_reduce_fx="sum")
            self.add_state(f"clean_{name}", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, name: str, severity: int) -> None:
        """Count a batch.

        Args:
            preds: logits or probabilities, floating point [B, classes], or classes, integer [B]. A sample with NaN
                counts as wrong.
            target: true classes, integer [B].
            name: the batch's corruption type, or ``"clean"``.
            severity: its severity, 0 for clean images.
        """
        correct = _count_correct(preds, target)
        # New tensors: the old ones may have been made in inference mode, which cannot be written into outside of it.
        if name == CLEAN and severity == 0:
            self.clean_correct = self.clean_correct + correct
            self.clean_total = self.clean_total + len(target)
            return
        if name not in self.corruptions or severity not in self.severities:
            raise ValueError(
                f"`name` and `severity` must be {CLEAN!r} and 0, or of {', '.join(self.corruptions)} and "
                f"{list(self.severities)}, got {name!r} and {severity!r}"
            )
        cell = self.corruptions.index(name), self.severities.index(severity)
        self.correct, self.total = self.correct.clone(), self.total.clone()
        self.correct[cell] += correct
        self.total[cell] += len(target)

    def forward(self, preds: Tensor, target: Tensor, name: str, severity: int) -> Tensor:
        """Count a batch, and give its own error in percent: a single batch has no mCE.

        Args:
            preds: as in ``update``.
            target: likewise.
            name: likewise.
            severity: likewise.
        """
        self.update(preds, target, name, severity)
        error = 100 * (1 - _count_correct(preds, target) / len(target))
        self._forward_cache = error  # type: ignore[assignment]  # torchmetrics declares it as None
        return error

    def compute(self) -> Tensor:
        """Give the mCE in percent, []. Every rank must call it, and the other methods, too."""
        return self._corruption_errors().mean()

    def corruption_errors(self) -> Tensor:
        """Give the corruption error of each type in percent, [K]: ``compute`` before the mean."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute):
            return self._corruption_errors()

    def accuracies(self) -> Tensor:
        """Give the accuracy in [0, 1] at each type and severity, [K, S]; NaN where nothing has been counted."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute):
            return self.correct / self.total

    def clean_accuracy(self) -> Tensor:
        """Give the accuracy in [0, 1] without corruption, []; NaN if nothing has been counted."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute):
            return self.clean_correct / self.clean_total

    def _corruption_errors(self) -> Tensor:
        missing = [
            f"{self.corruptions[row]} at severity {self.severities[column]}"
            for row, column in (self.total == 0).nonzero().tolist()
        ]
        if self.relative and not self.clean_total:
            missing.insert(0, "clean images (`relative`=True)")
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise ValueError(
                f"nothing has been counted of {', '.join(missing[:3])}{more}, which mCE was asked to hold: update with "
                "it, or leave it out of `corruptions` and `severities`"
            )
        errors = (self.total - self.correct) / self.total
        if self.relative:
            errors = errors - (self.clean_total - self.clean_correct) / self.clean_total
        if self._baseline is None:
            return corruption_errors(errors)
        baseline = torch.tensor(self._baseline, dtype=errors.dtype, device=errors.device)
        return corruption_errors(errors, baseline - self._clean_baseline)

    def _check_degradation(self) -> None:
        for name, row in zip(self.corruptions, self._baseline or (), strict=True):
            if sum(row) <= len(row) * self._clean_baseline:
                raise ValueError(
                    f"`baseline` must be worse on {name} than on clean images for the relative mCE, got a mean error "
                    f"of {sum(row) / len(row):.4g} and {self._clean_baseline:.4g}"
                )


def _check_rates(rates: Tensor, name: str) -> None:
    if not isinstance(rates, Tensor) or not rates.is_floating_point():
        got = rates.dtype if isinstance(rates, Tensor) else type(rates).__name__
        raise TypeError(f"`{name}` must be error rates, a floating-point tensor [K, S], got {got}")
    if rates.dim() != 2 or rates.numel() == 0:
        raise ValueError(
            f"`{name}` must be error rates [K, S] of at least one type and severity, got {list(rates.shape)}"
        )


def check_corruptions(corruptions: Sequence[str]) -> tuple[str, ...]:
    """Refuse what is no list of different corruption types, and give it as a tuple.

    Raises:
        TypeError: if it is no sequence of names.
        ValueError: if it is empty, holds a name twice, or ``"clean"``.
    """
    is_list = isinstance(corruptions, Sequence) and not isinstance(corruptions, str)
    if not is_list or not all(isinstance(name, str) for name in corruptions):
        raise TypeError(f"`corruptions` must be a list of names such as ['fog', 'snow'], got {corruptions!r}")
    names = tuple(corruptions)
    if not names or len(set(names)) < len(names) or CLEAN in names:
        raise ValueError(
            f"`corruptions` must hold at least one name, none of them twice, and not {CLEAN!r}, got {list(names)}"
        )
    return names


def check_severities(severities: Sequence[int]) -> tuple[int, ...]:
    """Refuse what is no list of different severities, and give it as a tuple.

    Raises:
        TypeError: if it is no sequence of integers.
        ValueError: if it is empty, or holds one twice or one outside 1 to 5.
    """
    if not isinstance(severities, Sequence) or any(isinstance(s, bool) or not isinstance(s, int) for s in severities):
        raise TypeError(f"`severities` must be a list of integers, got {severities!r}")
    if not severities or len(set(severities)) < len(severities) or not set(severities) <= {1, 2, 3, 4, 5}:
        raise ValueError(f"`severities` must be some of 1 to 5, none of them twice, got {list(severities)}")
    return tuple(severities)


def _count_correct(preds: Tensor, target: Tensor) -> Tensor:
    for tensor, name in ((preds, "preds"), (target, "target")):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"`{name}` must be a tensor, got {type(tensor).__name__}")
    if target.dim() != 1 or target.dtype.is_floating_point or target.dtype.is_complex or target.dtype == torch.bool:
        raise ValueError(f"`target` must be classes, integer [B], got {target.dtype} {list(target.shape)}")
    is_scores = preds.dtype.is_floating_point
    is_number = preds.dtype != torch.bool and not preds.dtype.is_complex
    if not is_number or preds.dim() != 1 + is_scores or len(preds) != len(target) or 0 in preds.shape[1:]:
        raise ValueError(
            f"`preds` must be scores, floating point [{len(target)}, classes], or classes, integer [{len(target)}], "
            f"for `target` of shape {list(target.shape)}, got {preds.dtype} {list(preds.shape)}"
        )
    if not is_scores:
        return (preds == target).sum()
    # Scores with NaN are no answer; argmax would take the NaN for the largest.
    return ((preds.argmax(1) == target) & ~preds.isnan().any(1)).sum()
