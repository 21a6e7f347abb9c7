from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pl_robust._sweep import Cell, SweepError, run_cells
from tests._processes import run_and_kill

EXPERIMENT = {"config": {"epochs": 3, "layers": (1, 2)}, "version": "1"}


def double(cell: Cell) -> dict[str, float]:
    return {"twice": 2 * float(cell["x"] or 0)}


def count_threads(cell: Cell) -> dict[str, int]:
    return {"threads": torch.get_num_threads()}


def never(cell: Cell) -> dict[str, float]:
    raise AssertionError(f"{cell} was run")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)


HELD: list[Any] = []


def hold(cell: Cell) -> dict[str, float]:
    """Take more memory in each call, as a process does into which caches and libraries come."""
    time.sleep(1.1)  # joblib looks once a second
    HELD.append(torch.ones(100 * 2**20 if HELD else 0))  # 400 MiB, but for the first call
    return double(cell)


class Noting:
    """Double x, and leave a note in a folder for each time it was called."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def __call__(self, cell: Cell) -> dict[str, float]:
        self.notes.mkdir(exist_ok=True)
        (self.notes / f"{cell['x']}-{time.monotonic_ns()}").touch()
        return double(cell)

    def calls(self) -> list[int]:
        return sorted(int(note.name.partition("-")[0]) for note in self.notes.glob("*"))


class Blocking(Noting):
    """Never get past x = 2."""

    def __call__(self, cell: Cell) -> dict[str, float]:
        result = super().__call__(cell)
        if cell["x"] == 2:
            wait_for(lambda: False)
        return result


class LastFirst:
    """End with x = 0 only when the results of the others are on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, cell: Cell) -> dict[str, float]:
        if cell["x"] == 0:
            wait_for(lambda: len(list(self.folder.glob("*.json"))) == 3)
        return double(cell)


class Fragile(Noting):
    """Fail where x is odd, until it is mended."""

    def __call__(self, cell: Cell) -> dict[str, float]:
        result = super().__call__(cell)
        if int(cell["x"] or 0) % 2 and not (self.notes.parent / "mended").exists():
            raise ZeroDivisionError(f"no {cell['x']}")
        return result


def xs(count: int) -> list[Cell]:
    return [{"x": x} for x in range(count)]


def sweep_until_killed(folder: Path) -> None:
    run_cells(Blocking(folder.parent / "notes"), xs(5), folder, experiment=EXPERIMENT)


def test_results_are_kept_as_they_come_and_returned_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "runs"
    function = LastFirst(folder)
    results = run_cells(function, xs(4), folder, experiment=EXPERIMENT, jobs=2)
    assert results == [{"twice": 0.0}, {"twice": 2.0}, {"twice": 4.0}, {"twice": 6.0}]
    saved = json.loads((folder / "x=3.json").read_text())
    assert saved["cell"] == {"x": 3}
    assert saved["result"] == {"twice": 6.0}
    assert run_cells(never, xs(4), folder, experiment=EXPERIMENT) == results


def test_names_of_files_say_what_was_run(tmp_path: Path) -> None:
    cells: list[Cell] = [{"beta": 0.1, "net": "a/b=c,d", "seed": 0}, {"beta": 0.1, "net": None, "seed": 0}]
    run_cells(lambda cell: {"one": 1.0}, cells, tmp_path, experiment={})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["beta=0.1,net=None,seed=0.json", "beta=0.1,net=a%2Fb%3Dc%2Cd,seed=0.json"]


