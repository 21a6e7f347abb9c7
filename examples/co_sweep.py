r"""Draw final clean and PGD accuracy over (beta, eps), the heat map of Ortiz-Jimenez et al. (TMLR 2023).

    python examples/co_sweep.py --config examples/quickstart.yaml --beta 0 0.1 0.2 0.3 --eps 0.2 0.225 0.25 0.275 \
        --seeds 0 1 2 --folder runs/co_sweep --jobs 2

drew docs/co_heat_map.png: 48 runs. With ``--seeds 0`` they are 16. The same command spreads over a cluster:

    pip install distributed  # or ray
    python examples/co_sweep.py … --backend dask --scheduler tcp://HOST:8786

Its workers need this package and the data set, but no folder in common. Give ``--backend dask`` (or ray) without
``--scheduler`` to start a cluster of ``--jobs`` processes on this machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from inspect import isclass
from itertools import product
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from pl_robust._script import make_parser, run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SWEPT = "set by the sweep"
"""Stands in the configuration where each run puts a value of its own."""

_AXES = ("beta", "eps")

_EPILOG = """\
--eps sets `eps` of every attack (training, evaluation, fallback) and of every callback that has one of its own (the
detector), --beta sets `beta` of every datamodule, wherever they stand in the configuration; a `step_size` stays as it
is, null follows eps.
Each run fits and tests its last network, and leaves no checkpoint, no log and no figure: the configuration's logger,
and its callbacks that only save or print, are left out.

Everything behind `--` goes to pl-robust:  co_sweep.py --config run.yaml --eps 4/255 8/255 -- --trainer.max_epochs 15

