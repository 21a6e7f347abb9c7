"""The empirical neural tangent kernel: Gram matrices, products, spectra, alignment, linearized networks."""

# Not a lazy face: a function shares its file's name, and importing the file would put the module in its place.
from pl_robust.ntk._streaming import NTKAlignment
from pl_robust.ntk.empirical_ntk import empirical_ntk
from pl_robust.ntk.energy_curve import EnergyCurve, energy_curve
from pl_robust.ntk.linearize import LinearizedModel, linearize
from pl_robust.ntk.neural_anisotropy_directions import neural_anisotropy_directions
from pl_robust.ntk.ntk_alignment import ntk_alignment
from pl_robust.ntk.ntk_eigh import NTKEigen, ntk_eigh
from pl_robust.ntk.ntk_vector_product import ntk_vector_product
from pl_robust.ntk.plots import plot_eigenfunctions, plot_spectrum

__all__ = (
    "EnergyCurve",
    "LinearizedModel",
    "NTKAlignment",
    "NTKEigen",
    "empirical_ntk",
    "energy_curve",
    "linearize",
    "neural_anisotropy_directions",
    "ntk_alignment",
    "ntk_eigh",
    "ntk_vector_product",
    "plot_eigenfunctions",
    "plot_spectrum",
)
