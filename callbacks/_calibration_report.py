"""What calibration looks like to a person: a table and the reliability diagrams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

_NAMES = {"": "clean", "_adv": "adversarial"}


def summarize(rows: Sequence[Row], title: str) -> str:
    """Write the table of one evaluation: accuracy, ECE, negative log-likelihood and Brier score.

    Args:
        rows: one for each dataloader: end (what stands behind its names), and acc, ece, nll and brier, the same with
            ``_adv`` behind if there was an attack, and robust_gap if it was looked for.
        title: what the table is about.
    """
    width = max(len(title), *(len(f"adversarial{row['end']}") for row in rows)) + 2
    lines = [f"{title:<{width}}{'accuracy':>10}{'ECE':>10}{'NLL':>10}{'Brier':>10}"]
    for row in rows:
        for ending, name in _NAMES.items():
            if f"ece{ending}" in row:
                cells = "".join(f"{row[f'{key}{ending}']:>10.4f}" for key in ("ece", "nll", "brier"))
                lines.append(f"{name + row['end']:<{width}}{row[f'acc{ending}']:>10.1%}{cells}")
        if "robust_gap" in row:
            lines.append(f"{'robust gap' + row['end']:<{width}}{row['robust_gap']:>10.1%}")
    return "\n".join(lines)


def draw_reliability(row: Row, title: str) -> Figure:
    """Draw the reliability diagrams of one dataloader, clean and adversarial side by side.

    Args:
        row: ece and bins (counts, confidence, accuracy by bin); the same with ``_adv`` behind if there was an attack.
        title: what was evaluated.
    """
    from matplotlib.figure import Figure  # late: only rank zero draws

    endings = [ending for ending in _NAMES if f"bins{ending}" in row]
    figure = Figure(figsize=(0.6 + 3.8 * len(endings), 5.0), layout="constrained")
    axes = figure.subplots(
        2, len(endings), sharex=True, sharey="row", squeeze=False, gridspec_kw={"height_ratios": [3, 1]}
    )
    for column, ending in enumerate(endings):
        above, below = axes[:, column]
        _draw_diagram(above, row[f"bins{ending}"])
        above.set_title(f"{_NAMES[ending]}: ECE {row[f'ece{ending}']:.3f}")
        _draw_histogram(below, row[f"bins{ending}"])
        below.set_xlabel("confidence")
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("share of samples")
    axes[0, 0].legend(loc="upper left", fontsize="small")
    figure.suptitle(title, fontsize="medium")
    return figure


def _draw_diagram(axes: Axes, bins: Mapping[str, Sequence[float]]) -> None:
    count = len(bins["counts"])
    left = [m / count for m in range(count)]
    # Of the bins that are not empty: where, confidence, accuracy.
    filled = [part for part in zip(left, bins["confidence"], bins["accuracy"], strict=True) if isfinite(part[2])]
    at = [part[0] for part in filled]
    lower = [min(part[1:]) for part in filled]
    axes.bar(at, lower, 1 / count, align="edge", color="tab:blue", edgecolor="white")
    for name, color, sign in (("overconfident", "tab:red", 1), ("underconfident", "tab:green", -1)):
        gaps = [max(0.0, sign * (confidence - accuracy)) for _, confidence, accuracy in filled]
        axes.bar(at, gaps, 1 / count, lower, align="edge", color=color, alpha=0.35, hatch="///", label=name)
    axes.hlines([part[2] for part in filled], at, [x + 1 / count for x in at], color="black", label="accuracy")
    axes.plot([0, 1], [0, 1], "--", color="tab:gray", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1.01))


def _draw_histogram(axes: Axes, bins: Mapping[str, Sequence[float]]) -> None:
    count, samples = len(bins["counts"]), max(1, sum(bins["counts"]))
    middles = [(m + 0.5) / count for m in range(count)]
    axes.bar(middles, [number / samples for number in bins["counts"]], 1 / count, color="tab:gray", edgecolor="white")
    means = zip(bins["counts"], bins["confidence"], bins["accuracy"], strict=True)
    sums = [(number * confidence, number * accuracy) for number, confidence, accuracy in means if number]
    for total, style, label in zip(
        (sum(part[i] for part in sums) / samples for i in (0, 1)),
        ("--", ":"),
        ("mean confidence", "mean accuracy"),
        strict=True,
    ):
        axes.axvline(total, color="black", linestyle=style, linewidth=1, label=label)
    axes.legend(fontsize="x-small")
