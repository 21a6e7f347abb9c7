r"""Catastrophic overfitting can be induced with discriminative non-robust features (Ortiz-Jimenez et al., TMLR 2023).

    python examples/papers/1_catastrophic_overfitting/miniature.py \
        --folder runs/papers/1_catastrophic_overfitting --jobs 2

trains the four quickstarts on 8x8 digits, eps 0.25: FGSM with a feature of strength 0.1 injected, FGSM without it, and
N-FGSM (de Jorge et al., NeurIPS 2022) and PGD-10 with it. The published runs are the YAML files beside this script.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pl_robust._claims import Claim, Runs, column, read_config, run_each, run_miniature

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS = {
    "FGSM": "quickstart",
    "FGSM, no feature": "quickstart_no_injection",
    "N-FGSM": "quickstart_nfgsm",
    "PGD-10": "quickstart_pgd",
}


def measure(options: argparse.Namespace, extra: Sequence[str]) -> tuple[list[Claim], Figure]:
    """Train each quickstart with each seed."""
    examples = Path(__file__).parents[2]
    # The detector looks at validation images after every epoch: PGD-20 on all of them is not needed.
    extra = ["--trainer.limit_val_batches=0", *extra]
    configs = {name: read_config(examples / f"{stem}.yaml", extra) for name, stem in RUNS.items()}
    results = run_each(partial(run_cell, configs), list(RUNS), options, configs)
    return claims(results), draw(results)


def run_cell(configs: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, float]:
    """Train and test one network; the accuracies under FGSM and PGD of each epoch are the detector's."""
    from pl_robust._config_run import fit_and_test
    from pl_robust.callbacks import CatastrophicOverfittingDetector

    cli, measured = fit_and_test({**configs[cell["run"]], "seed_everything": cell["seed"]})
    (detector,) = (one for one in cli.trainer.callbacks if isinstance(one, CatastrophicOverfittingDetector))
    curves = {f"{name} {row['epoch']}": row[name] for row in detector.history for name in ("acc_fgsm", "acc_pgd")}
    tested = {name: measured[f"test/{name}"] for name in ("acc", "acc_adv", "acc_pgd")}
    return {**tested, **curves, "peak": detector.best_pgd, "detections": len(detector.detections)}


def claims(results: Runs) -> list[Claim]:
    """What the papers say of catastrophic overfitting (CO), and what was measured."""
    collapsed = results["FGSM"]
    alarms = [
        sum(pair) for pair in zip(*(column(results[name], "detections") for name in ("N-FGSM", "PGD-10")), strict=True)
    ]
    return [
        Claim("FGSM with the feature is robust at first: best PGD accuracy", column(collapsed, "peak"), low=0.2),
        Claim("then comes CO: its PGD-20 accuracy at the end", column(collapsed, "acc_pgd"), high=0.2),
        Claim("while FGSM does not fool it: its FGSM accuracy at the end", column(collapsed, "acc_adv"), low=0.9),
        Claim("the detector announces it: alarms", column(collapsed, "detections"), low=1, digits=0),
        Claim(
            "without the feature there is no CO: PGD-20 accuracy of FGSM",
            column(results["FGSM, no feature"], "acc_pgd"),
            low=0.35,
        ),
        Claim("nor with the feature under N-FGSM: PGD-20 accuracy", column(results["N-FGSM"], "acc_pgd"), low=0.35),
        Claim("nor with the feature under PGD: PGD-20 accuracy", column(results["PGD-10"], "acc_pgd"), low=0.55),
        Claim("the detector is silent in these two: alarms", alarms, high=0, digits=0),
    ]


def draw(results: Runs) -> Figure:
    """Draw accuracy under FGSM and PGD over the epochs, a panel for each run, a line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(results), 3.2), layout="constrained")
    for axes, (name, seeds) in zip(figure.subplots(1, len(results), sharey=True), results.items(), strict=True):
        for one in seeds:
            for curve, color in (("acc_fgsm", "tab:orange"), ("acc_pgd", "tab:blue")):
                points = {int(key.split()[1]): value for key, value in one.items() if key.startswith(f"{curve} ")}
                label = curve.removeprefix("acc_").upper() if one is seeds[0] else None
                axes.plot(sorted(points), [points[epoch] for epoch in sorted(points)], color=color, label=label)
        axes.set(title=name, xlabel="epoch", ylim=(0, 1))
    axes.legend(fontsize="small")
    figure.supylabel("accuracy of the probe set")
    return figure


def main(args: Sequence[str] | None = None) -> None:
    """Run everything; the exit status is 1 if a claim fails."""
    run_miniature(str(__doc__), measure, args)


if __name__ == "__main__":
    main()
