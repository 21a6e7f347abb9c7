"""What a folder of written corruptions says of itself: how they were made, and the checksum of each file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

NAME = "corruptions.json"
FORMAT = "corruptions of pl_robust, 1"
_CHUNK = 2**22


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read a folder's manifest; ``None`` if it has none.

    Raises:
        ValueError: if it is damaged, or none of ours.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); `pl-robust corrupt` writes it") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("files"), dict):
        raise ValueError(f'{path} must have "format": {FORMAT!r} and the checksums of "files", and has not')
    return content


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write a folder's manifest, in place of the one that is there."""
    with replacing(folder / NAME) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode("utf-8"))


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes its place only when it is complete and on disk: killed at any moment, there is no half.

    What a killed process leaves behind has a name of its own and is overwritten by the next.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """SHA-256 of a file, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def verify(folder: Path, names: Iterable[str]) -> None:
    """Check files against the manifest, if there is one.

    Args:
        folder: of the files.
        names: of the files that are to be used; all of them exist.

    Raises:
        ValueError: if one of them is not listed, or is not what was written.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return
    for name in names:
        listed = manifest["files"].get(name)
        if listed is None:
            raise ValueError(
                f"{folder / name} is not among the files that {NAME} lists: it was put there by somebody else; "
                "move it away and write it with `pl-robust corrupt`"
            )
        if checksum(folder / name) != listed:
            raise ValueError(
                f"{folder / name} is damaged: its SHA-256 is not the one in {NAME}; "
                "`pl-robust corrupt` with the same arguments writes it anew"
            )
