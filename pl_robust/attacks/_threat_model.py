"""What an attacker may do: a norm ball around the clean image, cut by the box of valid images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from pl_robust._number import parse_number

Norm: TypeAlias = Literal["linf", "l2"]
Radius: TypeAlias = float | str | Sequence[float | str] | Tensor
"""A length in input units: 8/255 or "8/255", or one of these per channel (linf only)."""

_NORM_FLOOR = 1e-12  # below it a gradient counts as zero, as in the N-FGSM code


def parse_radius(value: Radius, name: str) -> float | Tensor:
    """Turn an eps or step size as users write it into a float, or a float32 tensor [C] for one number per channel.

    Raises:
        TypeError: if it is no number, fraction or sequence of numbers.
        ValueError: if it is negative, not finite, or empty.
    """
    if isinstance(value, Tensor) and value.dim() == 0:
        value = float(value)
    if isinstance(value, str | Real):
        number = parse_number(value, name)
        if not 0 <= number < float("inf"):
            raise ValueError(f"`{name}` must be finite and at least 0, in input units (8/255, not 8), got {value!r}")
        return number
    if not isinstance(value, Tensor | Sequence):
        raise TypeError(
            f"`{name}` must be a number, a fraction such as '8/255' or one number per channel, got {value!r}"
        )
    channels = torch.as_tensor(
        value if isinstance(value, Tensor) else [parse_number(part, name) for part in value], dtype=torch.float32
    ).detach()
    if channels.dim() != 1 or channels.numel() == 0:
        raise ValueError(f"`{name}` per channel must have the shape [C], got {list(channels.shape)}")
    if not bool(((channels >= 0) & channels.isfinite()).all()):
        raise ValueError(f"`{name}` must be finite and at least 0 in every channel, got {channels.tolist()}")
    return channels


def per_channel(values: float | Tensor, x: Tensor, name: str) -> float | Tensor:
    """Shape numbers per channel for broadcasting with ``x`` [B, C, ...]; a float stays one."""
    if not isinstance(values, Tensor):
        return values
    if values.numel() != x.shape[1]:
        raise ValueError(f"`{name}` has {values.numel()} channels, the input {list(x.shape)} has {x.shape[1]}")
    return values.to(x).view(1, -1, *[1] * (x.dim() - 2))


@dataclass(frozen=True)
class ThreatModel:
    """An eps-ball cut by a box.

    Args:
        eps: radius in input units, as ``parse_radius`` gives it.
        norm: ``"linf"`` or ``"l2"`` (over all entries of a sample).
        bounds: lowest and highest valid input value, or None for data that may take any value.

    Raises:
        ValueError: if an argument is not among the allowed ones.
    """

    eps: float | Tensor
    norm: Norm
    bounds: tuple[float, float] | None

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ValueError(f"`norm` must be one of {get_args(Norm)}, got {self.norm!r}")
        if self.bounds is not None and not (
            isinstance(self.bounds, Sequence)
            and len(self.bounds) == 2
            and all(isinstance(bound, Real) for bound in self.bounds)
            and self.bounds[0] < self.bounds[1]
        ):
            raise ValueError(f"`bounds` must be (low, high) with low < high, or None for no box, got {self.bounds!r}")
        largest = self.eps.max() if isinstance(self.eps, Tensor) else self.eps
        if self.norm == "linf" and self.bounds is not None and largest > (self.bounds[1] - self.bounds[0]) * (1 + 1e-6):
            raise ValueError(
                f"`eps` is in input units, 8/255 and not 8: it must not be larger than the width of "
                f"bounds={self.bounds!r}, got {float(largest):g}"
            )
        if self.norm == "l2" and isinstance(self.eps, Tensor):
            raise ValueError("`eps` per channel goes with norm='linf' only; norm='l2' takes one number")

    def random(self, x: Tensor, *, scale: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw a perturbation, uniform in the ball of radius ``scale * eps``; shape and dtype of ``x``, box ignored."""
        if self.norm == "linf":
            noise = _empty(x).uniform_(-1, 1, generator=generator)
            return noise * (scale * per_channel(self.eps, x, "eps"))
        direction = _empty(x).normal_(generator=generator)
        radius = x.new_empty(len(x)).uniform_(generator=generator)
        radius = radius ** (1 / max(1, x[0].numel() if len(x) else 1)) * scale * self.eps
        return direction * _per_sample(radius / _l2(direction), x)

    def ascend(self, x: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """Take one step of length ``step_size`` up the gradient, steepest in this norm; box and ball ignored."""
        if self.norm == "linf":
            return x + per_channel(step_size, x, "step_size or eps") * gradient.sign()
        return x + step_size * (gradient / _per_sample(_l2(gradient), x))

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Bring ``x_adv`` back into the ball around ``x``, then into the box."""
        delta = x_adv - x
        if self.norm == "l2":
            delta = delta * _per_sample((self.eps / _l2(delta)).clamp(max=1.0), x)
        elif isinstance(self.eps, Tensor):
            radius = torch.as_tensor(per_channel(self.eps, x, "eps"))
            delta = torch.clamp(delta, -radius, radius)
        else:
            delta = delta.clamp(-self.eps, self.eps)
        return self.clip(x + delta)

    def clip(self, x: Tensor) -> Tensor:
        """Clip to the box of valid inputs."""
        return x if self.bounds is None else x.clamp(*self.bounds)


def _empty(x: Tensor) -> Tensor:
    # Always contiguous: the same numbers shall go to the same pixels in every memory format.
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _l2(values: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return lengths.clamp_min(_NORM_FLOOR)


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 1))
