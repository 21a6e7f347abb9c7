"""Networks: plain ``nn.Module`` classes that take images in [0, 1] and give logits."""

from typing import TYPE_CHECKING

from pl_robust._lazy import attach

__all__ = (
    "Normalize",
    "PreActResNet",
    "Preprocessed",
    "SmallCNN",
    "preact_resnet18",
)

if TYPE_CHECKING:
    from pl_robust.models.normalize import Normalize
    from pl_robust.models.preact_resnet import PreActResNet, preact_resnet18
    from pl_robust.models.preprocessed import Preprocessed
    from pl_robust.models.small_cnn import SmallCNN
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "Normalize": "normalize",
            "PreActResNet": "preact_resnet",
            "preact_resnet18": "preact_resnet",
            "Preprocessed": "preprocessed",
            "SmallCNN": "small_cnn",
        },
    )