FOLDER keeps a JSON file for each finished run. The same command takes up an interrupted sweep, more values extend it;
a changed configuration needs another folder.
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the sweep, print its table, draw its heat maps; a mistake ends it with one line and exit status 2.

    Args:
        args: arguments as on the command line; None takes those of the process.
    """
    run_script(_parser(), sweep, args)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "co_sweep.py",
        "Draw heat maps of final clean and PGD accuracy over (beta, eps), from any configuration.",
        _EPILOG,
        folder="results and heat maps",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a configuration of `pl-robust fit`")
    parser.add_argument("--eps", nargs="+", metavar="EPS", help="radii in input units, such as 0.1 or 8/255")
    parser.add_argument("--beta", nargs="+", metavar="BETA", help="strengths of the injected feature, likewise")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="seeds; cells show their mean")
    parser.add_argument("--backend", choices=["loky", "dask", "ray"], default="loky", help="joblib's backend")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="a running dask scheduler or ray cluster")
    return parser


def sweep(options: argparse.Namespace, extra: Sequence[str]) -> None:
    """Run all cells, print the table, draw the figure into the folder.

    Args:
        options: the script's own arguments.
        extra: arguments for pl-robust.

    Raises:
        ValueError: if nothing is swept, the configuration or an argument is refused, or the folder holds another
            sweep.
        ImportError: if the package behind the backend is not installed.
        SweepError: if runs failed.
    """
    if options.eps is None and options.beta is None:
        raise ValueError("give --eps, --beta or both")
    import torch

    from pl_robust import __version__
    from pl_robust._number import parse_number
    from pl_robust._sweep import run_cells

    axes = {name: [(parse_number(text, name), text) for text in getattr(options, name) or ()] for name in _AXES}
    swept = [name for name in _AXES if axes[name]]
    config = read_config(options.config, extra, swept)
    points = product(*([value for value, _ in axes[name]] for name in swept), options.seeds)
    cells = [dict(zip([*swept, "seed"], point, strict=True)) for point in points]
    results = run_cells(
        partial(run_cell, config),
        cells,
        options.folder,
        experiment={"config": config, "pl_robust": __version__, "torch": torch.__version__},
        jobs=options.jobs,
        backend=options.backend,
        scheduler=options.scheduler,
        description="co_sweep",
    )
    for cell, result in zip(cells, results, strict=True):
        missing = {"acc", "acc_adv", "acc_pgd"} - result.keys()
        if missing:
            raise ValueError(f"the result of {cell} in {options.folder} lacks {sorted(missing)}: delete its file")
    labels = {name: [text for _, text in axes[name]] or ["as configured"] for name in _AXES}
    seeds = len(options.seeds)
    grid = [results[start : start + seeds] for start in range(0, len(results), seeds)]
    print(tabulate(grid, labels))
    path = Path(options.folder) / "heat_map.png"
    draw(grid, labels).savefig(path, dpi=100)
    print(f"Heat maps: {path}")


def read_config(path: str, extra: Sequence[str], swept: Sequence[str]) -> dict[str, Any]:
    """Read the whole configuration, defaults included, and make room in it for what the sweep sets.

    Raises:
        ValueError: if pl-robust refuses the configuration, or it has nothing to set for an argument of the sweep.
    """
    from pl_robust import _config_run
    from pl_robust._lightning import Callback, LightningDataModule
    from pl_robust.attacks import Attack

    for argument in extra:
        name = argument.partition("=")[0].rpartition(".")[2].removeprefix("--")
        if argument.startswith("--") and name in (*swept, "seed_everything"):
            raise ValueError(f"the sweep sets every `{name}`: leave out {argument}")
    config = _config_run.read_config(path, extra)
    owners = {"eps": (Attack, Callback), "beta": (LightningDataModule,)}
    for name in swept:
        if not set_everywhere(config, name, _SWEPT, owners[name]):
            what = {"eps": "no attack and no callback with an `eps`", "beta": "no datamodule with a `beta`"}[name]
            raise ValueError(f"--{name}: the configuration has {what}: leave --{name} out, or take another --config")
    attacks = config["model"].get("init_args", {}).get("eval_attacks")
    if attacks is not None and "pgd" not in attacks:
        raise ValueError(f"`eval_attacks` must have one called pgd, which the heat map shows, got {sorted(attacks)}")
    config["seed_everything"] = _SWEPT
    return config


def set_everywhere(node: Any, name: str, value: object, owners: tuple[type, ...]) -> int:
    """Set an argument of every class of a kind in a configuration; return how many there were.

    Args:
        node: the configuration, or a part of it.
        name: the argument.
        value: its new value.
        owners: classes whose argument it is; those of others (``eps`` of an optimizer, say) keep their values.
    """
    if isinstance(node, list):
        return sum(set_everywhere(part, name, value, owners) for part in node)
    if not isinstance(node, dict):
        return 0
    count = sum(set_everywhere(part, name, value, owners) for part in node.values())
    arguments = node.get("init_args") or {}
    if arguments.get(name) is not None:  # null takes the training attack's
        found = resolve_name(node["class_path"])
        if isclass(found) and issubclass(found, owners):
            arguments[name] = value
            count += 1
    return count


def run_cell(config: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, float]:
    """Fit and test one network.

    Args:
        config: what ``read_config`` returned.
        cell: seed, and the values of beta and eps that are swept.

    Returns:
        Test accuracies acc, acc_adv and acc_pgd; co, 1 if the detector announced catastrophic overfitting, else 0;
        co_epoch, when it did first. Without a detector the last two are missing, without CO the last.
    """
    from pl_robust._config_run import fit_and_test
    from pl_robust.callbacks import CatastrophicOverfittingDetector

    cli, measured = fit_and_test(_fill(config, cell))
    result = {name: _pick(measured, f"test/{name}") for name in ("acc", "acc_adv", "acc_pgd")}
    detectors = [one for one in cli.trainer.callbacks if isinstance(one, CatastrophicOverfittingDetector)]
    if detectors:
        epochs = [row["epoch"] for detector in detectors for row in detector.detections]
        result |= {"co": float(bool(epochs)), **({"co_epoch": min(epochs)} if epochs else {})}
    return result


def _fill(config: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the configuration with a cell's values where the sweep's mark stands."""

    def fill(node: Any, name: str = "") -> Any:
        if isinstance(node, Mapping):
            return {key: fill(part, key) for key, part in node.items()}
        if isinstance(node, list):
            return [fill(part) for part in node]
        return cell["seed" if name == "seed_everything" else name] if node == _SWEPT else node

    filled: dict[str, Any] = fill(config)
    return filled


