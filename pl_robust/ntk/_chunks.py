"""Samples in chunks that bound the memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pl_robust._number import check_count
from pl_robust.ntk._model import derivatives, plain

_CPU_BUDGET = 256 * 2**20  # bytes of activations that a chunk may keep; more is not faster
_CUDA_BUDGET = 1 / 4  # of what is free


def split_samples(model: nn.Module, x: Tensor, chunk_size: int | None) -> tuple[Tensor, ...]:
    """Split inputs [N, ...] into chunks of ``chunk_size``, or for None by memory.

    Then the activations that a chunk keeps for its backward take 256 MiB, or a quarter of a CUDA device's free memory.

    Raises:
        TypeError: if ``chunk_size`` is no integer.
        ValueError: if it is less than 1.
    """
    if chunk_size is None:
        budget = torch.cuda.mem_get_info(x.device)[0] * _CUDA_BUDGET if x.is_cuda else _CPU_BUDGET
        chunk_size = max(1, int(budget / max(1, _kept_bytes(model, x[:1]))))
    check_count(chunk_size, "chunk_size")
    return torch.split(x, chunk_size)


def _kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Memory that autograd keeps for the backward of these inputs, without the parameters."""
    sizes: dict[int, int] = {}
    owned = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with derivatives(model), saved_tensors_hooks(note, lambda tensor: tensor):
        model(plain(x))
    return sum(sizes.values())
