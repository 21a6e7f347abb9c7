"""What one forward and a backward for each output leave behind of some samples: all that their kernel needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce as fold
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from pl_robust.ntk._arrangement import Arrange, draw_scales, find_arrangement
from pl_robust.ntk._factors import Factors, merged
from pl_robust.ntk._graph import find_uses, refuse_hidden_uses
from pl_robust.ntk._model import outputs_of
from pl_robust.ntk._per_sample import per_sample_gradients
from pl_robust.ntk._readout import Readout, mixture
from pl_robust.ntk._terms import Outer, Term, term_of

_BLOCK = 2**22  # bytes that fit into a processor's cache


@dataclass
class Record:
    """Gradients of some samples in all parameters, in the form that is the cheapest to multiply.

    Attributes:
        count: number n of samples.
        readout: what gave the C values.
        dtype: of the gradients.
        device: where they are.
        parts: for each parameter that matters the gradients [n, C, P], or their factors.
        gradient_bytes: memory of what one backward gave.
    """

    count: int
    readout: Readout
    dtype: torch.dtype
    device: torch.device
    parts: dict[str, Tensor | Factors] = field(default_factory=dict)
    gradient_bytes: int = 0

    @property
    def nbytes(self) -> int:
        """Memory of the gradients."""
        own = (part.right if isinstance(part, Factors) else part for part in self.parts.values())
        return self.shared_bytes + sum(map(_bytes, own))

    @property
    def shared_bytes(self) -> int:
        """Of this, what does not depend on the number of values."""
        return sum(_bytes(part.left) for part in self.parts.values() if isinstance(part, Factors))


def make_record(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    readout: Readout,
    x: Tensor,
    *,
    partners: int,
) -> Record:
    """Differentiate a model's outputs at some samples: a backward for each value, and one or two to find the samples.

    Args:
        model: the network, inside ``derivatives`` and no_grad.
        parameters: those that span the kernel.
        readout: gives C values of the outputs.
        x: inputs [n, ...].
        partners: the number of samples that each of them will meet.

    Raises:
        ValueError: if the values do not depend on the parameters through autograd.
    """
    with torch.enable_grad():
        values = readout(outputs_of(model, x.clone()))  # which some models write into
        if values.grad_fn is None:
            raise ValueError(
                "the values of `outputs` do not depend on the model's trainable parameters through autograd: the "
                "function detaches or rounds"
            )
        backward = _Backward(values, readout, parameters)
    dtype = torch.promote_types(values.dtype, torch.float32)
    record = Record(len(x), readout, dtype, x.device, gradient_bytes=backward.gradient_bytes)
    for name, gradients, products in backward.run():
        example = merged([product.factors(slice(0, 1)) for product in products])
        alone = example[0] if len(example) == 1 and not gradients else None
        if alone is None or alone.prefers_jacobian(readout.stands_for, partners, readout.joint):
            if products:
                gradients.append(_jacobian(products, len(x), sum(_bytes(part.left) for part in example)))
            record.parts[name] = fold(torch.add, gradients).to(dtype)
        else:
            record.parts[name] = merged([product.factors(slice(None)) for product in products])[0].packed(dtype)
    unknown = {name: parameters[name] for name in backward.unknown}
    del values, backward  # and with them the graph
    if unknown:
        found = per_sample_gradients(model, unknown, x, readout)
        record.parts.update({name: gradients.to(dtype) for name, gradients in found.items()})
    return record


class _Product:
    """The outer products of one use of a parameter, to be had of some samples at a time."""

    def __init__(self, term: Outer, arrange: Arrange, gradients: list[Tensor], size: int) -> None:
        self._term = term
        self._inputs = arrange(term.inputs)
        self._gradients = [arrange(gradient) for gradient in gradients]
        self._size = size

    def factors(self, samples: slice) -> Factors:
        inputs = self._inputs[samples]
        # Side by side only here, where they are multiplied at once: they are large.
        gradients = torch.stack([gradient[samples] for gradient in self._gradients], 2)
        left = torch.unflatten(self._term.left(inputs.flatten(0, 1)), 0, inputs.shape[:2])
        right = torch.unflatten(self._term.right(gradients.flatten(0, 1)), 0, inputs.shape[:2])
        return Factors(
            left.permute(2, 0, 1, 3, 4).flatten(2, 3),
            right.permute(2, 0, 1, 3, 4, 5).flatten(2, 3),
            self._term.left_first,
            self._size,
        )


def _jacobian(products: list[_Product], count: int, left_bytes: int) -> Tensor:
    """Add products up to the gradients [n, C, P], in blocks whose left factors, so large for a sample, fit."""
    step = max(1, _BLOCK // left_bytes)
    blocks = [
        fold(torch.add, [part.jacobian() for part in merged([product.factors(block) for product in products])])
        for block in (slice(start, start + step) for start in range(0, count, step))
    ]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


class _Backward:
    """The way back from values [n, C] to the operations by which the parameters come in.

    Attributes:
        unknown: the parameters with an operation of no known kind, or one whose rows are of no known sample.
        gradient_bytes: memory of the gradients of one backward.
    """

    def __init__(self, values: Tensor, readout: Readout, parameters: Mapping[str, nn.Parameter]) -> None:
        self.unknown: list[str] = []
        self._values = values
        self._first_shows_all = readout.first_shows_all
        self._parameters = parameters
        self._terms: dict[str, list[Term]] = {}
        self._arrange: dict[Term, Arrange] = {}
        for name, uses in find_uses(values, parameters).items():
            terms = [term_of(use, parameters[name]) for use in uses]
            known = [term for term in terms if term is not None]
            if len(known) < len(terms):
                self.unknown.append(name)
            elif known:
                self._terms[name] = known
        # Of all outputs, so that a row which only one of them can reach is seen too.
        mixed = values[:, 0] if readout.first_shows_all else values @ mixture(readout.width).to(values)
        self._example = self._pull(mixed.sum())
        self.gradient_bytes = sum(_bytes(gradient) for gradient in self._example.values())
        self._arrange_rows(mixed)

    def run(self) -> Iterator[tuple[str, list[Tensor], list[_Product]]]:
        """Go back from each output. Give for each parameter gradients [n, C, P] and products, which add up."""
        found: dict[Term, list[Tensor]] = {term: [] for terms in self._terms.values() for term in terms}
        width = self._values.shape[1]
        for index in range(width):
            if index == 0 and self._first_shows_all:
                gradients = self._example
            else:
                with torch.enable_grad():
                    total = self._values[:, index].sum()
                gradients = self._pull(total)
            for term, parts in found.items():
                gradient = gradients.get(term.node)
                if gradient is None:  # this output does not depend on it
                    gradient = torch.zeros_like(self._example[term.node])
                part = term.reduce(gradient, self._arrange[term])
                parts.append(part if term.scale == 1 else part * term.scale)
        self._example.clear()
        for name, terms in self._terms.items():
            sums: list[Tensor] = []
            products: list[_Product] = []
            for term in terms:
                rows = found.pop(term)
                if isinstance(term, Outer):
                    products.append(_Product(term, self._arrange[term], rows, self._parameters[name].numel()))
                else:
                    sums.append(torch.stack(rows, 1))
            yield name, sums, products

    def _pull(self, value: Tensor) -> dict[Any, Tensor]:
        """Differentiate a scalar in the results of all operations; without those that add nothing to it."""
        nodes = list(dict.fromkeys(term.node for terms in self._terms.values() for term in terms))
        if not nodes:
            return {}
        edges = [GradientEdge(node, 0) for node in nodes]
        gradients = torch.autograd.grad(value, edges, retain_graph=True, allow_unused=True)
        refuse_hidden_uses(self._parameters)
        pairs = zip(nodes, gradients, strict=True)
        return {node: gradient for node, gradient in pairs if gradient is not None and gradient.numel()}

    def _arrange_rows(self, values: Tensor) -> None:
        """Find the samples of all rows; what is in no order that we know is unknown."""
        scales = draw_scales(values)
        scaled = self._pull(values @ scales)
        known: dict[tuple[Any, int], Arrange | None] = {}
        for name, terms in list(self._terms.items()):
            # Without a gradient it adds nothing.
            terms = [term for term in terms if term.node in self._example]
            for term in terms:
                rows = term.rows(self._example[term.node])
                key = (term.node, len(rows))
                if key not in known:
                    known[key] = find_arrangement(rows, term.rows(scaled[term.node]), scales)
                arrange = known[key]
                if arrange is None:
                    self.unknown.append(name)
                    terms = []
                    break
                self._arrange[term] = arrange
            if terms:
                self._terms[name] = terms
            else:
                del self._terms[name]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
