"""What the learning dynamics show a person: the data map, the forgetting events, and the numbers in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pl_robust.callbacks._dynamics_statistics import SampleStatistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_POINTS = 20_000  # more are drawn over one another
_MOST_BARS = 15
_SHOWN = 10  # samples that are named


def draw_maps(views: Mapping[str, SampleStatistics], name: str) -> Figure:
    """Draw a row for each kind of input: the data map of Swayamdipta et al., and the number of forgetting events.

    Args:
        views: title -> statistics; some sample must have been looked at.
        name: what the figure is about, the prefix of the logged names.
    """
    from matplotlib.figure import Figure  # late: only rank zero draws, once

    figure = Figure(figsize=(9.0, 0.6 + 3.6 * len(views)), layout="constrained")
    grid = figure.subplots(len(views), 2, squeeze=False)
    for (title, statistics), (left, right) in zip(views.items(), grid, strict=True):
        _data_map(left, statistics, title)
        _histogram(right, statistics, title)
    figure.suptitle(f"{name}: {int((next(iter(views.values())).looks > 0).sum())} training samples")
    return figure


def summarize_dynamics(views: Mapping[str, SampleStatistics], name: str) -> str:
    """Write a line for each kind of input, and the samples at the top of its ranking.

    Args:
        views: title -> statistics.
        name: what the table is about, the prefix of the logged names.
    """
    heads = ("confidence", "learned", "unforgettable", "never learned", "events per sample")
    lines = [f"{name:<16}" + "".join(f"{head:>{len(head) + 3}}" for head in heads)]
    rankings = []
    for title, statistics in views.items():
        seen = statistics.looks > 0
        cells = [f"{statistics.confidence[seen].mean():.3f}"]
        shares = (statistics.first_learned >= 0, statistics.unforgettable, statistics.never_learned)
        cells += [f"{share[seen].mean():.1%}" for share in shares]
        cells.append(f"{statistics.forgetting[seen].mean():.3f}")
        lines.append(
            f"{title:<16}" + "".join(f"{cell:>{len(head) + 3}}" for cell, head in zip(cells, heads, strict=True))
        )
        top = ", ".join(str(index) for index in statistics.ranking()[:_SHOWN])
        rankings.append(f"Prone to be memorized ({title}): samples {top}")
    return "\n".join([*lines, *rankings])


def _data_map(axes: Axes, statistics: SampleStatistics, title: str) -> None:
    (seen,) = np.nonzero(statistics.looks)
    drawn = seen[:: -(-len(seen) // _MOST_POINTS)]
    points = axes.scatter(
        statistics.variability[drawn],
        statistics.confidence[drawn],
        c=statistics.correctness[drawn],
        s=6,
        cmap="coolwarm",
        vmin=0,
        vmax=1,
        linewidths=0,
        rasterized=True,
    )
    axes.figure.colorbar(points, ax=axes, label="correctness")
    axes.set(
        xlabel="variability",
        ylabel="confidence",
        xlim=(-0.01, 0.51),
        ylim=(-0.02, 1.02),
        title=f"{title}, {len(drawn)} drawn" if len(drawn) < len(seen) else title,
    )


def _histogram(axes: Axes, statistics: SampleStatistics, title: str) -> None:
    learned = statistics.forgetting[statistics.first_learned >= 0]
    last = min(_MOST_BARS, int(learned.max(initial=0)))
    counts = np.bincount(np.minimum(learned, last), minlength=last + 1)
    labels = [str(events) for events in range(last + 1)]
    if learned.max(initial=0) > last:
        labels[-1] += "+"
    never = int(statistics.never_learned.sum())
    axes.bar([*range(last + 1), last + 1], [*counts, never], color=["tab:blue"] * (last + 1) + ["tab:red"])
    axes.set_xticks(range(last + 2), [*labels, "never\nlearned"], fontsize="small")
    if max(*counts, never) > 10 * max(1, min(*counts, never)):
        axes.set_yscale("symlog", linthresh=1)
    axes.set(xlabel="forgetting events", ylabel="samples", title=title)
