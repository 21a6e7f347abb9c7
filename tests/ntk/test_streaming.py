"""Samples that several processes share give what one process gives that has them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from pl_robust.ntk import ntk_alignment, ntk_eigh
from pl_robust.ntk._jacobian import alone
from pl_robust.ntk._model import check_model
from pl_robust.ntk._streaming import random_signs, streamed_alignment, streamed_eigh
from tests._processes import run_ranks

DOUBLE = torch.float64
CPU = torch.device("cpu")
CHUNK, PROBES = 16, 5
Chunk = tuple[int, Tensor, Tensor]


def smooth() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()


def chunks(count: int) -> list[Chunk]:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(count, size, dtype=DOUBLE, generator=generator) for size in (6, 3))
    return [(index, *pair) for index, pair in enumerate(zip(torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True))]


def measure(mine: Sequence[Chunk], count: int, reduce: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Everything that can be measured, of one process's chunks."""
    model = smooth()
    parameters = check_model(model, torch.ones(2, 6, dtype=DOUBLE))
    sizes = torch.zeros(count, dtype=torch.int64)
    for index, x, _ in mine:
        sizes[index] = len(x)
    sizes = reduce(sizes)
    numbers, total = torch.split(torch.arange(int(sizes.sum())), sizes.tolist()), int(sizes.sum())
    rows = torch.cat([torch.zeros(0, dtype=torch.int64), *(numbers[index] for index, _, _ in mine)])
    signs = random_signs(PROBES, (total, 3), torch.Generator().manual_seed(2), device=CPU)[:, rows]
    found = streamed_alignment(
        model, parameters, [(x, y) for _, x, y in mine], reduce=reduce, per_output=True, per_layer=True, signs=signs
    )
    measured: dict[str, Any] = {"total": total, "rows": rows, **vars(found)}
    for outputs in ("trace", "full"):
        shape = (total, 3) if outputs == "full" else (total,)
        start = torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
        measured[outputs] = streamed_eigh(
            model,
            parameters,
            [x for _, x, _ in mine],
            3,
            start,
            outputs=outputs,
            num_outputs=3,
            rows=rows,
            reduce=reduce,
        )
    return measured


def on_a_rank(samples: int) -> dict[str, Any]:
    distributed.init_process_group("gloo")

    def reduce(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
        return tensor

    whole = chunks(samples)
    return measure(whole[distributed.get_rank() :: distributed.get_world_size()], len(whole), reduce)


def compare(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("total", "cka", "cka_error", "per_layer"):
        assert found[name] == pytest.approx(expected[name], rel=1e-9), name
    assert torch.allclose(found["per_output"], expected["per_output"], rtol=1e-9)
    for outputs in ("trace", "full"):
        (values, vectors), (wanted, directions) = found[outputs], expected[outputs]
        assert torch.allclose(values, wanted, rtol=1e-9)
        cosines = (vectors.flatten(1) * directions.flatten(1)).sum(1).abs()
        assert torch.allclose(cosines, torch.ones_like(cosines))


@pytest.mark.parametrize("samples", [101, 10])  # of 10 samples, one chunk, the second process has nothing
def test_two_processes_measure_what_one_does(samples: int) -> None:
    whole = chunks(samples)
    expected = measure(whole, len(whole), alone)
    ranks = run_ranks(on_a_rank, 2, samples)
    for rank in ranks:
        compare(rank, expected)
    assert torch.equal(torch.cat([rank["rows"] for rank in ranks]).sort().values, torch.arange(samples))
    # Bit for bit the same on both, because they decide by it.
    for name in ("total", "cka", "cka_error", "per_layer"):
        assert ranks[0][name] == ranks[1][name]
    assert torch.equal(ranks[0]["full"][0], ranks[1]["full"][0])


def test_the_order_of_the_chunks_does_not_count() -> None:
    whole = chunks(60)
    compare(measure(whole[::-1], len(whole), alone), measure(whole, len(whole), alone))


def test_one_process_measures_what_the_public_functions_do() -> None:
    whole = chunks(40)
    found = measure(whole, len(whole), alone)
    x, y = torch.cat([x for _, x, _ in whole]), torch.cat([y for _, _, y in whole])
    generator = torch.Generator().manual_seed(2)
    expected = ntk_alignment(smooth(), x, y, cka=True, per_layer=True, samples=PROBES, generator=generator)
    assert found["total"] == pytest.approx(expected.total)
    assert found["per_layer"] == pytest.approx(expected.per_layer)
    assert found["cka"] == pytest.approx(expected.cka)
    assert torch.allclose(found["trace"][0], ntk_eigh(smooth(), x, 3).values)
    assert torch.allclose(found["full"][0], ntk_eigh(smooth(), x, 3, outputs="full").values)


def test_a_target_that_is_zero_on_all_processes_is_refused() -> None:
    model = smooth()
    parameters = check_model(model, torch.ones(2, 6, dtype=DOUBLE))
    nothing = [(x, 0 * y) for _, x, y in chunks(20)]
    with pytest.raises(ValueError, match="`y` must not be zero everywhere"):
        streamed_alignment(model, parameters, nothing)
    something = (torch.ones(2, 6, dtype=DOUBLE), torch.ones(2, 3, dtype=DOUBLE))
    assert streamed_alignment(model, parameters, [*nothing, something]).total > 0


def test_a_kernel_without_eigenvalues() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return 0 * self.weight * x

    model, x = Flat().eval(), torch.randn(9, 1)
    start = torch.randn(9, dtype=DOUBLE)
    values, vectors = streamed_eigh(model, check_model(model, x), [x], 3, start, num_outputs=1)
    assert values.tolist() == [0, 0, 0]
    assert torch.equal(vectors @ vectors.mT, torch.eye(3, dtype=DOUBLE))
    broken = nn.Linear(1, 1).eval()
    with torch.no_grad():
        broken.weight.fill_(torch.inf)
    deep = nn.Sequential(nn.Linear(1, 1), broken).eval()
    with pytest.raises(ValueError, match="the kernel is not finite"):
        streamed_eigh(deep, check_model(deep, x), [x], 3, start, num_outputs=1)
