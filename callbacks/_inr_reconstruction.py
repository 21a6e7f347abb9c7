"""Ask a module in training what it makes of a whole signal."""

from __future__ import annotations

import torch
from torch import Tensor

from pl_robust._lightning import LightningModule, Trainer
from pl_robust._probe import probe
from pl_robust._signal import Signal


def reconstruct(trainer: Trainer, module: LightningModule, signal: Signal, chunk_size: int) -> Tensor:
    """Ask for the values at all points of a signal's grid. The ranks share the work: a collective call.

    Args:
        trainer: the run's.
        module: coordinates [N, d] -> values [N, c] or [S, N, c]; left as it was.
        signal: whose grid, and the shape of the values.
        chunk_size: network evaluations at once.

    Returns:
        float32 [S, N, c] on the module's device, the same on every rank.

    Raises:
        ValueError: if the values are not like the signal's.
    """
    coordinates = signal.coordinates
    values = torch.zeros(signal.num_signals, len(coordinates), signal.channels, device=module.device)
    size = max(1, chunk_size // signal.num_signals)
    with probe(module), torch.no_grad():
        for index, start in enumerate(range(0, len(coordinates), size)):
            if index % trainer.world_size == trainer.global_rank:
                values[:, start : start + size] = _ask(module, coordinates[start : start + size], signal)
        # Each rank has filled in its own chunks: adding zeros to them is exact.
        reduced: Tensor = trainer.strategy.reduce(values, reduce_op="sum")
    return reduced


def check_values(module: LightningModule, signal: Signal) -> None:
    """See that a module gives values like the signal's; to be called on every rank, as one alone must not refuse.

    Args:
        module: as for ``reconstruct``.
        signal: likewise.

    Raises:
        ValueError: if it does not.
    """
    with probe(module), torch.no_grad():
        _ask(module, signal.coordinates[:2], signal)


def _ask(module: LightningModule, coordinates: Tensor, signal: Signal) -> Tensor:
    """Ask a network in its own precision for the values at some points: float32 [S, n, c]."""
    like = next((part for part in (*module.parameters(), *module.buffers()) if part.is_floating_point()), coordinates)
    values = module(coordinates.to(module.device, like.dtype))
    shape = [signal.num_signals, len(coordinates), signal.channels]
    got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if got != shape and [1, *(got if isinstance(got, list) else [])] != shape:
        stack = f"{shape[0]}, " if shape[0] > 1 else ""
        raise ValueError(
            f"{type(module).__name__} must map coordinates [N, {coordinates.shape[1]}] to the signal's values "
            f"[{stack}N, {shape[2]}], for N = {shape[1]} it gave {got}: set the network's `out_features` to "
            f"{shape[2]} and the module's number of signals to {shape[0]}"
        )
    reshaped: Tensor = values.reshape(shape).float()
    return reshaped
