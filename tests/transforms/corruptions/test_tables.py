"""The ImageNet constants are those in the source of imagecorruptions; the others have their published anchors."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any, get_args

import pytest

from pl_robust.transforms import CORRUPTIONS, EXTRA_CORRUPTIONS
from pl_robust.transforms._corruptions.tables import TABLES, TableName

# What stands otherwise in the source: zoom factors as ranges, elastic's in its body, frost's without a scale.
WRITTEN_ALIKE = sorted({*CORRUPTIONS, *EXTRA_CORRUPTIONS} - {"zoom_blur", "elastic_transform", "frost"})


def published(name: str) -> list[Any]:
    """The list of constants in the function of that name, read and not run."""
    spec = importlib.util.find_spec("imagecorruptions")
    assert spec is not None
    assert spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0], "corruptions.py").read_text(encoding="utf-8")
    (function,) = (node for node in ast.parse(source).body if getattr(node, "name", None) == name)
    lists = [
        node.value.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript)
    ]
    found: list[Any] = ast.literal_eval(next(node for node in lists if isinstance(node, ast.List)))
    return found


@pytest.mark.parametrize("name", WRITTEN_ALIKE)
def test_imagenet_constants_are_the_published_ones(name: str) -> None:
    rows = [row if isinstance(row, tuple) else (row,) for row in published(name)]
    assert [tuple(map(float, row)) for row in TABLES[name]["imagenet"]] == [tuple(map(float, row)) for row in rows]


def test_frost_adds_the_scale_of_the_photo() -> None:
    assert [row[:2] for row in TABLES["frost"]["imagenet"]] == published("frost")


def test_every_corruption_has_five_rows_of_one_length_in_every_table() -> None:
    assert set(TABLES) == {*CORRUPTIONS, *EXTRA_CORRUPTIONS}
    for tables in TABLES.values():
        assert set(tables) == set(get_args(TableName))
        assert {len(rows) for rows in tables.values()} == {5}
        assert len({len(row) for rows in tables.values() for row in rows}) == 1
