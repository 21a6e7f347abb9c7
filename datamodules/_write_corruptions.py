"""Write a datamodule's test images, corrupted, in the layout of CIFAR-10-C; what ``pl-robust corrupt`` does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm  # type: ignore[import-untyped]

from pl_robust import __version__
from pl_robust._batch import split_batch
from pl_robust._dataloaders import flatten_loaders
from pl_robust._lightning import LightningDataModule
from pl_robust.datamodules._corruption_arrays import LABELS, SEVERITIES
from pl_robust.datamodules._corruption_manifest import (
    FORMAT,
    NAME,
    checksum,
    read_manifest,
    replacing,
    write_manifest,
)
from pl_robust.datamodules._pending_corruption import CorruptLater, indexed_loader
from pl_robust.metrics._corruption_names import Corruptions, corruption_names
from pl_robust.transforms._corruptions.tables import TableName
from pl_robust.transforms.corruption import corrupt, table_for


def write_corruptions(
    data: LightningDataModule,
    out_dir: str,
    table: TableName | None = None,
    corruptions: Corruptions = "benchmark",
    device: str = "cpu",
    input_key: int | str = 0,
    label_key: int | str = 1,
) -> None:
    """Write a datamodule's test images, corrupted at all severities, as CIFAR-10-C has them.

    ``out_dir`` gets one <name>.npy per corruption, uint8 [5 * n, H, W, C], severity after severity, labels.npy,
    int64 [5 * n], and corruptions.json: how they were made, and the checksum of each file. The seed of an image is its
    index. Killed at any moment and called again, it goes on behind the last complete file and ends with the same bytes.
    One process at a time may write to a folder.

    Args:
        data: datamodule whose test images are to be corrupted: one loader of float [B, C, H, W] in [0, 1] with labels,
            the same at every reading. Its batch size is that of the work.
        out_dir: folder to write to; made if it is not there.
        table: whose constants to take, cifar, tiny_imagenet or imagenet; null: by the shorter side, up to 48 pixels, up
            to 96, and above.
        corruptions: benchmark (the 15), all (those and the 4 extra ones), or a list of names.
        device: where to compute, such as cpu or cuda; an accelerator rounds in its own way.
        input_key: where a batch has its images: position in a sequence, key in a dict.
        label_key: where a batch has its labels, likewise.

    Raises:
        ValueError: if an argument is not as described, the images are not, the folder holds corruptions of other
            images or of another table, or files of somebody else.
        TypeError: if the test data is no torch DataLoader with an indexed data set, or its images are not float.
    """
    names = corruption_names(corruptions)
    if table is not None and table not in get_args(TableName):
        raise ValueError(f"`table` must be one of {', '.join(get_args(TableName))} or null, got {table!r}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter: torch built without CUDA
        raise ValueError(f"`device`={device!r} cannot be used: {str(error).splitlines()[0]}") from error
    folder = Path(out_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`out_dir` must be a folder, {str(folder)!r} is none")
    data.prepare_data()
    data.setup("test")
    loaders = flatten_loaders(data.test_dataloader())
    if len(loaders) != 1:
        raise ValueError(f"`data` must have one test loader, {type(data).__name__} gives {len(loaders)}")
    loader = indexed_loader(loaders[0], in_order=True)
    labels, shape, digest = _read_clean(data, loader, input_key, label_key)
    table = table_for(shape) if table is None else table
    made = {
        "format": FORMAT,
        "version": __version__,
        "table": table,
        "seeds": "index of the image in the test set",
        "device": torch.device(device).type,
        "source": {
            "datamodule": type(data).__name__,
            "arguments": {name: str(value) for name, value in data.hparams.items()},
            "images": len(labels),
            "shape": shape,
            "sha256": digest,
        },
    }
    for name in names:  # what cannot be corrupted is known before anything is written
        corrupt(torch.zeros(1, *shape), name, SEVERITIES, table=table, seeds=torch.zeros(1, dtype=torch.long))
    manifest = _start(folder, made, [LABELS, *(f"{name}.npy" for name in names)])
    total = SEVERITIES * len(labels)
    if not _is_done(folder, LABELS, manifest):
        _write(folder, LABELS, manifest, np.int64, (total,), [labels.repeat(SEVERITIES)])
    channels, height, width = shape
    missing = [name for name in names if not _is_done(folder, f"{name}.npy", manifest)]
    with tqdm(total=total * len(names), initial=total * (len(names) - len(missing)), unit="image") as bar:
        for name in missing:
            bar.set_description(name)
            steps = [CorruptLater(name, severity, table, input_key) for severity in range(1, SEVERITIES + 1)]
            pixels = _corrupted(data, loader, steps, torch.device(device), bar)
            _write(folder, f"{name}.npy", manifest, np.uint8, (total, height, width, channels), pixels)


def _read_clean(
    data: LightningDataModule, loader: DataLoader[Any], input_key: int | str, label_key: int | str
) -> tuple[Tensor, list[int], str]:
    """Go through the clean images once: their labels, int64 [n], their shape, and a checksum of all of it."""
    digest = hashlib.sha256()
    labels: list[Tensor] = []
    shape: list[int] | None = None
    for _, collated in tqdm(loader, desc="reading", unit="batch", leave=False):
        x, y = split_batch(data.on_before_batch_transfer(collated, 0), input_key, label_key)
        if x.ndim != 4 or not x.is_floating_point() or y.shape != x.shape[:1] or y.is_floating_point():
            raise ValueError(
                "`data` must give float images [B, C, H, W] and integer labels [B], "
                f"got {x.dtype} {list(x.shape)} and {y.dtype} {list(y.shape)}"
            )
        if not ((x >= 0) & (x <= 1)).all():
            raise ValueError(
                f"`data` must give images in [0, 1], got values from {float(x.min()):.3g} to {float(x.max()):.3g}; "
                "leave it to the network to normalize them (models.Normalize)"
            )
        shape = list(x.shape[1:]) if shape is None else shape
        if list(x.shape[1:]) != shape:
            raise ValueError(f"all images must have the shape of the first, {shape}, got {list(x.shape[1:])}")
        digest.update(_bytes(x))
        labels.append(y.long())
    if shape is None:
        raise ValueError(f"`data` must have test images, {type(data).__name__} has none")
    together = torch.cat(labels)
    digest.update(_bytes(together))
    return together, shape, digest.hexdigest()


def _start(folder: Path, made: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
    """Find the manifest to go on with, or begin one.

    Raises:
        ValueError: if the folder has files that do not belong to this suite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(folder)
    if manifest is None:
        manifest = {**made, "files": {}}
        _refuse_strangers(folder, manifest, wanted)
        write_manifest(folder, manifest)
        return manifest
    for key in ("version", "table", "seeds", "device"):
        if manifest.get(key) != made[key]:
            raise ValueError(
                f"`out_dir`={str(folder)!r} holds corruptions of {key} {manifest.get(key)!r}, not {made[key]!r}; "
                "take another folder, or delete this one"
            )
    there, ours = manifest.get("source", {}), made["source"]
    if any(there.get(key) != ours[key] for key in ("images", "shape", "sha256")):
        raise ValueError(
            f"`out_dir`={str(folder)!r} holds corruptions of other images: {there.get('images')} of shape "
            f"{there.get('shape')} from {there.get('datamodule')}, not these {ours['images']} of shape "
            f"{ours['shape']}, or they change from one reading to the next; take another folder"
        )
    _refuse_strangers(folder, manifest, wanted)
    return manifest


