"""What the networks on graphs share: the check of their inputs, and the normalized adjacency matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pl_robust._kept import Kept
from pl_robust._number import check_count, check_finite

_ENTRIES = 2**24  # numbers on edges at a time while features are filtered


def check_share(value: object, name: str, *, most_included: bool = False) -> float:
    """Give a number in [0, 1), or in [0, 1], as a float.

    Raises:
        TypeError: if it is no number.
        ValueError: if it lies outside.
    """
    share = check_finite(value, name)
    if not (0 <= share < 1 or (most_included and share == 1)):
        raise ValueError(f"`{name}` must be in [0, 1{']' if most_included else ')'}, got {value!r}")
    return share


def check_graph(x: Tensor, edge_index: Tensor, edge_weight: Tensor | None, in_features: int, network: str) -> None:
    """Refuse what is no graph with ``in_features`` numbers at each node.

    Shapes and types only: a look at the numbers would wait for the device at each step.

    Raises:
        TypeError: if a tensor is missing, sparse, or of another type.
        ValueError: if a shape does not fit.
    """
    for name, value in (("x", x), ("edge_index", edge_index), ("edge_weight", edge_weight)):
        if not (isinstance(value, Tensor) and value.layout == torch.strided) and (value, name) != (None, "edge_weight"):
            got = value.layout if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"`{name}` must be a dense tensor, got {got}; {network}(x, edge_index, edge_weight=None)")
    if x.ndim != 2 or x.shape[1] != in_features:
        raise ValueError(
            f"this {network} takes features x [N, {in_features}], got {list(x.shape)}; `in_features` sets their number"
        )
    if not x.is_floating_point():
        raise TypeError(f"`x` must be floating point, got {x.dtype}")
    if edge_index.dtype != torch.int64:
        raise TypeError(f"`edge_index` must be int64, got {edge_index.dtype}")
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"`edge_index` must be [2, E], got {list(edge_index.shape)}")
    if edge_weight is None:
        return
    if not edge_weight.is_floating_point():
        raise TypeError(f"`edge_weight` must be floating point, got {edge_weight.dtype}")
    if edge_weight.shape != edge_index.shape[1:]:
        raise ValueError(
            f"`edge_weight` must be [{edge_index.shape[1]}], a number for each edge, got {list(edge_weight.shape)}"
        )


def normalized_adjacency(
    edge_index: Tensor, edge_weight: Tensor | None, num_nodes: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    r"""Edges and weights of :math:`\hat A = D^{-1/2} (A + I) D^{-1/2}`, D the degrees of A + I.

    Kipf, Welling, "Semi-supervised classification with graph convolutional networks", ICLR 2017, section 2. Parallel
    edges add up. A node without edges has its own loop alone, of weight 1. A loop that the graph has already stands for
    the one that would be added, as in PyG.

    Args:
        edge_index: int64 [2, E], from the first row to the second.
        edge_weight: [E], not negative; ``None``: all 1.
        num_nodes: N.
        dtype: of the result. Degrees are summed in float32 at least.

    Returns:
        Edges [2, E + N] and their weights [E + N].
    """
    from torch_geometric.nn.conv.gcn_conv import gcn_norm  # takes seconds, which no other network should wait for

    precise = torch.promote_types(dtype, torch.float32)
    weight = None if edge_weight is None else edge_weight.to(precise)
    edges, weight = gcn_norm(edge_index, weight, num_nodes, dtype=precise)
    return edges, weight.to(dtype)


def filter_features(
    x: Tensor, edge_index: Tensor, edge_weight: Tensor | None, steps: int, teleport: float = 0.0
) -> Tensor:
    r""":math:`H_K` of :math:`H_{i+1} = (1 - \alpha) \hat A H_i + \alpha X`, :math:`H_0 = X`.

    With teleport α = 0 it is :math:`\hat A^K X`. In float32 at least.

    Args:
        x: features [N, D].
        edge_index: int64 [2, E].
        edge_weight: [E], not negative, or ``None``.
        steps: K.
        teleport: α.

    Returns:
        [N, D], of x's dtype.
    """
    from torch_geometric.nn import APPNP

    precise = torch.promote_types(x.dtype, torch.float32)
    edges, weight = normalized_adjacency(edge_index, edge_weight, len(x), precise)
    propagate = APPNP(steps, teleport, normalize=False)
    width = max(1, _ENTRIES // max(1, edges.shape[1]))  # columns do not know of each other
    columns: list[Tensor] = list(torch.split(x.to(precise), width, dim=1))
    parts = [propagate(part, edges, weight) for part in columns]
    return torch.cat(parts, dim=1).to(x.dtype)


class GraphFilter(nn.Module):
    """``filter_features``, computed once for a graph that stays the same. Without parameters.

    Args:
        steps: K.
        teleport: α.
        name: of ``steps``, for errors.

    Raises:
        TypeError: if a number is none.
        ValueError: if ``steps`` is negative or ``teleport`` not in [0, 1].
    """

    def __init__(self, steps: int, teleport: float = 0.0, name: str = "steps") -> None:
        super().__init__()
        check_count(steps, name, least=0)
        self.steps = steps
        self.teleport = check_share(teleport, "teleport", most_included=True)
        self._kept = Kept()

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Map features [N, D] to filtered ones [N, D]."""
        if not self.steps:
            return x
        return self._kept(self._compute, x, edge_index, edge_weight)

    def _compute(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Tensor:
        return filter_features(x, edge_index, edge_weight, self.steps, self.teleport)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"steps={self.steps}, teleport={self.teleport:g}"


class KeptAdjacency:
    """``normalized_adjacency``, computed once for a graph that stays the same."""

    def __init__(self) -> None:
        self._kept = Kept()

    def __call__(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Give edges and weights for features x [N, D], in their precision."""
        nodes, dtype = len(x), x.dtype

        def compute(edge_index: Tensor, edge_weight: Tensor | None) -> tuple[Tensor, Tensor]:
            return normalized_adjacency(edge_index, edge_weight, nodes, dtype)

        return self._kept(compute, edge_index, edge_weight, settings=(nodes, dtype))
