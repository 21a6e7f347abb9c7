r"""On the choice of graph neural network architectures (Vignac et al., ICASSP 2020).

    python examples/papers/6_graph_architectures/miniature.py --folder runs/papers/6_graph_architectures --jobs 2

compares GCN with SGC, its linear counterpart, on three generated graphs with four splits each: with few labels for many
features, and with more labels for fewer features. Each seed is a graph; a split is the same for both networks. The
published runs are the YAML files beside this script, to be compared by examples/graph_study.py.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from pl_robust._claims import Claim, Runs, differences, load_script, run_each, run_miniature

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = {"few": (100, 0.05), "many": (30, 0.5)}
"""Labels for features: number of features, share of training nodes."""

NETS = ("SGC", "GCN")
SPLITS = 4


def measure(options: argparse.Namespace, extra: Sequence[str]) -> tuple[list[Claim], Figure]:
    """Train both networks at both points, on each seed's graph."""
    examples = Path(__file__).parents[2]
    study = load_script(examples / "graph_study.py")
    config = study.read_config(str(examples / "graph_sbm.yaml"), extra)
    runs = [f"{point} {net}" for point in POINTS for net in NETS]
    results = run_each(partial(run_cell, study, config), runs, options, config)
    return claims(results), draw(study, results)


def run_cell(study: Any, config: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, float]:
    """Train a network on the splits of a graph: test accuracies in percent, and how many nodes it learned from."""
    point, net = cell["run"].split()
    num_features, train_fraction = POINTS[point]
    of_graph = copy.deepcopy(dict(config))
    of_graph["data"]["init_args"]["sbm_seed"] = cell["seed"]
    result: dict[str, float] = {}
    for split in range(SPLITS):
        place = {"num_features": num_features, "train_fraction": train_fraction, "net": net, "split": split}
        measured = study.run_cell(of_graph, place)
        result |= {f"acc {split}": measured["acc"], "num_train": measured["num_train"]}
    return result


def accuracies(result: Mapping[str, float]) -> list[float]:
    """The accuracies of a graph's splits."""
    return [value for name, value in result.items() if name.startswith("acc ")]


def claims(results: Runs) -> list[Claim]:
    """What the paper says, and what was measured: differences of means over the splits, paired."""
    means = {run: [mean(accuracies(graph)) for graph in graphs] for run, graphs in results.items()}
    gains = {point: differences(means[f"{point} GCN"], means[f"{point} SGC"]) for point in POINTS}
    return [
        Claim(
            "few labels, many features: the linear filter is enough; points of accuracy, GCN - SGC",
            gains["few"],
            -2.5,
            2.5,
            digits=1,
        ),
        Claim("more labels, fewer features: GCN is worth it; points, GCN - SGC", gains["many"], low=2, digits=1),
        Claim(
            "so the ratio of labels to features decides", differences(gains["many"], gains["few"]), low=1.5, digits=1
        ),
    ]


def draw(study: Any, results: Runs) -> Figure:
    """Draw accuracies and gains over the ratio of training nodes to features, over all graphs and splits."""
    points = []
    for name, (num_features, train_fraction) in POINTS.items():
        own = {net: [value for graph in results[f"{name} {net}"] for value in accuracies(graph)] for net in NETS}
        num_train = int(results[f"{name} SGC"][0]["num_train"])
        points.append(study.Point(num_features, train_fraction, num_features, num_train, own))
    figure: Figure = study.draw(points, 1.0)
    return figure


def main(args: Sequence[str] | None = None) -> None:
    """Run everything; the exit status is 1 if a claim fails."""
    run_miniature(str(__doc__), measure, args)


if __name__ == "__main__":
    main()
