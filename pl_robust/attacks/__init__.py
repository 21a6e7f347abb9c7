"""Adversarial attacks in pure torch: ``attack(model, x, y) -> x_adv``; only the input's gradient is ever taken."""

# Not a lazy face: a function shares its file's name, and importing the file would put the module in its place.
from pl_robust.attacks.attack import Attack
from pl_robust.attacks.fgsm import FGSM, fgsm
from pl_robust.attacks.nfgsm import NFGSM, nfgsm
from pl_robust.attacks.pgd import PGD, pgd
from pl_robust.attacks.torch_attacks import TorchAttacks

__all__ = ("FGSM", "NFGSM", "PGD", "Attack", "TorchAttacks", "fgsm", "nfgsm", "pgd")
