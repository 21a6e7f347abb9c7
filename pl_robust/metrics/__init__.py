"""torchmetrics for robustness; no Lightning needed."""

# Not a lazy face: a function shares its file's name, and importing the file would put the module in its place.
from pl_robust.metrics.calibration import Calibration, CalibrationSummary, Reliability, brier_score, reliability
from pl_robust.metrics.mean_corruption_error import MeanCorruptionError, mean_corruption_error

__all__ = (
    "Calibration",
    "CalibrationSummary",
    "MeanCorruptionError",
    "Reliability",
    "brier_score",
    "mean_corruption_error",
    "reliability",
)
