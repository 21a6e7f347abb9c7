"""mkdocs hook: a page of the API reference for each room, written when the site is built out of the room's ``__all__``.

Nothing is imported: faces are read as text, and so are the docstrings, hence the site builds without torch.
"""

from __future__ import annotations

import ast
import atexit
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

ROOMS = ("attacks", "transforms", "ntk", "losses", "metrics", "models", "modules", "callbacks", "datamodules")
ROOT = Path(__file__).resolve().parents[1]
BESIDE = ("callbacks", "datamodules")  # stand beside pl_robust/ and are installed inside it, as setup.py says


def api_pages() -> dict[str, str]:
    """Write the reference.

    Returns:
        Address of each page in ``docs/`` -> its Markdown.
    """
    return {f"api/{room}.md": _page(room) for room in ROOMS}


def _page(room: str) -> str:
    face = ast.parse((ROOT / ("" if room in BESIDE else "pl_robust") / room / "__init__.py").read_text("utf-8"))
    defined_in = {
        name.name: statement.module
        for statement in ast.walk(face)
        if isinstance(statement, ast.ImportFrom)
        for name in statement.names
    }
    (public,) = (
        ast.literal_eval(statement.value)
        for statement in face.body
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", None) == "__all__"
    )
    parts = [f"# pl_robust.{room}\n\n{ast.get_docstring(face)}\n"]
    # A function may share its file's name, so each is named by the file that defines it, below a heading of its own.
    parts += [
        f"## {name} {{ #pl_robust.{room}.{name} }}\n\n::: {defined_in[name]}.{name}\n"
        for name in sorted(public, key=str.lower)
    ]
    return "\n".join(parts)


def on_config(config: Any) -> None:
    """Put the package together as it is installed, for mkdocstrings to read."""
    staged = Path(tempfile.mkdtemp(prefix="pl_robust_docs_"))
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "pl_robust", staged / "pl_robust", ignore=ignore)
    for room in BESIDE:
        shutil.copytree(ROOT / room, staged / "pl_robust" / room, ignore=ignore)
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [str(staged)]
    for path in (staged / "pl_robust").rglob("*.py"):
        text = re.sub(r"^( +)Example:$", r"\1Examples:", path.read_text("utf-8"), flags=re.MULTILINE)  # griffe's word
        text = re.sub(r":math:`([^`]+)`", _mathml, text.replace(":class:`", "`"))
        path.write_text(text, "utf-8")
    atexit.register(shutil.rmtree, staged)


def _mathml(formula: re.Match[str]) -> str:
    from latex2mathml.converter import convert  # only mkdocs calls this

    # Browsers draw MathML without a script. At the start of a line Markdown would take it for a block, hence the span.
    return f"<span>{convert(' '.join(formula[1].split()))}</span>"


on_config.mkdocs_priority = 100  # type: ignore[attr-defined]  # before mkdocstrings looks at its paths


def on_files(files: Any, config: Any) -> None:
    """Add the pages of the reference."""
    from mkdocs.structure.files import File  # only mkdocs calls this

    for address, content in api_pages().items():
        files.append(File.generated(config, address, content=content))
