"""Learning dynamics on disk: one npz, to which an epoch adds one row without the others being touched."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pl_robust.callbacks._dynamics_statistics import SampleStatistics, sample_statistics

_MEMBER = re.compile(r"epoch_(\d+)\.npy")
_TYPES = {"confidence": "<f4", "correct": "i1"}
_END = b"PK\x05\x06"  # how the last record of a zip archive begins
_END_SIZE = 22
_HEADER_SIZE = 30  # of a member, before its name


class Dynamics(NamedTuple):
    """What ``LearningDynamics`` saw of N samples in E epochs.

    Args:
        epochs: the epochs looked at, int64 [E].
        confidence: probability of each sample's label, float32 [E, N]; NaN: not looked at.
        correct: whether the answer was right, int8 [E, N]: 1, 0, or -1: not looked at.
        confidence_adv: the same on adversarial inputs; None if there were none.
        correct_adv: the same on adversarial inputs; None if there were none.
    """

    epochs: NDArray[np.int64]
    confidence: NDArray[np.float32]
    correct: NDArray[np.int8]
    confidence_adv: NDArray[np.float32] | None
    correct_adv: NDArray[np.int8] | None

    def statistics(self, *, adversarial: bool = False) -> SampleStatistics:
        """Sum up the samples' histories.

        Args:
            adversarial: those on adversarial inputs.

        Raises:
            ValueError: if there are none of that kind.
        """
        confidence, correct = (
            (self.confidence_adv, self.correct_adv) if adversarial else (self.confidence, self.correct)
        )
        if confidence is None or correct is None:
            raise ValueError("`adversarial`=True needs adversarial looks, and this run took none: give it an attack")
        return sample_statistics(self.epochs.tolist(), confidence, correct)


def load_dynamics(path: str | os.PathLike[str]) -> Dynamics:
    """Read the file of a run, also of one that goes on, or was killed while it wrote.

    Args:
        path: the npz in the run's folder.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is none of ``LearningDynamics``.
    """
    data = Path(path).read_bytes()
    rows: dict[int, NDArray[Any]] = {}
    end = _sound_length(data)
    if end:
        with np.load(io.BytesIO(data[:end]), allow_pickle=False) as archive:
            found = {name: _MEMBER.fullmatch(f"{name}.npy") for name in archive.files}
            rows = {int(match[1]): archive[name] for name, match in found.items() if match}
    if not rows or any(not set(_TYPES) <= set(row.dtype.names or ()) for row in rows.values()):
        raise ValueError(f"`path` must be a file that LearningDynamics has written, and {path} is none")
    epochs = sorted(rows)
    columns = {name: np.stack([rows[epoch][name] for epoch in epochs]) for name in rows[epochs[0]].dtype.names or ()}
    return Dynamics(
        np.asarray(epochs, np.int64),
        columns["confidence"],
        columns["correct"],
        columns.get("confidence_adv"),
        columns.get("correct_adv"),
    )


def append_row(path: Path, epoch: int, looks: Mapping[str, tuple[NDArray[np.float32], NDArray[np.int8]]]) -> None:
    """Add an epoch's row to a file, or begin one. It costs the row, however many are there.

    Args:
        path: the file.
        epoch: the epoch.
        looks: end of the columns' names ("" or "_adv") -> confidence [N], correctness [N].
    """
    columns = [(f"{name}{end}", kind) for end in looks for name, kind in _TYPES.items()]
    row = np.empty(len(next(iter(looks.values()))[0]), columns)
    for end, values in looks.items():
        for name, value in zip(_TYPES, values, strict=True):
            row[f"{name}{end}"] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    end_of_file = path.stat().st_size if path.exists() else 0
    with zipfile.ZipFile(path, "a") as archive:
        # Behind the old table of contents, not over it: killed here, the file still begins with the old one.
        archive.start_dir = end_of_file
        with archive.open(f"epoch_{epoch:06}.npy", "w") as member:
            np.lib.format.write_array(member, row, allow_pickle=False)


def keep_rows(path: Path, last: int) -> list[int]:
    """Cut a file off behind an epoch, and mend it if its writer was killed.

    Args:
        path: the file; it need not be there.
        last: the last epoch to keep.

    Returns:
        The epochs that are left.

    Raises:
        FileExistsError: if it is another's file.
    """
    if not path.exists():
        return []
    kept: list[int] = []
    data = path.read_bytes()
    end = _sound_length(data)
    if data and not data[_HEADER_SIZE:].startswith(b"epoch_"):  # where the first member's name stands
        raise FileExistsError(f"{path} is in the way and none of LearningDynamics: move it, or give another `prefix`")
    if end:
        os.truncate(path, end)
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():  # in the order in which they were written
                match = _MEMBER.fullmatch(member.filename)
                if match is None or int(match[1]) > last:
                    end = member.header_offset  # what lies before is the file as it was before that epoch
                    break
                kept.append(int(match[1]))
    if end:
        os.truncate(path, end)
    else:
        path.unlink()
    return kept


def _sound_length(data: bytes) -> int:
    """Length of the longest beginning of a file that is a whole zip archive; 0: none."""
    place = data.rfind(_END)
    while place >= 0:
        end = place + _END_SIZE
        try:
            with zipfile.ZipFile(io.BytesIO(data[:end])):
                return end
        except (zipfile.BadZipFile, OSError, ValueError):
            place = data.rfind(_END, 0, place)
    return 0
