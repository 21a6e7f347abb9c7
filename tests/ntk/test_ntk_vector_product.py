from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from pl_robust.ntk import linearize, ntk_vector_product
from tests.ntk._dense import as_matrix, jacobian, kernel

DOUBLE = torch.float64


class Tied(nn.Module):
    """The same weights going in and coming out."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 6)
        self.leave = nn.Linear(6, 6)
        self.leave.weight = self.enter.weight

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.leave(self.enter(x).tanh())
        return outputs[:, :3]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.view(-1, 2, 3).repeat(1, 1, 2)
        mixed: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return mixed.mean(1)[:, :3]


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 3, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x.view(-1, 2, 3).repeat(1, 1, 2))
        return outputs[:, 0, :3]


class Recurrent(nn.Module):
    """Its kernel has no derivative in forward mode."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrence = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.recurrence(x.view(-1, 2, 3))[0]
        return states[:, -1, :3]


class Sine(torch.autograd.Function):
    """A function of the old kind, known to neither forward mode nor torch.func."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return gradients[0] * x.cos()


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.leave(Sine.apply(self.enter(x)))
        return outputs


class Words(nn.Module):
    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4, sparse=sparse)
        self.leave = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.leave(self.embedding(x).tanh().mean(1))
        return outputs


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
    model[2].requires_grad_(False)
    model[0].bias.requires_grad_(False)
    return model


def convolutional() -> nn.Module:
    model = nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.Conv2d(4, 8, 2, groups=4),
        nn.GroupNorm(2, 8),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    norm: Any = model[2]
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return model


def normed() -> nn.Module:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(5, 3))


def partly_unused() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 3))
    model.register_parameter("unused", nn.Parameter(torch.ones(4)))
    return model


ZOO: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)),
    "tied": Tied,
    "convolution and norms": convolutional,
    "attention": Attention,
    "transformer": Transformer,
    "lstm": Recurrent,
    "old autograd function": Custom,
    "embedding": Words,
    "sparse embedding": lambda: Words(sparse=True),
    "frozen parts": frozen,
    "weight norm": normed,
    "linearized": lambda: linearize(frozen()),
    "unused parameter": partly_unused,
}


def samples(model: nn.Module, count: int) -> Tensor:
    words = any(isinstance(part, nn.Embedding) for part in model.modules())
    return torch.randint(9, (count, 6)) if words else torch.randn(count, 6, dtype=DOUBLE)


@pytest.mark.parametrize("name", ZOO)
def test_it_is_the_product_with_the_dense_kernel(name: str) -> None:
    model = ZOO[name]().double().eval()
    x1, x2 = samples(model, 5), samples(model, 4)
    v = torch.randn(4, 3, dtype=DOUBLE)
    expected = (as_matrix(kernel(model, x1, x2)) @ v.flatten()).view(5, 3)
    assert float(expected.abs().max()) > 0.1
    for chunk_size in (None, 1, 3, 99):
        found = ntk_vector_product(model, x1, v, x2, chunk_size=chunk_size)
        assert torch.allclose(found, expected, rtol=1e-11, atol=1e-11)


def test_the_dense_kernel_is_that_of_torch_func() -> None:
    model = ZOO["convolution and norms"]().double().eval()
    x, v = samples(model, 4), torch.randn(4, 3, dtype=DOUBLE)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    blocks = jacrev(lambda values: functional_call(model, values, (x,)))(parameters)
    rows = torch.cat([block.reshape(4, 3, -1) for block in blocks.values()], dim=2)
    assert torch.allclose(rows, jacobian(model, x), atol=1e-12)
    expected = torch.einsum("icp,jdp,jd->ic", rows, rows, v)
    assert torch.allclose(ntk_vector_product(model, x, v), expected, atol=1e-11)


def test_a_linear_models_kernel_is_known() -> None:
    model = nn.Linear(7, 1).double().eval()
    x, v = torch.randn(6, 7, dtype=DOUBLE), torch.randn(6, 1, dtype=DOUBLE)
    assert torch.allclose(ntk_vector_product(model, x, v), (x @ x.mT + 1) @ v)


def test_resnet18_in_eval_mode() -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(num_classes=2).double().eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.get_buffer("running_mean"), -0.1, 0.1)
            nn.init.uniform_(part.get_buffer("running_var"), 0.5, 2)
    x, v = torch.rand(2, 3, 32, 32, dtype=DOUBLE), torch.randn(2, 2, dtype=DOUBLE)
    expected = (as_matrix(kernel(model, x)) @ v.flatten()).view(2, 2)
    found = ntk_vector_product(model, x, v, chunk_size=1)
    assert torch.allclose(found, expected, rtol=1e-9)


def test_outputs_without_a_dimension_give_products_without_one() -> None:
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.layer(x)
            return outputs[:, 0]

    model = Scalar().eval()
    x, v = torch.randn(5, 6), torch.randn(5)
    found = ntk_vector_product(model, x, v)
    assert found.shape == (5,)
    assert torch.allclose(found, (x @ x.mT + 1) @ v, atol=1e-4)
    assert ntk_vector_product(model, x[:1], v[:1]).shape == (1,)


def test_single_precision_is_as_exact_as_its_arithmetic_and_half_precision_adds_up_above_it() -> None:
    model = ZOO["mlp"]().double().eval()
    x, v = torch.randn(300, 6, dtype=DOUBLE), torch.ones(300, 3, dtype=DOUBLE)
    exact = ntk_vector_product(model, x, v)
    single = ntk_vector_product(model.float(), x.float(), v.float())
    assert single.dtype == torch.float32
    assert float((single - exact).norm() / exact.norm()) < 1e-6
    half = ntk_vector_product(model.bfloat16(), x.bfloat16(), v.bfloat16(), chunk_size=1)
    assert half.dtype == torch.bfloat16
    # Sums of 300 summands of one sign in bfloat16 itself would stand still after some hundred.
    assert float((half - exact).norm() / exact.norm()) < 0.02


def test_no_trace_is_left_in_any_grad_mode() -> None:
    model = ZOO["convolution and norms"]().eval()
    model.register_buffer("calls", torch.zeros(()))
    model.register_forward_pre_hook(lambda module, args: module.calls.add_(1) and None)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    results = []
    for context in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        with context:
            generator = torch.Generator().manual_seed(0)
            x, v = (torch.randn(5, size, generator=generator) for size in (6, 3))
            results.append(ntk_vector_product(model, x, v, chunk_size=2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results.append(ntk_vector_product(model, x.clone(), v.clone(), chunk_size=2))
    assert all(torch.equal(result, results[0]) for result in results)
    assert not results[0].requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for parameter in model.parameters():
        assert parameter.requires_grad
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.ones_like(parameter))
    assert not any(part.training for part in model.modules())


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0]


@pytest.mark.parametrize("behind", [nn.Identity(), nn.Linear(3, 3)])
def test_what_has_no_second_backward_either_is_said_and_never_left_out(behind: nn.Module) -> None:
    class Rigid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)
            self.behind = behind

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.behind(Once.apply(self.layer(x)))
            return outputs

    with pytest.raises(RuntimeError, match=r"without forward mode.*that (failed|misses a part).*empirical_ntk"):
        ntk_vector_product(Rigid().eval(), torch.randn(4, 6), torch.randn(4, 3))


def test_memory_is_bounded_by_the_chunk() -> None:
    largest = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            largest.append(len(x))
            return x

    model = nn.Sequential(Watch(), nn.Linear(6, 3)).eval()
    x, v = torch.randn(50, 6), torch.randn(50, 3)
    ntk_vector_product(model, x, v, chunk_size=7)
    assert max(largest) == 7


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (ValueError, {"v": torch.ones(4)}, r"`v` must have the shape of the model's outputs, \[4, 3\], got \[4\]"),
        (ValueError, {"v": torch.ones(3, 3)}, r"`v` must have the shape .* \[4, 3\], got \[3, 3\]"),
        (TypeError, {"v": torch.ones(4, 3, dtype=DOUBLE)}, r"`v` must be torch.float32 .* got torch.float64"),
        (
            TypeError,
            {"v": torch.ones(4, 3, dtype=torch.int64)},
            r"`v` must be a floating-point tensor.*got torch.int64",
        ),
        (
            ValueError,
            {"v": torch.full((4, 3), torch.nan)},
            r"`v` holds NaN or infinite values in samples \[0, 1, 2, 3\]",
        ),
        (ValueError, {"x2": torch.ones(0, 6)}, r"`x2` must be inputs \[N, ...\] of at least one sample"),
        (TypeError, {"x2": torch.ones(4, 6, dtype=DOUBLE)}, r"`x2` must be torch.float32 .*got torch.float64"),
        (ValueError, {"chunk_size": 0}, r"`chunk_size` must be at least 1, got 0"),
        (TypeError, {"chunk_size": 2.0}, r"`chunk_size` must be an integer, got 2.0"),
    ],
)
def test_what_is_wrong_is_said(error: type[Exception], arguments: dict[str, Any], message: str) -> None:
    model = nn.Linear(6, 3).eval()
    with pytest.raises(error, match=message):
        ntk_vector_product(**{"model": model, "x1": torch.randn(4, 6), "v": torch.randn(4, 3), **arguments})


class Held(nn.Module):
    """The same weights going in and out, the second time past their layer."""

    def __init__(self, hold: str) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 3)
        self.held = [self.enter.weight]
        self.partial = partial(F.linear, weight=self.enter.weight)
        self.hold = hold
        if hold == "closure":
            bias = self.enter.bias
            self.enter.register_forward_hook(lambda layer, inputs, outputs: outputs * bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.enter(x).tanh()
        if self.hold == "list":
            return F.linear(hidden, self.held[0])
        return self.partial(hidden) if self.hold == "partial" else hidden


def jacobian_by_backwards(model: nn.Module, x: Tensor) -> Tensor:
    """[N, C, P], by autograd on the model as it is: what it holds elsewhere is in it."""
    parameters = list(model.parameters())
    rows = [
        torch.cat([part.flatten() for part in torch.autograd.grad(value, parameters, retain_graph=True)])
        for value in model(x).flatten()
    ]
    return torch.stack(rows).view(len(x), -1, rows[0].numel())


@pytest.mark.parametrize("hold", ["list", "partial", "closure"])
def test_parameters_held_outside_their_layers_count(hold: str) -> None:
    model = Held(hold).double().eval()
    x, v = torch.randn(5, 3, dtype=DOUBLE), torch.randn(5, 3, dtype=DOUBLE)
    rows = jacobian_by_backwards(model, x)
    expected = torch.einsum("ncp,mdp,md->nc", rows, rows, v)
    torch.testing.assert_close(ntk_vector_product(model, x, v, chunk_size=2), expected)


class Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        outputs: Tensor = layer(x.detach())
        return outputs.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x: Tensor = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            outputs = ctx.layer(x)
        torch.autograd.backward(outputs, gradients[0])
        return x.grad, None


class Hiding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.hidden = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = Reversible.apply(self.enter(x), self.hidden)
        return outputs


def test_parameters_hidden_in_a_function_are_refused() -> None:
    model = Hiding().eval()
    with pytest.raises(ValueError, match=r"its parameter 'hidden.weight' inside an autograd function that runs a back"):
        ntk_vector_product(model, torch.randn(4, 3), torch.ones(4, 3))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("count", [1, 5])
def test_a_model_may_write_into_its_input(count: int) -> None:
    layer = nn.Linear(3, 2).double()

    class Shifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            x -= 0.5
            outputs: Tensor = self.layer(x)
            return outputs

    x, v = torch.randn(count, 3, dtype=DOUBLE), torch.randn(count, 2, dtype=DOUBLE)
    before = x.clone()
    product = ntk_vector_product(Shifting().eval(), x, v, chunk_size=2)
    torch.testing.assert_close(product, ((before - 0.5) @ (before - 0.5).mT + 1) @ v)
    assert torch.equal(x, before)


def test_second_inputs_of_a_wrong_width_are_named() -> None:
    with pytest.raises(ValueError, match=r"`model` cannot take `x2`, inputs of shape \[1, 4\]"):
        ntk_vector_product(nn.Linear(3, 2).eval(), torch.ones(4, 3), torch.ones(4, 2), torch.ones(4, 4))
