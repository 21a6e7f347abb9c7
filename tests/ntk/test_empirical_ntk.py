from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pl_robust.models import LeNet
from pl_robust.ntk import _factors, _memory, _per_sample, _record, empirical_ntk, linearize
from tests.ntk import _dense, zoo

DOUBLE = torch.float64
NOT_FUNCTIONAL = {"custom_function", "checkpointed", "energy"}  # torch.func cannot run these
# At its first use torch loads its compiler, which sets environment variables: not inside a test.
jacrev(torch.sin)(torch.zeros(1))


def functional_kernel(model: nn.Module, x: Tensor) -> Tensor:
    """K [N, N, C, C] by torch.func."""
    parameters = {name: part.detach() for name, part in model.named_parameters() if part.requires_grad}

    def outputs(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        given: Tensor = functional_call(model, parameters, (sample[None],))
        return given.flatten()

    rows = [jacrev(outputs)(parameters, sample).values() for sample in x]
    jacobian = torch.stack([torch.cat([part.reshape(len(part), -1) for part in row], 1) for row in rows])
    return torch.einsum("icp,jdp->ijcd", jacobian, jacobian)


def trace(kernel: Tensor) -> Tensor:
    return torch.einsum("ijcc->ij", kernel)


def deviation(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The parameters that are differentiated sample by sample."""
    names: set[str] = set()
    plain = _per_sample.per_sample_gradients

    def noted(model: Any, parameters: Any, *rest: Any) -> Any:
        names.update(parameters)
        return plain(model, parameters, *rest)

    monkeypatch.setattr("pl_robust.ntk._record.per_sample_gradients", noted)
    return names


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch.func
@pytest.mark.parametrize("name", zoo.BUILDERS)
def test_it_is_the_product_of_jacobians(name: str, unknown: set[str]) -> None:
    model, x = zoo.build(name)
    expected = _dense.kernel(model, x) if name in NOT_FUNCTIONAL else functional_kernel(model, x)
    assert deviation(empirical_ntk(model, x, outputs="full"), expected) < 1e-10
    assert deviation(empirical_ntk(model, x), trace(expected)) < 1e-10
    assert unknown == zoo.UNKNOWN.get(name, set())
    rows = empirical_ntk(model, x[:3], x[1:], outputs="full", chunk_size=2)
    assert deviation(rows, expected[:3, 1:]) < 1e-10


@pytest.mark.parametrize(
    "name", ["convolutions", "transformer_time_first", "called_often", "odd_layers", "normed_alone"]
)
def test_chunks_do_not_matter(name: str) -> None:
    model, x = zoo.build(name)
    for outputs in ("trace", "full"):
        expected = empirical_ntk(model, x, outputs=outputs, chunk_size=len(x))
        for chunk_size in (1, 2, 3, 100):
            found = empirical_ntk(model, x, outputs=outputs, chunk_size=chunk_size)
            assert deviation(found, expected) < 1e-12
            found = empirical_ntk(model, x[:4], x, outputs=outputs, chunk_size=chunk_size)
            assert deviation(found, expected[:4]) < 1e-12


@pytest.mark.parametrize("jacobian", [True, False])
@pytest.mark.parametrize(
    "name", ["convolutions", "transposed_convolutions", "embedding", "language_model", "transposed_tie", "called_often"]
)
def test_the_order_of_contraction_does_not_matter(name: str, jacobian: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = zoo.build(name)
    expected = _dense.kernel(model, x)
    monkeypatch.setattr(_factors.Factors, "prefers_jacobian", lambda *given: jacobian)
    assert deviation(empirical_ntk(model, x), trace(expected)) < 1e-10
    assert deviation(empirical_ntk(model, x, outputs="full"), expected) < 1e-10
    monkeypatch.setattr(_factors, "_SCRATCH", 1)  # one pair of samples at a time
    assert deviation(empirical_ntk(model, x), trace(expected)) < 1e-10
    assert deviation(empirical_ntk(model, x, outputs="full"), expected) < 1e-10


def test_a_parameter_may_be_known_in_one_chunk_and_not_in_another() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        weight = net.linear.weight * 2 / 2 if bool((x[:, 0] > 0).any()) else net.linear.weight
        return F.linear(x, weight, net.linear.bias)

    model, x = zoo.Lambda(run, linear=nn.Linear(3, 2)).double().eval(), torch.randn(6, 3, dtype=DOUBLE)
    x[:, 0] = torch.tensor([-1.0, -1, 1, 1, -1, -1])
    for outputs in ("trace", "full"):
        found = empirical_ntk(model, x, outputs=outputs, chunk_size=2)
        assert deviation(found, empirical_ntk(model, x, outputs=outputs)) < 1e-12


def test_of_a_linear_network_it_is_that_of_the_inputs() -> None:
    x = torch.randn(6, 4)
    one, three = nn.Linear(4, 1, bias=False).eval(), nn.Linear(4, 3).eval()
    assert torch.allclose(empirical_ntk(one, x), x @ x.mT)
    assert torch.allclose(empirical_ntk(three, x), 3 * (x @ x.mT + 1), atol=1e-5)
    full = empirical_ntk(three, x, outputs="full")
    assert torch.allclose(full, (x @ x.mT + 1)[:, :, None, None] * torch.eye(3), atol=1e-5)
    three.bias.requires_grad_(False)
    assert torch.allclose(empirical_ntk(three, x, outputs=2), x @ x.mT, atol=1e-5)


def test_outputs_choose_the_function() -> None:
    model, x = zoo.build("lenet")
    full = empirical_ntk(model, x, outputs="full")
    assert deviation(empirical_ntk(model, x), trace(full)) < 1e-12
    for index in range(3):
        assert deviation(empirical_ntk(model, x, outputs=index), full[:, :, index, index]) < 1e-12
    difference = empirical_ntk(model, x, outputs=lambda given: given[:, 0] - 2 * given[:, 1])
    weights = torch.tensor([1.0, -2, 0], dtype=DOUBLE)
    assert deviation(difference, torch.einsum("ijcd,c,d->ij", full, weights, weights)) < 1e-12
    # A head that is not linear: the kernel of the network that ends with it.
    norms = empirical_ntk(nn.Sequential(model, Norm()).eval(), x)
    assert deviation(empirical_ntk(model, x, outputs=lambda given: given.norm(dim=1)), norms) < 1e-12


class Norm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(x, dim=1)
        return norms


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_it_is_symmetric_to_the_last_bit(chunk_size: int | None) -> None:
    model, x = LeNet(3, image_size=12).eval(), torch.randn(7, 3, 12, 12)
    kernel = empirical_ntk(model, x, chunk_size=chunk_size)
    assert torch.equal(kernel, kernel.mT)
    full = empirical_ntk(model, x, outputs="full", chunk_size=chunk_size)
    assert torch.equal(full, full.permute(1, 0, 3, 2))
    assert float(torch.linalg.eigvalsh(kernel.double())[0]) > 0


def test_precision_is_that_of_the_parameters_or_of_a_copy() -> None:
    model, x = zoo.build("resnet")
    expected = empirical_ntk(model, x)
    assert expected.dtype == DOUBLE
    single = copy.deepcopy(model).float()
    found = empirical_ntk(single, x.float())
    assert found.dtype == torch.float32
    assert 1e-9 < deviation(found.double(), expected) < 1e-4
    found = empirical_ntk(single, x.float(), x, dtype=DOUBLE)
    assert found.dtype == DOUBLE
    assert deviation(found, expected) < 1e-5  # the weights were rounded
    assert all(part.dtype == torch.float32 for part in single.parameters())
    half = empirical_ntk(copy.deepcopy(model).bfloat16(), x.bfloat16())
    assert half.dtype == torch.float32
    assert deviation(half.double(), expected) < 0.1


def test_fused_recurrent_layers_have_a_kernel() -> None:
    model, x = zoo.build("lstm")
    expected = empirical_ntk(model, x)
    found = empirical_ntk(copy.deepcopy(model).float(), x.float())
    assert deviation(found.double(), expected) < 1e-4


@pytest.mark.parametrize("name", ["resnet", "vision_transformer", "odd_layers", "custom_function"])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_model_is_left_as_it_was_in_any_grad_mode(name: str, context: Any) -> None:
    model, x = zoo.build(name)
    expected = empirical_ntk(model, x)
    next(model.parameters()).requires_grad_(False)
    part = empirical_ntk(model, x)
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    hooks = [(len(layer._forward_hooks), len(layer._forward_pre_hooks)) for layer in model.modules()]
    random = torch.random.get_rng_state()
    with context():
        found = empirical_ntk(model, x.clone())
        assert not found.is_inference()
    assert not found.requires_grad
    assert torch.equal(found, part)
    assert deviation(part, expected) > 1e-6
    assert torch.equal(torch.random.get_rng_state(), random)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [(len(layer._forward_hooks), len(layer._forward_pre_hooks)) for layer in model.modules()] == hooks
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    first, *others = model.parameters()
    assert torch.equal(first.grad, torch.ones_like(first))  # type: ignore[arg-type]
    assert all(parameter.grad is None for parameter in others)
    assert not any(layer.training for layer in model.modules())


def test_autocast_is_left_outside() -> None:
    model, x = LeNet(3, image_size=8).eval(), torch.randn(3, 3, 8, 8)
    expected = empirical_ntk(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(empirical_ntk(model, x), expected)


class Masks(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which gradients the backwards of convolutions compute, and how many there are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[list[bool]] = []
        self.images = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.seen.append(args[-1])
        if func is torch.ops.aten.convolution.default and args[0].shape[1] == 3:
            self.images += len(args[0])
        return func(*args, **(kwargs or {}))


def test_it_costs_a_forward_and_a_backward_for_each_output_and_no_weight_gradient() -> None:
    model, x = LeNet(3, image_size=8).eval(), torch.randn(8, 3, 8, 8)
    with Masks() as masks:
        empirical_ntk(model, x, chunk_size=2)
    assert {tuple(mask) for mask in masks.seen} == {(True, False, False)}
    # Of each chunk ten outputs, and one more to find the samples; before that one output of a few.
    assert len(masks.seen) == 4 * (10 + 1) + 1 + 1
    # Each once; before that a few together, two of them alone, and a few for the outputs, the memory and a record.
    assert masks.images == 8 + (4 + 1 + 1) + (4 + 4 + 4)


def test_records_that_do_not_fit_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = zoo.build("convolutions")
    expected = empirical_ntk(model, x)
    part = empirical_ntk(model, x[:3], x)
    calls: list[int] = []
    plain = _record.make_record

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(given[2].width)
        return plain(*given, **named)

    # By name, because the function is in the place of its module.
    monkeypatch.setattr(sys.modules["pl_robust.ntk.empirical_ntk"], "make_record", counted)
    monkeypatch.setattr(_memory, "_BUDGET", 2 * 2**10)
    assert deviation(empirical_ntk(model, x, chunk_size=1), expected) < 1e-12
    assert set(calls) == {1}  # one output at a time
    assert len(calls) == 1 + 3 * (5 + 4 + 3 + 2 + 1)
    assert deviation(empirical_ntk(model, x[:3], x, chunk_size=1), part) < 1e-12
    assert deviation(empirical_ntk(model, x, outputs="full", chunk_size=2), empirical_ntk(model, x, outputs="full")) < (
        1e-12
    )


def test_a_compiled_network_runs_eagerly() -> None:
    model, x = zoo.build("norms")
    expected = empirical_ntk(model, x)
    assert torch.equal(empirical_ntk(torch.compile(model, backend="aot_eager"), x), expected)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_network_has_the_same_kernel() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)).double().eval()
    x = torch.randn(4, 2, 4, 4, dtype=DOUBLE)
    scripted: Any = torch.jit.script(model)
    for _ in range(4):  # it changes its graph as it learns
        assert deviation(empirical_ntk(scripted, x), empirical_ntk(model, x)) < 1e-12


def test_a_linearized_network_has_the_kernel_of_the_network() -> None:
    model, x = zoo.build("lenet")
    linear = linearize(model).eval()
    assert deviation(empirical_ntk(linear, x), empirical_ntk(model, x)) < 1e-12
    for part in linear.parameters():  # and keeps it
        nn.init.normal_(part)
    assert deviation(empirical_ntk(linear, x), empirical_ntk(model, x)) < 1e-12


def test_nan_weights_make_a_nan_kernel_and_not_an_error() -> None:
    model, x = zoo.build("lenet")
    nn.init.constant_(model.get_parameter("fc3.weight")[1], torch.nan)
    assert bool(empirical_ntk(model, x).isnan().all())


def test_one_sample_and_samples_of_another_size() -> None:
    model, x = zoo.build("resnet")
    other = torch.randn(2, 3, 24, 20, dtype=DOUBLE)
    expected = torch.einsum("icp,jcp->ij", _dense.jacobian(model, x[:1]), _dense.jacobian(model, other))
    assert deviation(empirical_ntk(model, x[:1], other), expected) < 1e-10
    assert deviation(empirical_ntk(model, other, x[:1]), expected.mT) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet", "resnet18"])
def test_networks_of_full_size(name: str) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model: nn.Module = LeNet(3) if name == "lenet" else resnet18(num_classes=10)
    x = torch.randn(24 if name == "lenet" else 3, 3, 32, 32, dtype=DOUBLE)
    model = model.double().eval()
    expected = _dense.kernel(model, x)
    assert deviation(empirical_ntk(model, x, outputs="full"), expected) < 1e-8
    assert deviation(empirical_ntk(model, x), trace(expected)) < 1e-8


class Scaled(nn.Module):
    """Outputs whose gradients differ by eight orders of magnitude."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(3))
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        outputs = [head(hidden) for head in self.heads]
        return torch.cat([1e4 * outputs[0], 1e-4 * outputs[1], outputs[2]], 1)


def test_outputs_of_different_scale_do_not_disturb_each_other() -> None:
    model, x = Scaled(), torch.randn(5, 3, dtype=DOUBLE)
    found, expected = empirical_ntk(model, x, outputs="full", chunk_size=2), _dense.kernel(model, x)
    for c in range(3):
        for d in range(3):
            assert deviation(found[:, :, c, d], expected[:, :, c, d]) < 1e-10


def test_a_net_that_writes_into_its_input_leaves_the_callers_alone() -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        x -= 0.5
        given: Tensor = self.linear(F.relu_(x))
        return given

    torch.manual_seed(0)
    model = zoo.Lambda(run, linear=nn.Linear(3, 2)).double().eval()
    x = torch.randn(5, 3, dtype=DOUBLE)
    before = x.clone()
    found = empirical_ntk(model, x, chunk_size=2)
    assert torch.equal(x, before)
    inputs = (before - 0.5).relu()
    torch.testing.assert_close(found, 2 * (inputs @ inputs.mT + 1), rtol=1e-12, atol=1e-12)


class Hidden(torch.autograd.Function):
    """A layer that differentiates its weight by a backward of its own, as reversible networks do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer = layer
        given: Tensor = layer(x)
        return given

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            torch.autograd.backward(ctx.layer(x), gradient)
        return x.grad, None


def test_parameters_hidden_in_a_function_are_found_out() -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        given: Tensor = self.last(Hidden.apply(self.first(x), self.hidden))
        return given

    model = zoo.Lambda(run, first=nn.Linear(3, 4), hidden=nn.Linear(4, 4), last=nn.Linear(4, 2)).eval()
    with pytest.raises(ValueError, match=r"parameter 'hidden.weight' of `model` is hidden from its derivative"):
        empirical_ntk(model, torch.rand(4, 3))
    assert all(parameter.grad is None for parameter in model.parameters())
