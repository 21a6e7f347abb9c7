"""Lightning callbacks that drop into any existing Trainer. Installed as ``pl_robust.callbacks``."""

from pl_robust._lazy import attach

_HOMES = {"CatastrophicOverfittingDetector": "catastrophic_overfitting", "ExactResume": "exact_resume"}
__all__ = tuple(sorted(_HOMES))
__getattr__, __dir__ = attach(__name__, _HOMES)
