"""Lightning datamodules. Installed as ``pl_robust.datamodules``."""

from typing import TYPE_CHECKING

from pl_robust._lazy import attach

__all__ = (
    "ImageDataModule",
    "InjectedFeatureDataModule",
)

if TYPE_CHECKING:
    from pl_robust.datamodules.image import ImageDataModule
    from pl_robust.datamodules.injected_feature import InjectedFeatureDataModule
else:
    __getattr__, __dir__ = attach(
        __name__,
        {"ImageDataModule": "image", "InjectedFeatureDataModule": "injected_feature"},
    )
