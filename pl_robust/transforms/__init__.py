"""Batch to batch, in pure torch: image batches are float [B, C, H, W] in [0, 1]."""

# Not a lazy face: a function shares its file's name, and importing the file would put the module in its place.
from pl_robust.transforms.augmix import AugMix
from pl_robust.transforms.corruption import CORRUPTIONS, EXTRA_CORRUPTIONS, Corruption, corrupt
from pl_robust.transforms.dct_carrier import dct_carrier
from pl_robust.transforms.dct_low_pass import DCTLowPass, dct_low_pass
from pl_robust.transforms.prime import PRIME
from pl_robust.transforms.random_diffeomorphism import RandomDiffeomorphism
from pl_robust.transforms.random_filter import RandomFilter
from pl_robust.transforms.random_smooth_color import RandomSmoothColor

__all__ = (
    "CORRUPTIONS",
    "EXTRA_CORRUPTIONS",
    "PRIME",
    "AugMix",
    "Corruption",
    "DCTLowPass",
    "RandomDiffeomorphism",
    "RandomFilter",
    "RandomSmoothColor",
    "corrupt",
    "dct_carrier",
    "dct_low_pass",
)
