"""Networks: plain ``nn.Module`` classes that take images in [0, 1] and give logits."""

from pl_robust._lazy import attach

_HOMES = {
    "Normalize": "normalize",
    "PreActResNet": "preact_resnet",
    "SmallCNN": "small_cnn",
    "preact_resnet18": "preact_resnet",
}
__all__ = tuple(sorted(_HOMES))
__getattr__, __dir__ = attach(__name__, _HOMES)
