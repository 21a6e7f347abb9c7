from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from pl_robust.models import SGC
from tests.models.graph_toys import dense_normalized, small_graph


@pytest.mark.parametrize("k", [0, 1, 2, 5])
@pytest.mark.parametrize("weighted", [True, False])
def test_it_is_the_dense_formula(k: int, weighted: bool) -> None:
    x, edges, weight = small_graph()
    given = weight if weighted else None
    filtered = torch.linalg.matrix_power(dense_normalized(edges, given, 9), k) @ x
    net = SGC(5, 3, k).double()
    layer = net.head.layers[0]
    torch.nn.init.normal_(layer.bias)  # type: ignore[arg-type]
    expected = filtered @ layer.weight.T + layer.bias
    torch.testing.assert_close(net(x, edges, given), expected, rtol=0, atol=1e-12)


def test_filtered_features_are_computed_once_and_go_with_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    from pl_robust.models import _graph

    calls: list[int] = []
    original = _graph.filter_features

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(_graph, "filter_features", counted)
    x, edges, weight = small_graph()
    net = SGC(5, 3).double()
    for _ in range(3):
        net(x, edges, weight).sum().backward()
    assert len(calls) == 1
    assert net.filter._kept._entry is not None
    del x
    gc.collect()
    assert net.filter._kept._entry is None


def test_what_is_kept_goes_with_the_network_at_once() -> None:
    """Without the garbage collector, which may take its time, the next network's filtered features come on top."""
    x, edges, weight = small_graph()
    net = SGC(5, 3).double()
    net(x, edges, weight)
    filtered = weakref.ref(net.filter._kept._entry.value)  # type: ignore[union-attr]
    gc.disable()
    try:
        del net
        assert filtered() is None
    finally:
        gc.enable()


def test_in_inference_mode_nothing_is_kept_of_its_tensors() -> None:
    _, edges, weight = small_graph()
    net = SGC(5, 3).double()
    with torch.inference_mode():
        x = torch.randn(9, 5, dtype=torch.float64)
        net(x, edges, weight)
    assert net.filter._kept._entry is None


def test_columns_are_filtered_in_parts_on_large_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    from pl_robust.models import _graph

    x, edges, weight = small_graph()
    whole = _graph.filter_features(x, edges, weight, 3)
    monkeypatch.setattr(_graph, "_ENTRIES", 60)  # 25 edges with the loops: two columns at a time
    assert torch.equal(_graph.filter_features(x, edges, weight, 3), whole)


def test_functional_transforms_leave_nothing_behind() -> None:
    x, edges, weight = small_graph()
    net = SGC(5, 3).double()
    parameters: dict[str, torch.Tensor] = dict(net.named_parameters())

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        total: torch.Tensor = torch.func.functional_call(net, values, (x, edges, weight)).square().sum()
        return total

    inside = torch.func.grad(loss)(parameters)
    assert net.filter._kept._entry is None
    outside = torch.autograd.grad(loss(parameters), list(parameters.values()))
    torch.testing.assert_close(list(inside.values()), list(outside))
