"""The site: each room has its page, each public name its anchor; and it builds where there is no network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from pl_robust import __version__
from pl_robust._cli_errors import ROOMS

ROOT = Path(__file__).parents[1]
MKDOCS = shutil.which("mkdocs")
# Here and not inside a test: what the rooms import sets environment variables when it is imported first.
PUBLIC = {
    room: {name: getattr(face, name) for name in face.__all__}
    for room, face in ((room, import_module(f"pl_robust.{room}")) for room in ROOMS)
}


def hooks() -> ModuleType:
    spec = spec_from_file_location("docs_hooks", ROOT / "docs" / "_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_room_has_a_page_with_all_its_names() -> None:
    pages = hooks().api_pages()
    assert set(pages) == {f"api/{room}.md" for room in ROOMS}
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    for room in ROOMS:
        assert f"- api/{room}.md" in navigation
        page = pages[f"api/{room}.md"]
        assert set(re.findall(r"\{ #([\w.]+) \}", page)) == {f"pl_robust.{room}.{name}" for name in PUBLIC[room]}
        for name, definition in re.findall(r"^## (\w+) .*\n\n::: ([\w.]+)$", page, re.MULTILINE):
            module, _, found = definition.rpartition(".")
            assert getattr(import_module(module), found) is PUBLIC[room][name]


def test_pages_name_no_public_name_that_is_none() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for room, name in re.findall(r"\]\[pl_robust\.(\w+)\.(\w+)\]", page.read_text()):
            assert name in PUBLIC[room], f"{page.name}: pl_robust.{room}.{name}"


def test_the_citation_is_of_this_version_and_these_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == __version__
    papers = " ".join((ROOT / "docs" / "papers.md").read_text("utf-8").lower().split())
    for reference in citation["references"]:
        assert reference["title"].lower() in papers
        for author in reference["authors"]:
            assert author["family-names"].lower() in papers


class _Anchors(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str | None] = set()
        self.fetched: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids.add(values.get("id"))
        source = values.get("src") if tag in ("script", "img") else values.get("href") if tag == "link" else None
        if source is not None and source.startswith(("http:", "https:", "//")):
            self.fetched.append(source)


@pytest.mark.slow
@pytest.mark.skipif(MKDOCS is None, reason="mkdocs is not on the PATH: pip install the extra `docs` beside this one")
def test_the_site_builds_without_a_network(tmp_path: Path) -> None:
    assert MKDOCS is not None
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [MKDOCS, "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml"), "--site-dir", str(tmp_path)]
    built = subprocess.run(command, env={**os.environ, **nowhere}, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    for room in ROOMS:
        html = (tmp_path / "api" / f"{room}.html").read_text()
        page = _Anchors(html)
        missing = set(PUBLIC[room]) - {str(anchor).removeprefix(f"pl_robust.{room}.") for anchor in page.ids}
        assert not missing, f"pl_robust.{room}: {missing}"
        assert not page.fetched  # nothing comes from elsewhere when it is opened, either
        assert ":math:" not in html
        assert ".. math" not in html
    fgsm = (tmp_path / "api" / "attacks.html").read_text().partition('id="pl_robust.attacks.fgsm"')[2]
    assert "radius in input units" in fgsm.partition('id="pl_robust.attacks.')[0]  # from the docstring
    losses = (tmp_path / "api" / "losses.html").read_text().partition('id="pl_robust.losses.trades_loss"')[2]
    assert "<mi>&#x003B2;</mi>" in losses.partition('id="pl_robust.losses.')[0]  # its beta, drawn
