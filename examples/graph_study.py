r"""Ask of a graph whether a linear filter is enough for it, over numbers of features and shares of training labels.

    python examples/graph_study.py --config examples/graph_sbm.yaml --folder runs/graph_sbm --num_features 30 100 \
        --train_fraction 0.05 0.5 --jobs 2

makes the figure of Vignac, Ortiz-Jimenez & Frossard (ICASSP 2020) for a generated graph, in two minutes on two cores.
As they had it on Cora:

    python examples/graph_study.py --config examples/papers/6_graph_architectures/graph_cora.yaml \
        --folder runs/graph_cora --num_features 30 50 80 100 300 500 --nets SGC GCN --splits 40 --jobs 2
"""

from __future__ import annotations

import argparse
import copy
import csv
from collections.abc import Mapping, Sequence
from functools import partial
from inspect import isclass
from itertools import product
from pathlib import Path
from pkgutil import resolve_name
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from pl_robust._script import make_parser, run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pl_robust._paired_interval import Interval

_EPILOG = """\
The configuration trains NodeClassification on a GraphDataModule. For each number of features, share of training nodes
and split, all networks are trained with the same split, projection and seed, and tested; so their differences are
paired. The first network is the simple one, to which the others are compared. A network has its defaults, and is
trained as published for it: nothing is tuned to the graph. The one of the configuration keeps its arguments.
The intervals (Student's t, paired, Bonferroni) are of all differences to the first network at a point together, at
95 %, over splits and projections of this graph; another graph may differ by more. Those of several points are not
corrected for each other. A network is advised if its whole interval is beyond the margin.
Runs leave no checkpoint, no log and no figure.

Everything behind `--` goes to pl-robust:  graph_study.py --config run.yaml -- --data.name WikiCS

FOLDER keeps a JSON file for each finished run. The same command takes up an interrupted study, more values extend it; a
changed configuration needs another folder. It also gets the figure, the table and all accuracies as CSV.
"""


class Point(NamedTuple):
    """Where the networks are compared, and what was measured there.

    Attributes:
        num_features: as the datamodule is told, None for all.
        train_fraction: likewise.
        in_features: D, features of a node.
        num_train: N_obs, training nodes.
        accuracies: network -> test accuracy in percent of each split; the first one is the simple network.
    """

    num_features: int | None
    train_fraction: float
    in_features: int
    num_train: int
    accuracies: dict[str, list[float]]

    @property
    def ratio(self) -> float:
        """N_obs / D."""
        return self.num_train / self.in_features

    @property
    def simple(self) -> str:
        """The first network."""
        return next(iter(self.accuracies))

    def cell(self, net: str, split: int) -> dict[str, int | float | str | None]:
        """The arguments of one run here."""
        return {
            "num_features": self.num_features,
            "train_fraction": self.train_fraction,
            "net": net,
            "split": split,
        }

    def gains(self) -> dict[str, Interval]:
        """Network -> points of accuracy above the first one."""
        from pl_robust._paired_interval import paired_interval

        first, *others = self.accuracies
        return {
            name: paired_interval(self.accuracies[name], self.accuracies[first], comparisons=len(others))
            for name in others
        }


def main(args: Sequence[str] | None = None) -> None:
    """Run everything, print table and advice, draw the figure; a mistake ends it with one line and exit status 2.

    Args:
        args: arguments as on the command line; None takes those of the process.
    """
    run_script(_parser(), study, args)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "graph_study.py",
        "Compare architectures over numbers of features and shares of training labels of a graph.",
        _EPILOG,
        folder="results, table and figure",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a configuration of `pl-robust fit`")
    parser.add_argument(
        "--num_features", nargs="+", type=int, metavar="D", help="numbers of features (default: as configured)"
    )
    parser.add_argument(
        "--train_fraction", nargs="+", type=float, metavar="P", help="shares of training nodes (default: likewise)"
    )
    parser.add_argument(
        "--nets",
        nargs="+",
        default=["SGC", "GCN", "SGCMLP"],
        metavar="NET",
        help="names of pl_robust.models, or class paths, the simple one first (default: SGC GCN SGCMLP)",
    )
    parser.add_argument("--splits", type=int, default=10, metavar="N", help="random splits (default: 10)")
    parser.add_argument(
        "--margin", type=float, default=1.0, metavar="POINTS", help="of accuracy that are not worth it (default: 1)"
    )
    return parser


