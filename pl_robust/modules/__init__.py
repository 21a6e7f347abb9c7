"""LightningModules: each is one way of training a network."""

from typing import TYPE_CHECKING

from pl_robust._lazy import attach

__all__ = (
    "AdversarialTraining",
    "AugmentedTraining",
    "INRFitting",
    "INRMetaLearning",
    "LinearizedTraining",
)

if TYPE_CHECKING:
    from pl_robust.modules.adversarial_training import AdversarialTraining
    from pl_robust.modules.augmented_training import AugmentedTraining
    from pl_robust.modules.inr_fitting import INRFitting
    from pl_robust.modules.inr_meta_learning import INRMetaLearning
    from pl_robust.modules.linearized_training import LinearizedTraining
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "AdversarialTraining": "adversarial_training",
            "AugmentedTraining": "augmented_training",
            "INRFitting": "inr_fitting",
            "INRMetaLearning": "inr_meta_learning",
            "LinearizedTraining": "linearized_training",
        },
    )
