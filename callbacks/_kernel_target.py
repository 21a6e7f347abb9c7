"""What a network's tangent kernel is compared with: the labels, as a function of the network's outputs' shape."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def kernel_target(y: Tensor, outputs: int) -> Tensor:
    """Turn a batch's labels into targets [N, C], one for each output of the network.

    * Class labels, integers [N], for C >= 2 logits: one-hot minus 1 / C. A shift that all logits have in common changes
      no prediction, and these targets have none.
    * Class labels 0 and 1, integers or booleans [N] or [N, 1], for a single logit: -1 and 1.
    * Values, floating point [N, C], or [N] for a single output: as they are.

    Args:
        y: the labels.
        outputs: number of outputs C of the network.

    Returns:
        The targets [N, C], in the dtype of ``y`` if that is floating point, else float64; on the device of ``y``.

    Raises:
        TypeError: for complex labels, and for integers that have the shape of several outputs.
        ValueError: for another shape, labels out of range, or values that are not finite.
    """
    shape = tuple(y.shape)
    wanted = "[N] or [N, 1]" if outputs == 1 else f"[N, {outputs}]"
    fits = shape[1:] == (outputs,) or (outputs == 1 and y.dim() == 1)
    if y.is_complex():
        raise TypeError(f"labels must be classes (integers) or values (floating point), got {y.dtype}")
    if y.is_floating_point():
        if not fits:
            raise ValueError(
                f"labels in floating point are values for each output of the network, so they must have its outputs' "
                f"shape {wanted}, got {list(shape)}; classes must be integers [N]"
            )
        if not y.isfinite().all():
            raise ValueError("labels in floating point must be finite, got NaN or infinity among them")
        return y.reshape(-1, outputs)
    if outputs > 1 and fits:
        raise TypeError(
            f"labels [N, {outputs}] for {outputs} outputs must be values in floating point, got {y.dtype}; if each is "
            "a yes or no of its own, give `probe_data=(x, y)` with y = 1.0 and -1.0"
        )
    if y.dim() != 1 and not fits:
        raise ValueError(f"class labels must be integers [N], got shape {list(shape)}")
    classes = max(2, outputs)
    lowest, highest = int(y.min()), int(y.max())
    if lowest < 0 or highest >= classes:
        way_out = (
            "values to regress on must be in floating point"
            if outputs == 1
            else "leave samples of no class out by `probe_data`"
        )
        logits = "a single logit" if outputs == 1 else f"{outputs} logits"
        raise ValueError(f"class labels for {logits} must be 0 to {classes - 1}, got {lowest} to {highest}; {way_out}")
    if outputs == 1:
        return 2 * y.reshape(-1, 1).double() - 1
    return F.one_hot(y.long(), outputs).double() - 1 / outputs
