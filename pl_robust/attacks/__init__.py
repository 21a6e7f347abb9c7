"""Adversarial attacks in pure torch: ``attack(model, x, y) -> x_adv``; only the input's gradient is ever taken."""

from pl_robust._lazy import attach

_HOMES = {
    "FGSM": "fgsm",
    "NFGSM": "nfgsm",
    "PGD": "pgd",
    "Attack": "attack",
    "fgsm": "fgsm",
    "nfgsm": "nfgsm",
    "pgd": "pgd",
}
__all__ = tuple(sorted(_HOMES))
__getattr__, __dir__ = attach(__name__, _HOMES)
