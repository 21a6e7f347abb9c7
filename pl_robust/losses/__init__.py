"""Training losses and measures of the loss surface, in pure torch."""

# Not a lazy face: a function shares its file's name, and importing the file would put the module in its place.
from pl_robust.losses.akd import AKD, distillation_loss
from pl_robust.losses.ard import ARD, ard_loss
from pl_robust.losses.distillation import Distillation, Progress, Teacher
from pl_robust.losses.gradient_alignment import GradAlign, gradient_alignment, gradient_alignment_weight
from pl_robust.losses.iad import IAD, iad_loss
from pl_robust.losses.input_curvature import input_hessian_eigenvalues
from pl_robust.losses.jsd_consistency import jsd_consistency
from pl_robust.losses.local_linearity import local_linearity_error
from pl_robust.losses.regularizer import Regularizer
from pl_robust.losses.rslad import RSLAD, rslad_loss
from pl_robust.losses.trades import TRADES, trades_loss

__all__ = (
    "AKD",
    "ARD",
    "IAD",
    "RSLAD",
    "TRADES",
    "Distillation",
    "GradAlign",
    "Progress",
    "Regularizer",
    "Teacher",
    "ard_loss",
    "distillation_loss",
    "gradient_alignment",
    "gradient_alignment_weight",
    "iad_loss",
    "input_hessian_eigenvalues",
    "jsd_consistency",
    "local_linearity_error",
    "rslad_loss",
    "trades_loss",
)
