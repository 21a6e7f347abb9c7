"""Lightning datamodules. Installed as ``pl_robust.datamodules``."""

from pl_robust._lazy import attach

_HOMES = {"ImageDataModule": "image", "InjectedFeatureDataModule": "injected_feature"}
__all__ = tuple(sorted(_HOMES))
__getattr__, __dir__ = attach(__name__, _HOMES)
