from __future__ import annotations

import copy
import math
import os
import pickle
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from pl_robust.models import SIREN, load_siren, save_siren

RELEASED = Path(__file__).parents[3] / "shared" / "data" / "siren_celeba_maml.npz"
needs_released = pytest.mark.skipif(not RELEASED.exists(), reason="the released meta-learned weights are not here")


def grid(points: int, low: float = 0.0) -> Tensor:
    axis = low + torch.arange(points) * (1 - low) / points
    return torch.cartesian_prod(axis, axis)


def uniformity(values: Tensor, bound: float) -> float:
    """p-value of the Kolmogorov-Smirnov test against U(-bound, bound)."""
    return float(stats.kstest(values.detach().flatten().numpy(), stats.uniform(-bound, 2 * bound).cdf).pvalue)


def psnrs_of_two_steps(net: SIREN, x: Tensor, y: Tensor) -> list[float]:
    """PSNR before and after each of two SGD steps, as in the meta-learning."""
    net = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), 1e-2)
    psnrs = []
    for _ in range(3):
        loss = (net(x) - y).square().mean()
        psnrs.append(-10 * math.log10(loss.item()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return psnrs


@pytest.fixture
def _environment_kept() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


# the function


@pytest.mark.parametrize(("ins", "outs", "width", "layers"), [(2, 1, 16, 5), (1, 3, 7, 2), (3, 2, 1, 3), (5, 5, 8, 4)])
def test_it_computes_what_is_described(ins: int, outs: int, width: int, layers: int) -> None:
    net = SIREN(ins, outs, width, layers, w0=20, hidden_w0=3.5, output_offset=0.25).double()
    parameters = [parameter.detach().numpy() for parameter in net.parameters()]
    assert len(parameters) == 2 * layers
    x = np.random.default_rng(0).uniform(-1, 1, (9, ins))
    out = x
    for index, (weight, bias) in enumerate(zip(parameters[::2], parameters[1::2], strict=True)):
        out = out @ weight.T + bias
        if index < layers - 1:
            out = np.sin((20 if index == 0 else 3.5) * out)
    np.testing.assert_allclose(net(torch.from_numpy(x)).detach().numpy(), out + 0.25, rtol=0, atol=1e-12)


def test_it_has_as_many_parameters_as_the_published_one() -> None:
    assert sum(parameter.numel() for parameter in SIREN().parameters()) == 3 * 256 + 3 * 257 * 256 + 257


@pytest.mark.parametrize("shape", [(0, 2), (1, 2), (2,), (4, 6, 2), (2, 3, 4, 2)])
def test_takes_grids_of_any_shape(shape: tuple[int, ...]) -> None:
    net = SIREN(2, 3, 8)
    x = torch.rand(shape)
    out = net(x)
    assert out.shape == (*shape[:-1], 3)
    torch.testing.assert_close(out.reshape(-1, 3), net(x.reshape(-1, 2)))


def test_derivatives_are_those_of_the_function() -> None:
    net = SIREN(2, 1, 4, 3, w0=2, hidden_w0=2).double()
    x = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    parameters = tuple(net.parameters())
    names = [name for name, _ in net.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(net, dict(zip(names, values, strict=True)), (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(call, (x, *parameters))
    assert torch.autograd.gradgradcheck(call, (x, *parameters))  # MAML differentiates twice


def test_several_fit_in_one_pass() -> None:
    nets = [SIREN(2, 3, 8, 4, output_offset=0.5) for _ in range(5)]
    state, buffers = stack_module_state(nets)
    x = torch.rand(11, 2)
    together = vmap(lambda p, b: functional_call(nets[0], (p, b), (x,)))(state, buffers)
    torch.testing.assert_close(together, torch.stack([net(x) for net in nets]), rtol=0, atol=1e-5)


def test_fine_grids_stay_fine_under_autocast() -> None:
    """In bfloat16 two neighbours of this grid have one coordinate, and values near 0.5 are steps of 1/256."""
    net = SIREN(1, 1, 64, 3, output_offset=0.5)
    x = torch.linspace(0.5, 1, 257)[:-1, None]
    assert len(torch.unique(x.bfloat16())) < 140
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = net(x)
    assert mixed.dtype == torch.float32
    assert len(torch.unique(mixed)) > 200
    torch.testing.assert_close(mixed, net(x), rtol=0, atol=3e-3)
    mixed.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.usefixtures("_environment_kept")  # the first matrix product without memory imports a compiler
def test_without_memory() -> None:
    with torch.device("meta"):
        assert SIREN()(torch.rand(7, 2)).shape == (7, 1)


@pytest.mark.parametrize("x", [torch.rand(4, 3), torch.rand(3), torch.rand(2, 1), torch.tensor(0.5)])
def test_refuses_other_dimensions(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"this SIREN takes coordinates \[..., 2\], got .*`in_features` sets"):
        SIREN(2, 1, 4)(x)


def test_refuses_pixels_as_coordinates() -> None:
    with pytest.raises(TypeError, match=r"coordinates must be floating point, in \[-1, 1\] or \[0, 1\], got torch.int"):
        SIREN(2, 1, 4)(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"coordinates must be a tensor \[..., 2\], got list"):
        SIREN(2, 1, 4)([[0.0, 1.0]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"w0": 0}, ValueError, "`w0` must be positive, got 0"),
        ({"w0": -30.0}, ValueError, "`w0` must be positive, got -30.0"),
        ({"w0": math.nan}, ValueError, "`w0` must be finite, got nan"),
        ({"w0": "30"}, TypeError, "`w0` must be a number, got '30'"),
        ({"hidden_w0": math.inf}, ValueError, "`hidden_w0` must be finite, got inf"),
        ({"hidden_w0": None}, TypeError, "`hidden_w0` must be a number, got None"),
        ({"num_layers": 1}, ValueError, "`num_layers` must be at least 2, sines and a linear layer on them, got 1"),
        ({"num_layers": 3.0}, TypeError, "`num_layers` must be an integer, got 3.0"),
        ({"in_features": 0}, ValueError, "`in_features` must be at least 1, got 0"),
        ({"out_features": -1}, ValueError, "`out_features` must be at least 1, got -1"),
        ({"hidden_features": 0}, ValueError, "`hidden_features` must be at least 1, got 0"),
        ({"bias_init": "ones"}, ValueError, r"`bias_init` must be one of \('uniform', 'zeros'\), got 'ones'"),
        ({"output_offset": math.nan}, ValueError, "`output_offset` must be finite, got nan"),
    ],
)
def test_errors_speak(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SIREN(**arguments)


# the initialization


@pytest.mark.parametrize("ins", [1, 2, 3])
@pytest.mark.parametrize("hidden_w0", [30.0, 5.0])
def test_weights_and_biases_fill_the_published_ranges(ins: int, hidden_w0: float) -> None:
    net = SIREN(ins, 200, 400, 4, w0=7, hidden_w0=hidden_w0)
    bounds = [1 / ins, *[math.sqrt(6 / 400) / hidden_w0] * 3]
    linear: Any = net.layers
    for layer, bound in zip(linear, bounds, strict=True):
        for values in (layer.weight, layer.bias):
            assert values.abs().max() <= bound
            assert uniformity(values, bound) > 1e-3
        assert uniformity(layer.weight, 1.3 * bound) < 1e-2  # the test would notice another range


def test_biases_of_the_haiku_version() -> None:
    linear: Any = SIREN(bias_init="zeros").layers
    for layer in linear:
        assert not layer.bias.any()
        assert layer.weight.all()


@pytest.mark.parametrize("bias_init", ["uniform", "zeros"])
def test_activations_have_the_published_distributions(bias_init: Any) -> None:
    """Arcsine after the first layer, normal before the others; their variance follows v -> 1 - exp(-2v)."""
    width, depth = 2000, 5
    net = SIREN(1, 400, width, depth, w0=300, bias_init=bias_init).double()
    arguments: list[Tensor] = []
    linear: Any = net.layers
    for layer in linear:  # written out, because the inner layers' hooks are not called
        z = torch.tensor([0.7], dtype=torch.float64) if not arguments else arguments[-1].sin()
        arguments.append((300 if not arguments else 30) * (layer.weight @ z + layer.bias).detach())
    assert stats.kstest(arguments[0].sin().numpy(), stats.arcsine(-1, 2).cdf).pvalue > 1e-3
    variance = 0.5  # of the arcsine distribution; each layer doubles that of its input, as the range is sqrt(6 / n)
    for z in arguments[1:-1]:
        expected = 2 * variance + (2 / width if bias_init == "uniform" else 0)
        assert z.var().item() == pytest.approx(expected, rel=0.15)  # 2,000 units: five standard errors
        assert stats.kstest((z / z.std()).numpy(), stats.norm.cdf).pvalue > 1e-3
        variance = (1 - math.exp(-2 * expected)) / 2  # of the sine of a normal variable
    assert (arguments[-1] / 30).std().item() == pytest.approx(math.sqrt(2 * variance) / 30, rel=0.2)
    torch.testing.assert_close(net(torch.tensor([[0.7]], dtype=torch.float64))[0], arguments[-1] / 30)


def test_depth_does_not_change_the_output() -> None:
    """At hidden_w0 / 2 instead of hidden_w0 in the initialization it would vanish with depth."""
    deviations = []
    for depth in (3, 6, 12):
        net = SIREN(2, 64, 256, depth)
        deviations.append(net(grid(16, -1.0)).std().item())
    assert max(deviations) < 1.3 * min(deviations)
    assert all(0.7 / 30 < deviation < 1.1 / 30 for deviation in deviations)


def test_seed_decides_and_reset_draws_anew() -> None:
    torch.manual_seed(3)
    net = SIREN(2, 1, 8)
    torch.manual_seed(3)
    same = SIREN(2, 1, 8)
    x = torch.rand(5, 2)
    assert torch.equal(net(x), same(x))
    same.reset_parameters()
    assert not torch.equal(net(x), same(x))


# files


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_saved_comes_back_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    net = SIREN(3, 2, 9, 4, w0=1 / 3, hidden_w0=7.1, bias_init="uniform", output_offset=-0.1).to(dtype)
    path = tmp_path / "net of mine"  # no suffix is added
    save_siren(net, path)
    before = torch.get_rng_state()
    loaded = load_siren(str(path))
    assert torch.equal(torch.get_rng_state(), before)
    assert (loaded.w0, loaded.hidden_w0, loaded.output_offset, loaded.bias_init) == (1 / 3, 7.1, -0.1, "uniform")
    assert (loaded.in_features, loaded.out_features) == (3, 2)
    state = net.state_dict()
    assert list(loaded.state_dict()) == list(state)
    for name, values in loaded.state_dict().items():
        assert values.dtype == dtype
        assert torch.equal(values, state[name])
    x = torch.rand(5, 3, dtype=dtype)
    assert torch.equal(loaded(x), net(x))
    loaded(x).sum().backward()  # and can be trained
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def layers(*widths: int) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for index, (before, after) in enumerate(pairwise(widths)):
        arrays[f"layer{index}.weight"] = np.full((after, before), 0.1, np.float32)
        arrays[f"layer{index}.bias"] = np.zeros(after, np.float32)
    return arrays


def test_a_file_of_weights_alone_is_the_released_version(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **layers(2, 4, 4, 1))
    net = load_siren(tmp_path / "a.npz")
    assert (net.w0, net.hidden_w0, net.output_offset, net.bias_init) == (30, 30, 0.5, "zeros")
    net = load_siren(tmp_path / "a.npz", w0=5, hidden_w0=6, output_offset=0)
    assert (net.w0, net.hidden_w0, net.output_offset) == (5, 6, 0)
    with pytest.raises(ValueError, match="`w0` must be positive, got -1"):
        load_siren(tmp_path / "a.npz", w0=-1)
    save_siren(net, tmp_path / "b.npz")
    load_siren(tmp_path / "b.npz", w0=5)
    with pytest.raises(ValueError, match=r"`w0`=30 contradicts .*b.npz', which says 5\.0: leave it out"):
        load_siren(tmp_path / "b.npz", w0=30)


SETTINGS = "nothing else but w0, hidden_w0, output_offset, bias_init; "


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layer1.bias": None}, ValueError, SETTINGS + r"missing: \['layer1.bias'\], unknown: \[\]"),
        ({"momentum": np.ones(3)}, ValueError, SETTINGS + r"missing: \[\], unknown: \['momentum'\]"),
        ({"layer999999999.bias": np.ones(3)}, ValueError, r"missing: .*unknown: \['layer999999999.bias'\]"),
        (
            {"layer1.weight": None, "layer1.bias": None},
            ValueError,
            r"missing: \['layer1.bias', 'layer1.weight'\], unknown: \['layer2.bias', 'layer2.weight'\]",
        ),
        (
            {f"layer{index}.{name}": None for index in range(3) for name in ("weight", "bias")},
            ValueError,
            r"missing: \['layer0.bias', 'layer0.weight', 'layer1.bias', 'layer1.weight'\]",
        ),
        (
            {"layer1.weight": np.ones((4, 5), np.float32)},
            ValueError,
            r"layer1.weight in .* must have shape \[4, 4\], because hidden layers have one width, here 4, got \[4, 5\]",
        ),
        ({"layer0.bias": np.ones(1, np.float32)}, ValueError, r"layer0.bias in .* must have shape \[4\].*got \[1\]"),
        ({"layer2.bias": np.ones((1, 1), np.float32)}, ValueError, r"layer2.bias .* must have shape \[1\]"),
        ({"layer0.weight": np.ones(4, np.float32)}, ValueError, r"weights in .* must be \[out, in\], got \[4\]"),
        ({"layer1.bias": np.zeros(4)}, TypeError, r"one floating point type, got \['float32', 'float64'\]"),
        (dict.fromkeys(layers(2, 4, 4, 1), np.ones((1, 1), int)), TypeError, r"floating point type, got \['int64'\]"),
        (
            {"layer1.bias": np.array([0, 0, np.nan, 0], np.float32)},
            ValueError,
            r"must be finite, got NaN or infinity in \['layer1.bias'\]",
        ),
        ({"bias_init": "ones"}, ValueError, "`bias_init` must be one of"),
        ({"w0": 0.0}, ValueError, "`w0` must be positive, got 0.0"),
        ({"w0": np.ones(2)}, ValueError, r"`w0` in .* must be one number, got float64 of shape \[2\]"),
        ({"w0": "thirty"}, ValueError, r"`w0` in .* must be one number"),
        ({"layer1.bias": np.array([None] * 4)}, ValueError, "`path` must be an npz file of plain arrays"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str) -> None:
    arrays = {name: values for name, values in {**layers(2, 4, 4, 1), **change}.items() if values is not None}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(error, match=message):
        load_siren(tmp_path / "a.npz")


def test_other_files_are_refused(tmp_path: Path) -> None:
    net = SIREN(2, 1, 4)
    save_siren(net, tmp_path / "whole.npz")
    weights: Any = net.layers[1].weight
    whole = (tmp_path / "whole.npz").read_bytes()
    contents = {
        "pickle": pickle.dumps({"layer0.weight": 1}),
        "text": b"w0: 30",
        "empty": b"",
        "cut": whole[:-500],
        "changed": whole.replace(weights.detach().numpy().tobytes(), torch.zeros(16).numpy().tobytes()),  # checksum
    }
    with (tmp_path / "array").open("wb") as file:
        np.save(file, np.ones(3))
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "array"):
        with pytest.raises(ValueError, match=rf"`path` must be an npz file of plain arrays, got '.*{name}'"):
            load_siren(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_siren(tmp_path / "nowhere.npz")


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="`net` must be a SIREN, got Linear"):
        save_siren(nn.Linear(2, 1), tmp_path / "a.npz")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"NumPy knows no bfloat16: save net.float\(\)"):
        save_siren(SIREN().bfloat16(), tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


# the released meta-learned weights


@needs_released
def test_the_released_weights_are_a_face_that_learns_faces_in_two_steps() -> None:
    """In another reading of the file (w0, offset, domain) they are nothing special."""
    skimage_data = pytest.importorskip("skimage.data")
    net = load_siren(RELEASED)
    assert (net.in_features, net.out_features, len(net.layers)) == (2, 1, 5)
    faces = torch.from_numpy(skimage_data.lfw_subset()[:3]).float()
    faces = nn.functional.interpolate(faces[:, None], (32, 32), mode="bilinear")[:, 0]
    x = grid(32)
    for face in faces:
        y = face.reshape(-1, 1)
        start, _, end = psnrs_of_two_steps(net, x, y)
        assert start < 15
        assert end > 33  # 35 to 37 at 64x64
        others = [
            SIREN(bias_init="zeros", output_offset=0.5),  # 18 to 19
            load_siren(RELEASED, w0=10),
            load_siren(RELEASED, output_offset=0),
        ]
        assert max(psnrs_of_two_steps(other, x, y)[2] for other in others) < end - 3
        assert psnrs_of_two_steps(net, 2 * x - 1, y)[2] < end - 15


@needs_released
def test_the_released_weights_give_their_picture() -> None:
    """The formula of the haiku code in NumPy, float64, on its grid."""
    arrays = np.load(RELEASED, allow_pickle=False)
    axis = np.linspace(0, 1, 64, endpoint=False)
    out = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    for index in range(5):
        out = out @ arrays[f"layer{index}.weight"].astype(float).T + arrays[f"layer{index}.bias"].astype(float)
        out = np.sin(30 * out) if index < 4 else out + 0.5
    picture = load_siren(RELEASED)(grid(64)).detach().numpy()
    np.testing.assert_allclose(picture, out, rtol=0, atol=2e-5)
    assert 0.2 < picture.min() < 0.3 < 0.6 < picture.max() < 0.7


@needs_released
def test_that_picture_is_an_upright_face() -> None:
    skimage_data = pytest.importorskip("skimage.data")
    mean_face = torch.from_numpy(skimage_data.lfw_subset()[:100]).float().mean(0)
    picture = load_siren(RELEASED)(grid(64)).detach().view(1, 1, 64, 64)[..., 18:58, 14:50]  # those are cut closer
    face = nn.functional.interpolate(picture, mean_face.shape, mode="bilinear", antialias=True)[0, 0]

    def correlation(face: Tensor) -> float:
        return torch.corrcoef(torch.stack([face.flatten(), mean_face.flatten()]))[0, 1].item()

    assert correlation(face) > 0.6
    assert correlation(face.flip(0)) < correlation(face) - 0.1
    assert correlation(face.T) < correlation(face) - 0.3
