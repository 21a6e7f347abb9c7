"""Training losses and measures of the loss surface, in pure torch."""

# Not a lazy face: a function shares its file's name, and importing the file would put the module in its place.
from pl_robust.losses.gradient_alignment import GradAlign, gradient_alignment, gradient_alignment_weight
from pl_robust.losses.input_curvature import input_hessian_eigenvalues
from pl_robust.losses.jsd_consistency import jsd_consistency
from pl_robust.losses.local_linearity import local_linearity_error
from pl_robust.losses.regularizer import Regularizer
from pl_robust.losses.trades import TRADES, trades_loss

__all__ = (
    "TRADES",
    "GradAlign",
    "Regularizer",
    "gradient_alignment",
    "gradient_alignment_weight",
    "input_hessian_eigenvalues",
    "jsd_consistency",
    "local_linearity_error",
    "trades_loss",
)
