r"""Train a configuration without augmentation, with AugMix and with PRIME, and print accuracies under corruptions.

    python examples/augmentation_table.py --config examples/prime_digits.yaml --folder runs/prime_digits --jobs 2

takes about a minute on two cores. ``--config examples/papers/3_prime/cifar10_prime.yaml --seeds 0 1`` makes the table
of Modas et al. (ECCV 2022) for CIFAR-10, on corruptions of our own making.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import mean, stdev
from typing import Any

from pl_robust._script import make_parser, refuse_seed, run_script

METHODS = ("standard", "AugMix", "PRIME")

_EPILOG = """\
The configuration trains AugmentedTraining with PRIMETransform; the other two runs are the same without this callback,
and with AugMix in PRIME's place (severity 3 beside `cifar`, 1 beside `imagenet`, as published).
Each run fits and tests its last network, and leaves no checkpoint, no log and no figure: the configuration's logger,
and its callbacks that only save or print, are left out. CorruptionEvaluator looks at the test images, as it is
configured or with its defaults.

Everything behind `--` goes to pl-robust:  augmentation_table.py --config run.yaml -- --trainer.max_epochs 15

FOLDER keeps a JSON file for each finished run. The same command takes up interrupted runs, more seeds extend them; a
changed configuration needs another folder.
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run everything and print the table; a mistake ends it with one line and exit status 2.

    Args:
        args: arguments as on the command line; None takes those of the process.
    """
    run_script(_parser(), lambda options, extra: print(compare(options, extra)), args)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "augmentation_table.py",
        "Compare standard training, AugMix and PRIME by their accuracies under common corruptions.",
        _EPILOG,
        folder="results",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a configuration of `pl-robust fit`, for PRIME")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0], metavar="N", help="seeds; the table has their mean"
    )
    return parser


def compare(options: argparse.Namespace, extra: Sequence[str]) -> str:
    """Run each method with each seed, and make the table.

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

    config = read_config(options.config, extra)
    cells = [{"method": method, "seed": seed} for method in METHODS for seed in options.seeds]
    results = run_cells(
        partial(run_cell, config),
        cells,
        options.folder,
        experiment={"config": config, "pl_robust": __version__, "torch": torch.__version__},
        jobs=options.jobs,
        description="augmentation_table",
    )
    seeds = len(options.seeds)
    return tabulate({method: results[seeds * row :][:seeds] for row, method in enumerate(METHODS)})


def read_config(path: str, extra: Sequence[str]) -> dict[str, Any]:
    """Read the whole configuration, defaults included; the evaluator in it looks at the test images only.

    Raises:
        ValueError: if pl-robust refuses the configuration, or it is none of PRIME with AugmentedTraining.
    """
    from pl_robust import _config_run

    refuse_seed(extra)
    config = _config_run.read_config(path, extra)
    model = config["model"]["class_path"].rpartition(".")[2]
    if model != "AugmentedTraining":
        raise ValueError(f"{path}: `model` must be AugmentedTraining, with which all methods train, got {model}")
    transforms = _callbacks(config, "PRIMETransform")
    presets = [callback["init_args"]["transform"] for callback in transforms]
    if len(presets) != 1 or presets[0] not in ("cifar", "imagenet"):
        raise ValueError(
            f"{path}: `trainer.callbacks` must have one PRIMETransform with `transform` cifar or imagenet, which the "
            f"other methods replace, got {presets or 'none'}"
        )
    if not _callbacks(config, "CorruptionEvaluator"):
        evaluator = {"class_path": "pl_robust.callbacks.CorruptionEvaluator", "init_args": {}}
        config["trainer"]["callbacks"].append(evaluator)
    for evaluator in _callbacks(config, "CorruptionEvaluator"):
        evaluator["init_args"]["every_n_epochs"] = None
    config["seed_everything"] = "set by each run"
    return config


def _callbacks(config: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The configuration's callbacks of a class, with arguments that can be set."""
    found = [one for one in config["trainer"]["callbacks"] if one["class_path"].endswith(f".{name}")]
    for callback in found:
        callback.setdefault("init_args", {})
    return found


def run_cell(config: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, float]:
    """Fit and test one network.

    Args:
        config: what ``read_config`` returned.
        cell: the method and the seed.

    Returns:
        Test accuracies in percent: clean, by corruption (mean over the severities), and mean over the corruptions; and
        mCE.
    """
    from pl_robust._config_run import fit_and_test

    cli, _ = fit_and_test(fill(config, cell["method"], cell["seed"]))
    (evaluator,) = (one for one in cli.trainer.callbacks if type(one).__name__ == "CorruptionEvaluator")
    row = evaluator.history[-1]
    by_type = {name: 100 * mean(accuracies) for name, accuracies in row["acc"].items()}
    return {"clean": 100 * row["clean_acc"], **by_type, "mean": 100 * row["mean_acc"], "mCE": row["mce"]}


def fill(config: Mapping[str, Any], method: str, seed: int) -> dict[str, Any]:
    """A copy of the configuration that trains by a method, from a seed."""
    filled: dict[str, Any] = copy.deepcopy(dict(config))
    filled["seed_everything"] = seed
    (transform,) = _callbacks(filled, "PRIMETransform")
    transform["init_args"]["seed"] = seed
    if method == "standard":
        filled["trainer"]["callbacks"].remove(transform)
    elif method == "AugMix":
        severity = {"cifar": 3, "imagenet": 1}[transform["init_args"]["transform"]]
        augmix = {"class_path": "pl_robust.transforms.AugMix", "init_args": {"severity": severity}}
        transform["init_args"]["transform"] = augmix
    return filled


def tabulate(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Write a line for each number, with a column for each method: its mean over the seeds, and their deviation.

    Args:
        results: method -> the results of its seeds.
    """
    names = list(next(iter(results.values()))[0])
    width = max(map(len, names)) + 2
    columns = [" " * width + "".join(f"{method:>16}" for method in results)]
    for name in names:
        values = [[one[name] for one in seeds] for seeds in results.values()]
        texts = [f"{mean(own):.1f}" + (f" ± {stdev(own):.1f}" if len(own) > 1 else "") for own in values]
        columns.append(f"{name:<{width}}" + "".join(f"{text:>16}" for text in texts))
    return "\n".join(columns)


if __name__ == "__main__":
    main()
