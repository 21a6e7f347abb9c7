"""Where the parameters of a network enter its outputs, read off the graph that autograd has recorded.

The graph misses nothing: whatever module, function or hook uses a parameter, the use is an edge that ends there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Use:
    """One operation that takes a parameter.

    Attributes:
        node: the operation, as autograd's node for its backward.
        position: which of the operation's inputs the parameter is.
        transposed: whether it takes the parameter, a matrix, transposed.
        scale: the number by which it is multiplied on the way there.
    """

    node: Any
    position: int
    transposed: bool = False
    scale: float = 1.0


def find_uses(outputs: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, list[Use]]:
    """Find all uses of parameters on the way to some outputs; of one that has none, the derivative is zero.

    Raises:
        ValueError: if part of the way is hidden from the graph.
    """
    takers: dict[Any, list[tuple[Any, int]]] = defaultdict(list)
    leaves: dict[int, Any] = {}
    for node in _nodes(outputs):
        if "CheckpointFunctionBackward" in node.name():
            raise ValueError(
                "`model` checkpoints activations in a way that hides parameters from their derivative: give "
                "torch.utils.checkpoint use_reentrant=False"
            )
        if type(node).__name__ == "AccumulateGrad":
            leaves[id(node.variable)] = node
        for position, (source, _) in enumerate(node.next_functions):
            if source is not None:
                takers[source].append((node, position))
    uses = {}
    for name, parameter in parameters.items():
        leaf = leaves.get(id(parameter))
        uses[name] = [] if leaf is None else list(_behind_views(leaf, parameter.dim(), takers))
    return uses


def refuse_hidden_uses(parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse parameters to which a function of the model's own has sent gradients behind autograd's back.

    Inside ``derivatives`` no parameter has a ``.grad``, and none gets one by ``torch.autograd.grad``.

    Raises:
        ValueError: if one has got it.
    """
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            parameter.grad = None
            raise ValueError(
                f"parameter {name!r} of `model` is hidden from its derivative: an autograd.Function of the model calls "
                "backward() inside; let it return the parameter's gradient, or differentiate the model without it"
            )


def kept_bytes(outputs: Tensor, model: nn.Module) -> int:
    """Memory that the graph holds for its backward, without parameters and buffers."""
    owned = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    for node in _nodes(outputs):
        for name in dir(node):
            if not name.startswith("_saved_") and name != "saved_tensors":
                continue
            try:
                saved = getattr(node, name)
            except RuntimeError:  # written over since
                continue
            for tensor in saved if isinstance(saved, tuple | list) else (saved,):
                if isinstance(tensor, Tensor):
                    storage = tensor.untyped_storage()
                    sizes[storage.data_ptr()] = storage.nbytes()
    return sum(size for place, size in sizes.items() if place not in owned)


def _nodes(outputs: Tensor) -> Iterator[Any]:
    seen: set[Any] = set()
    ahead: list[Any] = [outputs.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead.extend(source for source, _ in node.next_functions)
            yield node


def _behind_views(
    node: Any,
    dims: int,
    takers: Mapping[Any, list[tuple[Any, int]]],
    transposed: bool = False,
    scale: float = 1.0,
) -> Iterator[Use]:
    """The uses of a parameter, of its transpose and of its multiples, as which it counts there."""
    for taker, position in takers.get(node, ()):
        factor = _number(taker, position) if taker in takers else None  # or it is the output itself
        if factor is not None:
            yield from _behind_views(taker, dims, takers, transposed, scale * factor)
        elif dims == 2 and _transposes(taker):
            yield from _behind_views(taker, dims, takers, not transposed, scale)
        else:
            yield Use(taker, position, transposed, scale)


def _number(node: Any, position: int) -> float | None:
    """The number with which an operation multiplies its input; None if it does something else."""
    if node.name() != "MulBackward0":
        return None
    try:
        other = node._saved_self if position else node._saved_other
    except (AttributeError, RuntimeError):  # another version's names; written over since
        return None
    return None if other.dim() or other.is_complex() else float(other.detach())


def _transposes(node: Any) -> bool:
    """Tell whether an operation on a matrix gives its transpose."""
    name = node.name()
    if name == "TransposeBackward0":
        # Negative dimensions come back as huge ones, but their parity stays.
        return bool((node._saved_dim0 - node._saved_dim1) % 2)
    if name == "PermuteBackward0":
        return bool(node._saved_dims[0] % 2)
    return bool(name == "TBackward0")
