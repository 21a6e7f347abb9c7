"""The looks of one epoch: what the network thinks of each batch's samples, and the ranks' looks put together."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch import distributed as dist

from pl_robust._lightning import Trainer
from pl_robust.callbacks._dynamics_statistics import UNSEEN

_LATER = torch.iinfo(torch.int64).max


class LooksState(TypedDict):
    """The looks of an unfinished epoch, on the CPU."""

    order: Tensor
    index: Tensor
    confidence: Tensor
    correct: Tensor


@torch.no_grad()
def look(module: nn.Module, x: Tensor, y: Tensor, *, check: bool) -> tuple[Tensor, Tensor]:
    """Ask a network about a batch.

    Args:
        module: inputs -> logits [B, K], in eval mode.
        x: inputs [B, ...].
        y: labels, integers [B].
        check: whether to look at the labels' values, which on an accelerator waits for it.

    Returns:
        Probability of each label, float32 [B], and whether it is the most probable, bool [B].

    Raises:
        ValueError: if the network does not give logits, or labels are out of range.
    """
    logits = module(x.clone())  # a first layer that works in place must not reach the batch
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(y):
        got = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the module must give logits [{len(y)}, classes], got {got}")
    if check and not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
        raise ValueError(
            f"labels must lie in 0..{logits.shape[1] - 1} for a module of {logits.shape[1]} classes, "
            f"got {int(y.min())}..{int(y.max())}"
        )
    y = y.long()
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    confidence = logits.softmax(1).gather(1, y[:, None]).squeeze(1).float()
    # Where the logits are NaN no answer is right, whatever argmax says.
    return confidence, (logits.argmax(1) == y) & confidence.isfinite()


class EpochLooks:
    """This rank's looks of one epoch, kept on the device until it ends.

    Args:
        samples: number of samples of the data set, N.
        views: at how many versions of each input it looks, V: clean, adversarial.
    """

    def __init__(self, samples: int, views: int) -> None:
        self.samples = samples
        self.views = views
        self._batches: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, order: int, index: Tensor, confidence: Tensor, correct: Tensor) -> None:
        """Add a batch.

        Args:
            order: the batch's place among all of the epoch, on whatever rank; each has its own.
            index: positions of its samples, int64 [B].
            confidence: float32 [V, B].
            correct: bool [V, B].
        """
        place = torch.full_like(index, order)
        self._batches.append((place, index.clone(), confidence, correct))

    def rows(self, trainer: Trainer, device: torch.device) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """Put the ranks' looks together. A collective call.

        A sample that was looked at more than once, on whatever rank, counts as at the first time.

        Args:
            trainer: the trainer, whose strategy reduces.
            device: where it can.

        Returns:
            Confidence [V, N], NaN where no rank has looked, and correctness [V, N], there -1.

        Raises:
            ValueError: if there is no such position.
        """
        own = self._own()
        check_range(own["index"], self.samples)
        place, index = own["order"].numpy(), own["index"].numpy()
        found = torch.cat([own["confidence"], own["correct"].float()])
        in_order = np.argsort(place, kind="stable")
        samples, first = np.unique(index[in_order], return_index=True)
        first = in_order[first]
        when = torch.full((self.samples,), _LATER)
        when[torch.from_numpy(samples)] = torch.from_numpy(place[first])
        # Each look goes into the sum from one rank: adding zeros to it is exact.
        earliest = _reduce(trainer, when, "min", device)
        is_ours = (earliest == when).numpy()[samples]
        table = torch.zeros(2 * self.views, self.samples)
        table[:, torch.from_numpy(samples[is_ours])] = found[:, torch.from_numpy(first[is_ours])]
        values = _reduce(trainer, table, "sum", device).numpy()
        seen = (earliest != _LATER).numpy()
        return (
            np.where(seen, values[: self.views], np.float32(np.nan)),
            np.where(seen, values[self.views :], UNSEEN).astype(np.int8),
        )

    def state_dict(self) -> LooksState:
        """All ranks' looks. Under DDP every rank has to call this."""
        own = self._own()
        if not (dist.is_available() and dist.is_initialized()):
            return own
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, own)
        return {
            "order": torch.cat([rank["order"] for rank in ranks]),
            "index": torch.cat([rank["index"] for rank in ranks]),
            "confidence": torch.cat([rank["confidence"] for rank in ranks], dim=1),
            "correct": torch.cat([rank["correct"] for rank in ranks], dim=1),
        }

    def load_state_dict(self, state: LooksState, device: torch.device) -> None:
        """Take up an epoch that was cut in two; on one rank only, since these are all ranks' looks."""
        order = state["order"]
        if len(order):
            order = order - order.max() - 1  # before every look that is still to come
        parts = (order, state["index"], state["confidence"], state["correct"])
        self._batches = [tuple(part.to(device) for part in parts)]  # type: ignore[list-item]

    def _own(self) -> LooksState:
        batches = self._batches or [
            (
                torch.empty(0, dtype=torch.int64),
                torch.empty(0, dtype=torch.int64),
                torch.empty(self.views, 0),
                torch.empty(self.views, 0, dtype=torch.bool),
            )
        ]
        order, index, confidence, correct = (torch.cat(parts, dim=-1).cpu() for parts in zip(*batches, strict=True))
        return {"order": order, "index": index, "confidence": confidence, "correct": correct}


def check_range(index: Tensor, samples: int) -> None:
    """Refuse positions that are none of the data set's.

    Raises:
        ValueError: if there are such.
    """
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < samples:
        raise ValueError(
            f"samples' positions must lie in 0..{samples - 1}, the training data set's, got "
            f"{int(index.min())}..{int(index.max())}: let IndexedDataModule count them, or set `index_key` to where a "
            "batch has them"
        )


def _reduce(trainer: Trainer, tensor: Tensor, how: str, device: torch.device) -> Tensor:
    # A copy: some strategies reduce in place.
    reduced: Tensor = trainer.strategy.reduce(tensor.to(device, copy=True), reduce_op=how)
    return reduced.cpu()
