"""How far a classifier's confidence can be trusted: reliability diagram, ECE, log-likelihood and Brier score."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from pl_robust._number import check_count

_SLACK = 1e-3  # what half precision does to a probability


class Reliability(NamedTuple):
    """What a reliability diagram shows, for each bin of confidence ((m - 1) / M, m / M], m = 1 … M.

    Attributes:
        counts: number of samples, int64 [M].
        confidence: mean confidence of the samples, [M]; NaN in empty bins.
        accuracy: share of right answers among them, [M]; NaN in empty bins.
    """

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def ece(self) -> Tensor:
        """Expected calibration error: the mean over samples of their bin's |accuracy - confidence|, []."""
        gaps = torch.where(self.counts > 0, (self.accuracy - self.confidence).abs(), 0)
        return (gaps * self.counts).sum() / self.counts.sum()


class CalibrationSummary(NamedTuple):
    """What ``Calibration`` has found.

    Attributes:
        ece: expected calibration error, [], in [0, 1].
        nll: mean negative log-likelihood of the labels, [], in nats.
        brier: mean Brier score, [], in [0, 2].
        accuracy: share of right answers, [].
        samples: number of samples, int64 [].
        undefined: number of those whose logits give no probabilities (NaN, +inf), int64 []. They count as wrong, stand
            in no bin, and make ``ece``, ``nll`` and ``brier`` NaN.
        reliability: the bins.
    """

    ece: Tensor
    nll: Tensor
    brier: Tensor
    accuracy: Tensor
    samples: Tensor
    undefined: Tensor
    reliability: Reliability


def reliability(probabilities: Tensor, y: Tensor, bins: int = 15) -> Reliability:
    """Sort answers into bins of equal width by their confidence, the largest probability.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2: bins are open on the left and closed
    on the right. (``torchmetrics`` has them the other way round, and puts confidences of exactly 1 into one more bin.)

    Args:
        probabilities: floating point [N, K], in [0, 1], half precision is taken to float32.
        y: labels, integer [N].
        bins: number of bins M.

    Returns:
        Counts, mean confidences and accuracies, in float64 (on MPS devices float32); samples with NaN are left out.

    Raises:
        ValueError: for shapes or values that are not allowed.
        TypeError: for another type.
    """
    check_count(bins, "bins")
    _check_shapes(probabilities, y, "probabilities")
    _check_labels(y, probabilities.shape[1])
    outside = (probabilities < -_SLACK) | (probabilities > 1 + _SLACK)
    if bool(outside.any()):
        raise ValueError(
            f"`probabilities` must lie in [0, 1], got values from {probabilities.min().item():.4g} to "
            f"{probabilities.max().item():.4g}: of logits take logits.softmax(1)"
        )
    dtype = torch.float32 if probabilities.device.type == "mps" else torch.float64
    return _diagram(_sort(_at_least_float32(probabilities), y, bins, dtype))


def brier_score(probabilities: Tensor, y: Tensor) -> Tensor:
    r"""Brier score of each sample, :math:`\sum_k (p_k - 1[k = y])^2` (Brier 1950), between 0 and 2.

    Some halve it, or divide it by the number of classes.

    Args:
        probabilities: floating point [B, K].
        y: labels, integer [B].

    Returns:
        [B], of the probabilities' dtype, at least float32.

    Raises:
        ValueError: for shapes or labels that do not fit.
        TypeError: for another type.
    """
    _check_shapes(probabilities, y, "probabilities")
    _check_labels(y, probabilities.shape[1])
    return _brier(_at_least_float32(probabilities), y)


