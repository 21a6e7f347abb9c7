"""Lightning callbacks that drop into any existing Trainer. Installed as ``pl_robust.callbacks``."""

from typing import TYPE_CHECKING

from pl_robust._lazy import attach

__all__ = (
    "CalibrationLogger",
    "CatastrophicOverfittingDetector",
    "CorruptionEvaluator",
    "CurvatureLogger",
    "EpsSchedule",
    "ExactResume",
    "INRVisualizer",
    "LearningDynamics",
    "NTKAlignmentLogger",
    "PRIMETransform",
)

if TYPE_CHECKING:
    from pl_robust.callbacks.calibration import CalibrationLogger
    from pl_robust.callbacks.catastrophic_overfitting import CatastrophicOverfittingDetector
    from pl_robust.callbacks.corruption_evaluator import CorruptionEvaluator
    from pl_robust.callbacks.curvature import CurvatureLogger
    from pl_robust.callbacks.eps_schedule import EpsSchedule
    from pl_robust.callbacks.exact_resume import ExactResume
    from pl_robust.callbacks.inr_visualizer import INRVisualizer
    from pl_robust.callbacks.learning_dynamics import LearningDynamics
    from pl_robust.callbacks.ntk_alignment import NTKAlignmentLogger
    from pl_robust.callbacks.prime_transform import PRIMETransform
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "CalibrationLogger": "calibration",
            "CatastrophicOverfittingDetector": "catastrophic_overfitting",
            "CorruptionEvaluator": "corruption_evaluator",
            "CurvatureLogger": "curvature",
            "EpsSchedule": "eps_schedule",
            "ExactResume": "exact_resume",
            "INRVisualizer": "inr_visualizer",
            "LearningDynamics": "learning_dynamics",
            "NTKAlignmentLogger": "ntk_alignment",
            "PRIMETransform": "prime_transform",
        },
    )
