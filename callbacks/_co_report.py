"""What the catastrophic-overfitting detector shows a person: a table and the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pl_robust.callbacks._observer import time_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, float]


def summarize(history: Sequence[Row], detections: Sequence[Row], name: str) -> str:
    """Write the table: clean, FGSM and PGD accuracy at the best and the last check, and when CO set in.

    Args:
        history: one row for each check, with epoch, step, acc, acc_fgsm, acc_pgd and grad_align.
        detections: the rows at which CO set in.
        name: what the table is about, the prefix of the logged names.
    """
    best = max(history, key=lambda row: row["acc_pgd"])
    lines = [f"{name + ' check':<24}{'clean':>8}{'FGSM':>8}{'PGD':>8}{'grad. align.':>14}"]
    for label, row in (("best PGD", best), ("last", history[-1])):
        where = f"{label}, epoch {row['epoch']:.0f}"
        accuracies = "".join(f"{row[key]:>8.1%}" for key in ("acc", "acc_fgsm", "acc_pgd"))
        lines.append(f"{where:<24}{accuracies}{row['grad_align']:>14.2f}")
    moments = ", ".join(f"epoch {row['epoch']:.0f} (step {row['step']:.0f})" for row in detections)
    lines.append(f"Catastrophic overfitting: {moments or 'not detected'}")
    return "\n".join(lines)


def draw_curves(history: Sequence[Row], detections: Sequence[Row], name: str) -> Figure:
    """Draw clean, FGSM and PGD accuracy and gradient alignment over training, with the moments of CO marked."""
    from matplotlib.figure import Figure  # late: only rank zero draws, once

    axis = time_axis(history)
    at = [row[axis] for row in history]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    curves = (
        ("acc", "clean", "-"),
        ("acc_fgsm", "FGSM", "-"),
        ("acc_pgd", "PGD", "-"),
        ("grad_align", "alignment", ":"),
    )
    for key, label, style in curves:
        color = "tab:gray" if key == "grad_align" else None
        axes.plot(at, [row[key] for row in history], style, marker=".", label=label, color=color)
    for number, row in enumerate(detections):
        # Matplotlib leaves labels that start with an underscore out of the legend.
        label = "catastrophic overfitting" if number == 0 else "_again"
        axes.axvline(row[axis], color="tab:red", linestyle="--", label=label)
    axes.set(xlabel=axis, ylabel="accuracy, cosine", ylim=(min(-0.02, *(row["grad_align"] for row in history)), 1.02))
    axes.set_title(f"{name}: robustness over training")
    figure.legend(loc="outside lower center", ncols=5, fontsize="small")
    return figure
