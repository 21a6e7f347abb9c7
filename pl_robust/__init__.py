"""pl_robust: robustness and deep-learning-theory tools for PyTorch Lightning.

Importing the package costs nothing; import what you use from its rooms, for example
``from pl_robust.callbacks import CatastrophicOverfittingDetector``.
"""

__version__ = "0.1.0"

__all__ = ("__version__",)
