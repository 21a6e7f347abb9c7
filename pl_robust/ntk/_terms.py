"""The operations by which parameters enter a network, and what each adds to their per-sample gradients.

Most are sums of outer products of what went into the operation with the gradient of what came out: linear layers,
convolutions (over the windows), embeddings. Biases, norms and scales are the latter gradient times a factor, summed.
Anything else has no term, and is differentiated sample by sample.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_robust.ntk._arrangement import Arrange
from pl_robust.ntk._graph import Use


class Term(ABC):
    """What one use of a parameter adds to its gradient.

    Gradients of the operation's result come in rows [R, ...], each of which belongs to one sample: of a batch of
    images R samples, of sequences R = n T tokens.

    Attributes:
        node: the operation.
        scale: the number by which the parameter is multiplied on the way there, and its gradient, too.
    """

    scale = 1.0

    def __init__(self, node: Any) -> None:
        self.node = node

    @abstractmethod
    def rows(self, gradient: Tensor) -> Tensor:
        """Bring a gradient of the operation's result to rows [R, ...]."""

    @abstractmethod
    def reduce(self, gradient: Tensor, arrange: Arrange) -> Tensor:
        """Give what is to be kept of a gradient of the operation's result, where ``arrange`` finds the rows' samples.

        The rows themselves for factors; for sums the parameter's gradients [n, P].
        """


class Outer(Term):
    r"""Outer products, :math:`\sum_t` right[r, t] left[r, t]ᵀ for each row r.

    Attributes:
        inputs: what went in, by the rows of the result [R, ...].
        left_first: whether the parameter's shape begins with the left factor's dimension.
    """

    left_first = False

    def __init__(self, node: Any, inputs: Tensor) -> None:
        super().__init__(node)
        self.inputs = inputs.detach()

    def reduce(self, gradient: Tensor, arrange: Arrange) -> Tensor:
        return self.rows(gradient)

    @abstractmethod
    def left(self, inputs: Tensor) -> Tensor:
        """Rows of the inputs [r, ...] as factors [r, G, T, K] for G groups that each have a part of the parameter."""

    @abstractmethod
    def right(self, gradients: Tensor) -> Tensor:
        """Rows of gradients [r, C, ...] for C outputs as factors [r, G, T, C, O]."""


class Product(Outer):
    """A matrix of rows times a parameter: linear layers in all their forms."""

    def __init__(self, node: Any, inputs: Tensor, transposed: bool) -> None:
        super().__init__(node, inputs)
        self.left_first = not transposed

    def rows(self, gradient: Tensor) -> Tensor:
        return gradient

    def left(self, inputs: Tensor) -> Tensor:
        return inputs[:, None, None]

    def right(self, gradients: Tensor) -> Tensor:
        return gradients[:, None, None]


class Lookup(Outer):
    """An embedding: its left factors are one-hot, and given as the indices [R, 1, 1, 1]."""

    left_first = True

    def __init__(self, node: Any, indices: Tensor, padding: int) -> None:
        super().__init__(node, indices.flatten())
        self._is_padding = self.inputs == padding

    def rows(self, gradient: Tensor) -> Tensor:
        return torch.where(self._is_padding[:, None], 0.0, gradient.flatten(0, -2))

    def left(self, inputs: Tensor) -> Tensor:
        return inputs.view(-1, 1, 1, 1)

    def right(self, gradients: Tensor) -> Tensor:
        return gradients[:, None, None]


