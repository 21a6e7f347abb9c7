from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from pl_robust.ntk import empirical_ntk, linearize, ntk_alignment, ntk_eigh, ntk_vector_product
from tests.fuzz import CONTEXTS, SEEDS, fuzz, inside, lay_out, made_inside, noise, outcome, untouched
from tests.ntk._dense import as_matrix

LAYERS = ("linear", "conv", "depthwise", "strided", "batch_norm", "layer_norm", "group_norm", "gelu", "tanh",
          "residual", "pool", "prelu", "shared", "frozen")  # fmt: skip


class Residual(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.parts(x)
        return out


def network(kinds: list[str], channels: int, side: int, outputs: int, seed: int, *, flat: bool) -> nn.Module:
    """Layers of these kinds on [N, C, S, S], or on [N, C] if flat, and a head; in float64 and eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: list[nn.Module] = []
        width, again = channels, None
        for kind in kinds:
            makers: dict[str, Any] = {
                "gelu": nn.GELU, "tanh": nn.Tanh, "prelu": nn.PReLU
            }  # fmt: skip
            if kind in makers:
                parts.append(makers[kind]())
            elif kind == "layer_norm":
                parts.append(nn.LayerNorm(width if flat else [width, side, side]))
            elif kind == "batch_norm":
                parts.append(nn.BatchNorm1d(width) if flat else nn.BatchNorm2d(width))
            elif kind == "group_norm":
                parts.append(nn.GroupNorm(width, width) if side > 1 and not flat else nn.Identity())
            elif kind in ("residual", "shared"):
                layer = nn.Linear(width, width) if flat else nn.Conv2d(width, width, 3, padding=1)
                if kind == "shared" and isinstance(again, type(layer)) and again.weight.shape == layer.weight.shape:
                    layer = again
                parts.append(Residual(layer, nn.Tanh(), layer) if kind == "shared" else Residual(layer, nn.GELU()))
                again = layer
            elif kind == "pool" and not flat:
                parts.append(nn.AvgPool2d(2, ceil_mode=True))
                side = -(-side // 2)
            elif kind == "depthwise" and not flat:
                parts.append(nn.Conv2d(width, 2 * width, 3, padding=1, groups=width, bias=False))
                width *= 2
            elif kind == "strided" and not flat:
                parts.append(nn.Conv2d(width, 2, 3, stride=2, padding=2, dilation=2))
                side, width = (side - 1) // 2 + 1, 2
            elif kind == "conv" and not flat:
                parts.append(nn.Conv2d(width, 3, (1, 3), padding=(0, 1)))
                width = 3
            else:
                parts.append(nn.Linear(width, 3) if flat else nn.Conv2d(width, 3, 1))
                width = 3
                if kind == "frozen":
                    parts[-1].requires_grad_(False)
        net = nn.Sequential(*parts, nn.Flatten(), nn.Linear(width * (1 if flat else side * side), outputs))
        for part in net.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(part.running_var, 0.5, 2)  # type: ignore[arg-type]
        for parameter in net.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return net.double().eval()


def kernel(net: nn.Module, x1: Tensor, x2: Tensor) -> Tensor:
    """[N1, N2, C, C] by torch.func, sample by sample."""
    trained = {name: p.detach() for name, p in net.named_parameters() if p.requires_grad}

    def rows(x: Tensor) -> Tensor:
        def one(sample: Tensor) -> Any:
            return jacrev(lambda weights: functional_call(net, weights, (sample[None],), tie_weights=False)[0])(trained)

        found = [torch.cat([j.flatten(1) for j in one(sample).values()], 1) for sample in x]
        return torch.stack(found)

    return torch.einsum("icp,jdp->ijcd", rows(x1), rows(x2))


@st.composite
def cases(draw: st.DrawFn) -> tuple[nn.Module, Tensor, Tensor]:
    """A net, and two batches."""
    flat = draw(st.booleans())
    channels, side, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    kinds = draw(st.lists(st.sampled_from(LAYERS), max_size=4))
    net = network(kinds, channels, side, outputs, draw(SEEDS), flat=flat)
    shape = (channels,) if flat else (channels, side, side)
    x1, x2 = (noise(draw(SEEDS), draw(st.integers(1, 5)), *shape) - 0.5 for _ in range(2))
    layout = draw(st.sampled_from(["contiguous", "transposed", "strided", "sliced", "expanded"]))
    return net, lay_out(x1, layout), x2


SOME = st.sampled_from([1, 2, 3, 100, None])


@fuzz(250, 4, case=cases(), chunk_size=SOME, context=st.sampled_from(CONTEXTS), data=st.data())
def test_the_kernel_is_that_of_torch_func_symmetric_and_positive(
    case: tuple[nn.Module, Tensor, Tensor], chunk_size: int | None, context: str, data: st.DataObject
) -> None:
    net, x1, x2 = case
    expected, crossed = kernel(net, x1, x1), kernel(net, x1, x2)
    count = expected.shape[-1]
    choices: list[Any] = ["trace", "full", count - 1]
    outputs = data.draw(st.sampled_from(choices), label="outputs")
    x1, x2 = made_inside(context, x1), made_inside(context, x2)
    with inside(context), untouched(x1, x2, net=net):
        own = empirical_ntk(net, x1, outputs=outputs, chunk_size=chunk_size)
        other = empirical_ntk(net, x1, x2, outputs=outputs, chunk_size=chunk_size)
    for found, full in ((own, expected), (other, crossed)):
        wanted = {"trace": full.diagonal(dim1=2, dim2=3).sum(2), "full": full}.get(outputs, full[:, :, -1, -1])
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9 * max(1.0, float(full.abs().max())))
    matrix = as_matrix(own) if outputs == "full" else own
    assert torch.equal(matrix, matrix.mT)
    assert not own.requires_grad
    values = torch.linalg.eigvalsh(matrix)
    assert values[0] >= -1e-12 * max(1.0, float(values[-1])) * len(values)


@fuzz(120, case=cases(), chunk_size=SOME, seed=SEEDS, context=st.sampled_from(CONTEXTS))
def test_products_spectra_and_alignment_are_the_kernel_s(
    case: tuple[nn.Module, Tensor, Tensor], chunk_size: int | None, seed: int, context: str
) -> None:
    net, x1, x2 = case
    full = kernel(net, x1, x2)
    v = noise(seed, *full.shape[1::2]) - 0.5
    with inside(context), untouched(x1, x2, v, net=net):
        product = ntk_vector_product(net, x1, v, x2, chunk_size=chunk_size)
        values, vectors = ntk_eigh(net, x1, chunk_size=chunk_size)
        alignment = ntk_alignment(net, x1, noise(seed, len(x1), full.shape[2]) - 0.5, chunk_size=chunk_size)
    size = max(1.0, float(full.abs().max()))
    torch.testing.assert_close(product, torch.einsum("ijcd,jd->ic", full, v), rtol=1e-8, atol=1e-8 * size)
    trace = kernel(net, x1, x1).diagonal(dim1=2, dim2=3).sum(2)
    torch.testing.assert_close(
        vectors * values @ vectors.mT, trace, rtol=1e-8, atol=1e-9 * max(1.0, float(trace.max()))
    )
    assert bool((values.diff() <= 1e-12 * values[0]).all())
    y = noise(seed, len(x1), full.shape[2]) - 0.5
    expected = torch.einsum("ic,ijcd,jd->", y, kernel(net, x1, x1), y) / y.square().sum()
    assert alignment.total is not None
    assert float(alignment.total) == pytest.approx(float(expected), rel=1e-7, abs=1e-9)


@fuzz(150, case=cases(), seed=SEEDS)
def test_a_linearized_net_is_its_net_at_its_weights(case: tuple[nn.Module, Tensor, Tensor], seed: int) -> None:
    net, x1, _ = case
    with untouched(x1, net=net):
        linear = linearize(net)
        torch.testing.assert_close(linear(x1), net(x1), rtol=1e-9, atol=1e-9)


def good() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).eval()


X = torch.rand(3, 2)
BAD_INPUTS = (X[:0], X[:, :1], X.double(), X.numpy(), None, X * math.nan, X + math.inf, torch.tensor(1.0), X > 0,
              X + 0j, X.half(), (X * 9).long())  # fmt: skip
FUNCTIONS: dict[str, Any] = {
    "kernel": lambda net, x: empirical_ntk(net, x),
    "columns": lambda net, x: empirical_ntk(net, X, x),
    "product": lambda net, x: ntk_vector_product(net, x, torch.zeros(3, 2)),
    "eigh": lambda net, x: ntk_eigh(net, x),
    "alignment": lambda net, x: ntk_alignment(net, x, torch.zeros(3, 2)),
}
BAD_CALLS: list[tuple[tuple[str, ...], Any]] = [
    *((("`x", "`v`"), lambda f=f, x=x: f(good(), x)) for f in FUNCTIONS.values() for x in BAD_INPUTS
      if x is not None or f is not FUNCTIONS["columns"]),
    *((("`model`",), lambda f=f, net=net: f(net, X)) for f in FUNCTIONS.values() for net in (
        good().train(), good().requires_grad_(False), nn.Tanh().eval(), torch.tanh, None,
        nn.Sequential(good(), nn.BatchNorm1d(2, track_running_stats=False)).eval(), nn.Linear(2, 2,
          device="meta").eval())),
    *((("`chunk_size`",), lambda v=v: empirical_ntk(good(), X, chunk_size=v)) for v in (0, -1, 1.5, True, "2")),
    *((("`outputs`",), lambda v=v: empirical_ntk(good(), X, outputs=v))
      for v in (2, -1, "sum", None, True, 1.0, lambda out: out, lambda out: out.sum(), lambda out: out[:, 5], [0])),
    *((("`dtype`",), lambda v=v: empirical_ntk(good(), X, dtype=v)) for v in (torch.int64, "float64", 3, torch.cfloat)),
    *((("`v`",), lambda v=v: ntk_vector_product(good(), X, v))
      for v in (torch.zeros(3), torch.zeros(2, 2), None, torch.zeros(3, 2).long(), X * math.nan, X.double())),
    *((("`k`",), lambda v=v: ntk_eigh(good(), X, k=v)) for v in (0, 4, 1.5, True, "2")),
    *((("`method`",), lambda v=v: ntk_eigh(good(), X, method=v)) for v in ("qr", None, 1)),
    *((("`landmarks`",), lambda v=v: ntk_eigh(good(), X, method="nystrom", landmarks=v))
      for v in (0, 4, None, [], [0, 0], [3], [-1], [0.5], torch.zeros(1, 1).long(), True, "2", 1.5)),
]  # fmt: skip


@fuzz(len(BAD_CALLS), 10, place=st.integers(0, len(BAD_CALLS) - 1))
def test_bad_arguments_are_refused(place: int) -> None:
    names, call = BAD_CALLS[place]
    assert outcome(call, *names) is None
    with pytest.raises((TypeError, ValueError), match="`"):
        call()
