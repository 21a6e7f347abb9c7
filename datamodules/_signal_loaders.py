"""Loaders of numbers instead of data: the tensors of a signal live on the device, and a number says which of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

Loop: TypeAlias = Literal["val", "test", "predict"]


class Piece(NamedTuple):
    """A stretch of the points that an evaluation runs over."""

    loop: Loop
    start: int
    stop: int


class StepLoader:
    """Numbers of training steps, each used once in a run: epoch 0 has 0 ... n - 1, epoch 1 has n ... 2n - 1.

    Args:
        steps: n, steps in an epoch.
        count_done: how many batches the run has trained on; None outside of one, where the loader counts itself.
    """

    def __init__(self, steps: int, count_done: Callable[[], int | None]) -> None:
        self.steps = steps
        self._count_done = count_done
        self._next = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[int]:
        # Asked once for an epoch, at its first step: loops that fetch ahead come here before the last step is done.
        # Where an epoch is resumed in its middle, Lightning starts the loader anew and takes what is left of it.
        done = self._count_done()
        first = self._next if done is None else done
        for step in range(first, first + self.steps):
            self._next = step + 1
            yield step

    # Lightning takes a loader with state for one that can be resumed inside an epoch, as this one can: by the run's own
    # count.
    def state_dict(self) -> dict[str, Any]:
        """The number of the next step."""
        return {"next": self._next}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, unless a run counts."""
        self._next = state_dict["next"]


class PieceLoader:
    """The stretches of points that one rank evaluates; a list of them would be taken for a list of loaders."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces

    def __len__(self) -> int:
        return len(self.pieces)

    def __iter__(self) -> Iterator[Piece]:
        return iter(self.pieces)


def cut(loop: Loop, points: int, size: int, rank: int, ranks: int) -> list[Piece]:
    """Cut a number of points into stretches of about ``size``; each rank gets equally many, one behind the other.

    Equally many stretches, because DDP may synchronize buffers at each forward pass; they differ by one point at most,
    and no point is repeated.

    Args:
        loop: for which of the Trainer's loops.
        points: how many there are.
        size: of the longest stretch, unless that leaves a rank without a point.
        rank: whose stretches.
        ranks: number of processes.

    Raises:
        ValueError: if there are fewer points than processes.
    """
    if points < ranks:
        raise ValueError(f"the {loop} loop has {points} points, fewer than the run's {ranks} processes: use fewer")
    each = min(-(-points // (size * ranks)), points // ranks)  # no stretch is empty
    bounds = [points * index // (each * ranks) for index in range(each * ranks + 1)]
    mine = range(rank * each, (rank + 1) * each)
    return [Piece(loop, bounds[index], bounds[index + 1]) for index in mine]
