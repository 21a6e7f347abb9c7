"""LightningModules: each is one way of training a network."""

from typing import TYPE_CHECKING

from pl_robust._lazy import attach

__all__ = (
    "AdversarialTraining",
    "AugmentedTraining",
)

if TYPE_CHECKING:
    from pl_robust.modules.adversarial_training import AdversarialTraining
    from pl_robust.modules.augmented_training import AugmentedTraining
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "AdversarialTraining": "adversarial_training",
            "AugmentedTraining": "augmented_training",
        },
    )
