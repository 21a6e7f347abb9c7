r"""What can linearized neural networks actually say about generalization? (Ortiz-Jimenez et al., NeurIPS 2021).

    python examples/papers/5_linearized_networks/miniature.py --folder runs/papers/5_linearized_networks --jobs 2

trains an MLP and its linearization on signs of eigenfunctions of its tangent kernel on the digits, and LeNets on data
that is separable along one neural anisotropy direction (NAD) only. The published runs are the YAML files beside this
script.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pl_robust._claims import (
    Claim,
    Runs,
    column,
    differences,
    load_script,
    read_config,
    run_each,
    run_miniature,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INDICES = (0, 60)
NADS = (0, 300)


def measure(options: argparse.Namespace, extra: Sequence[str]) -> tuple[list[Claim], Figure]:
    """Train on each eigenfunction and each direction with each seed."""
    examples = Path(__file__).parents[2]
    table = load_script(examples / "eigenfunction_table.py")
    config = table.read_config(str(examples / "ntk_digits.yaml"), extra)
    nads = read_config(examples / "nad_lenet.yaml", ["--trainer.limit_val_batches=0", *extra])
    cells = {
        f"{index}, {kind}": (index, kind == "linearized") for index in INDICES for kind in ("network", "linearized")
    }
    halves = run_each(partial(run_eigenfunction, table, config, cells), list(cells), options, config, "eigenfunctions")
    results: dict[str, list[dict[str, float]]] = {
        str(index): [
            {**net, **linear}
            for net, linear in zip(halves[f"{index}, network"], halves[f"{index}, linearized"], strict=True)
        ]
        for index in INDICES
    }
    results |= run_each(partial(run_nad, nads), [f"NAD {index}" for index in NADS], options, nads, "nads")
    return claims(results), draw(table, results)


def run_eigenfunction(
    table: Any, config: Mapping[str, Any], cells: Mapping[str, tuple[int, bool]], cell: Mapping[str, Any]
) -> dict[str, float]:
    """Train the network and the linearization of the trained one, or the linearization of the untrained one."""
    index, linearized = cells[cell["run"]]
    result: dict[str, float] = table.run_cell(config, {"index": index, "seed": cell["seed"], "linearized": linearized})
    return result


def run_nad(config: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, float]:
    """Train a LeNet on data that is separable along one of its directions."""
    from pl_robust._config_run import fit_and_test

    data = config["data"]
    data = {**data, "init_args": {**data["init_args"], "index": int(cell["run"].split()[1])}}
    _, measured = fit_and_test({**config, "seed_everything": cell["seed"], "data": data})
    return {"acc": measured["test/acc"]}


def claims(results: Runs) -> list[Claim]:
    """What the paper says, and what was measured."""
    (easy, hard), (first, later) = (
        (results[str(index)] for index in INDICES),
        (results[f"NAD {index}"] for index in NADS),
    )
    net, linear, after = (column(hard, name) for name in ("net", "linearized", "linearized_after"))
    return [
        Claim("eigenfunction 0 is easy for the network: accuracy", column(easy, "net"), low=0.97),
        Claim("and for its linearization", column(easy, "linearized"), low=0.97),
        Claim(
            "eigenfunction 60 is harder for the linearization: accuracy at 0 - at 60",
            differences(column(easy, "linearized"), linear),
            low=0.03,
        ),
        Claim(
            "networks do not always win: accuracy at 60, linearization - network", differences(linear, net), low=0.05
        ),
        Claim("the kernel turns to the task: CKA at 60, after / before training", column(hard, "cka_growth"), low=1.5),
        Claim(
            "so that the kernel after training fares as the network: accuracy at 60, its linearization - network",
            differences(after, net),
            -0.06,
            0.06,
        ),
        Claim("a LeNet learns its NAD 0: accuracy", column(first, "acc"), low=0.95),
        Claim(
            "and its NAD 300 not: accuracy at 0 - at 300", differences(column(first, "acc"), column(later, "acc")), 0.3
        ),
    ]


def draw(table: Any, results: Runs) -> Figure:
    """Draw the accuracies on the eigenfunctions, and how much the alignment grows."""
    figure: Figure = table.draw({index: results[str(index)] for index in INDICES})
    return figure


def main(args: Sequence[str] | None = None) -> None:
    """Run everything; the exit status is 1 if a claim fails."""
    run_miniature(str(__doc__), measure, args)


if __name__ == "__main__":
    main()
