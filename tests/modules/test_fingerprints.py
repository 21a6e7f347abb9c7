from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from pl_robust.modules._fingerprints import bit_checksum, fingerprint, fold
from tests.modules.test_akd_student import teacher


def test_the_checksum_is_a_sum_of_splitmix64() -> None:
    """With Python's integers, which do not wrap around by themselves."""
    x = torch.randn(3, 2, 5)
    mask, totals = 2**64 - 1, []
    for row in x.reshape(3, -1).numpy().view(np.int32).astype(object):
        total = 0
        for place, word in enumerate(row, start=1):
            z = (int(word) + place * 0x9E3779B97F4A7C15) & mask
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            total = (total + z) & mask
        totals.append(total - 2**64 if total >= 2**63 else total)
    assert bit_checksum(x).tolist() == totals
    assert bit_checksum(x.double()).tolist() != totals
    checksums = bit_checksum(x)
    assert not torch.equal(fold(checksums, checksums.flip(0)), fold(checksums.flip(0), checksums))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_checksum_tells_inputs_apart(dtype: torch.dtype) -> None:
    x = torch.rand(1, 3, 8, 8).to(dtype)
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    seen = {int(bit_checksum(one)) for one in (x, -x, x.flip(-1), x.roll(1, -1))}
    for bit in (0, 5, 8 * dtype.itemsize - 1):
        for place in (0, 100, 191):
            other = x.clone().view(kinds[dtype.itemsize])
            other.view(-1)[place] ^= torch.tensor(1 << bit if bit < 63 else -(1 << 63)).to(other.dtype)
            seen.add(int(bit_checksum(other.view(dtype))))
    assert len(seen) == 4 + 9
    batch = torch.cat([x, x.flip(-1)])
    strided = batch.to(memory_format=torch.channels_last)
    assert torch.equal(bit_checksum(strided), bit_checksum(batch))
    assert bit_checksum(batch)[0] == bit_checksum(x)[0]
    assert bit_checksum(torch.zeros(0, 3, dtype=dtype)).shape == (0,)


def test_the_fingerprint_is_the_networks_own() -> None:
    net = teacher()
    with torch.no_grad():
        others = [copy.deepcopy(net) for _ in range(3)]
        others[0][0].weight[0, 0, 0, 0] += 1e-6  # type: ignore[index]
        others[1][1].running_var[1] += 1e-6  # type: ignore[index]
        others[2][2] = nn.GELU()  # type: ignore[operator]
    assert len({fingerprint(one) for one in (net, *others)}) == 4
    same = [copy.deepcopy(net), torch.compile(net, backend="eager")]
    assert {fingerprint(one) for one in same} == {fingerprint(net)}  # type: ignore[arg-type]
    assert fingerprint(net.bfloat16()) != fingerprint(teacher())
    assert json.dumps(fingerprint(nn.Identity()))
