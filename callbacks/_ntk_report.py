"""What the NTK's alignment over training looks like to a person: a table and the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING

from pl_robust.callbacks._observer import time_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, float]

_LAYERS = 8  # with a curve of their own: more cannot be told apart


def summarize(history: Sequence[Row], name: str) -> str:
    """Write the table: alignment, as such and relative to the first check, and CKA; first, highest and last.

    Args:
        history: one row for each check, with epoch, step, alignment, and cka if it was measured.
        name: what the table is about, the prefix of the logged names.
    """
    has_cka = "cka" in history[0]
    first = history[0]["alignment"]
    lines = [f"{name + ' check':<28}{'alignment':>14}{'to the first':>14}" + ("cka".rjust(10) if has_cka else "")]
    highest = max(history, key=lambda row: row["alignment"] if isfinite(row["alignment"]) else -1.0)
    for label, row in (("first", history[0]), ("highest", highest), ("last", history[-1])):
        when = "before training" if row["epoch"] < 0 else f"epoch {row['epoch']:.0f}"
        growth = f"{row['alignment'] / first:.2f} x" if first else "-"
        cka = f"{row['cka']:>10.3f}" if has_cka else ""
        lines.append(f"{label + ', ' + when:<28}{row['alignment']:>14.4g}{growth:>14}{cka}")
    return "\n".join(lines)


def draw_curves(history: Sequence[Row], name: str) -> Figure:
    """Draw alignment over training, and below it what else was measured: CKA, eigenvalues, the layers' shares."""
    from matplotlib.figure import Figure  # late: only rank zero draws, once

    axis = time_axis(history)
    at = [row[axis] for row in history]
    eigenvalues = [key for key in history[0] if key.startswith("eigenvalue_")]
    layers = [key for key in history[0] if key.startswith("share/")]
    panels = 1 + ("cka" in history[0]) + bool(eigenvalues) + bool(layers)
    figure = Figure(figsize=(6.4, 1.2 + 2.2 * panels), layout="constrained")
    axes = list(figure.subplots(panels, sharex=True, squeeze=False)[:, 0])
    axes[-1].set_xlabel(axis)
    top = axes.pop(0)
    top.set_title(f"{name}: alignment of the tangent kernel with the labels over training")
    top.set_ylabel("alignment")
    alignment = [row["alignment"] for row in history]
    top.plot(at, alignment, marker=".")
    if all(isfinite(value) and value > 0 for value in alignment):
        top.set_yscale("log")  # growth is by factors
        first = alignment[0]
        relative = top.secondary_yaxis("right", functions=(lambda value: value / first, lambda value: value * first))
        relative.set_ylabel("relative to the first")
    if "cka" in history[0]:
        panel = axes.pop(0)
        cka = [row["cka"] for row in history]
        panel.plot(at, cka, marker=".", color="tab:orange")
        low, high = (
            [value + side * row["cka_error"] for value, row in zip(cka, history, strict=True)] for side in (-1, 1)
        )
        panel.fill_between(at, low, high, color="tab:orange", alpha=0.2, linewidth=0)
        panel.set_ylabel("CKA")
    if eigenvalues:
        panel = axes.pop(0)
        for key in eigenvalues:
            panel.plot(at, [row[key] for row in history], marker=".", label=key.replace("_", " "))
        if all(row[key] > 0 for row in history for key in eigenvalues):
            panel.set_yscale("log")
        panel.set_ylabel("eigenvalues")
        panel.legend(fontsize="small")
    if layers:
        panel = axes.pop(0)
        largest = sorted(layers, key=lambda key: history[-1][key], reverse=True)[:_LAYERS]
        for key in largest:
            panel.plot(at, [row.get(key, 0.0) for row in history], marker=".", label=key.removeprefix("share/"))
        panel.set_ylabel("share of the layer")
        panel.legend(fontsize="x-small", ncols=2)
    return figure