class Calibration(Metric):
    """ECE, negative log-likelihood and Brier score of a classifier, as one torchmetrics metric.

    ``update(logits, y)`` takes a batch into account, ``compute()`` gives the ECE, ``summary()`` all of it, the
    reliability diagram too. It keeps sums, not samples: memory does not grow with the data, ranks add up, also those
    that have seen nothing. Logits of half precision are taken to float32 before the softmax.

    Args:
        bins: number of bins of confidence, see ``reliability``.

    Raises:
        ValueError: at construction, for less than one bin; in ``update``, for shapes, or labels out of range (looked at
            in every batch on the CPU, elsewhere, where it waits for the device, in the first after a reset).
        TypeError: for another type.
    """

    is_differentiable: bool = False
    higher_is_better: bool = False
    full_state_update: bool = False
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0

    table: Tensor
    sums: Tensor

    def __init__(self, bins: int = 15) -> None:
        super().__init__(compute_with_cache=False)  # a cached value would outlive `merge_state` and `load_state_dict`
        check_count(bins, "bins")
        self.bins = bins
        # Float64 holds counts exactly, too. Count, confidences and right answers of each bin:
        self.add_state("table", torch.zeros(bins, 3, dtype=torch.float64), dist_reduce_fx="sum")
        # Samples, undefined ones, right answers, negative log-likelihoods, Brier scores:
        self.add_state("sums", torch.zeros(5, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, y: Tensor) -> None:
        """Take a batch into account.

        Args:
            logits: floating point [B, K]; or log-probabilities, which are logits, too.
            y: labels, integer [B].
        """
        _check_shapes(logits, y, "logits")
        if logits.device.type == "cpu" or self.update_count <= 1:
            _check_labels(y, logits.shape[1])
        y, dtype = y.long(), self.sums.dtype
        logits = _at_least_float32(logits)
        probabilities = logits.softmax(1)
        defined = probabilities.isfinite().all(1)
        right = (logits.argmax(1) == y) & defined
        parts = [
            torch.ones_like(y),
            ~defined,
            right,
            F.cross_entropy(logits, y, reduction="none"),
            _brier(probabilities, y),
        ]
        # New tensors: the old ones may have been made in inference mode, which cannot be written into outside of it.
        self.sums = self.sums + torch.stack([part.to(dtype).sum() for part in parts])
        self.table = self.table + _sort(probabilities, y, self.bins, dtype)

    def compute(self) -> Tensor:
        """Give the ECE, []. Every rank must call it, and ``summary``, too."""
        return self._summary().ece

    def summary(self) -> CalibrationSummary:
        """Give all that has been found; NaN before the first sample."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute):
            return self._summary()

    def _summary(self) -> CalibrationSummary:
        samples, undefined, right, nll, brier = self.sums.unbind()
        diagram = _diagram(self.table)
        ece = torch.where(undefined > 0, torch.nan, diagram.ece)
        return CalibrationSummary(
            ece, nll / samples, brier / samples, right / samples, samples.long(), undefined.long(), diagram
        )


def _at_least_float32(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _sort(probabilities: Tensor, y: Tensor, bins: int, dtype: torch.dtype) -> Tensor:
    """Count, confidences and right answers of each bin, added up, [bins, 3]."""
    confidence, answer = probabilities.max(1)
    values = torch.stack([torch.ones_like(confidence), confidence, (answer == y).to(confidence)], dim=1).to(dtype)
    edges = torch.linspace(0, 1, bins + 1, dtype=dtype, device=confidence.device)
    index = torch.bucketize(values[:, 1].contiguous(), edges[1:-1])
    # A sum over all, not a scatter: on a GPU its order is fixed. NaN is in no bin.
    members = (index[:, None] == torch.arange(bins, device=index.device)) & ~confidence.isnan()[:, None]
    return torch.where(members[:, :, None], values[:, None, :], 0).sum(0)


def _diagram(table: Tensor) -> Reliability:
    count, confidence, right = table.unbind(1)
    return Reliability(count.long(), confidence / count, right / count)


def _brier(probabilities: Tensor, y: Tensor) -> Tensor:
    labels = torch.arange(probabilities.shape[1], device=y.device) == y[:, None]
    return (probabilities - labels.to(probabilities)).square().sum(1)


def _check_shapes(scores: Tensor, y: Tensor, name: str) -> None:
    for tensor, argument in ((scores, name), (y, "y")):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"`{argument}` must be a tensor, got {type(tensor).__name__}")
    if y.dtype.is_floating_point or y.dtype.is_complex or y.dtype == torch.bool:
        raise TypeError(f"`y` must be integer class labels, got {y.dtype}")
    if not scores.dtype.is_floating_point:
        raise TypeError(f"`{name}` must be of floating point, got {scores.dtype}")
    shape = list(scores.shape)
    if shape[1:] == [1] or (len(shape) == 1 and scores.shape == y.shape):
        raise ValueError(
            f"`{name}` must be [{len(scores)}, classes] of at least 2 classes, got {shape}, as a binary network gives "
            "them: wrap it in pl_robust.models.BinaryLogits, which makes two of one"
        )
    if len(shape) != 2 or y.dim() != 1 or len(scores) != len(y) or shape[1] == 0:
        raise ValueError(f"`{name}` must be [B, classes] and `y` [B], got {shape} and {list(y.shape)}")


def _check_labels(y: Tensor, classes: int) -> None:
    if y.numel() and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(
            f"labels must lie in 0..{classes - 1} for {classes} classes, got {int(y.min())}..{int(y.max())}"
        )
