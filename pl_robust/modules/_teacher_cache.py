"""What teachers say about the clean inputs of a data set, kept in a folder, so that each is asked once in its life."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pl_robust.modules._fingerprints import bit_checksum, fold

_FORMAT = 1
_LOGITS, _CHECKSUMS, _IDENTITY = "teacher_logits.npy", "teacher_checksums.npy", "teacher_cache.json"
_LOOK_EVERY = 100  # batches, where a look waits for the device
_ROWS = 8192
_UNLIKE = 0.05  # of the logits' size: more than another batch, device or half precision changes them


def prepare_cache(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make a folder the cache of what ``identity`` says, or see that it is.

    Args:
        folder: the cache's folder.
        identity: ``teachers`` (the fingerprint of each), ``samples``, ``classes`` and ``precision``.

    Raises:
        ValueError: if it is the cache of something else, or damaged.
        OSError: if it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"format": _FORMAT, **identity}
    if not (folder / _IDENTITY).exists():
        samples, teachers, classes = identity["samples"], len(identity["teachers"]), identity["classes"]
        _make(folder / _LOGITS, (samples, teachers, classes), np.float32)
        _make(folder / _CHECKSUMS, (samples, 2), np.int64)
        # The last file to appear: without it the others are made anew.
        partial = folder / f"{_IDENTITY}.{os.getpid()}"
        partial.write_text(json.dumps(wanted, indent=1))
        partial.replace(folder / _IDENTITY)
    try:
        stored = json.loads((folder / _IDENTITY).read_text())
    except ValueError:
        stored = None
    if not isinstance(stored, dict):
        raise ValueError(f"`cache`={str(folder)!r} is damaged: delete {_IDENTITY} there, and the cache is made anew")
    if stored.get("teachers") != wanted["teachers"]:
        raise ValueError(
            f"`cache`={str(folder)!r} is of other teachers, or of the same in another order: name another folder, or "
            f"delete this one (it holds {_short(stored.get('teachers'))}, `teachers` are {_short(wanted['teachers'])})"
        )
    for name, value in wanted.items():
        if stored.get(name) != value:
            raise ValueError(
                f"`cache`={str(folder)!r} was made for {name} {stored.get(name)!r}, and this run has {value!r}: "
                "name another folder, or delete this one"
            )


class TeacherCache:
    """The logits of teachers on the clean inputs of a data set, by sample, in a folder that ``prepare_cache`` has made.

    ``teacher_logits.npy`` holds them, float32 [N, T, K], ``teacher_checksums.npy``, int64 [N, 2], the checksum of each
    sample's input and that of its row, so that a row that was written in part, or never, counts as missing. Rows are
    read into the memory of the device; on the CPU they stay in the mapped file. New ones are written by ``flush``.

    Args:
        folder: the folder.
        device: where the batches are.

    Attributes:
        is_complete: whether every sample is stored.

    Raises:
        ValueError: if the files are damaged.
        PermissionError: if they cannot be read, or are incomplete and cannot be written.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder = folder
        self.device = device
        self._new: list[tuple[Tensor, Tensor, Tensor]] = []
        self._has_stale = torch.zeros((), dtype=torch.bool, device=device)
        self._asked = 0
        self._load()
        self._is_proven = not self._has_some  # only an earlier run's answers may be those of other teachers
        if not self.is_complete:
            self._map("r+")  # an error now, not when there is something to write

    def start_epoch(self) -> None:
        """Look closely at the next batch."""
        self._asked = 0

    def __call__(self, index: Tensor, ask: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Give the logits of a batch, stored ones if there are, else those that the teachers give now.

        Once every sample is stored nothing here waits for the device, but for the first batch of an epoch and every
        hundredth, in which it is looked at whether inputs were other ones than those stored. Until then a sample whose
        input was another has NaN for its logits, never those of the other input.

        The first batch of which an earlier run has stored answers is asked about again, and both are compared.

        Args:
            index: the samples' places in the data set, integers [B].
            ask: inputs -> logits [B, T, K].
            x: the samples' inputs, float [B, ...].

        Returns:
            float32 [B, T, K].

        Raises:
            TypeError: if ``index`` holds no integers.
            ValueError: if inputs are not those stored, or an index is out of range or of another length; or if the
                teachers answer otherwise than in the run that stored their answers.
        """
        if index.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"`index_key` must say where a batch has integers, int64 [B], got {index.dtype}")
        if list(index.shape) != [len(x)]:
            raise ValueError(f"`index_key` must say where a batch has indices {[len(x)]}, got {list(index.shape)}")
        row = index.long().clamp(0, len(self._known) - 1)
        given = bit_checksum(x)
        known = self._known[row]
        stale = (row != index) | (known & (self._inputs[row] != given))
        self._has_stale |= stale.any()
        if x.device.type == "cpu" or not self.is_complete or self._asked % _LOOK_EVERY == 0:
            self.check()
        self._asked += 1
        is_stored = self.is_complete or bool(known.all())
        if not (is_stored and self._is_proven):
            logits = ask(x)
            if not self._is_proven and bool(known.any()):
                self._prove(logits[known], self._logits[row[known]])
            if not is_stored:
                self._new.append((row, given, logits))
                return logits
        return torch.where(stale[:, None, None], torch.nan, self._logits[row])

    @property
    def has_stale(self) -> bool:
        """Whether an input was another than the one stored. Waits for the device."""
        return bool(self._has_stale)

    def check(self) -> None:
        """Refuse inputs that are other ones than those stored. Waits for the device.

        Raises:
            ValueError: saying what may be the matter.
        """
        if self.has_stale:
            raise ValueError(
                f"`cache`={str(self.folder)!r} holds the teachers' answers to other inputs than these at the same "
                f"`index_key`, or fewer than there are indices ({len(self._known)}): the data set is another one, or "
                "inputs are augmented at random, so that no answer can be used again. Train without augmentation, name "
                "another folder, or leave `cache` out"
            )

    def _prove(self, now: Tensor, stored: Tensor) -> None:
        """Compare answers [B, T, K]: their code or a plain attribute makes teachers others, which no checksum tells."""
        now, stored = (logits - logits.mean(2, keepdim=True) for logits in (now, stored))
        is_other = (now - stored).norm(dim=(0, 2)) > _UNLIKE * now.norm(dim=(0, 2))
        if is_other.any():
            who = is_other.nonzero().flatten().tolist()
            raise ValueError(
                f"`cache`={str(self.folder)!r} holds other answers than teacher {who} (counted from 0) gives "
                "now, with the same weights and layers: its code or one of its attributes has "
                "changed, or it answers at random or by the rest of the batch; delete the folder, or leave `cache` out"
            )
        self._is_proven = True

    def flush(self) -> None:
        """Write what is new into the files. Other processes may do so at the same time."""
        if not self._new:
            return
        index, inputs, logits = (torch.cat(parts).cpu() for parts in zip(*self._new, strict=True))
        self._new = []
        is_new = ~self._known.cpu()[index]
        index, inputs, logits = index[is_new], inputs[is_new], logits[is_new]
        files = self._map("r+")
        files[_LOGITS][index.numpy()] = logits.numpy()
        files[_CHECKSUMS][index.numpy()] = torch.stack([inputs, _row_checksum(logits, inputs)], 1).numpy()
        for file in files.values():
            file.flush()
        # One sample met twice in an epoch is written twice, and must have been the same.
        stored = torch.from_numpy(np.array(files[_CHECKSUMS][index.numpy(), 0]))
        self._has_stale |= (stored != inputs).any().to(self.device)

    def reload(self) -> None:
        """Read what all processes have written, unless everything is known already."""
        if not self.is_complete:
            self._load()

    def _load(self) -> None:
        files = {name: torch.from_numpy(file) for name, file in self._map("c").items()}  # private: written by nobody
        logits, checksums = files[_LOGITS], files[_CHECKSUMS]
        known = checksums[:, 1] == _row_checksum(logits, checksums[:, 0])
        self.is_complete, self._has_some = bool(known.all()), bool(known.any())
        self._known = known.to(self.device)
        self._inputs = checksums[:, 0].to(self.device)
        self._logits = logits.to(self.device)

    def _map(self, mode: Literal["r+", "c"]) -> dict[str, np.memmap[Any, Any]]:
        stored = json.loads((self.folder / _IDENTITY).read_text())
        shape = (stored["samples"], len(stored["teachers"]), stored["classes"])
        files: dict[str, np.memmap[Any, Any]] = {}
        for name, form, dtype in ((_LOGITS, shape, "float32"), (_CHECKSUMS, (shape[0], 2), "int64")):
            try:
                file = np.load(self.folder / name, mmap_mode=mode, allow_pickle=False)
            except PermissionError:
                raise  # which is no damage
            except (OSError, ValueError, EOFError):
                file = None
            if not isinstance(file, np.memmap) or file.shape != form or file.dtype != dtype:
                raise ValueError(
                    f"`cache`={str(self.folder)!r} is damaged: {name} must hold {dtype} {list(form)}; delete the "
                    "folder, and the cache is made anew"
                )
            files[name] = file
        return files


def _make(path: Path, shape: tuple[int, ...], dtype: type) -> None:
    """Write a file of zeros that has its room on the disk: a mapped one that has not, kills the process when full."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=shape).flush()
    if hasattr(os, "posix_fallocate"):
        with partial.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
    partial.replace(path)


def _row_checksum(logits: Tensor, inputs: Tensor) -> Tensor:
    """Sum up a row of the files, [N]; never zero, which stands in rows that nobody has written."""
    rows = torch.cat([bit_checksum(part) for part in torch.split(logits, _ROWS)])  # at once: twice their memory
    return fold(rows, inputs) | 1


def _short(fingerprints: Any) -> list[str]:
    return [str(one)[:8] for one in fingerprints] if isinstance(fingerprints, list) else [repr(fingerprints)]
