from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.func import functional_call, stack_module_state, vmap

from pl_robust.models import MultiplicativeFilterNetwork
from pl_robust.transforms import network_spectrum


@pytest.mark.parametrize("filters", ["fourier", "gabor"])
@pytest.mark.parametrize(("ins", "outs", "width", "layers"), [(2, 1, 8, 4), (1, 3, 5, 1), (3, 2, 4, 2)])
def test_it_computes_what_is_described(filters: Any, ins: int, outs: int, width: int, layers: int) -> None:
    net = MultiplicativeFilterNetwork(ins, outs, width, layers, filters, input_scale=5).double()
    state = {name: values.numpy() for name, values in net.state_dict().items()}
    x = np.random.default_rng(0).uniform(-1, 1, (9, ins))

    def modulation(index: int) -> Any:
        name = f"filters.{index}"
        out = np.sin(x @ state[f"{name}.linear.weight"].T + state[f"{name}.linear.bias"])
        if filters == "gabor":
            distances = ((x[:, None] - state[f"{name}.mu"]) ** 2).sum(-1)
            out *= np.exp(-state[f"{name}.gamma"] / 2 * distances)
        return out

    out = modulation(0)
    for index in range(1, layers):
        linear = f"layers.{index - 1}"
        out = modulation(index) * (out @ state[f"{linear}.weight"].T + state[f"{linear}.bias"])
    out = out @ state[f"layers.{layers - 1}.weight"].T + state[f"layers.{layers - 1}.bias"]
    np.testing.assert_allclose(net(torch.from_numpy(x)).detach().numpy(), out, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("filters", ["fourier", "gabor"])
def test_the_published_one(filters: Any) -> None:
    """FourierNet(2, 256, 1, n_layers=3): four layers of filters, three hidden linear layers, one at the end."""
    gabor = 4 * 256 * 3 if filters == "gabor" else 0
    net = MultiplicativeFilterNetwork(2, 1, 256, 4, filters)
    assert sum(parameter.numel() for parameter in net.parameters()) == 4 * 3 * 256 + 3 * 257 * 256 + 257 + gabor


@pytest.mark.parametrize("filters", ["fourier", "gabor"])
def test_initialization_is_the_released_one(filters: Any) -> None:
    net = MultiplicativeFilterNetwork(2, 50, 400, 3, filters, input_scale=40, weight_scale=2)

    def p_value(values: Any, distribution: Any) -> float:
        return float(stats.kstest(values.detach().flatten().numpy(), distribution.cdf).pvalue)

    def uniform(bound: float) -> Any:
        return stats.uniform(-bound, 2 * bound)

    modulations: Any = net.filters
    for layer in modulations:
        frequencies = layer.linear.weight
        if filters == "gabor":
            assert p_value(layer.gamma, stats.gamma(6 / 3)) > 1e-3
            assert p_value(layer.mu, uniform(1)) > 1e-3
            frequencies = frequencies / layer.gamma.sqrt()[:, None]
        assert p_value(frequencies, uniform(40 / math.sqrt(3) / math.sqrt(2))) > 1e-3
        assert p_value(frequencies, uniform(40 / math.sqrt(2))) < 1e-6
        assert p_value(layer.linear.bias, uniform(math.pi)) > 1e-3
    linear: Any = net.layers
    *hidden, last = linear
    for layer in hidden:
        assert p_value(layer.weight, uniform(math.sqrt(2 / 400))) > 1e-3
        assert p_value(layer.bias, uniform(1 / math.sqrt(400))) > 1e-3
    assert p_value(last.weight, uniform(1 / math.sqrt(400))) > 1e-3


@pytest.mark.parametrize("bias", [True, False])
def test_fourier_filters_hold_the_frequencies_of_the_theorem(bias: bool) -> None:
    """Sums ±w_j ± ... ± w_L of one frequency of each layer; with biases from any j on, else from the first."""
    net = MultiplicativeFilterNetwork(1, 1, 2, 3).double()
    choices = [(1, 4), (12, 13), (40, 59)]
    modulations: Any = net.filters
    linears: Any = net.layers
    for layer, cycles in zip(modulations, choices, strict=True):
        layer.linear.weight.data = 2 * math.pi * torch.tensor(cycles, dtype=torch.float64)[:, None]
    for linear in linears:
        linear.bias.data.uniform_(1, 2) if bias else linear.bias.data.zero_()
    expected = {0} if bias else set()
    for start in range(3 if bias else 1):
        for picked in itertools.product(*choices[start:]):
            for signs in itertools.product((1, -1), repeat=len(picked)):
                expected.add(abs(sum(sign * cycles for sign, cycles in zip(signs, picked, strict=True))))
    measured = network_spectrum(net, (256,), (0.0, 1.0))
    used = {int(f) for f in measured.frequencies[0][measured.amplitudes[:, 0] > 1e-9] if f >= 0}
    assert used == expected
    assert len(expected) < 40


@pytest.mark.parametrize("filters", ["fourier", "gabor"])
def test_gradients(filters: Any) -> None:
    net = MultiplicativeFilterNetwork(2, 1, 3, 3, filters, input_scale=2).double()
    x = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in net.named_parameters()]
    assert torch.autograd.gradcheck(
        lambda x, *values: functional_call(net, dict(zip(names, values, strict=True)), (x,)), (x, *net.parameters())
    )


