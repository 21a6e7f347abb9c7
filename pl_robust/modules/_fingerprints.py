"""What tells inputs apart, and networks: checksums of all their bits."""

from __future__ import annotations

import math
import re
from hashlib import sha256
from itertools import chain

import torch
from torch import Tensor, nn

# The constants of splitmix64 (Steele, Lea, Flood 2014), as signed integers.
_SPREAD = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)


def bit_checksum(x: Tensor) -> Tensor:
    """Sum up hashes of the bits of each sample, of each 32 of them with their place: splitmix64, on every device alike.

    Args:
        x: floating point [B, ...].

    Returns:
        int64 [B]. A change of one value changes it; two unlike samples share it with a chance of about 2**-64.
    """
    flat = x.detach().reshape(len(x), math.prod(x.shape[1:])).contiguous()
    words = flat.view(torch.int32 if flat.element_size() >= 4 else torch.int16).long()
    words += torch.arange(1, words.shape[1] + 1, device=x.device) * _SPREAD[0]  # integers wrap around
    for shift, factor in ((30, _SPREAD[1]), (27, _SPREAD[2])):
        words ^= (words >> shift) & ((1 << (64 - shift)) - 1)  # without the sign, which the shift pulls in
        words *= factor
    return words.sum(1)


def fold(first: Tensor, second: Tensor) -> Tensor:
    """Make one checksum of two, int64 [B], which are not interchangeable."""
    return first + second * _SPREAD[1]


def fingerprint(net: nn.Module) -> str:
    """Sum up what a network is: its layers as they print, and all its parameters and buffers."""
    net = getattr(net, "_orig_mod", net)
    digest = sha256(re.sub(r"0x[0-9a-fA-F]+", "", repr(net)).encode())  # addresses are another in each process
    for name, tensor in chain(net.named_parameters(), net.named_buffers()):
        flat = tensor.detach().cpu().reshape(-1)
        digest.update(f"{name} {flat.dtype} {list(tensor.shape)}".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