def study(options: argparse.Namespace, extra: Sequence[str]) -> None:
    """Run all cells, print the table and the advice, draw the figure into the folder.

    Args:
        options: the script's own arguments.
        extra: arguments for pl-robust.

    Raises:
        ValueError: if the configuration or an argument is refused, or the folder holds another study.
        SweepError: if runs failed.
    """
    import torch

    from pl_robust import __version__
    from pl_robust._sweep import run_cells

    if options.splits < 2:
        raise ValueError(f"--splits must be at least 2, for an interval, got {options.splits}")
    if not options.margin >= 0:
        raise ValueError(f"--margin must be 0 or more, got {options.margin}")
    check_nets(options.nets)
    config = read_config(options.config, extra)
    points = list_points(config, options.num_features, options.train_fraction)
    cells = [point.cell(net, split) for point, net, split in product(points, options.nets, range(options.splits))]
    results = run_cells(
        partial(run_cell, config),
        cells,
        options.folder,
        experiment={"config": config, "pl_robust": __version__, "torch": torch.__version__},
        jobs=options.jobs,
        description="graph_study",
    )
    found = iter(results)
    for point, net in product(points, options.nets):
        point.accuracies[net] = [next(found)["acc"] for _ in range(options.splits)]
    points.sort(key=lambda point: (point.ratio, point.in_features))
    folder = Path(options.folder)
    report = "\n".join([*tabulate(points), "", *(advise(point, options.margin) for point in points)])
    print(report)
    (folder / "graph_study.md").write_text(report + "\n", "utf-8")
    with (folder / "graph_study.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, [*cells[0], "num_train", "acc", "steps"])
        rows.writeheader()
        rows.writerows({**cell, **result} for cell, result in zip(cells, results, strict=True))
    draw(points, options.margin).savefig(folder / "graph_study.png", dpi=100)
    print(f"\nFigure, table and all accuracies: {folder / 'graph_study'}.png, .md, .csv")


def class_path(net: str) -> str:
    """Where a network is to be imported from."""
    return net if "." in net else f"pl_robust.models.{net}"


def find_class(net: str) -> Any:
    """What a network's name stands for; None if there is nothing of that name."""
    try:
        return resolve_name(class_path(net))
    except (ImportError, AttributeError, ValueError):
        return None


def check_nets(nets: Sequence[str]) -> None:
    """Refuse networks that cannot be compared, before the first of them runs.

    Raises:
        ValueError: if they are fewer than two, or one does not exist or comes twice.
    """
    from torch import nn

    from pl_robust import models

    if len(nets) < 2:
        raise ValueError(f"--nets must be at least two to be compared, got {' '.join(nets)}")
    classes: dict[Any, str] = {}
    for net in nets:
        found = find_class(net)
        if not isclass(found) or not issubclass(found, nn.Module):
            known = [name for name in models.__all__ if hasattr(getattr(models, name), "decayed_parameters")]
            raise ValueError(f"--nets: there is no network {net}; there are {', '.join(known)}, and class paths")
        if found in classes:
            raise ValueError(f"--nets must differ from each other, got {classes[found]} and {net}")
        classes[found] = net


def read_config(path: str, extra: Sequence[str]) -> dict[str, Any]:
    """Read the whole configuration, defaults included, and fetch the graph; leave out what the cells set.

    The network gets the sizes of the whole graph.

    Raises:
        ValueError: if pl-robust refuses the configuration, or it is none of classifying a graph's nodes.
    """
    from pl_robust import _config_run
    from pl_robust.datamodules import GraphDataModule

    for argument in extra:
        name = argument.partition("=")[0].rpartition(".")[2].removeprefix("--")
        if name in ("seed_everything", "seed"):
            raise ValueError(f"the splits are the seeds: leave out {argument}, and set --splits")
    config = _config_run.read_config(path, extra)
    for part, wanted in (("model", "NodeClassification"), ("data", "GraphDataModule")):
        found = config[part]["class_path"].rpartition(".")[2]
        if found != wanted:
            raise ValueError(f"{path}: `{part}` must be {wanted}, got {found}")
    data = GraphDataModule(**{**config["data"]["init_args"], "num_features": None})
    data.prepare_data()
    net = config["model"]["init_args"]["net"]
    net["init_args"] = {**net.get("init_args", {}), "in_features": data.in_features, "out_features": data.num_classes}
    # Each run sets them.
    config["seed_everything"] = config["data"]["init_args"]["seed"] = None
    return config


def list_points(
    config: Mapping[str, Any], num_features: Sequence[int] | None, train_fraction: Sequence[float] | None
) -> list[Point]:
    """Give the points to measure, still empty.

    Args:
        config: what ``read_config`` returned.
        num_features: numbers of features; None: the configured one.
        train_fraction: shares of training nodes; None: the configured one.

    Raises:
        ValueError: if the datamodule refuses a number, it is above that of the graph, or the split has no share to be
            set.
    """
    from pl_robust.datamodules import GraphDataModule

    settings = config["data"]["init_args"]
    if settings["split"] == "public" and train_fraction is not None:
        raise ValueError("--train_fraction is of random splits, and `data.split` is public: leave it out")
    whole = config["model"]["init_args"]["net"]["init_args"]["in_features"]
    for number in num_features or []:
        if number > whole:
            raise ValueError(
                f"--num_features must be at most {whole}, which the graph has, got {number}: a projection "
                "to more adds nothing, and N_obs / D would mislead"
            )
    points = []
    for share in train_fraction or [settings["train_fraction"]]:
        for number in num_features or [settings["num_features"]]:
            data = GraphDataModule(**{**settings, "seed": 0, "num_features": number, "train_fraction": share})
            points.append(Point(number, share, data.in_features, data.num_train, {}))
    return points


def run_cell(config: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, float]:
    """Fit and test one network on one split.

    Args:
        config: what ``read_config`` returned.
        cell: as ``Point.cell`` has it.

    Returns:
        Test accuracy in percent, number of training nodes, and steps that were trained.
    """
    from pl_robust._config_run import fit_and_test

    cli, measured = fit_and_test(fill(config, cell))
    return {
        "acc": 100 * measured["test/acc"],
        "num_train": cli.datamodule.num_train,
        "steps": cli.trainer.global_step,
    }


def fill(config: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the configuration for a cell."""
    filled: dict[str, Any] = copy.deepcopy(dict(config))
    filled["seed_everything"] = cell["split"]
    filled["data"]["init_args"].update(
        seed=cell["split"], num_features=cell["num_features"], train_fraction=cell["train_fraction"]
    )
    configured = filled["model"]["init_args"]["net"]
    sizes = {name: configured["init_args"][name] for name in ("in_features", "out_features")}
    if cell["num_features"] is not None:
        sizes["in_features"] = cell["num_features"]
    path = class_path(cell["net"])
    is_own = find_class(configured["class_path"]) is find_class(path)
    arguments = {**configured["init_args"], **sizes} if is_own else sizes
    filled["model"]["init_args"]["net"] = {"class_path": path, "init_args": arguments}
    return filled


def tabulate(points: Sequence[Point]) -> list[str]:
    """Write a table in Markdown: mean accuracies with deviations over the splits, and gains with their intervals.

    Args:
        points: what was measured, at least one.
    """
    first, *others = points[0].accuracies
    heads = ["features D", "training nodes N", "N / D", *points[0].accuracies]
    rows = [[*heads, *(f"{name} - {first} (95 %)" for name in others)]]
    for point in points:
        row = [str(point.in_features), str(point.num_train), f"{point.ratio:.2f}"]
        row += [f"{mean(values):.1f} ± {stdev(values):.1f}" for values in point.accuracies.values()]
        row += [f"{gain.mean:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})" for gain in point.gains().values()]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.rjust, row, widths)) + " |" for row in rows]
    return [lines[0], "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|", *lines[1:]]


def advise(point: Point, margin: float) -> str:
    """Say which network to take at a point, as far as the intervals tell.

    Args:
        point: what was measured.
        margin: points of accuracy that are not worth another network than the first. That is enough if no interval
            reaches beyond the margin; another is worth it if its whole interval is beyond. With any other intervals
            it is undecided.
    """
    gains = point.gains()
    worth = [name for name, gain in gains.items() if gain.low > margin]
    high = max(gain.high for gain in gains.values())
    if high <= margin:
        verdict = f"{point.simple} is enough: no other is more than {max(0.0, high):.1f} points above it at 95 %"
    elif worth:
        best = max(worth, key=lambda name: gains[name].mean)
        verdict = f"take {best}: {gains[best].low:.1f} to {gains[best].high:.1f} points above {point.simple} at 95 %"
    else:
        count = len(point.accuracies[point.simple])
        found = ", ".join(f"{name} {gain.low:+.1f} to {gain.high:+.1f}" for name, gain in gains.items())
        verdict = f"undecided with {count} splits: {found} points from {point.simple} at 95 %"
    return f"N/D = {point.ratio:.2f} ({point.num_train} training nodes, {point.in_features} features): {verdict}."


def draw(points: Sequence[Point], margin: float) -> Figure:
    """Draw accuracies, and beside them the gains over the first network, over N_obs / D.

    Args:
        points: what was measured, in rising order of N_obs / D.
        margin: shown as a band.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    for number, name in enumerate(points[0].accuracies):
        # Side by side, so that the bars do not hide each other.
        places = [point.ratio * 1.03 ** (number - (len(points[0].accuracies) - 1) / 2) for point in points]
        style: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 0.8, "capsize": 2, "color": f"C{number}"}
        values = [point.accuracies[name] for point in points]
        left.errorbar(places, [mean(own) for own in values], [stdev(own) for own in values], label=name, **style)
        if number:
            gains = [point.gains()[name] for point in points]
            ends = [[gain.mean - gain.low for gain in gains], [gain.high - gain.mean for gain in gains]]
            right.errorbar(places, [gain.mean for gain in gains], ends, label=name, **style)
    right.axhline(0, color="tab:gray", linewidth=0.8)
    right.axhspan(-margin, margin, color="tab:gray", alpha=0.15, linewidth=0)
    label = "training nodes / features, N_obs / D"
    left.set(xscale="log", xlabel=label, ylabel="test accuracy in %, with deviation over the splits")
    right.set(xlabel=label, ylabel=f"points above {points[0].simple}, with 95 % interval")
    left.legend(fontsize="small")
    right.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    main()
