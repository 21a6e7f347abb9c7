"""PRIME: mixtures of chains of a few random primitives, against common corruptions.

Modas, Rade, Ortiz-Jimenez, Moosavi-Dezfooli, Frossard, "PRIME: a few primitives can boost robustness to common
corruptions", ECCV 2022, https://arxiv.org/abs/2112.13547.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pl_robust._number import check_count
from pl_robust.transforms._primitive import BatchAugmentation, Primitive, check_images, in_float32
from pl_robust.transforms.random_diffeomorphism import RandomDiffeomorphism
from pl_robust.transforms.random_filter import RandomFilter
from pl_robust.transforms.random_smooth_color import RandomSmoothColor

_PARTS = 4
"""A primitive works on the batch's size over this many rows at a time."""


class Turn(NamedTuple):
    """A primitive's part of one step, or one of several such parts.

    Attributes:
        primitive: which of PRIME's primitives.
        rows: the chains that drew it, int64 [n]: chain c of image i is c * B + i.
        parameters: what it drew for them.
    """

    primitive: int
    rows: Tensor
    parameters: Any


class PRIMEParameters(NamedTuple):
    """What PRIME draws for a batch.

    Attributes:
        turns: in the order in which they are applied.
        weights: of the chains in the mixture, float32 [width, B], summing to 1.
        share: of the mixture in the result, float32 [B].
    """

    turns: tuple[Turn, ...]
    weights: Tensor
    share: Tensor


class PRIME(BatchAugmentation):
    r"""Augment a batch: :math:`(1 - m) x + m \sum_c w_c\, \mathrm{chain}_c(x)`.

    For each image ``width`` chains of 1 to ``depth`` steps; each step is one primitive drawn uniformly;
    :math:`w \sim \mathrm{Dirichlet}(1, \dots, 1)`, :math:`m \sim \mathrm{Beta}(1, 1)`. All parameters are drawn for
    each image, chain and step; the released code shares fields, strengths and noise levels in the batch. A step
    computes for an image only the primitive that it drew. Runs on the batch's device, in float32, without waiting for
    it: which chain takes which primitive is drawn on the CPU.

    Args:
        primitives: what the steps choose from.
        width: number of chains, 3 as published.
        depth: largest number of steps in a chain, 3 as published.

    Raises:
        TypeError: if a primitive is none; for a batch that is not floating point.
        ValueError: if there is no primitive, or a number is less than 1; for a batch that is no [B, C, H, W].
    """

    def __init__(
        self,
        primitives: tuple[Primitive, ...],  # type: ignore[type-arg]  # jsonargparse makes no Primitive[Any]
        *,
        width: int = 3,
        depth: int = 3,
    ) -> None:
        wrong = [primitive for primitive in primitives if not isinstance(primitive, Primitive)]
        if wrong:
            raise TypeError(f"`primitives` must be primitives such as RandomFilter(), got {wrong[0]!r}")
        if not primitives:
            raise ValueError("`primitives` must have at least one, such as RandomFilter(), got none")
        check_count(width, "width")
        check_count(depth, "depth")
        self.primitives = tuple(primitives)
        self.width = width
        self.depth = depth

    @classmethod
    def cifar(cls) -> PRIME:
        """Give the published setting for 32x32 images."""
        return cls((RandomDiffeomorphism(100), RandomSmoothColor(100, 0.01), RandomFilter(4.0)))

    @classmethod
    def imagenet(cls) -> PRIME:
        """Give the published setting for 224x224 images."""
        return cls((RandomDiffeomorphism(500), RandomSmoothColor(500, 0.05, band=20), RandomFilter(4.0)))

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augment a batch.

        Args:
            x: images, float [B, C, H, W] in [0, 1].
            generator: source of all randomness, on the CPU whatever the device of ``x``; None takes torch's global one.

        Returns:
            Images of the same shape, dtype, device and range, a new tensor.
        """
        check_images(x)
        with in_float32(x):
            return self.apply(x, self.draw(x.shape, device=x.device, generator=generator))

    def draw(
        self, shape: torch.Size, *, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> PRIMEParameters:
        """Draw the parameters for a batch.

        Args:
            shape: of the batch, [B, C, H, W].
            device: where the primitives' parameters are drawn.
            generator: source of all randomness, on the CPU; None takes torch's global one.
        """
        batch, chains = shape[0], self.width * shape[0]
        # On the CPU: how many rows a primitive gets must be known here, without asking an accelerator.
        lengths = torch.randint(1, self.depth + 1, (chains,), generator=generator)
        choices = torch.randint(len(self.primitives), (self.depth, chains), generator=generator)
        exponential = torch.empty(self.width, batch).exponential_(generator=generator)
        share = torch.rand(batch, generator=generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        device = torch.device(device)
        own = torch.Generator(device)
        own.manual_seed(seed)
        turns = []
        for step in range(self.depth):
            for number, primitive in enumerate(self.primitives):
                drawn = ((choices[step] == number) & (lengths > step)).nonzero().flatten()
                # In parts of the batch: what a primitive needs while it works is several times what it works on.
                for rows in torch.split(drawn, max(1, math.ceil(batch / _PARTS))) if len(drawn) else ():
                    parameters = primitive.draw(torch.Size((len(rows), *shape[1:])), device=device, generator=own)
                    turns.append(Turn(number, rows.to(device, non_blocking=True), parameters))
        # Exponential numbers over their sum are Dirichlet(1, ..., 1); Beta(1, 1) is the uniform distribution.
        weights = (exponential / exponential.sum(0)).to(device, non_blocking=True)
        return PRIMEParameters(tuple(turns), weights, share.to(device, non_blocking=True))

    def apply(self, x: Tensor, parameters: PRIMEParameters) -> Tensor:
        """Augment a batch with given parameters.

        Args:
            x: images, float [B, C, H, W] in [0, 1].
            parameters: what ``draw`` gave for a batch of this shape.
        """
        with in_float32(x):
            clean = x.float()
            chains = clean.repeat(self.width, 1, 1, 1)
            for turn in parameters.turns:
                primitive = self.primitives[turn.primitive]
                chains[turn.rows] = primitive.apply(chains[turn.rows], turn.parameters)
            share = parameters.share[:, None, None, None]
            mixed = clean * (1 - share)
            for chain, weight in zip(chains.view(self.width, *x.shape), parameters.weights, strict=True):
                mixed.addcmul_(chain, weight[:, None, None, None] * share)
            # Of what lies in [0, 1] so does the mean, but for rounding.
            return mixed.clamp_(0, 1).to(x.dtype)
