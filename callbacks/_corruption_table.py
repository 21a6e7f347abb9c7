"""The usual table of accuracies under common corruptions: as text, Markdown, CSV and heat map."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pl_robust._figure import publish_figure
from pl_robust._lightning import LightningModule, Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"),
    "weather": ("snow", "frost", "fog", "brightness", "spatter"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression", "saturate"),
}


@dataclass(frozen=True)
class CorruptionTable:
    """Accuracies of one network: rows are corruption types, grouped as in the benchmark, columns severities.

    Args:
        title: what was evaluated.
        severities: the columns.
        clean: accuracy without corruption, in [0, 1].
        accuracies: type -> accuracy at each severity, in [0, 1].
        errors: type -> corruption error in percent; their mean is the mCE.
    """

    title: str
    severities: Sequence[int]
    clean: float
    accuracies: Mapping[str, Sequence[float]]
    errors: Mapping[str, float]

    @property
    def groups(self) -> dict[str, list[str]]:
        """The types of the table by group, in the order of the rows."""
        groups = {group: [name for name in names if name in self.accuracies] for group, names in _GROUPS.items()}
        known = {name for names in groups.values() for name in names}
        groups["other"] = [name for name in self.accuracies if name not in known]
        return {group: names for group, names in groups.items() if names}

    @property
    def mean_accuracy(self) -> float:
        """Mean accuracy over types and severities, in [0, 1]."""
        return _mean([_mean(row) for row in self.accuracies.values()])

    @property
    def mce(self) -> float:
        """Mean corruption error in percent."""
        return _mean(list(self.errors.values()))

    def text(self) -> str:
        """Write it for a terminal."""
        header = f"{'':<9}{'':<19}" + "".join(f"{severity:>8}" for severity in self.severities)
        lines = [self.title, f"{header}{'mean':>8}{'CE':>8}"]
        above = ""
        for group, name, cells, error in self._rows():
            wide = "".join(" " * 8 if cell is None else f"{cell:>8.1%}" for cell in cells)
            label = "" if group == above else group
            lines.append((f"{label:<9}{name:<19}{wide}" + ("" if error is None else f"{error:>8.1f}")).rstrip())
            above = group
        return "\n".join(lines)

    def markdown(self) -> str:
        """Write it as a Markdown table, accuracies and errors in percent."""
        head = ["group", "corruption", *(f"severity {severity}" for severity in self.severities), "mean", "CE"]
        lines = [f"{self.title}", "", _line(head), _line(["---"] * 2 + ["---:"] * (len(head) - 2))]
        for group, name, cells, error in self._rows():
            percents = ["" if cell is None else f"{100 * cell:.1f}" for cell in cells]
            lines.append(_line([group, name, *percents, "" if error is None else f"{error:.1f}"]))
        return "\n".join([*lines, ""])

    def csv(self) -> str:
        """Write it as CSV: accuracies in [0, 1], corruption errors (``ce``) in percent."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            ["group", "corruption", *(f"severity_{severity}" for severity in self.severities), "mean", "ce"]
        )
        for group, name, cells, error in self._rows():
            writer.writerow([group, name, *("" if value is None else f"{value:.6g}" for value in (*cells, error))])
        return text.getvalue()

    def heat_map(self) -> Figure:
        """Draw the accuracies, one cell per type and severity."""
        from matplotlib.figure import Figure  # late: only rank zero draws

        names = [name for members in self.groups.values() for name in members]
        values = [list(self.accuracies[name]) for name in names]
        width = 3.6 + 0.75 * len(self.severities)
        figure = Figure(figsize=(width, 1.6 + 0.32 * len(names)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(values, vmin=0, vmax=1, aspect="auto", cmap="viridis")
        for row, cells in enumerate(values):
            for column, value in enumerate(cells):
                color = "black" if value > 0.6 else "white"
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=color, fontsize="small")
        for group in list(self.groups.values())[1:]:
            axes.axhline(names.index(group[0]) - 0.5, color="white", linewidth=2)
        axes.set_xticks(range(len(self.severities)), [str(severity) for severity in self.severities])
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("severity")
        numbers = f"clean {self.clean:.1%}, mean {self.mean_accuracy:.1%}, mCE {self.mce:.1f}"
        figure.suptitle(f"{textwrap.fill(self.title, int(13 * width))}\n{numbers}", fontsize="small")
        figure.colorbar(image, label="accuracy")
        return figure

    def _rows(self) -> list[tuple[str, str, list[float | None], float | None]]:
        """(group, name, accuracies and their mean, error), from clean to the mean over the types."""
        columns = len(self.severities)
        rows: list[tuple[str, str, list[float | None], float | None]] = [
            ("", "clean", [*[None] * columns, self.clean], None)
        ]
        for group, names in self.groups.items():
            for name in names:
                cells = self.accuracies[name]
                rows.append((group, name, [*cells, _mean(cells)], self.errors[name]))
        means: list[float | None] = [_mean(column) for column in zip(*self.accuracies.values(), strict=True)]
        return [*rows, ("", "mean", [*means, self.mean_accuracy], self.mce)]


def publish_table(
    trainer: Trainer, pl_module: LightningModule, table: CorruptionTable, name: str, directory: str | None
) -> None:
    """Print a table, write it as CSV and Markdown, and give its heat map to the loggers. Call it on rank zero only.

    Args:
        trainer: the trainer.
        pl_module: the module, which prints.
        table: what to show.
        name: such as ``corruption/val``, the beginning of the figure's tag and, with ``_`` for ``/``, of the files'
            names.
        directory: folder of the files; None writes none.
    """
    pl_module.print(table.text())
    if directory is not None:
        path = Path(directory) / name.replace("/", "_")
        path.parent.mkdir(parents=True, exist_ok=True)
        for ending, text in ((".csv", table.csv()), (".md", table.markdown())):
            path.with_name(path.name + ending).write_text(text, encoding="utf-8")
        pl_module.print(f"Table: {path}.csv, {path}.md")
    if trainer.loggers:
        publish_figure(trainer, f"{name}_heat_map", table.heat_map(), directory)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