class Convolution(Outer):
    """A convolution of any dimension, stride, dilation and number of groups; or a transposed one.

    The gradient of a transposed convolution's weight is that of a convolution which takes the result for the input.
    """

    def __init__(self, node: Any, kernel: Sequence[int]) -> None:
        super().__init__(node, node._saved_input)
        self._kernel = kernel
        self._groups: int = node._saved_groups
        self.left_first = bool(node._saved_transposed)

    def rows(self, gradient: Tensor) -> Tensor:
        return gradient

    def left(self, inputs: Tensor) -> Tensor:
        if self.left_first:
            return torch.unflatten(inputs.flatten(2), 1, (self._groups, -1)).mT
        return self._windows(inputs)

    def right(self, gradients: Tensor) -> Tensor:
        if self.left_first:
            windows = self._windows(gradients.flatten(0, 1), self.inputs.shape[2:])
            return torch.unflatten(windows, 0, gradients.shape[:2]).permute(0, 2, 3, 1, 4)
        return torch.unflatten(gradients.flatten(3), 2, (self._groups, -1)).permute(0, 2, 4, 1, 3)

    def _windows(self, images: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """The windows that the kernel meets [R, G, T, K]; so many in each dimension, or all."""
        node = self.node
        padding = [size for size in reversed(node._saved_padding) for _ in range(2)]
        images = F.pad(images, padding).contiguous() if any(padding) else images.contiguous()
        spans = [step * (size - 1) + 1 for size, step in zip(self._kernel, node._saved_dilation, strict=True)]
        if counts is None:
            sizes = zip(images.shape[2:], spans, node._saved_stride, strict=True)
            counts = [(size - span) // stride + 1 for size, span, stride in sizes]
        steps = images.stride()[2:]
        windows = images.as_strided(
            (*images.shape[:2], *self._kernel, *counts),
            (
                *images.stride()[:2],
                *(step * dilation for step, dilation in zip(steps, node._saved_dilation, strict=True)),
                *(step * stride for step, stride in zip(steps, node._saved_stride, strict=True)),
            ),
        )
        return windows.reshape(len(images), self._groups, -1, math.prod(counts)).mT


class Scale(Term):
    """A parameter that is broadcast over the result: its gradient, times a factor if there is one, summed.

    Args:
        node: the operation.
        shape: the parameter's, as it meets the result, from the last dimension on.
        factor: gives a factor that broadcasts with the result; None means 1.
    """

    def __init__(self, node: Any, shape: Sequence[int], factor: Callable[[], Tensor] | None = None) -> None:
        super().__init__(node)
        self._shape = list(shape)
        while self._shape and self._shape[0] == 1:
            del self._shape[0]
        self._make_factor = factor
        self._factor: Tensor | None = None

    def rows(self, gradient: Tensor) -> Tensor:
        if gradient.dim() == len(self._shape):
            return gradient[None]
        return gradient.flatten(0, gradient.dim() - len(self._shape) - 1)

    def reduce(self, gradient: Tensor, arrange: Arrange) -> Tensor:
        if self._make_factor is not None:
            if self._factor is None:
                self._factor = self._make_factor()
            gradient = gradient * self._factor
        rows = arrange(self.rows(gradient))
        spread = [place for place, size in enumerate(self._shape, 2) if size == 1]
        return rows.sum([1, *spread]).reshape(len(rows), -1)


class Tiles(Scale):
    """A parameter that is repeated along the first dimension of the result."""

    def __init__(self, node: Any, shape: Sequence[int], count: int) -> None:
        super().__init__(node, shape)
        self._count = count

    def rows(self, gradient: Tensor) -> Tensor:
        return super().rows(torch.unflatten(gradient, 0, (self._count, -1)))


def term_of(use: Use, parameter: Tensor) -> Term | None:
    """Find what a use adds to the gradient; None if it is of no known kind."""
    make = _KINDS.get((use.node.name(), use.position))
    if make is None:
        return None
    try:
        term = make(use, parameter)
    except (AttributeError, RuntimeError):  # another version's names; an input written over since
        return None
    if term is not None:
        term.scale = use.scale
    return term


def _addmm(use: Use, parameter: Tensor) -> Term | None:
    node = use.node
    if node._saved_alpha != 1 or node._saved_beta != 1:
        return None
    if use.position == 0:
        return None if use.transposed else Scale(node, parameter.shape)
    return Product(node, node._saved_mat1, use.transposed)


def _mm(use: Use, parameter: Tensor) -> Term:
    return Product(use.node, use.node._saved_self, use.transposed)


def _convolution(use: Use, parameter: Tensor) -> Term:
    if use.position == 1:
        return Convolution(use.node, parameter.shape[2:])
    return Scale(use.node, [len(parameter)] + [1] * len(use.node._saved_stride))


def _embedding(use: Use, parameter: Tensor) -> Term | None:
    node = use.node
    if node._saved_scale_grad_by_freq or use.transposed:
        return None
    return Lookup(node, node._saved_indices, node._saved_padding_idx)


def _batch_norm(use: Use, parameter: Tensor) -> Term | None:
    node, inputs = use.node, use.node._saved_input
    if node._saved_training:
        return None
    shape = [len(parameter)] + [1] * (inputs.dim() - 2)

    def factor() -> Tensor:
        eps = node._saved_eps if hasattr(node, "_saved_eps") else node._saved_epsilon
        scale = (node._saved_running_var + eps).rsqrt()
        normalized: Tensor = (inputs - node._saved_running_mean.view(shape)) * scale.view(shape)
        return normalized

    return Scale(node, shape, factor if use.position == 1 else None)


def _layer_norm(use: Use, parameter: Tensor) -> Term:
    inputs, mean, scale = _normalization(use.node)
    return Scale(use.node, parameter.shape, (lambda: (inputs - mean) * scale) if use.position == 1 else None)


def _group_norm(use: Use, parameter: Tensor) -> Term:
    inputs, mean, scale = _normalization(use.node)

    def factor() -> Tensor:
        groups = inputs.reshape(*mean.shape, -1)
        return ((groups - mean[..., None]) * scale[..., None]).view(inputs.shape)

    shape = [len(parameter)] + [1] * (inputs.dim() - 2)
    return Scale(use.node, shape, factor if use.position == 1 else None)


def _normalization(node: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What a layer or group norm took, and its means and reciprocal standard deviations."""
    return node._saved_input, node._saved_result1, node._saved_result2


def _sum(use: Use, parameter: Tensor) -> Term | None:
    # Of a difference, the second operand counts with the opposite sign.
    sign = -1.0 if use.node.name() == "SubBackward0" else 1.0
    weight = 1.0 if use.position == 0 else sign * use.node._saved_alpha
    if use.transposed:
        return None
    return Scale(use.node, parameter.shape, None if weight == 1 else lambda: parameter.new_tensor(weight))


def _multiplication(use: Use, parameter: Tensor) -> Term | None:
    other = use.node._saved_other if use.position == 0 else use.node._saved_self
    return None if use.transposed else Scale(use.node, parameter.shape, lambda: other)


def _expansion(use: Use, parameter: Tensor) -> Term | None:
    return None if use.transposed else Scale(use.node, parameter.shape)


def _repetition(use: Use, parameter: Tensor) -> Term | None:
    repeats = use.node._saved_repeats
    if use.transposed or any(count != 1 for count in repeats[1:]):
        return None
    return Tiles(use.node, parameter.shape, repeats[0])


_KINDS: dict[tuple[str, int], Callable[[Use, Tensor], Term | None]] = {
    ("AddmmBackward0", 0): _addmm,
    ("AddmmBackward0", 2): _addmm,
    ("MmBackward0", 1): _mm,
    ("ConvolutionBackward0", 1): _convolution,
    ("ConvolutionBackward0", 2): _convolution,
    ("EmbeddingBackward0", 0): _embedding,
    ("NativeBatchNormBackward0", 1): _batch_norm,
    ("NativeBatchNormBackward0", 2): _batch_norm,
    ("CudnnBatchNormBackward0", 1): _batch_norm,
    ("CudnnBatchNormBackward0", 2): _batch_norm,
    ("NativeLayerNormBackward0", 1): _layer_norm,
    ("NativeLayerNormBackward0", 2): _layer_norm,
    ("NativeGroupNormBackward0", 1): _group_norm,
    ("NativeGroupNormBackward0", 2): _group_norm,
    ("AddBackward0", 0): _sum,
    ("AddBackward0", 1): _sum,
    ("SubBackward0", 0): _sum,
    ("SubBackward0", 1): _sum,
    ("MulBackward0", 0): _multiplication,
    ("MulBackward0", 1): _multiplication,
    ("ExpandBackward0", 0): _expansion,
    ("RepeatBackward0", 0): _repetition,
}
"""By the name of autograd's node and the input that the parameter is."""
