"""Eigenfunctions of a tangent kernel, kept in a file: they may take hours, and one decomposition has many tasks."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pl_robust._lightning import rank_zero_info
from pl_robust.datamodules._corruption_manifest import replacing
from pl_robust.ntk import NTKEigen, ntk_eigh

_FORMAT = "eigenfunctions of pl_robust, 1"


def eigenfunctions(
    model: nn.Module, x: Tensor, k: int, cache_dir: str | None, seed: int, settings: dict[str, Any]
) -> NTKEigen:
    """Decompose a network's kernel at all points, or read what an earlier call has stored.

    Args:
        model: the network, in eval mode.
        x: the points, on the CPU.
        k: how many.
        cache_dir: folder of the files; None stores nothing.
        seed: of Nyström's landmarks and of Lanczos' start.
        settings: further arguments of ``ntk_eigh``.

    Returns:
        Eigenvalues and eigenvectors, on the CPU.

    Raises:
        ValueError: if a stored file is damaged.
    """
    plain = {name: value for name, value in settings.items() if name != "chunk_size"}
    key = _checksum(model, x, {"k": k, "seed": seed, **plain})
    path = None if cache_dir is None else Path(cache_dir) / f"eigenfunctions-{key[:16]}.pt"
    if path is not None and path.exists():
        rank_zero_info(f"Reading the eigenfunctions of {type(model).__name__}'s kernel from {path}")
        return _load(path, key, (len(x), k))
    rank_zero_info(f"Decomposing {type(model).__name__}'s tangent kernel at {len(x)} points ({settings['method']})")
    place = next((parameter.device for parameter in model.parameters()), x.device)
    generator = torch.Generator().manual_seed(seed)
    found = ntk_eigh(model, x.to(place), k, generator=generator, **settings)
    eigen = NTKEigen(found.values.cpu(), found.vectors.cpu())
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            torch.save({"format": _FORMAT, "checksum": key, "values": eigen.values, "vectors": eigen.vectors}, file)
    return eigen


def _load(path: Path, key: str, shape: tuple[int, int]) -> NTKEigen:
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        eigen = NTKEigen(stored["values"], stored["vectors"])
        if (stored["format"], stored["checksum"], tuple(eigen.vectors.shape)) != (_FORMAT, key, shape):
            raise ValueError("it holds something else")
    except Exception as error:  # of any kind, for damaged bytes
        raise ValueError(f"{path} holds no eigenfunctions that can be used ({error}): delete it") from error
    return eigen


def _checksum(model: nn.Module, x: Tensor, settings: dict[str, Any]) -> str:
    """SHA-256 of all that the result depends on; of the model's code only what its repr shows."""
    digest = hashlib.sha256(f"{_FORMAT} {type(model).__qualname__} {model!r} {sorted(settings.items())}".encode())
    parameters = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tensors = {"": x, **dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} {name in parameters}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
