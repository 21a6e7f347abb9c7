"""A graph as the networks take it: checked, without loops, each edge once in each direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch_geometric.data import Data

Directed: TypeAlias = Literal["error", "symmetrize", "keep"]
_MASKS = ("train_mask", "val_mask", "test_mask")


def clean_graph(data: Any, directed: Directed, largest_component: bool) -> Data:
    """Check a graph and bring it into form.

    Loops are removed, and edges of weight 0. Of parallel edges the weights are added up; without weights they are one
    edge. Nodes without edges stay, unless ``largest_component``.

    Args:
        data: a torch_geometric Data.
        directed: what to do where an edge has no counterpart of equal weight.
        largest_component: keep its nodes only.

    Returns:
        A new Data: x float32 [N, D], edge_index int64 [2, E], edge_weight float32 [E] unless there is none, y int64
        [N], and the masks that there are, all on the CPU.

    Raises:
        TypeError: if it is no such object, or a tensor has another type.
        ValueError: if something is missing, has another shape, is not finite or out of range, or edges are directed.
    """
    from torch_geometric.data import Data
    from torch_geometric.transforms import LargestConnectedComponents
    from torch_geometric.utils import coalesce, remove_self_loops, to_undirected

    if not isinstance(data, Data):
        raise TypeError(
            f"`graph` must be a torch_geometric.data.Data, one graph of one kind, got {type(data).__name__}"
        )
    x = _features(data.x)
    y = _labels(data.y, len(x))
    edges = _edges(data.edge_index, len(x))
    weight = _weights(data, edges)
    if weight is not None:
        edges, weight = edges[:, weight > 0], weight[weight > 0]
    edges, weight = remove_self_loops(edges, weight)
    edges, weight = _pair(coalesce(edges, weight, len(x), reduce="add"))
    single = _without_counterpart(edges, weight, len(x))
    if single and directed == "error":
        raise ValueError(
            f"the graph is directed: {single} of {edges.shape[1]} edges have no counterpart of equal weight; set "
            "`directed` to 'symmetrize' to make each edge go both ways, or to 'keep'"
        )
    if single and directed == "symmetrize":
        edges, weight = _pair(to_undirected(edges, weight, len(x), reduce="max"))
    cleaned = Data(x=x.clone(), edge_index=edges, y=y.clone())  # the caller may change the tensors later
    for name in _MASKS:
        if (mask := data.get(name)) is not None:
            cleaned[name] = mask.detach().cpu().clone() if isinstance(mask, Tensor) else mask
    if weight is not None:
        cleaned.edge_weight = weight
    if largest_component:
        cleaned = LargestConnectedComponents()(cleaned)
    return cleaned


def _pair(result: Any) -> tuple[Tensor, Tensor | None]:
    """PyG's functions return edges alone where weights are None, by version."""
    return result if isinstance(result, tuple) else (result, None)


def _features(given: Any) -> Tensor:
    if not isinstance(given, Tensor):
        raise ValueError(
            f"the graph needs features `x` [N, D], got {type(given).__name__}: without any give it "
            "torch.eye(num_nodes), or degrees"
        )
    x: Tensor = given
    if x.layout != torch.strided:
        x = x.to_dense()
    if x.ndim != 2 or not x.numel():
        raise ValueError(f"`x` must be [N, D], with at least one node and one feature, got {list(x.shape)}")
    if x.is_complex():
        raise TypeError(f"`x` must hold real numbers, got {x.dtype}")
    x = x.detach().to("cpu", torch.float32)
    broken = ~x.isfinite().all(1)
    if broken.any():
        raise ValueError(
            f"`x` must be finite, got NaN or infinity at {int(broken.sum())} nodes, such as "
            f"{int(broken.nonzero()[0])}: impute or drop them"
        )
    return x


def _labels(given: Any, nodes: int) -> Tensor:
    if not isinstance(given, Tensor):
        raise ValueError(f"the graph needs labels `y` [N], got {type(given).__name__}")
    y: Tensor = given
    if y.shape == (nodes, 1):
        y = y[:, 0]
    if y.shape != (nodes,):
        raise ValueError(f"`y` must be [{nodes}], a class for each node, got {list(y.shape)}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"`y` must hold integers, classes 0 to C - 1, got {y.dtype}")
    y = y.detach().to("cpu", torch.int64)
    if y.min() < 0:
        raise ValueError(
            f"`y` must hold classes 0 to C - 1, got {int(y.min())}: give nodes without a label any class, and leave "
            "them out of the masks of split='public'"
        )
    if y.max() < 1:
        raise ValueError("`y` must hold at least two classes, got 0 alone")
    if y.max() >= nodes:
        raise ValueError(f"`y` must hold classes 0 to C - 1, of {nodes} nodes at most {nodes}, got {int(y.max())}")
    return y


def _edges(edge_index: Any, nodes: int) -> Tensor:
    if not isinstance(edge_index, Tensor):
        raise ValueError(f"the graph needs edges `edge_index` [2, E], got {type(edge_index).__name__}")
    if edge_index.dtype != torch.int64:
        raise TypeError(f"`edge_index` must be int64, got {edge_index.dtype}")
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"`edge_index` must be [2, E], got {list(edge_index.shape)}")
    edges = edge_index.detach().cpu()
    if edges.numel() and (edges.min() < 0 or edges.max() >= nodes):
        raise ValueError(
            f"`edge_index` must hold nodes 0 to {nodes - 1}, as `x` has {nodes} rows, got {int(edges.min())} to "
            f"{int(edges.max())}"
        )
    return edges.as_subclass(Tensor)


def _weights(data: Any, edges: Tensor) -> Tensor | None:
    """Take ``edge_weight``, or ``edge_attr`` where it is one number for each edge."""
    name = "edge_attr" if data.get("edge_weight") is None else "edge_weight"
    weight = data.get(name)
    if weight is None:
        return None
    count = edges.shape[1]
    if not isinstance(weight, Tensor) or weight.is_complex():
        got = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"`{name}` must be a tensor of real numbers, a weight for each edge, got {got}")
    if weight.shape not in ((count,), (count, 1)):
        raise ValueError(
            f"`{name}` must be [{count}], a weight for each edge, got {list(weight.shape)}: set `edge_weight`, or "
            "delete it"
        )
    weights: Tensor = weight.detach().to("cpu", torch.float32).flatten()
    if not (weights.isfinite().all() and (weights >= 0).all()):
        raise ValueError(f"`{name}` must be finite and 0 or more, got {weights.min():g} to {weights.max():g}")
    return weights


def _without_counterpart(edges: Tensor, weight: Tensor | None, nodes: int) -> int:
    """Count the edges (i, j), sorted and each there once, for which (j, i) is missing or of another weight."""
    here, there = edges[0] * nodes + edges[1], edges[1] * nodes + edges[0]
    found = torch.isin(there, here)
    if weight is not None and found.any():
        # Those with a counterpart are closed under reversal: sorted by it they stand in the order of themselves.
        pairs = weight[found]
        found[found.clone()] = torch.isclose(pairs, pairs[there[found].argsort()])
    return int((~found).sum())
