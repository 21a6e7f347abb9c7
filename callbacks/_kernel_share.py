"""Each rank's part of a probe set, ready for the functions that measure a tangent kernel on all ranks together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pl_robust._lightning import rank_zero_warn
from pl_robust._probe_set import ProbeSet
from pl_robust.callbacks._kernel_target import kernel_target
from pl_robust.ntk._jacobian import Reduce
from pl_robust.ntk._model import check_model, derivatives, outputs_of


@dataclass(frozen=True)
class KernelShare:
    """One rank's samples, on the CPU.

    Attributes:
        chunks: inputs [n, ...] and targets [n, C].
        rows: which of all ranks' samples these are, int64.
        samples: number N of all ranks' samples.
        outputs: number C of the network's outputs.
    """

    chunks: list[tuple[Tensor, Tensor]]
    rows: Tensor
    samples: int
    outputs: int


def take_share(
    probe_set: ProbeSet, net: nn.Module, parameters: dict[str, nn.Parameter], reduce: Reduce, owner: str
) -> KernelShare:
    """Check a rank's samples, make targets of their labels, and find out what the other ranks have. A collective call.

    Args:
        probe_set: the samples, ready.
        net: the network to look at, in eval mode.
        parameters: those that span its kernel.
        reduce: sums over ranks.
        owner: the name of the module's class, for the error.

    Raises:
        TypeError: for labels of a wrong dtype.
        ValueError: for labels that do not fit the network's outputs; if the network's forward fails, or
            ``check_model`` refuses it.
    """
    first = next(iter(parameters.values()))
    dtypes = {parameter.dtype for parameter in parameters.values()}
    counts = torch.zeros(probe_set.chunks, 2, dtype=torch.int64, device=first.device)
    chunks = []
    for index, x, y in probe_set.mine:
        if x.shape[:1] != y.shape[:1]:
            raise ValueError(
                f"a batch must have one label for each input, got inputs {list(x.shape)} and labels {list(y.shape)}"
            )
        if x.is_floating_point() and x.dtype not in dtypes:
            x = x.to(first.dtype)  # what a forward that takes them does itself
        outputs = _try(net, x.to(first.device), owner)
        chunks.append((x, kernel_target(y, outputs).to(first.dtype)))
        counts[index] = torch.tensor([len(y), outputs])
    if _look_like_classes([y for _, _, y in probe_set.mine], counts):
        rank_zero_warn(
            "labels in floating point are taken for values to regress on, and those of the probe set are all 0.0 or "
            "1.0: if they are classes, give integers by `probe_data=(x, y)`; their targets are then -1 and 1"
        )
    sizes, widths = reduce(counts).cpu().unbind(1)
    starts = sizes.cumsum(0) - sizes
    rows = [torch.arange(len(y)) + starts[index] for index, _, y in probe_set.mine]
    return KernelShare(
        chunks,
        torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64),
        samples=int(sizes.sum()),
        outputs=int(widths.max()),
    )


def _try(net: nn.Module, x: Tensor, owner: str) -> int:
    """Check that the network has a kernel at these inputs, and count its outputs."""
    try:
        check_model(net, x)
        with derivatives(net), torch.no_grad():
            return outputs_of(net, x[:1]).shape[1]
    except (TypeError, RuntimeError, ValueError, NotImplementedError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"NTKAlignmentLogger calls {owner}.forward(x) with the probe inputs {list(x.shape)}, and {said}: give the "
            "module a forward(x) that returns [N, C], or leave the callback out"
        ) from error


def _look_like_classes(labels: list[Tensor], counts: Tensor) -> bool:
    """Tell whether values for a single output are zeros and ones, as binary_cross_entropy wants its classes."""
    values = [y for y in labels if y.is_floating_point()]
    return bool(values) and int(counts[:, 1].max()) == 1 and all(bool(((y == 0) | (y == 1)).all()) for y in values)
