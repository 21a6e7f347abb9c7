"""Figures go where people look: every logger that can take one, and a file in the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pl_robust._lightning import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def publish_figure(trainer: Trainer, tag: str, figure: Figure, directory: str | None) -> Path | None:
    """Give a figure to the trainer's loggers and save it as PNG. Call it on rank zero only.

    Args:
        trainer: the trainer whose loggers take the figure: those with ``add_figure`` (TensorBoard) or ``log_image``
            (W&B).
        tag: name of the figure, such as ``co/curves``.
        figure: what to show.
        directory: folder for the PNG, the trainer's ``log_dir`` (asking for it is a collective call, so it is not
            asked here); None saves no file.

    Returns:
        Path of the PNG, if one was saved.
    """
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_figure"):
            experiment.add_figure(tag, figure, global_step=trainer.global_step, close=False)
        elif hasattr(logger, "log_image"):
            logger.log_image(key=tag, images=[figure], step=trainer.global_step)
    if directory is None:
        return None
    path = Path(directory) / f"{tag.replace('/', '_')}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
