"""What every attack is: an object that holds its parameters and maps (model, x, y) to x_adv."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pl_robust._number import check_finite
from pl_robust.attacks._target import BatchNormMode, Loss, Model, Normalization, Target, check_choices, under_attack
from pl_robust.attacks._threat_model import Norm, Radius, ThreatModel, parse_radius


class Attack(ABC):
    """Base class of the attacks, and the type under which configurations name them.

    Args:
        eps: radius of the ball in input units: 8/255 for images in [0, 1], ``"8/255"`` in YAML, or one number per
            channel [C] (linf only).
        norm: ``"linf"`` or ``"l2"``.
        step_size: length of a step in input units, as ``eps``; None leaves it to the attack.
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
        step_size: Radius | None = None,
        norm: Norm = "linf",
        bounds: tuple[float, float] | None = (0.0, 1.0),
        normalization: Normalization | None = None,
        loss: Loss | None = None,
        batch_norm: BatchNormMode = "train",
    ) -> None:
        self.eps = parse_radius(eps, "eps")
        ThreatModel(self.eps, norm, bounds)
        check_choices(normalization, batch_norm)
        self.step_size = None if step_size is None else parse_radius(step_size, "step_size")
        self.norm = norm
        self.bounds = bounds
        self.normalization = normalization
        self.loss = loss
        self.batch_norm = batch_norm
        # Shared by copies: what was checked on the first batch need not be checked again after a change of eps.
        self._checked_on: set[str] = set()

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        *,
        loss: Loss | None = None,
        targets: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Perturb a batch.

        Works under ``no_grad`` and inference mode, moves no parameter's ``.grad``, and computes no weight gradient.
        Values (NaN, range, labels) are checked on every batch on the CPU, on the first batch elsewhere, where a check
        waits for the device.

        Args:
            model: callable that gives logits [B, K]; in DDP the bare module, not the wrapper.
            x: clean inputs, floating point [B, ...], images [B, C, H, W].
            y: labels, int64 [B].
            loss: what to ascend in this call, instead of the attack's own loss.
            targets: what ``loss`` compares the logits with instead of labels: soft labels [B, K], for example. A sample
                still counts as fooled when its logits disagree with ``y``.
            generator: source of the random starts, on the device of ``x``; None takes torch's global one.

        Returns:
            Perturbed inputs: shape, dtype and device of ``x``, detached.

        Raises:
            TypeError: for a wrong dtype.
            ValueError: for wrong shapes, NaN, values outside the bounds, or labels out of range.
        """
        with self._aim(model, x, y, loss, targets) as target:
            return target.to_input(self._perturb(target, generator))

    def with_start_gradient(
        self, model: Model, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Perturb a batch, and give the gradient that the attack took first, at its start, at no further cost.

        Args:
            model: as in a call.
            x: as in a call.
            y: as in a call.
            generator: as in a call.

        Returns:
            Perturbed inputs as in a call; and the gradient of each sample's loss in input units, float32 or float64 in
            the shape of ``x``, detached, or None from an attack that takes none here, or has a ``__call__`` of its own.

        Raises:
            TypeError: as in a call.
            ValueError: as in a call.
        """
        if type(self).__call__ is not Attack.__call__:  # a subclass that goes its own way
            return self(model, x, y, generator=generator), None
        with self._aim(model, x, y, None, None) as target:
            return target.to_input(self._perturb(target, generator)), target.start_gradient

    @contextmanager
    def _aim(self, model: Model, x: Tensor, y: Tensor, loss: Loss | None, targets: Tensor | None) -> Iterator[Target]:
        """Put the batch under attack, checked as described at ``__call__``."""
        with under_attack(
            model,
            x,
            y,
            bounds=self.bounds,
            loss=self.loss if loss is None else loss,
            targets=targets,
            normalization=self.normalization,
            batch_norm=self.batch_norm,
            check=not isinstance(x, Tensor) or x.device.type == "cpu" or x.device.type not in self._checked_on,
        ) as target:
            yield target
        self._checked_on.add(x.device.type)

    @abstractmethod
    def _perturb(self, target: Target, generator: torch.Generator | None) -> Tensor:
        """Give the perturbed images of ``target`` in input units, [B, ...] in its dtype."""

    @property
    def ball(self) -> ThreatModel:
        """The eps-ball and the box."""
        return ThreatModel(self.eps, self.norm, self.bounds)

    def scaled(self, factor: float) -> Attack:
        """Give the same attack with eps, and a step size if one was set, multiplied by ``factor``.

        Raises:
            TypeError: if ``factor`` is no number.
            ValueError: if ``factor`` is negative or not finite, or makes eps larger than the box.
        """
        if check_finite(factor, "factor") < 0:
            raise ValueError(f"`factor` must be finite and at least 0, got {factor!r}")
        attack = copy.copy(self)
        attack.eps = self.eps * factor
        if attack.step_size is not None:
            attack.step_size = attack.step_size * factor
        _ = attack.ball  # checked when it is made
        return attack

    def for_evaluation(self) -> Attack:
        """Give the attack as evaluations run it: at least as strong, and no work on samples that are already lost."""
        return self

    def __repr__(self) -> str:
        shown = {name: value for name, value in vars(self).items() if not name.startswith("_") and value is not None}
        # Functions by name: their address differs from run to run, and detectors are told apart by this text.
        texts = {name: getattr(value, "__qualname__", None) or repr(value) for name, value in shown.items()}
        return f"{type(self).__name__}({', '.join(f'{name}={text}' for name, text in texts.items())})"
