from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from pl_robust.models import FourierFeatureNetwork


@pytest.mark.parametrize(
    ("ins", "outs", "count", "width", "layers"), [(2, 1, 5, 8, 4), (1, 3, 1, 4, 1), (3, 2, 7, 6, 2)]
)
def test_it_computes_what_is_described(ins: int, outs: int, count: int, width: int, layers: int) -> None:
    net = FourierFeatureNetwork(ins, outs, count, 3.0, hidden_features=width, num_layers=layers)
    for parameter in net.parameters():  # biases too
        nn.init.normal_(parameter)
    net.double()
    mapping = net.frequencies.numpy()
    assert mapping.shape == (count, ins)
    x = np.random.default_rng(0).uniform(-1, 1, (9, ins))
    out = np.concatenate([np.sin(2 * np.pi * x @ mapping.T), np.cos(2 * np.pi * x @ mapping.T)], 1)
    parameters = [parameter.detach().numpy() for parameter in net.parameters()]
    assert len(parameters) == 2 * layers
    for index, (weight, bias) in enumerate(zip(parameters[::2], parameters[1::2], strict=True)):
        out = out @ weight.T + bias
        out = out if index == layers - 1 else np.maximum(out, 0)
    np.testing.assert_allclose(net(torch.from_numpy(x)).detach().numpy(), out, rtol=1e-10)


def test_the_published_one() -> None:
    """FFN(features=[256, 256, 256, 3], B of 256x2): four linear layers on 512 features."""
    net = FourierFeatureNetwork(2, 3)
    assert sum(parameter.numel() for parameter in net.parameters()) == 513 * 256 + 2 * 257 * 256 + 257 * 3
    assert net.frequencies.shape == (256, 2)


def test_frequencies_are_normal_seeded_and_never_trained() -> None:
    torch.manual_seed(1)
    net = FourierFeatureNetwork(2, 1, 2000, sigma=7.0, hidden_features=2)
    assert stats.kstest(net.frequencies.flatten().numpy(), stats.norm(0, 7).cdf).pvalue > 1e-3
    assert stats.kstest(net.frequencies.flatten().numpy(), stats.norm(0, 9).cdf).pvalue < 1e-6
    torch.manual_seed(1)
    assert torch.equal(FourierFeatureNetwork(2, 1, 2000, sigma=7.0, hidden_features=2).frequencies, net.frequencies)
    assert "frequencies" not in dict(net.named_parameters())
    assert not net.frequencies.requires_grad


def test_frequencies_are_saved_with_the_network() -> None:
    net, other = FourierFeatureNetwork(2, 1, 9), FourierFeatureNetwork(2, 1, 9)
    x = torch.rand(5, 2)
    assert not torch.allclose(net(x), other(x))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(x), other(x))


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor])
def test_given_frequencies(kind: Any) -> None:
    given = kind([[0.5, 0.0], [0.0, 0.5]])
    before = torch.get_rng_state()
    net = FourierFeatureNetwork(frequencies=given, hidden_features=16)
    assert net.frequencies.tolist() == [[0.5, 0.0], [0.0, 0.5]]
    assert net.layers[0].in_features == 4
    if isinstance(given, Tensor):
        given.zero_()  # the network has its own
        assert net.frequencies.any()
    assert not torch.equal(torch.get_rng_state(), before)  # the weights'
    x = torch.rand(6, 2)
    torch.testing.assert_close(net(x), net(x + torch.tensor([2.0, -4.0])), rtol=0, atol=1e-4)  # harmonics of f0 only
    assert (net(x) - net(x + torch.tensor([1.0, 0.0]))).abs().max() > 1e-3


def test_weights_start_as_in_flax() -> None:
    net = FourierFeatureNetwork(2, 100, 200, hidden_features=300, num_layers=3)
    linear = [layer for layer in net.layers if isinstance(layer, nn.Linear)]
    assert [layer.in_features for layer in linear] == [400, 300, 300]
    for layer in linear:
        weights = layer.weight.detach().flatten().numpy() * math.sqrt(layer.in_features)
        assert not layer.bias.any()
        assert weights.std() == pytest.approx(1, abs=0.02)  # variance 1 / fan_in after the cut
        scale = 1 / stats.truncnorm(-2, 2).std()
        assert stats.kstest(weights, stats.truncnorm(-2, 2, scale=scale).cdf).pvalue > 1e-3


