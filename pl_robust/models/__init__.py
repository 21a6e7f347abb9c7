"""Networks: plain ``nn.Module`` classes; images in [0, 1] to logits, coordinates to values, graphs to logits."""

from typing import TYPE_CHECKING

from pl_robust._lazy import attach

__all__ = (
    "APPNP",
    "APPNPMLP",
    "GAT",
    "GCN",
    "MLP",
    "SGC",
    "SGCMLP",
    "SIREN",
    "BinaryLogits",
    "FourierFeatureNetwork",
    "LeNet",
    "MultiplicativeFilterNetwork",
    "NodeMLP",
    "Normalize",
    "PreActResNet",
    "Preprocessed",
    "Pretrained",
    "PretrainedEnsemble",
    "SmallCNN",
    "load_siren",
    "preact_resnet18",
    "save_siren",
)

if TYPE_CHECKING:
    from pl_robust.models.appnp import APPNP
    from pl_robust.models.appnp_mlp import APPNPMLP
    from pl_robust.models.binary_logits import BinaryLogits
    from pl_robust.models.fourier_features import FourierFeatureNetwork
    from pl_robust.models.gat import GAT
    from pl_robust.models.gcn import GCN
    from pl_robust.models.lenet import LeNet
    from pl_robust.models.mlp import MLP
    from pl_robust.models.multiplicative_filter import MultiplicativeFilterNetwork
    from pl_robust.models.node_mlp import NodeMLP
    from pl_robust.models.normalize import Normalize
    from pl_robust.models.preact_resnet import PreActResNet, preact_resnet18
    from pl_robust.models.preprocessed import Preprocessed
    from pl_robust.models.pretrained import Pretrained, PretrainedEnsemble
    from pl_robust.models.sgc import SGC
    from pl_robust.models.sgc_mlp import SGCMLP
    from pl_robust.models.siren import SIREN, load_siren, save_siren
    from pl_robust.models.small_cnn import SmallCNN
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "APPNP": "appnp",
            "APPNPMLP": "appnp_mlp",
            "BinaryLogits": "binary_logits",
            "FourierFeatureNetwork": "fourier_features",
            "GAT": "gat",
            "GCN": "gcn",
            "LeNet": "lenet",
            "MLP": "mlp",
            "MultiplicativeFilterNetwork": "multiplicative_filter",
            "NodeMLP": "node_mlp",
            "Normalize": "normalize",
            "PreActResNet": "preact_resnet",
            "preact_resnet18": "preact_resnet",
            "Preprocessed": "preprocessed",
            "Pretrained": "pretrained",
            "PretrainedEnsemble": "pretrained",
            "SGC": "sgc",
            "SGCMLP": "sgc_mlp",
            "SIREN": "siren",
            "load_siren": "siren",
            "save_siren": "siren",
            "SmallCNN": "small_cnn",
        },
    )
