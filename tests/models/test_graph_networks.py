"""What all networks on graphs have in common."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pl_robust import models
from tests.models.graph_toys import small_graph

NETS: dict[str, tuple[Any, dict[str, Any]]] = {
    "GCN": (models.GCN, {}),
    "GAT": (models.GAT, {"heads": 2, "hidden_features": 3}),
    "SGC": (models.SGC, {}),
    "APPNP": (models.APPNP, {}),
    "APPNP, linear with dropout": (models.APPNP, {"dropout": 0.5}),
    "APPNP, not linear": (models.APPNP, {"hidden_features": 4, "dropout": 0.5}),
    "SGCMLP": (models.SGCMLP, {"hidden_features": 6}),
    "APPNPMLP": (models.APPNPMLP, {"hidden_features": 6}),
    "NodeMLP": (models.NodeMLP, {"hidden_features": 6}),
}
every = pytest.mark.parametrize("name", NETS)


def _net(name: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    build, own = NETS[name]
    return build(5, 3, **{**own, **arguments}).double()


@every
def test_a_permutation_of_the_nodes_permutes_the_logits(name: str) -> None:
    x, edges, weight = small_graph()
    net = _net(name).eval()
    order = torch.randperm(len(x))
    inverse = order.argsort()
    moved = net(x[order], inverse[edges], weight)
    torch.testing.assert_close(moved, net(x, edges, weight)[order], rtol=0, atol=1e-12)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precisions_agree_and_nothing_is_nan(name: str, dtype: torch.dtype) -> None:
    x, edges, weight = small_graph()
    net = _net(name).eval()
    low = copy.deepcopy(net).to(dtype)(x.to(dtype), edges, weight.to(dtype))
    assert low.dtype == dtype
    torch.testing.assert_close(low.double(), net(x, edges, weight), rtol=0, atol=0.05)


@every
def test_edge_weights_count_but_for_the_baseline(name: str) -> None:
    x, edges, weight = small_graph()
    net = _net(name).eval()
    plain, ones, weighted = net(x, edges), net(x, edges, torch.ones_like(weight)), net(x, edges, weight)
    torch.testing.assert_close(plain, ones, rtol=0, atol=1e-12)
    assert torch.equal(plain, weighted) == (name == "NodeMLP")
    without = net(x, edges[:, (edges == 0).sum(0) == 0])
    nothing = torch.where((edges == 0).any(0), 0.0, 1.0).double()
    torch.testing.assert_close(net(x, edges, nothing), without, rtol=0, atol=1e-12)  # weight 0: no edge


@every
def test_one_node_and_none(name: str) -> None:
    x, edges, _ = small_graph()
    net = _net(name)
    assert net(x[:1], edges[:, :0]).isfinite().all()
    assert net(x[:0], edges[:, :0]).shape == (0, 3)


@every
def test_dropout_is_off_in_evaluation_alone(name: str) -> None:
    x, edges, weight = small_graph()
    net = _net(name)
    drops = name not in ("SGC", "APPNP")
    assert torch.equal(net(x, edges, weight), net(x, edges, weight)) != drops
    net.eval()
    assert torch.equal(net(x, edges, weight), net(x, edges, weight))


@every
def test_what_is_kept_is_forgotten_with_another_graph_and_with_changes(name: str) -> None:
    net = _net(name).eval()
    graphs = [small_graph(seed=seed) for seed in (1, 2)]
    graphs.append((graphs[0][0], *graphs[1][1:]))  # the features of one, the edges of another
    graphs.append((graphs[0][0], graphs[0][1][:, :4], graphs[0][2][:4]))
    for x, edges, weight in (*graphs, *graphs):
        fresh = copy.deepcopy(net)
        assert torch.equal(net(x, edges, weight), fresh(x, edges, weight))
        assert torch.equal(net(x, edges, weight), fresh(x, edges, weight))
        assert torch.equal(net(x, edges), fresh(x, edges))
    x, edges, weight = graphs[0]
    before = net(x, edges, weight)
    weight.mul_(torch.linspace(0.1, 2, len(weight)))
    assert torch.equal(net(x, edges, weight), copy.deepcopy(net)(x, edges, weight))
    x.add_(1)
    after = net(x, edges, weight)
    assert torch.equal(after, copy.deepcopy(net)(x, edges, weight))
    assert not torch.equal(before, after)


@every
def test_the_state_is_the_parameters_alone(name: str) -> None:
    x, edges, weight = small_graph()
    net = _net(name).eval()
    expected = net(x, edges, weight)
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}
    assert torch.equal(pickle.loads(pickle.dumps(net))(x, edges, weight), expected)  # noqa: S301  # our own
    other = _net(name).eval()
    other.reset_parameters()
    assert not torch.equal(other(x, edges, weight), expected)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x, edges, weight), expected)


@every
def test_gradients_reach_features_and_weights_of_edges(name: str) -> None:
    x, edges, weight = small_graph()
    net = _net(name).eval()
    net(x, edges, weight)  # something is kept
    assert torch.autograd.gradcheck(net, (x.clone().requires_grad_(), edges, weight.clone().requires_grad_()))


@every
def test_what_is_first_seen_in_inference_mode_can_be_trained_on(name: str) -> None:
    x, edges, weight = small_graph()
    net = _net(name)
    with torch.inference_mode():
        net.eval()(x, edges, weight)
        inside = x + 0
        assert torch.equal(net(inside, edges, weight), net(x, edges, weight))
    net.train()(x, edges, weight).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@every
def test_the_published_optimizer(name: str) -> None:
    net = _net(name)
    assert 0.005 <= net.learning_rate <= 0.05
    assert 5e-4 <= net.weight_decay <= 5e-3
    ids = {id(parameter) for parameter in net.parameters()}
    decayed = net.decayed_parameters()
    assert decayed
    assert all(isinstance(parameter, nn.Parameter) and id(parameter) in ids for parameter in decayed)
    assert all(parameter.ndim > 1 for parameter in decayed)
    first_alone = name in ("GCN", "NodeMLP") or name.startswith("APPNP,") or name == "APPNP"
    assert (len(decayed) == 1) == (first_alone or name == "SGC")


@every
def test_under_autocast(name: str) -> None:
    x, edges, weight = small_graph()
    net = _net(name).float().eval()
    x, weight = x.float(), weight.float()
    expected = net(x, edges, weight)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(copy.deepcopy(net)(x, edges, weight).float(), expected, rtol=0, atol=0.05)
        net(x, edges, weight)
    assert torch.equal(net(x, edges, weight), expected)  # nothing imprecise was kept


_X, _EDGES, _ = small_graph()


@every
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((_X[:, :4], _EDGES), ValueError, r"takes features x \[N, 5\], got \[9, 4\]; `in_features` sets their number"),
        ((_X[0], _EDGES), ValueError, r"takes features x \[N, 5\], got \[5\]"),
        ((_X.long(), _EDGES), TypeError, "`x` must be floating point, got torch.int64"),
        ((_X.to_sparse(), _EDGES), TypeError, "`x` must be a dense tensor, got torch.sparse_coo"),
        ((_X, None), TypeError, r"`edge_index` must be a dense tensor, got NoneType; \w+\(x, edge_index, edge_weight"),
        ((_X, _EDGES.int()), TypeError, "`edge_index` must be int64, got torch.int32"),
        ((_X, _EDGES.T), ValueError, r"`edge_index` must be \[2, E\], got \[16, 2\]"),
        ((_X, _EDGES, torch.ones(3)), ValueError, r"`edge_weight` must be \[16\], a number for each edge, got \[3\]"),
        ((_X, _EDGES, torch.ones(16).long()), TypeError, "`edge_weight` must be floating point, got torch.int64"),
    ],
)
def test_refuses_graphs(name: str, arguments: tuple[Tensor, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _net(name)(*arguments)


@every
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"in_features": 0}, ValueError, "`in_features` must be at least 1, got 0"),
        ({"out_features": 2.5}, TypeError, "`out_features` must be an integer, got 2.5"),
        ({"hidden_features": 0}, ValueError, "`hidden_features` must be at least 1, got 0"),
        ({"num_layers": 0}, ValueError, "`num_layers` must be at least 1, got 0"),
        ({"dropout": 1.0}, ValueError, r"`dropout` must be in \[0, 1\), got 1.0"),
        ({"dropout": "a"}, TypeError, "`dropout` must be a number, got 'a'"),
        ({"k": -1}, ValueError, "`k` must be at least 0, got -1"),
        ({"steps": 1.5}, TypeError, "`steps` must be an integer, got 1.5"),
        ({"teleport": 1.5}, ValueError, r"`teleport` must be in \[0, 1\], got 1.5"),
        ({"heads": 0}, ValueError, "`heads` must be at least 1, got 0"),
    ],
)
def test_refuses_arguments(name: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    build = NETS[name][0]
    if not set(arguments) <= set(build.__init__.__annotations__):
        return  # it has no such argument
    with pytest.raises(error, match=message):
        build(**{"in_features": 5, "out_features": 3, **arguments})


def test_pyg_is_not_imported_before_a_network_needs_it() -> None:
    code = (
        "import sys, pl_robust.models as m\n"
        "[getattr(m, name) for name in m.__all__]\n"
        "m.SGC(2, 2); m.NodeMLP(2, 2)\n"
        "assert 'torch_geometric' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
