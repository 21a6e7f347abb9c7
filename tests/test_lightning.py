"""The seam: one namespace per process, chosen late; cheap imports; no Lightning below the Lightning line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def ask(code: str, folder: Path, **variables: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PL_ROBUST_LIGHTNING"}
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env={**environment, **variables}
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip().splitlines()[-1]


CHOICE = "from pl_robust._lightning import NAMESPACE; print(NAMESPACE)"


@pytest.mark.parametrize(
    ("before", "variable", "expected"),
    [
        ("", None, "pytorch_lightning"),
        ("", "lightning", "lightning.pytorch"),
        ("import lightning.pytorch;", None, "lightning.pytorch"),
        ("import lightning.pytorch, pytorch_lightning;", None, "pytorch_lightning"),
        ("import lightning.pytorch;", "pytorch_lightning", "pytorch_lightning"),
        ("import pl_robust.callbacks, pl_robust.modules; import lightning.pytorch;", None, "lightning.pytorch"),
    ],
)
def test_the_namespace_is_chosen_by_the_rule(before: str, variable: str | None, expected: str, tmp_path: Path) -> None:
    variables = {} if variable is None else {"PL_ROBUST_LIGHTNING": variable}
    assert ask(before + CHOICE, tmp_path, **variables) == expected


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    code = f"try:\n import pl_robust._lightning\nexcept ImportError as error:\n print(error)\n# {CHOICE}"
    said = ask(code, tmp_path, PL_ROBUST_LIGHTNING="torch_lightning")
    assert said == "PL_ROBUST_LIGHTNING must be one of ['lightning', 'pytorch_lightning'], got 'torch_lightning'"


def test_importing_the_package_costs_nothing(tmp_path: Path) -> None:
    code = (
        "import time, sys; start = time.perf_counter(); import pl_robust, pl_robust.callbacks, pl_robust.datamodules;"
        "print([time.perf_counter() - start, 'torch' in sys.modules, pl_robust.__version__ != ''])"
    )
    seconds, torch_is_loaded, has_version = json.loads(ask(code, tmp_path).lower())
    assert seconds < 0.1
    assert not torch_is_loaded
    assert has_version


@pytest.mark.parametrize("room", ["attacks", "transforms", "ntk", "models", "losses", "metrics"])
def test_pure_rooms_import_no_lightning(room: str, tmp_path: Path) -> None:
    code = (
        f"import sys, pl_robust.{room} as room; [getattr(room, name) for name in room.__all__];"
        "print([name for name in sys.modules if name.split('.')[0] in ('pytorch_lightning', 'lightning')])"
    )
    assert ask(code, tmp_path) == "[]"


def test_importing_everything_has_no_side_effect(tmp_path: Path) -> None:
    code = """
import logging, random, warnings
import numpy, torch, pytorch_lightning, torchmetrics, torchvision, sklearn.datasets

def look():
    generators = random.getstate(), numpy.random.get_state(), torch.get_rng_state().tolist()
    return [str(part) for part in (warnings.filters, logging.getLogger().handlers, *generators)]

before = look()
import pl_robust.cli
from importlib import import_module
for room in ("attacks", "callbacks", "datamodules", "losses", "metrics", "models", "modules", "ntk", "transforms"):
    face = import_module(f"pl_robust.{room}")
    assert len(set(face.__all__)) == len(face.__all__), room
    [getattr(face, name) for name in face.__all__]
print(before == look())
"""
    assert ask(code, tmp_path) == "True"


def test_an_unknown_name_lists_what_there_is(tmp_path: Path) -> None:
    code = "import pl_robust.callbacks as room\ntry:\n room.Detector\nexcept AttributeError as error:\n print(error)"
    assert "it offers CalibrationLogger, CatastrophicOverfittingDetector, CorruptionEvaluator, Curv" in ask(
        code, tmp_path
    )