def test_a_killed_sweep_loses_only_what_was_in_flight(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    killed = Blocking(tmp_path / "notes")
    code = run_and_kill(sweep_until_killed, lambda: killed.calls() == [0, 1, 2], folder)
    assert code == -signal.SIGKILL
    assert sorted(path.name for path in folder.iterdir()) == ["x=0.json", "x=1.json"]
    resumed = Noting(tmp_path / "resumed")
    assert run_cells(resumed, xs(5), folder, experiment=EXPERIMENT) == [double(cell) for cell in xs(5)]
    assert resumed.calls() == [2, 3, 4]


def test_failed_cells_are_named_and_alone_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    function = Fragile(tmp_path / "notes")
    said = r"2 of 4 cells failed \(x=1: ZeroDivisionError: no 1; x=3: ZeroDivisionError: no 3\); the others are kept"
    with pytest.raises(SweepError, match=said):
        run_cells(function, xs(4), tmp_path / "runs", experiment=EXPERIMENT)
    assert "in __call__" in capsys.readouterr().err  # the traceback, as soon as it happens
    (tmp_path / "mended").touch()
    assert run_cells(function, xs(4), tmp_path / "runs", experiment=EXPERIMENT) == [double(cell) for cell in xs(4)]
    assert function.calls() == [0, 1, 1, 2, 3, 3]


def test_results_of_another_experiment_are_refused(tmp_path: Path) -> None:
    run_cells(double, xs(1), tmp_path, experiment=EXPERIMENT)
    other = {**EXPERIMENT, "config": {"epochs": 3, "layers": (1, 3)}}
    with pytest.raises(ValueError, match=r"x=0.json has config.layers.1 = 2, and this one 3\): take another folder"):
        run_cells(never, xs(2), tmp_path, experiment=other)
    more = {**EXPERIMENT, "seed": None}
    with pytest.raises(ValueError, match=r"has seed = '\(missing\)', and this one None"):
        run_cells(never, xs(1), tmp_path, experiment=more)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"cell": {"x"', "damaged .* delete it"),
        ("[1, 2]", "is not the result"),
        ('{"experiment": {}, "cell": {}, "result": {}}', "damaged .its result is"),
    ],
)
def test_files_that_are_no_results_are_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x=0.json").write_text(text)
    with pytest.raises(ValueError, match=f"x=0.json.*{said}"):
        run_cells(never, xs(1), tmp_path, experiment=EXPERIMENT)


@pytest.mark.parametrize("jobs", [1, 2])
def test_each_cell_runs_on_one_thread(jobs: int, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    try:
        assert run_cells(count_threads, xs(1), tmp_path, experiment={}, jobs=jobs) == [{"threads": 1}]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_cluster_on_this_machine_gives_the_same(backend: Any, tmp_path: Path) -> None:
    pytest.importorskip("distributed" if backend == "dask" else "ray")
    function = LastFirst(tmp_path)
    results = run_cells(function, xs(4), tmp_path, experiment=EXPERIMENT, jobs=2, backend=backend)
    assert results == [double(cell) for cell in xs(4)]


def test_dask_workers_with_several_threads_are_refused(tmp_path: Path) -> None:
    distributed: Any = pytest.importorskip("distributed")
    cluster: Any = distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, protocol="tcp"
    )
    with cluster, pytest.raises(ValueError, match=r"one task at a time, got tcp://.* with several threads: start"):
        run_cells(never, xs(1), tmp_path, experiment={}, backend="dask", scheduler=cluster.scheduler_address)


@pytest.mark.parametrize(("backend", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_a_missing_package_is_named(
    backend: Any, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"needs the package {package}: pip install {package}"):
        run_cells(never, xs(1), tmp_path, experiment={}, backend=backend)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"jobs": 0}, ValueError, "`jobs` must be at least 1, got 0"),
        ({"backend": "threading"}, ValueError, r"`backend` must be one of \('loky', 'dask', 'ray'\), got 'threading'"),
        ({"scheduler": "tcp://host:8786"}, ValueError, "'loky' stays on this machine, got 'tcp://host:8786'"),
        ({"backend": "dask", "scheduler": "tcp://a:1", "jobs": 2}, ValueError, "leave it out with `scheduler`, got 2"),
        ({"cells": [{"x": 1}, {"x": 1}]}, ValueError, "`cells` must differ from each other, got x=1 more than once"),
        ({"cells": [{"x": [1]}]}, TypeError, r"must hold plain values \(numbers, strings\), got x=\[1\]"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], said: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=said):
        run_cells(**{"function": never, "cells": xs(1), "folder": tmp_path, "experiment": {}, **arguments})
    assert not list(tmp_path.iterdir())


def leave(cell: Any) -> dict[str, float]:
    if cell["x"] == 1:
        raise SystemExit("the data set is missing here")
    return {"y": 1.0}


def test_a_cell_that_ends_its_process_is_one_that_failed(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"1 of 3 cells failed \(x=1: SystemExit: the data set is missing here\)"):
        run_cells(leave, xs(3), tmp_path, experiment=EXPERIMENT)
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["x=0.json", "x=2.json"]


@pytest.mark.slow  # joblib looks once a second
def test_a_worker_that_grows_is_replaced_without_a_word(tmp_path: Path) -> None:
    """joblib warns in a thread of its own: made an error, as here, that would end the thread and stop the sweep."""
    cells = [{"x": x} for x in range(6)]
    assert run_cells(hold, cells, tmp_path, experiment={}, jobs=2) == [{"twice": 2.0 * x} for x in range(6)]
