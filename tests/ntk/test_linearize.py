from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from pl_robust.attacks import pgd
from pl_robust.models import MLP, LeNet, SmallCNN
from pl_robust.ntk import LinearizedModel, empirical_ntk, linearize
from tests.ntk.test_ntk_vector_product import Held
from tests.toys import assert_identical


class Tied(nn.Module):
    """An embedding that is the readout, too; and a frozen part, and a buffer that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.readout = nn.Linear(4, 7)
        self.readout.weight = self.embedding.weight
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 0.5, 3.0]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.frozen(self.embedding(x) * self.scale).tanh().mean(1)
        logits: Tensor = self.readout(hidden)
        return logits


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 3, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(next(self.parameters()).dtype)  # as transformers' nets do
        out: Tensor = self.rnn(x)[0][:, -1, 0]
        return out


def conv_net() -> nn.Module:
    """Batch norm whose statistics are not the initial ones, left in training mode; dropout; groups; stride."""
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2, bias=False),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.Dropout(0.5),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.Linear(36, 3),
    )
    net(torch.randn(16, 2, 6, 6) * 2 + 1)
    return net.train()


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: MLP(4, 3, ()), lambda: torch.randn(5, 4)),
    "MLP": (lambda: MLP(4, 3, (6, 5), "tanh"), lambda: torch.randn(5, 4)),
    "LeNet": (lambda: LeNet(1, 2, 8), lambda: torch.rand(3, 1, 8, 8)),
    "conv": (conv_net, lambda: torch.randn(4, 2, 6, 6)),
    "transformer": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Flatten(), nn.Linear(12, 2)),
        lambda: torch.randn(3, 3, 4),
    ),
    "recurrent": (Recurrent, lambda: torch.randn(3, 5, 4)),
    "tied": (Tied, lambda: torch.randint(7, (5, 3))),
    "spectral norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), lambda: torch.randn(5, 4)),
    "mixes samples": (lambda: nn.BatchNorm1d(4, track_running_stats=False), lambda: torch.randn(5, 4)),
}


def double(net: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    return net.double(), x.double() if x.is_floating_point() else x


def displace(model: LinearizedModel, scale: float = 1.0) -> dict[str, Tensor]:
    """Move the displacement to a random place; give it by the names of the net's parameters."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=scale)
    return {name: parameter.detach() for name, parameter in model.displacement.named_parameters()}


