"""LightningModules: each is one way of training a network."""

from typing import TYPE_CHECKING

from pl_robust._lazy import attach

__all__ = (
    "AKDStudent",
    "AdversarialTraining",
    "AugmentedTraining",
    "INRFitting",
    "INRMetaLearning",
    "LinearizedTraining",
    "NodeClassification",
)

if TYPE_CHECKING:
    from pl_robust.modules.adversarial_training import AdversarialTraining
    from pl_robust.modules.akd_student import AKDStudent
    from pl_robust.modules.augmented_training import AugmentedTraining
    from pl_robust.modules.inr_fitting import INRFitting
    from pl_robust.modules.inr_meta_learning import INRMetaLearning
    from pl_robust.modules.linearized_training import LinearizedTraining
    from pl_robust.modules.node_classification import NodeClassification
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "AKDStudent": "akd_student",
            "AdversarialTraining": "adversarial_training",
            "AugmentedTraining": "augmented_training",
            "INRFitting": "inr_fitting",
            "INRMetaLearning": "inr_meta_learning",
            "LinearizedTraining": "linearized_training",
            "NodeClassification": "node_classification",
        },
    )
