"""What every attack is: an object that holds its parameters and maps (model, x, y) to x_adv."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pl_robust.attacks._target import BatchNormMode, Loss, Model, Normalization, check_choices
from pl_robust.attacks._threat_model import Norm, Radius, ThreatModel, parse_radius


class Attack(ABC):
    """Base class of the attacks, and the type under which configurations name them.

    Args:
        eps: radius of the ball in input units: 8/255 for images in [0, 1], ``"8/255"`` in YAML, or one number per
            channel [C] (linf only).
        norm: ``"linf"`` or ``"l2"``.
        bounds: lowest and highest valid input value; None for data that may leave [0, 1].
        normalization: (mean, std) per channel of data that was normalized before it reaches the model; eps, step sizes
            and bounds then still speak of images before normalization.
        loss: (logits [B, K], labels [B]) -> losses [B], or a scalar; None means cross-entropy.
        batch_norm: how batch-norm layers in training mode behave during the attack's forwards. ``"train"``: batch
            statistics, running statistics updated (the FGSM, N-FGSM and CO papers' code); ``"eval"``: running
            statistics; ``"batch_stats"``: batch statistics, running statistics untouched. Layers in eval mode are never
            changed.

    Inputs in half precision are perturbed in float32 and rounded back: bfloat16 then leaves the ball by up to 0.002,
    half of its spacing next to 1.

    Raises:
        ValueError: at construction, for a value that is not allowed.
        TypeError: at construction, for an eps of another type.
    """

    def __init__(
        self,
        eps: Radius,
        *,
        norm: Norm = "linf",
        bounds: tuple[float, float] | None = (0.0, 1.0),
        normalization: Normalization | None = None,
        loss: Loss | None = None,
        batch_norm: BatchNormMode = "train",
    ) -> None:
        self.eps = parse_radius(eps, "eps")
        ThreatModel(self.eps, norm, bounds)
        check_choices(normalization, batch_norm)
        self.norm = norm
        self.bounds = bounds
        self.normalization = normalization
        self.loss = loss
        self.batch_norm = batch_norm
        self._has_checked = False

    def __call__(self, model: Model, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Perturb a batch.

        Works under ``no_grad`` and inference mode, moves no parameter's ``.grad``, and computes no weight gradient.
        Values (NaN, range, labels) are checked on every batch on the CPU, on the first batch elsewhere, where a check
        waits for the device.

        Args:
            model: callable that gives logits [B, K]; in DDP the bare module, not the wrapper.
            x: clean inputs, floating point [B, ...], images [B, C, H, W].
            y: labels, int64 [B].
            generator: source of the random starts, on the device of ``x``; None takes torch's global one.

        Returns:
            Perturbed inputs: shape, dtype and device of ``x``, detached.

        Raises:
            TypeError: for a wrong dtype.
            ValueError: for wrong shapes, NaN, values outside the bounds, or labels out of range.
        """
        check = not self._has_checked or x.device.type == "cpu"
        x_adv = self._perturb(model, x, y, generator, check)
        self._has_checked = True
        return x_adv

    @abstractmethod
    def _perturb(
        self, model: Model, x: Tensor, y: Tensor, generator: torch.Generator | None, check: bool
    ) -> Tensor: ...

    def for_evaluation(self) -> Attack:
        """Give the attack as evaluations run it: at least as strong, and no work on samples that are already lost."""
        return self

    def __repr__(self) -> str:
        shown = {name: value for name, value in vars(self).items() if not name.startswith("_") and value is not None}
        # Functions by name: their address differs from run to run, and detectors are told apart by this text.
        texts = {name: getattr(value, "__qualname__", None) or repr(value) for name, value in shown.items()}
        return f"{type(self).__name__}({', '.join(f'{name}={text}' for name, text in texts.items())})"
