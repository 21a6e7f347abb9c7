"""LightningModules: each is one way of training a network."""

from pl_robust._lazy import attach

_HOMES = {"AdversarialTraining": "adversarial_training"}
__all__ = tuple(sorted(_HOMES))
__getattr__, __dir__ = attach(__name__, _HOMES)
