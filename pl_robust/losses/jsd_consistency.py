"""Jensen-Shannon consistency: one answer to all views of an image.

Hendrycks, Mu, Cubuk, Zoph, Gilmer, Lakshminarayanan, "AugMix: a simple data processing method to improve robustness and
uncertainty", ICLR 2020, https://arxiv.org/abs/1912.02781, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_robust.losses._soft_labels import check_logits


def jsd_consistency(logits_clean: Tensor, *logits_augmented: Tensor) -> Tensor:
    r"""Jensen-Shannon divergence of a network's answers to several views of the same images.

    :math:`\frac{1}{nB}\sum_{v=1}^{n}\sum_{i=1}^{B}\mathrm{KL}(p_{v,i} \,\|\, \bar p_i)` for n views,
    :math:`\bar p = \frac{1}{n}\sum_v p_v`: 0 for equal answers, log n for certain answers that all differ. As in the
    released code of AugMix and PRIME the mixture is clamped to [1e-7, 1] before the logarithm; they add 12 times this
    to the cross-entropy on the clean images. The order of the views does not matter, and gradients flow through all.

    Args:
        logits_clean: of the first view, float [B, K].
        logits_augmented: of the other views, at least one, each [B, K].

    Returns:
        A scalar, in nats; float32 for half precision and under autocast.

    Raises:
        TypeError: if the logits are no floating-point tensors.
        ValueError: if there is only one view, the logits are not all of one shape [B, K], or the batch is empty.

    Example:
        >>> jsd_consistency(torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 100.0]]))  # log 2
        tensor(0.6931)
    """
    logits = (logits_clean, *logits_augmented)
    if len(logits) < 2:
        raise ValueError("`jsd_consistency` compares at least 2 views, got the logits of 1")
    check_logits(*logits)
    stacked = torch.stack([one.float() if one.dtype.itemsize < 4 else one for one in logits])
    logs = F.log_softmax(stacked, dim=2)
    mixture = logs.exp().mean(0).clamp(1e-7, 1).log()
    # From the logarithms: the derivative of p log p by p has no value where p underflows to 0.
    return F.kl_div(mixture.expand_as(logs), logs, reduction="sum", log_target=True) / (
        stacked.shape[0] * stacked.shape[1]
    )
