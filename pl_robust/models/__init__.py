"""Networks: plain ``nn.Module`` classes; images in [0, 1] to logits, or coordinates to values."""

from typing import TYPE_CHECKING

from pl_robust._lazy import attach

__all__ = (
    "MLP",
    "SIREN",
    "BinaryLogits",
    "FourierFeatureNetwork",
    "LeNet",
    "MultiplicativeFilterNetwork",
    "Normalize",
    "PreActResNet",
    "Preprocessed",
    "SmallCNN",
    "load_siren",
    "preact_resnet18",
    "save_siren",
)

if TYPE_CHECKING:
    from pl_robust.models.binary_logits import BinaryLogits
    from pl_robust.models.fourier_features import FourierFeatureNetwork
    from pl_robust.models.lenet import LeNet
    from pl_robust.models.mlp import MLP
    from pl_robust.models.multiplicative_filter import MultiplicativeFilterNetwork
    from pl_robust.models.normalize import Normalize
    from pl_robust.models.preact_resnet import PreActResNet, preact_resnet18
    from pl_robust.models.preprocessed import Preprocessed
    from pl_robust.models.siren import SIREN, load_siren, save_siren
    from pl_robust.models.small_cnn import SmallCNN
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "BinaryLogits": "binary_logits",
            "FourierFeatureNetwork": "fourier_features",
            "LeNet": "lenet",
            "MLP": "mlp",
            "MultiplicativeFilterNetwork": "multiplicative_filter",
            "Normalize": "normalize",
            "PreActResNet": "preact_resnet",
            "preact_resnet18": "preact_resnet",
            "Preprocessed": "preprocessed",
            "SIREN": "siren",
            "load_siren": "siren",
            "save_siren": "siren",
            "SmallCNN": "small_cnn",
        },
    )
