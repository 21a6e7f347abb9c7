"""What is made of the nodes' features before training; labels have no part in it."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from scipy import linalg
from torch import Tensor

from pl_robust.datamodules._graph_seed import seeded

Reduction: TypeAlias = Literal["projection", "pca", "first"]


def normalize_rows(x: Tensor) -> Tensor:
    """Divide the features of each node, [N, D], by the sum of their magnitudes; zeros stay.

    Bags of words become frequencies, as Kipf and Welling (ICLR 2017) have them.
    """
    total = x.abs().sum(1, keepdim=True)
    return x / torch.where(total > 0, total, 1)


def reduce_features(x: Tensor, num_features: int, how: Reduction, seed: int) -> Tensor:
    """Reduce features [N, D0] to [N, D].

    Args:
        x: the features.
        num_features: D.
        how: ``projection``: X R / sqrt(D0), R [D0, D] of standard normal numbers; ``pca``: the principal components of
            all nodes, of centred features, in falling order, each with its largest loading positive; ``first``: the
            first D.
        seed: of R.

    Raises:
        ValueError: if D is larger than there are features, or for ``pca`` nodes; a projection has no such limit.
    """
    nodes, given = x.shape
    if how == "projection":
        r = torch.randn(given, num_features, generator=seeded(seed, "projection"))
        return x @ r.to(x.dtype) / math.sqrt(given)
    limit = min(nodes, given) if how == "pca" else given
    if num_features > limit:
        of = f"features and {nodes} nodes" if how == "pca" else "features"
        raise ValueError(
            f"`num_features` must be at most {limit} for feature_reduction={how!r} of {given} {of}, got {num_features}"
        )
    return x[:, :num_features].clone() if how == "first" else _principal_components(x, num_features)


def _principal_components(x: Tensor, count: int) -> Tensor:
    centred = x.double() - x.double().mean(0)
    nodes, given = centred.shape
    # The smaller one of the two matrices that have the same eigenvalues.
    product = centred.T @ centred if given <= nodes else centred @ centred.T
    size = len(product)
    values, vectors = linalg.eigh(product.numpy(), subset_by_index=[size - count, size - 1])
    vectors = torch.from_numpy(vectors).flip(1)
    if given <= nodes:
        loadings = vectors
        scores = centred @ vectors
    else:
        scores = vectors * torch.from_numpy(values).flip(0).clamp(min=0).sqrt()
        loadings = centred.T @ vectors
    largest = loadings.abs().argmax(0)
    signs = loadings.gather(0, largest[None]).sign()
    return (scores * torch.where(signs == 0, 1, signs)).to(x.dtype)
