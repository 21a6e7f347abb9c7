"""Where the looks at a fit go: figures to the loggers, pictures and the film to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pl_robust._figure import publish_figure
from pl_robust._lightning import Trainer
from pl_robust.callbacks._filmstrip import Filmstrip
from pl_robust.callbacks._inr_figure import Fit, draw_fit, draw_frame

History = Sequence[Mapping[str, float]]


class FitRecord:
    """The figures and files of one run; rank zero alone shows and saves.

    Args:
        png: save the figure of each look.
        gif: keep frames for a film.
        save_dir: folder of the files; None: as ``begin`` says.
    """

    def __init__(self, png: bool, gif: bool, save_dir: str | Path | None) -> None:
        self.png = png
        self.gif = gif
        self.save_dir = save_dir
        self.film = Filmstrip()
        self._name = ""
        self._directory: Path | None = None  # None for a run that leaves no files
        self._shown: Fit | None = None

    def begin(self, trainer: Trainer, name: str, step: int) -> None:
        """Find the folder of the files, and forget what is later than a step. On every rank.

        Args:
            trainer: the run's.
            name: prefix of the logged names and of the files'.
            step: where the run goes on; -1 for a new one.
        """
        self._name = name
        self._shown = None
        self.film.cut_after(step)
        log_dir = trainer.log_dir  # every rank asks: Lightning broadcasts it
        is_asked = self.png or self.gif or self.save_dir is not None
        is_silent = getattr(trainer, "fast_dev_run", False) or not (trainer.loggers or is_asked)
        # A run that logs nowhere leaves no file either.
        self._directory = None if is_silent else Path(self.save_dir or log_dir or trainer.default_root_dir)

    def show(self, trainer: Trainer, fit: Fit, history: History) -> None:
        """Give a look to the loggers, the film and a file, as far as they want it.

        Args:
            trainer: the run's.
            fit: the signal and its reconstruction.
            history: one row for each look, with step and psnr.
        """
        self._shown = fit
        if self.gif and self._directory is not None:
            self.film.add(fit.step, draw_frame(fit))
        is_saved = self.png and self._directory is not None
        if not is_saved and not any(_takes_figures(logger) for logger in trainer.loggers):
            return
        figure = draw_fit(fit, history, self._name)
        publish_figure(trainer, f"{self._name}/fit", figure, None)
        if is_saved:
            figure.savefig(self._path(f"_{fit.step:06d}.png"), dpi=120)

    def save(self, history: History) -> list[Path]:
        """Write the last figure and the film, if there is one and a folder for it; forget the figure.

        Args:
            history: as for ``show``.

        Returns:
            The files.
        """
        fit, self._shown = self._shown, None
        if fit is None or self._directory is None:
            return []
        saved = [self._path(".png")]
        draw_fit(fit, history, self._name).savefig(saved[0], dpi=120)
        if self.gif:
            saved.append(self._path(".gif"))
            self.film.write(saved[1])
        return saved

    def _path(self, ending: str) -> Path:
        directory = self._directory or Path()
        directory.mkdir(parents=True, exist_ok=True)
        return directory / f"{self._name.replace('/', '_')}_fit{ending}"


def _takes_figures(logger: Any) -> bool:
    """Tell whether ``publish_figure`` finds a place in a logger; drawing for none would be waste."""
    return hasattr(getattr(logger, "experiment", None), "add_figure") or hasattr(logger, "log_image")
