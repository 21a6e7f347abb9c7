"""Claims of a paper, measured over several seeds: each with a band, all with a verdict."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

from pl_robust._script import make_parser, refuse_seed, run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pl_robust._sweep import Cell

Runs = Mapping[str, Sequence[Mapping[str, float]]]
"""Name of a run -> its results, one for each seed."""


class Claim(NamedTuple):
    """What a paper says, and what was measured of it.

    Attributes:
        text: the claim in words, with what is measured.
        values: what was measured, a number for each seed.
        low: the least value with which it holds.
        high: the largest one.
        digits: behind the point, where it is printed.
    """

    text: str
    values: Sequence[float]
    low: float = -math.inf
    high: float = math.inf
    digits: int = 3

    @property
    def holds(self) -> bool:
        """Whether every seed's value is in the band; NaN is in none, and no value proves nothing."""
        return bool(self.values) and all(self.low <= value <= self.high for value in self.values)

    @property
    def band(self) -> str:
        """The band in words."""
        low, high = (f"{end:.{self.digits}f}" for end in (self.low, self.high))
        if math.isinf(self.low):
            return f"at most {high}"
        return f"at least {low}" if math.isinf(self.high) else f"{low} to {high}"


def tabulate(claims: Sequence[Claim]) -> str:
    """Write a table in Markdown: mean and each seed's value, band and verdict of each claim."""
    rows = [["claim", "our figure", "the seeds'", "band, for each seed", "verdict"]]
    for claim in claims:
        values = [f"{value:.{claim.digits}f}" for value in claim.values]
        figure = f"{mean(claim.values):.{claim.digits}f}" if values else "none"
        rows.append(
            [claim.text.replace("|", "\\|"), figure, ", ".join(values), claim.band, "pass" if claim.holds else "FAIL"]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def conclude(title: str, claims: Sequence[Claim], seeds: Sequence[int], figure: Figure, folder: str | Path) -> None:
    """Print the table and keep it as ``claims.md`` and ``claims.csv``, with the figure, ``claims.png``.

    Args:
        title: first line of the Markdown file.
        claims: at least one, each with a value for each seed.
        seeds: the seeds.
        figure: what the runs look like.
        folder: where they are kept; made if it does not exist.

    Raises:
        ValueError: if there is no claim, or one has not a value for each seed.
        SystemExit: with status 1 if a claim does not hold.
    """
    counts = {len(claim.values) for claim in claims}
    if counts != {len(seeds)}:
        raise ValueError(f"every claim must have a value for each of the {len(seeds)} seeds, got {sorted(counts)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table = tabulate(claims)
    print(f"{table}\n")
    (folder / "claims.md").write_text(f"{title}\n\n{table}\n", "utf-8")
    with (folder / "claims.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["claim", "mean", "low", "high", "holds", *(f"seed {seed}" for seed in seeds)])
        for claim in claims:
            rows.writerow([claim.text, mean(claim.values), claim.low, claim.high, claim.holds, *claim.values])
    figure.savefig(folder / "claims.png", dpi=100)
    print(f"Table and figure: {folder / 'claims'}.md, .csv, .png")
    failed = [claim for claim in claims if not claim.holds]
    if failed:
        print(f"{len(failed)} of {len(claims)} claims failed", file=sys.stderr)
        raise SystemExit(1)


def run_miniature(
    description: str,
    measure: Callable[[argparse.Namespace, Sequence[str]], tuple[Sequence[Claim], Figure]],
    args: Sequence[str] | None = None,
) -> None:
    """The frame of a paper's miniature: measure its claims, and end with a verdict.

    Args:
        description: of the script; its first line is the title of what it finds.
        measure: (options folder, seeds and jobs; arguments for pl-robust) -> claims and a figure.
        args: arguments as on the command line; None takes those of the process.

    Raises:
        SystemExit: with status 1 if a claim does not hold, 2 after a mistake, 130 after an interruption.
    """
    parser = make_parser(
        "miniature.py",
        description,
        "Exit status 1: a claim failed. The same command takes up interrupted runs, more seeds extend them.\n"
        "What is behind `--` goes to pl-robust; other arguments there need another folder.",
        folder="runs, table and figure",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")

    def work(options: argparse.Namespace, extra: Sequence[str]) -> None:
        refuse_seed(extra)
        claims, figure = measure(options, extra)
        conclude(description.partition("\n")[0], claims, options.seeds, figure, options.folder)

    run_script(parser, work, args)


def run_each(
    function: Callable[[Cell], Mapping[str, float]],
    names: Sequence[str],
    options: argparse.Namespace,
    config: Mapping[str, Any],
    part: str = "runs",
) -> dict[str, list[dict[str, float]]]:
    """Make each run with each seed, as ``run_cells`` does, in a folder of their own.

    Args:
        function: cell, with ``run`` and ``seed`` -> numbers.
        names: of the runs.
        options: folder, seeds and jobs.
        config: plain values that say what the runs are.
        part: name of their folder in that of the script.

    Returns:
        Name -> the results, one for each seed.

    Raises:
        ValueError: if the folder holds others.
        SweepError: if runs failed.
    """
    import torch

    from pl_robust import __version__
    from pl_robust._sweep import run_cells

    results = run_cells(
        function,
        [{"run": name, "seed": seed} for name in names for seed in options.seeds],
        Path(options.folder) / part,
        experiment={"config": config, "pl_robust": __version__, "torch": torch.__version__},
        jobs=options.jobs,
        description=part,
    )
    count = len(options.seeds)
    return {name: results[count * row :][:count] for row, name in enumerate(names)}


def read_config(path: Path, extra: Sequence[str]) -> dict[str, Any]:
    """Read a whole configuration of ``pl-robust fit`` whose seed each run sets.

    Raises:
        ValueError: if pl-robust refuses it.
    """
    from pl_robust import _config_run

    return {**_config_run.read_config(str(path), extra), "seed_everything": None}


def load_script(path: Path) -> Any:
    """Load a script as a module under a name that no process can import: to workers it travels by value."""
    spec: Any = importlib.util.spec_from_file_location(f"__{path.stem}__", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def column(results: Sequence[Mapping[str, float]], name: str) -> list[float]:
    """A number of each seed's result."""
    return [one[name] for one in results]


def differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """First - second, seed by seed."""
    return [one - other for one, other in zip(first, second, strict=True)]