def _refuse_strangers(folder: Path, manifest: dict[str, Any], wanted: list[str]) -> None:
    strangers = [name for name in wanted if (folder / name).exists() and name not in manifest["files"]]
    if strangers:
        raise ValueError(
            f"{folder / strangers[0]} would be overwritten, and {NAME} does not list it: it is none of ours; "
            "take another `out_dir`, or move it away"
        )


def _is_done(folder: Path, name: str, manifest: dict[str, Any]) -> bool:
    with suppress(FileNotFoundError):
        return bool(manifest["files"].get(name) == checksum(folder / name))
    return False


def _corrupted(
    data: LightningDataModule, loader: DataLoader[Any], steps: list[CorruptLater], device: torch.device, bar: Any
) -> Iterator[Tensor]:
    """Make the images of all severities: batches of uint8 [B, H, W, C] on the CPU."""
    for step in steps:
        for index, collated in loader:
            batch = data.on_before_batch_transfer(collated, 0)
            batch = step.corrupt(data.transfer_batch_to_device(batch, device, 0), index)
            yield (step.images(batch).float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
            bar.update(len(index))


def _write(
    folder: Path, name: str, manifest: dict[str, Any], dtype: type, shape: tuple[int, ...], parts: Iterable[Tensor]
) -> None:
    """Write an array piece by piece, and its checksum into the manifest."""
    digest = hashlib.sha256()
    with replacing(folder / name) as file:
        for piece in _npy(dtype, shape, parts):
            file.write(piece)
            digest.update(piece)
        # Listed before it is in place: if that is the end, the file is missing and will be written, and no stranger.
        manifest["files"][name] = digest.hexdigest()
        write_manifest(folder, manifest)


def _npy(dtype: type, shape: tuple[int, ...], parts: Iterable[Tensor]) -> Iterator[bytes]:
    """A ``.npy`` file in pieces: its header, then the parts in their order."""
    header = BytesIO()
    content = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, content)
    yield header.getvalue()
    for part in parts:
        yield _bytes(part)


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())  # NumPy lacks some of the dtypes