def test_reset_keeps_the_frequencies() -> None:
    net = FourierFeatureNetwork(2, 1, 9)
    before = {name: values.clone() for name, values in net.state_dict().items()}
    net.reset_parameters()
    for name, values in net.state_dict().items():
        assert torch.equal(values, before[name]) == (name == "frequencies" or name.endswith("bias"))


def test_activation_of_ones_own() -> None:
    activation = nn.PReLU()
    net = FourierFeatureNetwork(2, 1, 9, activation=activation)
    copies = [layer for layer in net.layers if isinstance(layer, nn.PReLU)]
    assert len(copies) == 3
    assert len({id(layer) for layer in [*copies, activation]}) == 4


@pytest.mark.parametrize("shape", [(0, 2), (1, 2), (2,), (4, 6, 2)])
def test_takes_grids_of_any_shape(shape: tuple[int, ...]) -> None:
    net = FourierFeatureNetwork(2, 3, 8, hidden_features=4)
    x = torch.rand(shape)
    assert net(x).shape == (*shape[:-1], 3)
    torch.testing.assert_close(net(x).reshape(-1, 3), net(x.reshape(-1, 2)))


def test_several_fit_in_one_pass() -> None:
    nets = [FourierFeatureNetwork(2, 3, 8, hidden_features=4) for _ in range(5)]
    state, buffers = stack_module_state(nets)
    x = torch.rand(11, 2)
    together = vmap(lambda p, b: functional_call(nets[0], (p, b), (x,)))(state, buffers)
    torch.testing.assert_close(together, torch.stack([net(x) for net in nets]), rtol=0, atol=1e-5)


def test_high_frequencies_are_right_under_autocast() -> None:
    """In bfloat16 a phase of 30 cycles is off by up to 0.1 cycles."""
    net = FourierFeatureNetwork(1, 1, frequencies=[[30.0]], num_layers=1)
    x = torch.linspace(0, 1, 1001)[:, None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = net(x)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, net(x))
    deeper = FourierFeatureNetwork(1, 1, frequencies=[[30.0]], num_layers=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = deeper(x)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, deeper(x), rtol=0, atol=0.02 * deeper(x).abs().max().item())


def test_refuses_coordinates() -> None:
    net = FourierFeatureNetwork(2, 1, 4, hidden_features=4)
    with pytest.raises(ValueError, match=r"this FourierFeatureNetwork takes coordinates \[..., 2\], got \[5, 3\]"):
        net(torch.rand(5, 3))
    with pytest.raises(TypeError, match=r"coordinates must be floating point, .* got torch.int64"):
        net(torch.zeros(5, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_frequencies": 0}, ValueError, "`num_frequencies` must be at least 1, got 0"),
        ({"sigma": 0.0}, ValueError, "`sigma` must be positive, got 0.0"),
        ({"sigma": "ten"}, TypeError, "`sigma` must be a number, got 'ten'"),
        ({"num_layers": 0}, ValueError, "`num_layers` must be at least 1, got 0"),
        ({"hidden_features": 2.5}, TypeError, "`hidden_features` must be an integer, got 2.5"),
        ({"in_features": 0}, ValueError, "`in_features` must be at least 1, got 0"),
        ({"out_features": 0}, ValueError, "`out_features` must be at least 1, got 0"),
        ({"frequencies": [1.0, 2.0]}, ValueError, r"must be \[m, in_features=2\], a row for each, got shape \[2\]"),
        ({"frequencies": [[1.0], [2.0]]}, ValueError, r"a row for each, got shape \[2, 1\]"),
        ({"frequencies": torch.zeros(0, 2)}, ValueError, r"a row for each, got shape \[0, 2\]"),
        ({"frequencies": [[1.0, math.nan]]}, ValueError, "`frequencies` must be finite, got NaN or infinity"),
        ({"frequencies": [[1j, 2.0]]}, TypeError, "`frequencies` must be real numbers, got torch.complex64"),
        ({"frequencies": torch.ones(2, 2) > 0}, TypeError, "`frequencies` must be real numbers, got torch.bool"),
        ({"frequencies": [["a", "b"]]}, TypeError, "`frequencies` must be a tensor or lists of numbers, got"),
        ({"frequencies": [[1.0, 2.0], [3.0]]}, TypeError, "`frequencies` must be a tensor or lists of numbers, got"),
        ({"activation": "relu"}, TypeError, r"`activation` must be an nn.Module such as nn.GELU\(\), or None"),
        ({"activation": nn.ReLU}, TypeError, r"`activation` must be an nn.Module such as nn.GELU\(\), or None"),
    ],
)
def test_errors_speak(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FourierFeatureNetwork(**arguments)
