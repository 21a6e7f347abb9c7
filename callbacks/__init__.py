"""Lightning callbacks that drop into any existing Trainer. Installed as ``pl_robust.callbacks``."""

from typing import TYPE_CHECKING

from pl_robust._lazy import attach

__all__ = (
    "CatastrophicOverfittingDetector",
    "ExactResume",
)

if TYPE_CHECKING:
    from pl_robust.callbacks.catastrophic_overfitting import CatastrophicOverfittingDetector
    from pl_robust.callbacks.exact_resume import ExactResume
else:
    __getattr__, __dir__ = attach(
        __name__,
        {"CatastrophicOverfittingDetector": "catastrophic_overfitting", "ExactResume": "exact_resume"},
    )
