"""Which part imports which, read off the sources: three storeys, no circle, one seam to Lightning."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"pl_robust": "pl_robust", "callbacks": "pl_robust.callbacks", "datamodules": "pl_robust.datamodules"}
STOREYS = {
    **dict.fromkeys(["attacks", "transforms", "ntk", "models"], 1),
    **dict.fromkeys(["losses", "metrics"], 2),
    **dict.fromkeys(["modules", "callbacks", "datamodules"], 3),
}


def imports(source: str, module: str, *, at_import: bool = False) -> set[str]:
    """Names of what a source imports; with ``at_import`` not what functions and type checkers alone do."""
    tree = ast.parse(source)
    if at_import:
        body = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))]
        tree = ast.Module(body, [])
    found: set[str] = set()
    nodes = [tree]
    while nodes:
        for node in ast.iter_child_nodes(nodes.pop()):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{module} imports relatively"
                found.add(node.module or "")
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
            elif not (at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
                nodes.append(node)  # type: ignore[arg-type]
    return found


@cache
def sources() -> dict[str, str]:
    """The text of each module of the package, by its name."""
    found: dict[str, str] = {}
    for folder, package in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = file.read_text("utf-8")
    return found


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "pl_robust" else ""


def wrong_arrows(texts: dict[str, str]) -> list[tuple[str, str]]:
    """Imports of a room of the same storey, or of one above."""
    pairs = [(module, name) for module, text in texts.items() for name in sorted(imports(text, module))]
    return [
        (module, name)
        for module, name in pairs
        if room_of(module) in STOREYS
        and room_of(name) in STOREYS
        and room_of(module) != room_of(name)
        and STOREYS[room_of(module)] <= STOREYS[room_of(name)]
    ]


def test_arrows_point_down() -> None:
    texts = sources()
    assert len(texts) > 200
    assert wrong_arrows(texts) == []
    upwards = {"pl_robust.ntk.x": "def f():\n    from pl_robust.losses import GradAlign"}
    assert wrong_arrows(upwards) == [
        ("pl_robust.ntk.x", "pl_robust.losses"),
        ("pl_robust.ntk.x", "pl_robust.losses.GradAlign"),
    ]
    sideways = {"pl_robust.callbacks.x": "import pl_robust.modules.y"}
    assert wrong_arrows(sideways) == [("pl_robust.callbacks.x", "pl_robust.modules.y")]


def test_the_lookup_of_a_network_alone_knows_the_models() -> None:
    texts = sources()
    knowing = {module for module, text in texts.items() if "models" in map(room_of, imports(text, module))}
    assert {module for module in knowing if room_of(module) != "models"} == {"pl_robust.modules._net"}


def test_there_is_no_circle() -> None:
    texts = sources()
    graph = {
        name: {other for other in imports(text, name, at_import=True) if other in texts} for name, text in texts.items()
    }
    TopologicalSorter(graph).prepare()
    with pytest.raises(CycleError, match="cycle"):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def test_lightning_comes_in_by_one_file() -> None:
    names = ("pytorch_lightning", "lightning", "lightning_fabric")
    found = {
        module: {name for name in imports(text, module) if name.split(".")[0] in names}
        for module, text in sources().items()
    }
    assert {module for module, taken in found.items() if taken} == {"pl_robust._lightning"}
