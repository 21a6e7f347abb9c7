"""Where the graphs of ``GraphDataModule`` come from by name: PyG's datasets."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from pathlib import Path
from typing import Any

GENERATED = "csbm"
SHIPPED = "karate"
PLANETOID = ("Cora", "CiteSeer", "PubMed")
_KNOWN = (GENERATED, SHIPPED, *PLANETOID)


def check_name(name: object) -> None:
    """Refuse what names no graph.

    Raises:
        TypeError: if it is no string.
        ValueError: if there is no such name.
    """
    if not isinstance(name, str):
        raise TypeError(f"`name` must be a string such as {GENERATED!r}, got {name!r}")
    if name not in _KNOWN:
        _dataset_class(name)


def read_graph(name: str, data_dir: str, download: bool) -> Any:
    """Read a graph that is not generated.

    Args:
        name: ``karate``, one of PLANETOID, or a class of torch_geometric.datasets, with ``/`` and its ``name``.
        data_dir: folder of the files.
        download: fetch what is missing.

    Returns:
        A torch_geometric Data.

    Raises:
        FileNotFoundError: if files are missing and may not be fetched.
        ValueError: if the dataset holds no single graph, or a file is not the published one.
    """
    if name == SHIPPED:
        from torch_geometric.datasets import KarateClub

        return KarateClub()[0]
    if name in PLANETOID:
        from pl_robust.datamodules._graph_planetoid import CheckedPlanetoid

        cls, folder, arguments = CheckedPlanetoid, Path(data_dir), {"name": name}
    else:
        cls, folder = _dataset_class(name), Path(data_dir) / name.partition("/")[0]
        arguments = {"name": name.partition("/")[2]} if "/" in name else {}
    if not download:
        cls = _offline(cls, name)
    try:
        dataset = cls(root=str(folder), **arguments)
    except AssertionError as error:  # PyG's way to refuse a name
        raise ValueError(f"PyG's {cls.__name__} refuses `name`={name!r}; see its documentation: {error}") from error
    if len(dataset) != 1:
        raise ValueError(f"`name` must be a dataset of one graph, {name} has {len(dataset)}: pass one as `graph`")
    return dataset[0]


def _offline(cls: Any, name: str) -> Any:
    """Make a class of a dataset that fetches nothing."""
    from torch_geometric.data import Dataset

    if cls.download is Dataset.download:  # it is made in memory
        return cls

    def refuse(self: Any) -> None:
        raise FileNotFoundError(
            f"the files of {name} are not in {self.raw_dir!r}, and downloads happen in prepare_data alone: call it "
            "with download=True, or copy the files there"
        )

    return type(cls.__name__, (cls,), {"download": refuse, "__module__": cls.__module__})


def _dataset_class(name: str) -> Any:
    import torch_geometric.datasets as pyg

    stem, slash, member = name.partition("/")
    cls = getattr(pyg, stem, None) if stem in pyg.__all__ else None
    same = {"KarateClub": SHIPPED, "Planetoid": member or "Cora"}.get(stem)
    if same is not None:  # by another door Planetoid's files would not be checked
        raise ValueError(f"`name`={name!r} is to be given as {same!r}")
    if cls is None:
        close = get_close_matches(name.lower(), [known.lower() for known in (*_KNOWN, *pyg.__all__)], n=1)
        names = {known.lower(): known for known in (*_KNOWN, *pyg.__all__)}
        hint = f": did you mean {names[close[0]]}?" if close else ""
        raise ValueError(
            f"`name` must be one of {', '.join(_KNOWN)}, or a class of torch_geometric.datasets such as 'WikiCS' or "
            f"'Amazon/Photo', got {name!r}{hint}"
        )
    parameters = inspect.signature(cls).parameters
    required = {
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    }
    if "root" not in parameters or required - {"root", "name"}:
        raise ValueError(
            f"`name`={name!r} needs more arguments than a name, {sorted(required)}: build it, and pass `graph`"
        )
    if bool(slash and member) != ("name" in required) and ("name" in required or slash):
        wanted = f"{stem}/<name>" if "name" in parameters else stem
        raise ValueError(f"`name` must be {wanted!r} for this dataset, got {name!r}; see its documentation in PyG")
    return cls