@pytest.mark.parametrize("filters", ["fourier", "gabor"])
def test_several_fit_in_one_pass(filters: Any) -> None:
    nets = [MultiplicativeFilterNetwork(2, 3, 4, 3, filters, input_scale=4) for _ in range(5)]
    state, buffers = stack_module_state(nets)
    x = torch.rand(11, 2)
    together = vmap(lambda p, b: functional_call(nets[0], (p, b), (x,)))(state, buffers)
    torch.testing.assert_close(together, torch.stack([net(x) for net in nets]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("filters", ["fourier", "gabor"])
@pytest.mark.parametrize("shape", [(0, 2), (1, 2), (2,), (4, 6, 2)])
def test_takes_grids_of_any_shape(filters: Any, shape: tuple[int, ...]) -> None:
    net = MultiplicativeFilterNetwork(2, 3, 8, filters=filters)
    x = torch.rand(shape)
    assert net(x).shape == (*shape[:-1], 3)
    torch.testing.assert_close(net(x).reshape(-1, 3), net(x.reshape(-1, 2)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("filters", ["fourier", "gabor"])
def test_filters_are_right_under_autocast(filters: Any) -> None:
    net = MultiplicativeFilterNetwork(1, 1, 64, 2, filters)
    x = torch.linspace(-1, 1, 1001)[:, None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = net(x)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, net(x), rtol=0, atol=0.02)


def test_seed_decides_and_reset_draws_anew() -> None:
    torch.manual_seed(3)
    net = MultiplicativeFilterNetwork(2, 1, 8, filters="gabor")
    torch.manual_seed(3)
    same = MultiplicativeFilterNetwork(2, 1, 8, filters="gabor")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), same.parameters(), strict=True))
    same.reset_parameters()
    assert not any(torch.equal(a, b) for a, b in zip(net.parameters(), same.parameters(), strict=True))


def test_refuses_coordinates() -> None:
    with pytest.raises(
        ValueError, match=r"this MultiplicativeFilterNetwork takes coordinates \[..., 2\], got \[5, 3\]"
    ):
        MultiplicativeFilterNetwork(2, 1, 4)(torch.rand(5, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"filters": "sine"}, ValueError, r"`filters` must be one of \('fourier', 'gabor'\), got 'sine'"),
        ({"input_scale": 0}, ValueError, "`input_scale` must be positive, got 0"),
        ({"weight_scale": -1.0}, ValueError, "`weight_scale` must be positive, got -1.0"),
        ({"num_layers": 0}, ValueError, "`num_layers` must be at least 1, got 0"),
        ({"hidden_features": "8"}, TypeError, "`hidden_features` must be an integer, got '8'"),
        ({"in_features": 0}, ValueError, "`in_features` must be at least 1, got 0"),
        ({"out_features": 0}, ValueError, "`out_features` must be at least 1, got 0"),
    ],
)
def test_errors_speak(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MultiplicativeFilterNetwork(**arguments)
