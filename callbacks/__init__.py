"""Lightning callbacks that drop into any existing Trainer. Installed as ``pl_robust.callbacks``."""

from typing import TYPE_CHECKING

from pl_robust._lazy import attach

__all__ = (
    "CatastrophicOverfittingDetector",
    "CurvatureLogger",
    "EpsSchedule",
    "ExactResume",
)

if TYPE_CHECKING:
    from pl_robust.callbacks.catastrophic_overfitting import CatastrophicOverfittingDetector
    from pl_robust.callbacks.curvature import CurvatureLogger
    from pl_robust.callbacks.eps_schedule import EpsSchedule
    from pl_robust.callbacks.exact_resume import ExactResume
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "CatastrophicOverfittingDetector": "catastrophic_overfitting",
            "CurvatureLogger": "curvature",
            "EpsSchedule": "eps_schedule",
            "ExactResume": "exact_resume",
        },
    )