def _pick(measured: Mapping[str, float], name: str) -> float:
    """The value of a metric; of the injected test set, if there are several."""
    for key in (name, f"{name}/injected"):
        if key in measured:
            return measured[key]
    raise ValueError(f"the test gave no {name}, which the heat map shows; it gave {', '.join(sorted(measured))}")


def tabulate(grid: Sequence[Sequence[Mapping[str, float]]], labels: Mapping[str, Sequence[str]]) -> str:
    """Write a line for each cell: mean accuracies over the seeds, and at which epoch each seed's detector fired.

    Args:
        grid: for each cell, eps running fastest, the results of its seeds.
        labels: names of the values of beta and of eps.
    """
    lines = [f"{'beta':>14}{'eps':>14}{'clean':>8}{'attack':>8}{'PGD':>8}  CO at epoch"]
    places = [(beta, eps) for beta in labels["beta"] for eps in labels["eps"]]
    for (beta, eps), seeds in zip(places, grid, strict=True):
        accuracies = "".join(f"{_mean(seeds, name):>8.3f}" for name in ("acc", "acc_adv", "acc_pgd"))
        epochs = [f"{one['co_epoch']:.0f}" if "co_epoch" in one else "-" for one in seeds if "co" in one]
        lines.append(f"{beta:>14}{eps:>14}{accuracies}  {', '.join(epochs) or 'no detector'}")
    return "\n".join(lines)


def draw(grid: Sequence[Sequence[Mapping[str, float]]], labels: Mapping[str, Sequence[str]]) -> Figure:
    """Draw clean and PGD accuracy, eps to the right and beta upwards; cells with CO have a red frame.

    Args:
        grid: for each cell, eps running fastest, the results of its seeds.
        labels: names of the values of beta and of eps.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    rows, columns = len(labels["beta"]), len(labels["eps"])
    figure = Figure(figsize=(2.8 + 1.3 * columns, 1.6 + 0.6 * rows), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, title in zip(panels, ("acc", "acc_pgd"), ("clean accuracy", "PGD accuracy"), strict=True):
        means = [[_mean(grid[row * columns + column], name) for column in range(columns)] for row in range(rows)]
        image = axes.imshow(means, vmin=0, vmax=1, origin="lower", aspect="auto")
        for number, seeds in enumerate(grid):
            row, column = divmod(number, columns)
            count = sum(one.get("co", 0) for one in seeds)
            text = f"{means[row][column]:.2f}" + (f"\n{count:.0f}/{len(seeds)}" if count else "")
            color = "black" if means[row][column] > 0.6 else "white"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize="small")
            if count:
                place = (column - 0.46, row - 0.46)
                axes.add_patch(Rectangle(place, 0.92, 0.92, fill=False, edgecolor="tab:red", linewidth=2))
        axes.set(title=title, xlabel="eps", xticks=range(columns), xticklabels=labels["eps"])
    panels[0].set(ylabel="beta", yticks=range(rows), yticklabels=labels["beta"])
    figure.colorbar(image, ax=panels)
    if any(one.get("co") for seeds in grid for one in seeds):
        label = "the detector announced catastrophic overfitting, in m/n seeds"
        frame = Patch(fill=False, edgecolor="tab:red", linewidth=2, label=label)
        figure.legend(handles=[frame], loc="outside lower center", fontsize="small")
    return figure


def _mean(seeds: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(one[name] for one in seeds) / len(seeds)


if __name__ == "__main__":
    main()
