r"""PRIME: a few primitives can boost robustness to common corruptions (Modas et al., ECCV 2022).

    python examples/papers/3_prime/miniature.py --folder runs/papers/3_prime --jobs 2

trains digits of 16x16 pixels with PRIME and without, and tests them under the 15 common corruptions at five severities.
Noise, which hardly harms a network on digits, is in the mean only. The published runs are the YAML files beside this
script; AugMix joins them in examples/augmentation_table.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from pl_robust._claims import Claim, Runs, column, differences, load_script, run_each, run_miniature

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS = ("standard", "PRIME")


def measure(options: argparse.Namespace, extra: Sequence[str]) -> tuple[list[Claim], Figure]:
    """Train and test both with each seed."""
    examples = Path(__file__).parents[2]
    table = load_script(examples / "augmentation_table.py")
    config = table.read_config(str(examples / "prime_digits.yaml"), extra)
    results = run_each(partial(run_cell, table, config), RUNS, options, config)
    return claims(results), draw(results)


def run_cell(table: Any, config: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, float]:
    """Train and test one network: accuracies in percent, clean, by corruption and mean."""
    measured: dict[str, float] = table.run_cell(config, {"method": cell["run"], "seed": cell["seed"]})
    return measured


def claims(results: Runs) -> list[Claim]:
    """What the paper says of PRIME, and what was measured, in points of accuracy."""
    blurs, others = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"), ("clean", "mean", "mCE")
    summaries = {
        method: [
            {
                "mean": one["mean"],
                "blur": mean(one[name] for name in blurs),
                "worst": min(value for name, value in one.items() if name not in others),
                "clean": one["clean"],
            }
            for one in seeds
        ]
        for method, seeds in results.items()
    }
    gain = {
        name: differences(column(summaries["PRIME"], name), column(summaries["standard"], name))
        for name in ("mean", "blur", "worst", "clean")
    }
    return [
        Claim(
            "PRIME is more robust to common corruptions: mean of the 15, PRIME - standard", gain["mean"], 3, digits=1
        ),
        Claim("most where it is needed: the worst of the 15, PRIME - standard", gain["worst"], 20, digits=1),
        Claim("but to blur, too, of which little is lost here: mean of the 4", gain["blur"], 0.3, digits=1),
        Claim("and it costs little on clean images: PRIME - standard", gain["clean"], -3, 1, digits=1),
    ]


def draw(results: Runs) -> Figure:
    """Draw the accuracy under each corruption, a bar for each method, a dot for each seed."""
    from matplotlib.figure import Figure

    names = [name for name in results["PRIME"][0] if name != "mCE"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    for number, (method, seeds) in enumerate(results.items()):
        places = [place + 0.4 * number - 0.2 for place in range(len(names))]
        axes.bar(places, [mean(column(seeds, name)) for name in names], width=0.4, alpha=0.6, label=method)
        for one in seeds:
            axes.plot(places, [one[name] for name in names], "k.", markersize=3)
    axes.set(ylabel="accuracy, %", xticks=range(len(names)), ylim=(0, 105))
    axes.set_xticklabels([name.replace("_", " ") for name in names], rotation=60, ha="right")
    axes.legend(loc="lower right")
    return figure


def main(args: Sequence[str] | None = None) -> None:
    """Run everything; the exit status is 1 if a claim fails."""
    run_miniature(str(__doc__), measure, args)


if __name__ == "__main__":
    main()