def evaluated(net: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    """The net in eval mode as a function of parameters and inputs, for an oracle."""
    net = copy.deepcopy(net).eval()

    def function(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            outputs: Tensor = functional_call(net, parameters, (x,))
        return outputs

    return function


def trainable(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in net.named_parameters() if parameter.requires_grad}


def taylor(net: nn.Module, displacement: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x; θ0) and J δ, by reverse mode."""
    function, start = evaluated(net), trainable(net)
    outputs = function(start, x)
    jacobian: Any = jacrev(function)(start, x)
    change = [jacobian[name].flatten(outputs.dim()) @ displacement[name].flatten() for name in start]
    return outputs, torch.stack(change).sum(0)


class FunctionalNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (4,), self.weight, self.bias, 1e-3)


class OwnLayerNorm(nn.LayerNorm):
    pass


class ChannelNorm(nn.LayerNorm):
    """Of the channels, as ConvNeXt has it."""

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = super().forward(x.movedim(1, -1)).movedim(-1, 1)
        return outputs


NORMS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "functional": (lambda: normed(FunctionalNorm()), lambda: torch.randn(5, 4)),
    "subclass": (lambda: normed(OwnLayerNorm(4)), lambda: torch.randn(5, 4)),
    "without weights": (lambda: normed(nn.LayerNorm(4, elementwise_affine=False)), lambda: torch.randn(5, 4)),
    "channels": (lambda: convolved(ChannelNorm(3)), lambda: torch.randn(4, 2, 4, 4)),
    "instance": (lambda: convolved(nn.InstanceNorm2d(3, affine=True)), lambda: torch.randn(4, 2, 4, 4)),
    "batch": (
        lambda: convolved(nn.BatchNorm2d(3, track_running_stats=False)),
        lambda: torch.randn(4, 2, 4, 4),
    ),
}


def normed(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), norm, nn.Tanh(), nn.Linear(4, 2))


def convolved(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))


@pytest.mark.parametrize("name", ["MLP", "conv", "transformer", *NORMS])
def test_gradients_in_the_inputs_are_those_of_the_formula(name: str) -> None:
    """By central differences of the Taylor expansion: derivatives of derivatives can go wrong in torch itself."""
    make, inputs = (ZOO | NORMS)[name]
    net, x = double(make(), inputs())
    model = linearize(net)
    displacement = displace(model)
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    step = 1e-6 * torch.randn_like(x)
    with torch.no_grad():
        above, below = (torch.stack(taylor(net, displacement, x + sign * step)).sum() for sign in (1, -1))
    torch.testing.assert_close((gradient * step).sum(), (above - below) / 2, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", NORMS)
def test_normalization_by_formula_is_torchs(name: str) -> None:
    net, x = double(NORMS[name][0](), NORMS[name][1]())
    torch.testing.assert_close(linearize(net)(x), net.eval()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ZOO)
def test_it_is_the_taylor_expansion(name: str) -> None:
    net, x = double(ZOO[name][0](), ZOO[name][1]())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    flags = [part.training for part in net.modules()]
    model = linearize(net)
    displacement = displace(model)
    outputs, change = taylor(net, displacement, x)
    torch.testing.assert_close(model(x), outputs + change, rtol=1e-10, atol=1e-10)
    assert change.abs().max() > 0.1
    centered = linearize(net, centered=True)
    centered.load_state_dict(model.state_dict())
    torch.testing.assert_close(centered(x), change, rtol=1e-10, atol=1e-10)
    assert_identical(dict(net.state_dict()), before)
    assert [part.training for part in net.modules()] == flags


@pytest.mark.parametrize("name", ZOO)
def test_its_gradient_is_that_of_regression_on_the_jacobian(name: str) -> None:
    """J0ᵀ dL/df at any displacement."""
    net, x = double(ZOO[name][0](), ZOO[name][1]())
    model = linearize(net)
    displacement = displace(model)
    outputs, change = taylor(net, displacement, x)
    target = torch.randn_like(outputs)
    F.mse_loss(model(x), target).backward()  # type: ignore[no-untyped-call]
    residual = 2 * (outputs + change - target) / target.numel()
    jacobian: Any = jacrev(evaluated(net))(trainable(net), x)
    for key, parameter in model.displacement.named_parameters():
        expected = torch.tensordot(residual, jacobian[key], dims=outputs.dim())
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-10)


def test_the_linearization_of_a_linear_net_is_the_net() -> None:
    net = MLP(4, 3, ())
    model = linearize(net)
    x = torch.randn(5, 4)
    for _ in range(3):
        displacement = displace(model, scale=10)
        moved = {name: parameter + displacement[name] for name, parameter in net.named_parameters()}
        torch.testing.assert_close(model(x), functional_call(net, moved, (x,)), rtol=1e-5, atol=1e-4)


def gram(net: nn.Module, left: Tensor, right: Tensor) -> Tensor:
    """The tangent kernel of a net of one output."""
    rows: list[Tensor] = []
    for x in (left, right):
        jacobian: Any = jacrev(evaluated(net))(trainable(net), x)
        rows.append(torch.cat([part.reshape(len(x), -1) for part in jacobian.values()], dim=1))
    return rows[0] @ rows[1].T


@pytest.mark.parametrize(
    ("make", "shape", "rate"), [(lambda: MLP(5, 1), (5,), 0.02), (lambda: LeNet(1, 1, 8), (1, 8, 8), 0.1)]
)
def test_gradient_descent_is_kernel_regression(make: Any, shape: tuple[int, ...], rate: float) -> None:
    """On 40 points, full batch: f_t(x) = f_0(x) + K(x, X) K⁻¹ (I - (I - 2 lr K / N)^t) (Y - f_0(X))."""
    net = make()
    x, others = torch.randn(2, 40, *shape)
    y = torch.sin(3 * x.flatten(1).sum(1, keepdim=True))
    model = linearize(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    steps = 200
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    net, x, y, others = net.double(), x.double(), y.double(), others.double()
    values, vectors = torch.linalg.eigh(empirical_ntk(net.eval(), x))
    assert 2 * rate * values.max() / 40 < 2  # stable
    fitted = (1 - (1 - 2 * rate * values / 40) ** steps) / values
    coefficients = vectors @ (fitted[:, None] * (vectors.T @ (y - net(x))))
    for inputs in (x, others):
        predicted = (net(inputs) + empirical_ntk(net, inputs, x) @ coefficients).detach()
        assert (predicted - net(inputs)).abs().max() > 0.1
        torch.testing.assert_close(model(inputs.float()).double(), predicted, rtol=0, atol=1e-4)


def test_gradients_in_the_input_are_exact_and_attacks_use_them() -> None:
    net, x = double(LeNet(1, 3, 8), torch.rand(4, 1, 8, 8))
    model = linearize(net)
    displacement = displace(model)

    def oracle(x: Tensor) -> Tensor:
        outputs, change = taylor(net, displacement, x)
        return outputs + change

    y = torch.tensor([0, 1, 2, 0])
    slopes = []
    for function in (model, oracle):
        point = x.clone().requires_grad_()
        slopes.append(torch.autograd.grad(F.cross_entropy(function(point), y), point)[0])
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-12)
    assert slopes[0].abs().max() > 1e-3
    attacked = pgd(model, x, y, eps=0.1, random_start=False, steps=3)
    torch.testing.assert_close(attacked, pgd(oracle, x, y, eps=0.1, random_start=False, steps=3))
    assert (F.cross_entropy(model(attacked), y) - F.cross_entropy(model(x), y)) > 0.01
    assert all(parameter.grad is None for parameter in model.parameters())


def test_second_derivatives_in_the_input_are_exact() -> None:
    net, x = double(MLP(4, 1, (6,), "tanh"), torch.randn(4))
    model = linearize(net)
    displacement = displace(model)
    hessian: Any = torch.autograd.functional.hessian
    mine = hessian(lambda point: model(point[None]).sum(), x)
    expected = hessian(lambda point: sum(part.sum() for part in taylor(net, displacement, point[None])), x)
    torch.testing.assert_close(mine, expected)
    assert mine.abs().max() > 0.01


def test_its_kernel_never_changes() -> None:
    net, x = double(MLP(4, 1), torch.randn(6, 4))
    model = linearize(net)
    displace(model)
    torch.testing.assert_close(gram(model, x, x), gram(net, x, x))
    torch.testing.assert_close(empirical_ntk(model.eval(), x), gram(net, x, x))


def test_a_mode_has_no_effect_on_it() -> None:
    net = conv_net()
    x = torch.randn(4, 2, 6, 6)
    model = linearize(net)
    displace(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    trained = model.train()(x)
    for part in model.modules():
        part.training = True
    assert torch.equal(model(x), trained)
    assert torch.equal(model.eval()(x), trained)
    assert_identical(dict(model.state_dict()), before)  # batch norm has counted nothing
    assert torch.equal(torch.get_rng_state(), rng)  # and dropout drawn nothing
    outputs, _ = taylor(net, trainable(net), x)
    assert not torch.allclose(net(x), outputs)  # in training mode the net is another function


def test_the_displacement_is_named_after_the_parameters_and_nothing_is_shared() -> None:
    net = Tied()
    model = linearize(net)
    assert {name: list(parameter.shape) for name, parameter in model.named_parameters()} == {
        "displacement.embedding.weight": [7, 4],
        "displacement.readout.bias": [7],
    }
    assert all(not parameter.any() for parameter in model.parameters())
    assert {name.removeprefix("initial.") for name in model.state_dict() if name.startswith("initial")} == {
        *("embedding.weight", "frozen.weight", "frozen.bias", "readout.bias")
    }
    x = torch.randint(7, (5, 3))
    before = net(x)
    torch.testing.assert_close(model(x), before)
    displace(model)
    assert torch.equal(net(x), before)
    after = model(x)
    for parameter in (*net.parameters(), *net.buffers()):
        parameter.data.zero_()
    assert torch.equal(model(x), after)
    assert "Tied, centered=False" in repr(model)
    assert "2 tensors, 35 entries" in repr(model)


@pytest.mark.parametrize("name", ["conv", "tied", "recurrent"])
def test_a_checkpoint_holds_the_point_of_linearization(name: str) -> None:
    make, inputs = ZOO[name]
    x = inputs()
    model, other = linearize(make()), linearize(make())
    displace(model)
    assert not torch.allclose(model(x), other(x))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(model(x), other(x))
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(make().state_dict())


@pytest.mark.parametrize("name", ["conv", "tied", "recurrent", "transformer"])
def test_it_can_be_copied_pickled_and_cast(name: str) -> None:
    make, inputs = ZOO[name]
    x = inputs()
    model = linearize(make())
    displace(model)
    expected = model(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]  # noqa: S301
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    for one in copies:
        assert torch.equal(one(x), expected)
        wide = one.to(torch.float64)(x.double() if x.is_floating_point() else x)
        assert wide.dtype == torch.float64
        torch.testing.assert_close(wide, expected.double(), rtol=1e-4, atol=1e-4)
        wide.sum().backward()
        assert all(parameter.grad.dtype == torch.float64 for parameter in one.parameters())


@pytest.mark.parametrize("name", ["conv", "transformer"])
def test_it_works_without_grad_and_in_inference_mode(name: str) -> None:
    make, inputs = ZOO[name]
    net = make()
    with torch.inference_mode():
        model = linearize(net)
    x = inputs()
    displace(model)
    expected = model(x)
    assert expected.requires_grad
    with torch.no_grad():
        quiet = model(x)
    with torch.inference_mode():
        inferred = model(x.clone())
        assert torch.is_inference_mode_enabled()
    for outputs in (quiet, inferred):
        assert torch.equal(outputs, expected)
        assert not outputs.requires_grad
    assert torch.is_grad_enabled()
    expected.sum().backward()


@pytest.mark.parametrize("name", ["conv", "transformer"])
def test_autocast_does_not_reach_it(name: str) -> None:
    make, inputs = ZOO[name]
    model, x = linearize(make()), inputs()
    displace(model)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), expected)
        rounded = model(x.bfloat16())  # as a layer before it would give
    assert torch.equal(rounded, model(x.bfloat16().float()))
    coarse = model.bfloat16()(x.bfloat16())
    assert coarse.dtype == torch.bfloat16
    torch.testing.assert_close(coarse.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["recurrent", "transformer"])
@pytest.mark.parametrize("fails", [False, True])
def test_torchs_switches_are_put_back(name: str, fails: bool) -> None:
    def switches() -> list[bool]:
        mha: Any = torch.backends.mha
        return [torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled, mha.get_fastpath_enabled()]

    model = linearize(ZOO[name][0]())
    before = switches()
    assert all(before)
    with pytest.raises((RuntimeError, AssertionError), match=r"(?i)expect") if fails else nullcontext():
        model(torch.randn(2, 3, 5 if fails else 4))
    assert switches() == before


@pytest.mark.parametrize("make", [lambda: SmallCNN(4, 2, 3), ZOO["transformer"][0]])
def test_it_compiles(make: Any) -> None:
    net = make().eval()
    x = torch.rand(3, 2, 8, 8) if isinstance(net, SmallCNN) else torch.randn(3, 3, 4)
    model = linearize(net)
    displace(model, 0.1)
    expected = model(x)
    expected.square().sum().backward()
    slopes = [parameter.grad for parameter in model.parameters()]
    model, uncompiled = linearize(net), model  # its first call is the compiled one
    model.load_state_dict(uncompiled.state_dict())
    compiled = torch.compile(model, backend="aot_eager")
    outputs = compiled(x)
    torch.testing.assert_close(outputs, expected)
    outputs.square().sum().backward()
    for parameter, slope in zip(model.parameters(), slopes, strict=True):
        torch.testing.assert_close(parameter.grad, slope)
    torch._dynamo.reset()


def test_a_layer_in_two_places_leaves_nothing_of_a_pass_behind() -> None:
    """Else neither copies nor pickles of a model that has been called were possible."""
    layer = nn.Linear(3, 3)
    model = linearize(nn.Sequential(layer, nn.Tanh(), layer))
    x = torch.rand(4, 3)
    outputs = model(x)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))  # noqa: S301  # our own
    assert torch.equal(twin(x), outputs)


def test_it_takes_compiled_nets() -> None:
    net = MLP(4, 3)
    compiled: Any = torch.compile(net, backend="aot_eager")
    x = torch.randn(5, 4)
    compiled(x)
    model = linearize(compiled)
    assert set(model.state_dict()) == set(linearize(net).state_dict())
    assert torch.equal(model(x), linearize(net)(x))
    inside = linearize(nn.Sequential(compiled, nn.ReLU()))
    assert torch.equal(inside(x), model(x).relu())
    torch._dynamo.reset()


@pytest.mark.parametrize("count", [0, 1])
def test_few_samples(count: int) -> None:
    model = linearize(LeNet(1, 3, 8))
    assert model(torch.rand(count, 1, 8, 8)).shape == (count, 3)


def test_what_is_not_finite_shows() -> None:
    model = linearize(MLP(4, 3))
    x = torch.randn(2, 4)
    x[1, 0] = torch.nan
    assert model(x).isnan().tolist() == [[False] * 3, [True] * 3]


class Unfinished(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("to be written, some day")


class Uncopyable(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.stream = (size for size in (inputs, outputs))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = checkpoint(lambda z: self.layer(z).tanh(), x, use_reentrant=False)
        return outputs


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Unforwardable(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = Doubling.apply(super().forward(x))
        return doubled


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: linearize(torch.tanh), TypeError, "`model` must be an nn.Module, got builtin_function_or_method"),  # type: ignore[arg-type]
        (lambda: linearize(MLP(4), centered="no"), TypeError, "`centered` must be true or false, got 'no'"),  # type: ignore[arg-type]
        (lambda: linearize(MLP(4).requires_grad_(False)), ValueError, "got 6 parameters .* none .*: unfreeze some"),
        (lambda: linearize(nn.ReLU()), ValueError, "got 0 parameters and buffers, none of which requires grad"),
        (lambda: linearize(nn.LazyLinear(3)), ValueError, "'weight' of `model` has no shape yet: call the model"),
        (lambda: linearize(nn.GRU(4, 2))(torch.ones(3, 4)), TypeError, "must give a tensor, got tuple: wrap it"),
        (lambda: linearize(MLP(4))([1.0]), TypeError, "a linearized model takes one tensor, got list"),
        (
            lambda: linearize(Unforwardable(4, 2))(torch.ones(3, 4)),
            ValueError,
            "no forward-mode derivative.*: put plain operations in its place. torch says: You must implement the jvp",
        ),
        (
            lambda: linearize(nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))(torch.ones(3, 4)),
            ValueError,
            "torch says: Trying to use forward AD with _weight_norm_interface that does not support it",
        ),
        (lambda: linearize(nn.Embedding(4, 2, max_norm=1.0)), ValueError, "has max_norm=1.0"),
        (lambda: linearize(nn.Linear(4, 2, device="meta")), ValueError, "'weight' of `model` is on the meta device"),
        (lambda: linearize(nn.DataParallel(MLP(4))), ValueError, "is a DataParallel, in which parameters cannot"),
        (lambda: linearize(Uncopyable(4, 2)), ValueError, "copy.deepcopy can copy.*: cannot pickle 'generator'"),
        (lambda: linearize(Held("list"))(torch.ones(2, 3)), ValueError, "'enter.weight' of the model is read past its"),
        (lambda: linearize(Held("partial"))(torch.ones(2, 3)), ValueError, "'enter.weight' of the model is read past"),
        (lambda: linearize(Held("closure"))(torch.ones(2, 3)), ValueError, "reads parameters past its layers.*closure"),
        (
            lambda: linearize(Checkpointed())(torch.ones(2, 3)).sum().backward(),
            ValueError,
            "'layer.weight' of the model is read past its layer.*switch checkpointing off",
        ),
        (lambda: linearize(Unfinished(4, 2))(torch.ones(3, 4)), NotImplementedError, "^to be written, some day"),
        (lambda: linearize(MLP(4))(torch.ones(2, 5)), ValueError, "this MLP takes inputs .* of 4 entries each"),
    ],
)
def test_errors_speak(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("uses_grad", [True, False])
def test_a_net_may_write_into_its_input(uses_grad: bool) -> None:
    model = linearize(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)))
    x = torch.randn(5, 4, requires_grad=uses_grad)
    before = x.detach().clone()
    outputs = model(x)
    assert torch.equal(x, before)
    if uses_grad:
        (slope,) = torch.autograd.grad(outputs.sum(), x)
        torch.testing.assert_close(slope, (before > 0) * model.initial.get_buffer("1.weight").sum(0))


def test_pruned_nets_keep_their_masks_and_copies_can_be_made_after_a_call() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    prune.l1_unstructured(net[0], "weight", 6)  # type: ignore[no-untyped-call]
    x = torch.randn(5, 4, dtype=torch.float64)
    model = linearize(net)
    displacement = displace(model)
    outputs, change = pruned_taylor(net, displacement, x)
    torch.testing.assert_close(model(x), outputs + change)
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def pruned_taylor(net: nn.Module, displacement: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """By backwards on the net itself, which can not be copied."""
    outputs = net(x)
    parameters = dict(net.named_parameters())
    change = [
        sum((slope * displacement[name]).sum() for name, slope in zip(parameters, slopes, strict=True))
        for slopes in (
            torch.autograd.grad(value, list(parameters.values()), retain_graph=True) for value in outputs.flatten()
        )
    ]
    return outputs.detach(), torch.stack([torch.as_tensor(part) for part in change]).view_as(outputs)
