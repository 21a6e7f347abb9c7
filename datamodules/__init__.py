"""Lightning datamodules. Installed as ``pl_robust.datamodules``."""

from typing import TYPE_CHECKING

from pl_robust._lazy import attach

__all__ = (
    "CorruptedImageDataModule",
    "ImageDataModule",
    "InjectedFeatureDataModule",
    "LowPassDataModule",
)

if TYPE_CHECKING:
    from pl_robust.datamodules.corrupted_image import CorruptedImageDataModule
    from pl_robust.datamodules.image import ImageDataModule
    from pl_robust.datamodules.injected_feature import InjectedFeatureDataModule
    from pl_robust.datamodules.low_pass import LowPassDataModule
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "CorruptedImageDataModule": "corrupted_image",
            "ImageDataModule": "image",
            "InjectedFeatureDataModule": "injected_feature",
            "LowPassDataModule": "low_pass",
        },
    )
