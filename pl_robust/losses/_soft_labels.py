"""A teacher's answers as labels: how far from them a student is, and whether they are what they should be."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_robust._number import parse_number

Reduction: TypeAlias = Literal["batch", "batch_and_classes"]

_SUM_SLACK = 0.05  # of the log of the probabilities' sum: what rounding to bfloat16 can have done


def log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities at a temperature, in float32 at least."""
    return F.log_softmax((logits.float() if logits.dtype.itemsize < 4 else logits) / temperature, dim=1)


def divergence(logits: Tensor, log_reference: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(reference || softmax(logits / temperature)) of each sample, [B]; a loss that attacks can ascend.

    Args:
        logits: the student's, [B, K].
        log_reference: log-probabilities [B, K], at that temperature; minus infinity stands for a probability of 0.
        temperature: of the student's softmax.

    Raises:
        ValueError: if the shapes differ.
    """
    check_classes(logits, log_reference)
    log_reference = log_reference.clamp_min(torch.finfo(log_reference.dtype).min)  # no 0 * inf
    return F.kl_div(log_softmax(logits, temperature), log_reference, reduction="none", log_target=True).sum(1)


def averaged(divergences: Tensor, classes: int, reduction: Reduction) -> Tensor:
    """Mean over the batch of divergences [B], divided by the number of classes if these are averaged over as well."""
    return divergences.mean() / (classes if reduction == "batch_and_classes" else 1)


def parse_share(value: float | str, name: str) -> float:
    """Turn a weight between 0 and 1 as users write it into a float.

    Raises:
        TypeError: if it is no number.
        ValueError: if it lies outside [0, 1].
    """
    share = parse_number(value, name)
    if not 0 <= share <= 1:
        raise ValueError(f"`{name}` must be between 0 and 1, got {value!r}")
    return share


def parse_weight(value: float | str, name: str) -> float:
    """Turn a weight of at least 0 as users write it into a float.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is negative or not finite.
    """
    weight = parse_number(value, name)
    if not 0 <= weight < math.inf:
        raise ValueError(f"`{name}` must be finite and at least 0, got {value!r}")
    return weight


def parse_temperature(value: float | str) -> float:
    """Turn a temperature as users write it into a float.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is not finite and above 0.
    """
    temperature = parse_number(value, "temperature")
    if not 0 < temperature < math.inf:
        raise ValueError(f"`temperature` must be finite and above 0, got {value!r}; 1 leaves the answers as they are")
    return temperature


def check_reduction(reduction: str) -> None:
    """Refuse another reduction than there is.

    Raises:
        ValueError: naming those there are.
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"`reduction` must be one of {get_args(Reduction)}, got {reduction!r}")


def check_logits(*logits: Tensor) -> None:
    """Refuse what are no logits of one batch, also of an empty one, whose mean would be NaN.

    Raises:
        TypeError: if one is no floating-point tensor.
        ValueError: if they are not all [B, K] of one shape, with at least one sample and class.
    """
    for one in logits:
        if not isinstance(one, Tensor) or not one.is_floating_point():
            got = one.dtype if isinstance(one, Tensor) else type(one).__name__
            raise TypeError(f"the logits must be floating-point tensors [B, K], got {got}")
    shapes = [list(one.shape) for one in logits]
    if len(shapes[0]) != 2 or any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"the logits must have one shape [B, K], got {shapes}")
    if 0 in shapes[0]:
        raise ValueError(f"the logits must be [B, K] of at least one sample and one class, got {shapes[0]}")


def check_classes(logits: Tensor, teacher: Tensor) -> None:
    """Refuse a teacher that answers other samples or classes than the student, before they are broadcast.

    Raises:
        ValueError: giving both shapes.
    """
    if teacher.shape != logits.shape:
        raise ValueError(
            f"the teacher must answer as many samples with as many classes as the student, {list(logits.shape)}, "
            f"got {list(teacher.shape)}"
        )


def _can_look(tensor: Tensor) -> bool:
    """Tell whether a check may read values: on the CPU, where it waits for no device, and outside of transforms."""
    if tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is None


def check_label_shape(y: Tensor, logits: Tensor) -> None:
    """Refuse what has not one label for each sample of ``logits``.

    Raises:
        TypeError: if they are no tensor.
        ValueError: giving dtype and shape.
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"`y` must be a tensor of labels, int64 [{len(logits)}], got {type(y).__name__}")
    if y.dtype != torch.int64 or y.shape != logits.shape[:1]:
        raise ValueError(f"`y` must be labels, int64 [{len(logits)}], got {y.dtype} {list(y.shape)}")


def check_labels(y: Tensor, logits: Tensor) -> None:
    """Refuse what are no labels for the samples of ``logits``; values on the CPU only, where looking is free.

    Raises:
        TypeError: if they are no tensor.
        ValueError: giving dtype and shape, or the range.
    """
    check_label_shape(y, logits)
    # There is no label to be ignored, such as cross-entropy's -100.
    if _can_look(y) and len(y) and not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
        raise ValueError(
            f"`y` must be labels in 0..{logits.shape[1] - 1} for {logits.shape[1]} classes, "
            f"got {int(y.min())}..{int(y.max())}"
        )


def check_answers(*logits: Tensor, teacher: Tensor) -> None:
    """Check the answers that a loss compares; values on the CPU only, where looking waits for nothing.

    Args:
        logits: the student's answers, each [B, K].
        teacher: the teacher's log-probabilities, [B, K].

    Raises:
        TypeError: if an answer is no floating-point tensor.
        ValueError: for shapes that do not go together, an empty batch, or a teacher's answer that holds no
            log-probabilities.
    """
    check_logits(*logits)
    if not isinstance(teacher, Tensor) or not teacher.is_floating_point():
        got = teacher.dtype if isinstance(teacher, Tensor) else type(teacher).__name__
        raise TypeError(f"the teacher's answer must be log-probabilities, a floating-point tensor [B, K], got {got}")
    check_classes(logits[0], teacher)
    if not _can_look(teacher):
        return
    sums = teacher.detach().float().logsumexp(1)
    wrong = ~(sums.abs() <= _SUM_SLACK)  # NaN is wrong, too
    if bool(wrong.any()):
        raise ValueError(
            "the teacher's answer must be log-probabilities, neither logits nor probabilities: sum(exp(.)) over the "
            f"classes must be 1, got {sums[wrong][0].exp().item():.4g}; take log_softmax(logits / temperature, dim=1)"
        )
