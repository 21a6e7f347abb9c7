"""Batch to batch, in pure torch: image batches are float [B, C, H, W] in [0, 1]; and signals to their frequencies."""

# Not a lazy face: a function shares its file's name, and importing the file would put the module in its place.
from pl_robust.transforms.aliasing import LeakedComponents, find_aliases, fold_frequencies, leaked_components
from pl_robust.transforms.augmix import AugMix
from pl_robust.transforms.corruption import CORRUPTIONS, EXTRA_CORRUPTIONS, Corruption, corrupt
from pl_robust.transforms.dct_carrier import dct_carrier
from pl_robust.transforms.dct_low_pass import DCTLowPass, dct_low_pass
from pl_robust.transforms.frequency_support import frequency_support, polynomial_order
from pl_robust.transforms.prime import PRIME
from pl_robust.transforms.random_diffeomorphism import RandomDiffeomorphism
from pl_robust.transforms.random_filter import RandomFilter
from pl_robust.transforms.random_smooth_color import RandomSmoothColor
from pl_robust.transforms.spectrum import Spectrum, network_spectrum, spectrum

__all__ = (
    "CORRUPTIONS",
    "EXTRA_CORRUPTIONS",
    "PRIME",
    "AugMix",
    "Corruption",
    "DCTLowPass",
    "LeakedComponents",
    "RandomDiffeomorphism",
    "RandomFilter",
    "RandomSmoothColor",
    "Spectrum",
    "corrupt",
    "dct_carrier",
    "dct_low_pass",
    "find_aliases",
    "fold_frequencies",
    "frequency_support",
    "leaked_components",
    "network_spectrum",
    "polynomial_order",
    "spectrum",
)
