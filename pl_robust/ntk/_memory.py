"""How many samples and outputs at a time the memory allows, estimated from a few samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from pl_robust.ntk._graph import kept_bytes
from pl_robust.ntk._model import outputs_of
from pl_robust.ntk._readout import Readout
from pl_robust.ntk._record import Record

Make: TypeAlias = Callable[[Readout, Tensor], Record]

_FEW = 4  # samples to measure on; as many as check_model takes, because a new number costs time
_BUDGET = 2 * 2**30  # bytes, on a device whose memory others need too
_CACHED = 2**27  # bytes at a time: on processors more is not faster,
_ENOUGH = 32  # unless they are of fewer samples than that


@dataclass
class Plan:
    """How the work is cut.

    Attributes:
        chunk_size: samples in a forward.
        together: how many values are differentiated in one go.
        kept_bytes: memory for records.
    """

    chunk_size: int
    together: int
    kept_bytes: int


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device; None where nobody tells."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    table = Path("/proc/meminfo")
    if device.type != "cpu" or not table.exists():
        return None
    sizes = dict(line.split(":") for line in table.read_text().splitlines())
    return int(sizes["MemAvailable"].split()[0]) * 1024


def check_result(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a kernel that does not fit into memory, before the work.

    Raises:
        ValueError: if it does not.
    """
    size, free = math.prod(shape) * dtype.itemsize, free_bytes(device)
    if free is not None and size > free:
        trace = size / (shape[2] * shape[3])
        way = "compute it by blocks of `x1` and `x2`, or take fewer samples"
        if shape[2] > 1:
            way = f"outputs='trace' needs {gib(trace)}; or {way}"
        raise ValueError(
            f"the kernel of {shape[0]} inputs with {shape[1]}, {list(shape if shape[2] > 1 else shape[:2])}, needs "
            f"{gib(size)}, and {gib(free)} are free on {device}: {way}"
        )


def make_plan(
    model: nn.Module,
    make: Make,
    x: Tensor,
    readout: Readout,
    *,
    chunk_size: int | None,
) -> Plan:
    """Choose how many samples and outputs to differentiate at a time.

    Args:
        model: the network, inside ``derivatives``.
        make: makes a record of values and inputs.
        x: inputs [N, ...].
        readout: gives all values that are to be differentiated.
        chunk_size: the number of samples, if it is given.

    Raises:
        ValueError: if the free memory does not hold a chunk of the given size, or of a single sample.
    """
    free = free_bytes(x.device)
    budget: float = _BUDGET
    if free is not None:
        budget = free / 2 if x.device.type == "cuda" else min(_BUDGET, free / 2)
    cost = _measure(model, make, x[:_FEW].clone(), readout)
    count = min(chunk_size or 1, len(x))
    # So few values at a time that the records of all samples fit, if they can: made once they cost the least.
    fitting = min(
        (budget / 2 / count - cost.fixed) / cost.each, (budget / 2 / len(x) - cost.kept_fixed) / max(cost.kept_each, 1)
    )
    groups = 1 if fitting >= readout.width or readout.joint else -(-readout.width // max(1, int(fitting)))
    together = -(-readout.width // groups)
    sample = cost.fixed + together * cost.each
    needed = count * sample
    if free is not None and needed > free:
        fit = int(free / 2 / sample)
        way = f"chunk_size={fit} fits" if fit else "not even one sample fits; freeze parameters"
        raise ValueError(
            f"`chunk_size` must be such that a chunk fits into memory: {count} samples need about "
            f"{gib(needed)}, and {gib(free)} are free on {x.device}: {way}"
        )
    if chunk_size is None:
        most = budget / 2 / sample
        if x.device.type == "cpu":
            most = min(most, max(_CACHED / sample, _ENOUGH))
        most = max(1, int(most))
        chunk_size = -(-len(x) // -(-len(x) // most))  # as few as possible, and all of a size
    return Plan(chunk_size, together, int(budget / 2))


def gib(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.3g} GiB"


@dataclass
class _Cost:
    """Bytes of memory for a sample: of its own, and for each value; of which those of its record are kept."""

    fixed: float
    each: float
    kept_fixed: float
    kept_each: float


def _measure(model: nn.Module, make: Make, few: Tensor, readout: Readout) -> _Cost:
    with torch.enable_grad():
        values = outputs_of(model, few)
        activations = kept_bytes(values, model) if values.grad_fn is not None else 0
    part = readout.part(0, 1, stands_for=readout.width)
    record = make(part, few)
    own = record.nbytes - record.shared_bytes
    return _Cost(
        fixed=(activations + record.shared_bytes) / len(few),
        each=record.gradient_bytes / len(few) + own / part.width / len(few),
        kept_fixed=record.shared_bytes / len(few),
        kept_each=own / part.width / len(few),
    )
