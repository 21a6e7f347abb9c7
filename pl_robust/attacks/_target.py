"""The model under attack: forward and input gradient in input units, with everything else left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from pl_robust._grad_mode import autograd_on
from pl_robust.attacks._threat_model import per_channel

Model: TypeAlias = Callable[[Tensor], Tensor]
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Normalization: TypeAlias = tuple[Sequence[float], Sequence[float]]
BatchNormMode: TypeAlias = Literal["train", "eval", "batch_stats"]


class Target:
    """A model and a batch under attack, in input units: images as they were before ``normalization``.

    Made by ``under_attack`` only, which sets the modes that it relies on.

    Attributes:
        x: clean inputs in input units, at least float32, [B, ...].
        y: labels, int64 [B].
        start_gradient: what the first call of ``gradient`` gave, the gradient at the attack's start; None before it.
    """

    def __init__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        *,
        loss: Loss | None,
        targets: Tensor | None,
        normalization: Normalization | None,
        check: bool,
    ) -> None:
        # Clones, because tensors made in inference mode cannot enter autograd.
        self.y = (y.clone() if y.is_inference() else y).long()
        self.start_gradient: Tensor | None = None
        self._input = x.clone() if x.is_inference() else x.detach()
        self._model = model
        self._loss = loss
        self._targets = None if targets is None else (targets.clone() if targets.is_inference() else targets.detach())
        self._check_labels = check
        self._check_range = check and x.dtype == torch.float16  # the others hold what float32 does
        self._shift: float | Tensor = 0.0
        self._scale: float | Tensor = 1.0
        # The perturbation is kept in float32 at least: 8/255 is two steps of bfloat16 at 1.
        self.x = self._input.to(torch.promote_types(x.dtype, torch.float32))
        self._normalized = normalization is not None
        if normalization is not None:
            self._shift = per_channel(torch.as_tensor(normalization[0], dtype=self.x.dtype), x, "normalization")
            self._scale = per_channel(torch.as_tensor(normalization[1], dtype=self.x.dtype), x, "normalization")
            self.x = self.x * self._scale + self._shift

    def to_input(self, x_adv: Tensor) -> Tensor:
        """Bring images in input units to what the model takes: its normalization and dtype.

        Raises:
            ValueError: if float16 cannot hold them.
        """
        if self._normalized:
            x_adv = (x_adv - self._shift) / self._scale
        given = x_adv.to(self._input.dtype)
        if self._check_range and bool(given.isinf().any()):
            raise ValueError(
                f"`eps` or the step takes `x` to {float(x_adv.detach().abs().max()):.4g}, beyond the "
                f"{torch.finfo(torch.float16).max:g} that float16 holds: give `bounds`, or inputs in float32"
            )
        return given

    def evaluate(self, x_adv: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits [n, classes] and losses ([n], or [] from a loss that reduces) at ``x_adv``, the images of ``rows``."""
        y = self.y if rows is None else self.y[rows]
        logits = self._model(self.to_input(x_adv))
        if self._check_labels:
            _check_logits(logits, y)
            self._check_labels = False
        if self._loss is None:
            return logits, F.cross_entropy(logits.float() if logits.dtype.itemsize < 4 else logits, y, reduction="none")
        targets = y if self._targets is None else self._targets if rows is None else self._targets[rows]
        losses = self._loss(logits, targets)
        if losses.shape not in ((), y.shape):
            raise ValueError(
                f"`loss` must give one value per sample, [{len(y)}], or a scalar, got {list(losses.shape)}"
            )
        return logits, losses

    def gradient(
        self, x_adv: Tensor, rows: Tensor | None = None, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of the summed loss with respect to ``x_adv`` alone, logits and losses there.

        All detached; ``create_graph=True`` leaves all of them in the graph, to be differentiated once more.
        """
        x_adv = x_adv.detach().requires_grad_()
        logits, losses = self.evaluate(x_adv, rows)
        if not losses.requires_grad:
            raise ValueError(
                "the model's output does not depend on its input through autograd: a gradient attack cannot work on a "
                "model that detaches, rounds or runs under no_grad inside"
            )
        # The sum, not the mean: a sample's gradient must not shrink with the batch (float16 would lose it).
        (gradient,) = torch.autograd.grad(losses.sum(), x_adv, create_graph=create_graph)
        if self.start_gradient is None:
            self.start_gradient = gradient.detach()
        return (gradient, logits, losses) if create_graph else (gradient, logits.detach(), losses.detach())


@contextmanager
def under_attack(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    bounds: tuple[float, float] | None,
    loss: Loss | None,
    normalization: Normalization | None,
    batch_norm: BatchNormMode,
    check: bool,
    targets: Tensor | None = None,
) -> Iterator[Target]:
    """Put a batch under attack, also inside ``no_grad`` and inference mode.

    ``targets`` [B, ...], if given, is what ``loss`` compares the logits with instead of the labels. ``check=False``
    skips the checks that read values, which on an accelerator wait for it; shapes and dtypes are always checked.

    Raises:
        TypeError: if ``x`` or ``y`` has another dtype, or ``batch_norm`` needs an nn.Module and got another callable.
        ValueError: if ``targets`` come without a ``loss``, shapes do not fit, values are NaN, infinite or outside the
            bounds, or labels are out of range.
    """
    _check_shapes(x, y)
    if targets is not None and (loss is None or len(targets) != len(y)):
        raise ValueError(
            f"`targets` must come with a `loss` that takes them, one for each of the {len(y)} samples, "
            f"got shape {list(targets.shape)} and loss={loss!r}"
        )
    with autograd_on(), batch_norm_mode(model, batch_norm):
        target = Target(model, x, y, loss=loss, targets=targets, normalization=normalization, check=check)
        if check:
            _check_values(target.x, x.dtype, bounds)
        yield target


@contextmanager
def batch_norm_mode(model: Model, mode: BatchNormMode) -> Iterator[None]:
    """Set how the batch-norm layers in training mode behave; layers in eval mode stay as they are."""
    if mode == "train":
        yield
        return
    if not isinstance(model, nn.Module):
        raise TypeError(f"`batch_norm`={mode!r} needs a model that is an nn.Module, got {type(model).__name__}")
    flag = "training" if mode == "eval" else "track_running_stats"
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]
    layers = [layer for layer in layers if getattr(layer, flag)]
    try:
        for layer in layers:
            setattr(layer, flag, False)
        yield
    finally:
        for layer in layers:
            setattr(layer, flag, True)


def check_choices(normalization: Normalization | None, batch_norm: str) -> None:
    """Check the arguments that every attack passes on to the target.

    Raises:
        ValueError: naming the argument, what is allowed, and what came.
    """
    if batch_norm not in get_args(BatchNormMode):
        raise ValueError(f"`batch_norm` must be one of {get_args(BatchNormMode)}, got {batch_norm!r}")
    if normalization is None:
        return
    try:
        mean, std = (torch.as_tensor(part, dtype=torch.float32) for part in normalization)
        is_good = (
            mean.dim() == std.dim() == 1
            and len(mean) == len(std) > 0
            and bool(((std > 0) & std.isfinite() & mean.isfinite()).all())
        )
    except (TypeError, ValueError):
        is_good = False
    if not is_good:
        raise ValueError(
            "`normalization` must be (mean, std), each one number per channel, of equal length, finite, with std > 0, "
            f"got {normalization!r}"
        )


def _check_shapes(x: Tensor, y: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"`x` must be a floating-point tensor, images in [0, 1], got {got}; divide uint8 images by 255")
    if x.dim() < 2:
        raise ValueError(f"`x` must be a batch [B, ...], images [B, C, H, W], got shape {list(x.shape)}")
    if not isinstance(y, Tensor) or y.dtype.is_floating_point or y.dtype.is_complex or y.dtype == torch.bool:
        raise TypeError(
            f"`y` must be integer class labels, got {y.dtype if isinstance(y, Tensor) else type(y).__name__}"
        )
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"`y` must be labels of shape [{len(x)}] for `x` of shape {list(x.shape)}, got {list(y.shape)}"
        )


def _check_values(x: Tensor, dtype: torch.dtype, bounds: tuple[float, float] | None) -> None:
    if x.numel() == 0:
        return
    finite = x.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        raise ValueError(f"`x` holds NaN or infinite values in samples {(~finite).nonzero().flatten()[:5].tolist()}")
    if bounds is None:
        return
    low, high = x.min().item(), x.max().item()
    slack = 4 * torch.finfo(dtype).eps * max(1.0, *(abs(bound) for bound in bounds))  # what rounding can have done
    if low < bounds[0] - slack or high > bounds[1] + slack:
        raise ValueError(
            f"`x` must lie in bounds={tuple(bounds)}, got values from {low:.4g} to {high:.4g}: pass "
            "`normalization=(mean, std)` if the data was normalized, wider `bounds`, or `bounds=None` for no box"
        )


def _check_logits(logits: Tensor, y: Tensor) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(y):
        got = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the model must give logits [{len(y)}, classes], got {got}")
    if y.numel() and not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
        raise ValueError(
            f"labels must lie in 0..{logits.shape[1] - 1} for a model of {logits.shape[1]} classes, "
            f"got {int(y.min())}..{int(y.max())}"
        )
