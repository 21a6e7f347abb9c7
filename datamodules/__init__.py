"""Lightning datamodules. Installed as ``pl_robust.datamodules``."""

from typing import TYPE_CHECKING

from pl_robust._lazy import attach

__all__ = (
    "CorruptedImageDataModule",
    "EigenfunctionDataModule",
    "GraphDataModule",
    "ImageDataModule",
    "IndexedDataModule",
    "InjectedFeatureDataModule",
    "LinearlySeparableDataModule",
    "LowPassDataModule",
    "SignalDataModule",
)

if TYPE_CHECKING:
    from pl_robust.datamodules.corrupted_image import CorruptedImageDataModule
    from pl_robust.datamodules.eigenfunction import EigenfunctionDataModule
    from pl_robust.datamodules.graph import GraphDataModule
    from pl_robust.datamodules.image import ImageDataModule
    from pl_robust.datamodules.indexed import IndexedDataModule
    from pl_robust.datamodules.injected_feature import InjectedFeatureDataModule
    from pl_robust.datamodules.linearly_separable import LinearlySeparableDataModule
    from pl_robust.datamodules.low_pass import LowPassDataModule
    from pl_robust.datamodules.signal import SignalDataModule
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "CorruptedImageDataModule": "corrupted_image",
            "EigenfunctionDataModule": "eigenfunction",
            "GraphDataModule": "graph",
            "ImageDataModule": "image",
            "IndexedDataModule": "indexed",
            "InjectedFeatureDataModule": "injected_feature",
            "LinearlySeparableDataModule": "linearly_separable",
            "LowPassDataModule": "low_pass",
            "SignalDataModule": "signal",
        },
    )
