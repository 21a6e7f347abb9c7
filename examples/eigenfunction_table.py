r"""Compare a network with its linearization on the eigenfunctions of its tangent kernel, before and after training.

    python examples/eigenfunction_table.py --config examples/ntk_digits.yaml --folder runs/ntk_digits --jobs 2

makes the table and the figure of Ortiz-Jimenez, Moosavi-Dezfooli & Frossard (NeurIPS 2021) in miniature: 36 runs.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from pl_robust._script import make_parser, refuse_seed, run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = {
    "net": "network",
    "linearized": "linearized at init.",
    "linearized_after": "linearized after training",
    "growth": "alignment grows by",
    "cka_growth": "CKA grows by",
}

_EPILOG = """\
The configuration trains LinearizedTraining on an EigenfunctionDataModule whose `model` is null, with an
NTKAlignmentLogger. For each index and seed the network is trained, then the linearization of the trained network
(centered, as published), and the linearization of the untrained one; accuracies are those on the test data, alignment
and CKA (free of the kernel's scale) are the logger's after training over those before. Runs leave no checkpoint, no log
and no figure.

Everything behind `--` goes to pl-robust:  eigenfunction_table.py --config run.yaml -- --trainer.max_epochs 15

FOLDER keeps a JSON file for each finished run. The same command takes up interrupted runs, more seeds or indices extend
them; a changed configuration needs another folder.
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run everything, print the table, draw the figure; a mistake ends it with one line and exit status 2.

    Args:
        args: arguments as on the command line; None takes those of the process.
    """
    run_script(_parser(), compare, args)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "eigenfunction_table.py",
        "Compare a network with its linearization on the eigenfunctions of its tangent kernel.",
        _EPILOG,
        folder="results and the figure",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a configuration of `pl-robust fit`")
    parser.add_argument(
        "--indices", nargs="+", type=int, default=[0, 1, 5, 20, 60, 150], metavar="N", help="eigenfunctions, from 0"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="seeds of the networks")
    return parser


def compare(options: argparse.Namespace, extra: Sequence[str]) -> None:
    """Run each index with each seed, print the table, draw the figure into the folder.

    Args:
        options: the script's own arguments.
        extra: arguments for pl-robust.

    Raises:
        ValueError: if the configuration or an argument is refused, or the folder holds other runs.
        SweepError: if runs failed.
    """
    import torch

    from pl_robust import __version__
    from pl_robust._sweep import run_cells

    if min(options.indices) < 0:
        raise ValueError(f"--indices must be at least 0, got {min(options.indices)}")
    config = read_config(options.config, extra)
    kinds = (False, True)
    cells = [
        {"index": index, "seed": seed, "linearized": kind}
        for index in options.indices
        for seed in options.seeds
        for kind in kinds
    ]
    results = run_cells(
        partial(run_cell, config),
        cells,
        options.folder,
        experiment={"config": config, "pl_robust": __version__, "torch": torch.__version__},
        jobs=options.jobs,
        description="eigenfunction_table",
    )
    table: dict[int, list[dict[str, float]]] = {index: [] for index in options.indices}
    for start in range(0, len(cells), len(kinds)):
        merged = {name: value for result in results[start : start + len(kinds)] for name, value in result.items()}
        table[int(cells[start]["index"])].append(merged)
    print(tabulate(table))
    path = Path(options.folder) / "eigenfunctions.png"
    draw(table).savefig(path, dpi=100)
    print(f"Figure: {path}")


def read_config(path: str, extra: Sequence[str]) -> dict[str, Any]:
    """Read the whole configuration, defaults included.

    Raises:
        ValueError: if pl-robust refuses the configuration, or it is none of linearized training on eigenfunctions.
    """
    from pl_robust import _config_run

    refuse_seed(extra)
    config = _config_run.read_config(path, extra)
    for part, wanted in (("model", "LinearizedTraining"), ("data", "EigenfunctionDataModule")):
        found = config[part]["class_path"].rpartition(".")[2]
        if found != wanted:
            raise ValueError(f"{path}: `{part}` must be {wanted}, got {found}")
    if config["data"]["init_args"]["model"] is not None:
        raise ValueError(f"{path}: `data.model` must be null, so that each seed's network makes its own task")
    names = [callback["class_path"].rpartition(".")[2] for callback in config["trainer"]["callbacks"]]
    if names.count("NTKAlignmentLogger") != 1:
        raise ValueError(f"{path}: `trainer.callbacks` must have one NTKAlignmentLogger, got {names}")
    (logger,) = (one for one in config["trainer"]["callbacks"] if one["class_path"].endswith(".NTKAlignmentLogger"))
    settings = logger.setdefault("init_args", {})
    if not settings.get("cka", True):
        raise ValueError(f"{path}: NTKAlignmentLogger must have `cka` true, which the table shows")
    epochs = config["trainer"]["max_epochs"]
    if not epochs or epochs < 1:
        raise ValueError(f"{path}: `trainer.max_epochs` must be at least 1, got {epochs}")
    early = {name: config["trainer"].get(name) for name in ("max_steps", "max_time", "fast_dev_run")}
    for name, value in early.items():
        if value not in (None, False, -1):
            raise ValueError(
                f"{path}: leave `trainer.{name}` out, got {value}: the table compares runs of {epochs} epochs"
            )
    for stopper in ("EarlyStopping", "Timer"):
        if stopper in names:
            raise ValueError(f"{path}: leave {stopper} out of `trainer.callbacks`: the table compares whole runs")
    settings.update(every_n_epochs=epochs, every_n_steps=None)  # the first and the last state are what is asked for
    # Each run sets them.
    config["seed_everything"] = config["data"]["init_args"]["index"] = None
    config["model"]["init_args"]["linearized"] = None
    return config


def run_cell(config: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, float]:
    """Train the network and the linearization of the trained one, or the linearization of the untrained one.

    Args:
        config: what ``read_config`` returned.
        cell: index, seed and linearized.

    Returns:
        Test accuracies, and the growth of alignment and CKA.
    """
    from pl_robust._config_run import fit_again, fit_and_test
    from pl_robust.modules import LinearizedTraining

    cli, measured = fit_and_test(fill(config, cell))
    if cell["linearized"]:
        return {"linearized": measured["test/acc"]}
    (logger,) = (one for one in cli.trainer.callbacks if type(one).__name__ == "NTKAlignmentLogger")
    if len(logger.history) != 2:
        raise ValueError(
            f"the run must have a check of NTKAlignmentLogger before its first epoch and one after its last, got "
            f"{len(logger.history)}: let it train for all of its epochs, on data that can be indexed"
        )
    before, after = logger.history
    again = LinearizedTraining(
        cli.model.net,
        centered=True,
        num_classes=cli.model.num_classes,
        optimizer=cli.model.optimizer,
        lr_scheduler=cli.model.lr_scheduler,
        lr_scheduler_interval=cli.model.lr_scheduler_interval,
        input_key=cli.model.input_key,
        label_key=cli.model.label_key,
    )
    return {
        "net": measured["test/acc"],
        "linearized_after": fit_again(cli, again)["test/acc"],
        "growth": after["alignment"] / before["alignment"],
        "cka_growth": after["cka"] / before["cka"],
    }


def fill(config: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the configuration for a cell."""
    filled: dict[str, Any] = copy.deepcopy(dict(config))
    filled["seed_everything"] = cell["seed"]
    filled["data"]["init_args"]["index"] = cell["index"]
    filled["model"]["init_args"]["linearized"] = cell["linearized"]
    return filled


def tabulate(table: Mapping[int, Sequence[Mapping[str, float]]]) -> str:
    """Write a line for each eigenfunction: mean and deviation over the seeds.

    Args:
        table: index -> the results of its seeds.
    """
    width = max(map(len, COLUMNS.values())) + 2
    lines = ["index".ljust(7) + "".join(title.rjust(width) for title in COLUMNS.values())]
    for index, seeds in table.items():
        cells = []
        for name in COLUMNS:
            values = [one[name] for one in seeds]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3f}{spread}".rjust(width))
        lines.append(f"{index:<7}" + "".join(cells))
    return "\n".join(lines)


def draw(table: Mapping[int, Sequence[Mapping[str, float]]]) -> Figure:
    """Draw accuracies over the index, and below how much alignment and CKA grow; each seed is a dot.

    Args:
        table: index -> the results of its seeds.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(2, 1))
    places = range(len(table))
    for name, title in COLUMNS.items():
        axes = below if name.endswith("growth") else above
        values = [[one[name] for one in seeds] for seeds in table.values()]
        (line,) = axes.plot(places, [mean(own) for own in values], marker="o", label=title)
        for place, own in zip(places, values, strict=True):
            axes.plot([place] * len(own), own, ".", color=line.get_color(), alpha=0.5)
    above.set(ylabel="test accuracy", title="Eigenfunctions of the tangent kernel as tasks")
    above.legend(fontsize="small")
    below.axhline(1, color="tab:gray", linewidth=0.8)
    below.legend(fontsize="small")
    below.set(
        xlabel="index of the eigenfunction",
        ylabel="after / before",
        yscale="log",
        xticks=places,
        xticklabels=list(table),
    )
    return figure


if __name__ == "__main__":
    main()
