"""The examples in docstrings run. By the import system: callbacks/ and datamodules/ are not where their names say."""

from __future__ import annotations

import doctest
from collections.abc import Iterable
from importlib import import_module
from pkgutil import walk_packages

import pytest
import torch

import pl_robust
from pl_robust._cli_errors import ROOMS

AT_LEAST = 60


def examples() -> list[doctest.DocTest]:
    """Collect the docstrings of all modules that hold examples."""
    found = []
    folders: dict[str, Iterable[str]] = {"pl_robust": pl_robust.__path__}
    folders |= {f"pl_robust.{room}": import_module(f"pl_robust.{room}").__path__ for room in ROOMS}
    names = {info.name for name, path in folders.items() for info in walk_packages(path, f"{name}.")}
    for name in sorted(names - {"pl_robust.__main__"}):
        module = import_module(name)
        found += [test for test in doctest.DocTestFinder().find(module, name, module) if test.examples]
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_the_example_gives_what_it_says(example: doctest.DocTest) -> None:
    torch.manual_seed(0)
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=said.append)
    assert result.failed == 0, "".join(said)
    assert result.attempted > 0


def test_every_room_has_examples() -> None:
    rooms = {example.name.split(".")[1] for example in EXAMPLES}
    assert set(ROOMS) <= rooms
    lines = sum(len(example.examples) for example in EXAMPLES)
    print(f"\n{lines} lines of examples in {len(EXAMPLES)} docstrings")
    assert lines >= AT_LEAST
