from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pl_robust.ntk._chunks import split_samples
from pl_robust.ntk._jacobian import Jacobian
from pl_robust.ntk._model import check_inputs, check_model, check_vector, derivatives, outputs_of


class Function(nn.Module):
    """A function of a linear layer's outputs."""

    def __init__(self, fn: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.fn = fn

    def forward(self, x: Tensor) -> Any:
        return self.fn(self.layer(x))


class OverTime(nn.Module):
    """A recurrent layer that takes the batch for time, so that only later samples depend on earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrence = nn.RNN(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.recurrence(x)[0]
        return states


class Cancelling(nn.Module):
    """A network minus itself, summed up in another order: its outputs are nothing but rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.order = torch.randperm(64)

    def forward(self, x: Tensor) -> Tensor:
        features = self.layer(x).tanh()
        weights = torch.ones(64, 1, dtype=x.dtype)
        outputs: Tensor = features @ weights - features[:, self.order] @ weights
        return outputs


def test_the_parameters_are_those_that_require_grad_and_tied_ones_come_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)).eval()
    model[2].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    assert list(check_model(model, torch.randn(5, 3))) == ["0.weight", "1.weight", "1.bias", "2.bias"]


@pytest.mark.parametrize(
    ("shape", "fn"),
    [((5, 2), lambda logits: logits), ((5, 1), lambda logits: logits[:, :1]), ((5, 1), lambda logits: logits[:, 0])],
)
def test_outputs_are_a_matrix(shape: tuple[int, ...], fn: Callable[[Tensor], Tensor]) -> None:
    assert outputs_of(Function(fn), torch.randn(5, 3)).shape == shape


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(3, 4), nn.Softmax(0)),
        nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2)),
        Function(lambda logits: logits / len(logits)),
        Function(lambda logits: logits + torch.randn_like(logits)),
        Function(lambda logits: logits.cumsum(0)),
        OverTime(),
    ],
)
def test_a_model_that_mixes_samples_is_refused(model: nn.Module) -> None:
    x = torch.randn(9, 3)
    with pytest.raises(ValueError, match=r"must treat samples one by one, but .* alone"):
        check_model(model.eval(), x)


def test_a_model_that_does_not_is_not_refused_for_its_rounding() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = nn.Sequential(
            nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(1024, 10)
        )
        check_model(model.to(dtype).eval(), torch.randn(9, 3, 8, 8, dtype=dtype))
        check_model(Cancelling().to(dtype).eval(), torch.randn(9, 64, dtype=dtype))
    broken = nn.Linear(3, 2).eval()
    with torch.no_grad():
        broken.weight[0, 0] = torch.nan
    check_model(broken, torch.randn(9, 3))  # what is not finite tells nothing


def test_inside_there_are_derivatives_and_outside_all_is_as_before() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    weight = model.get_parameter("0.weight")
    weight.grad = torch.ones(4, 3)
    state, fast = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), derivatives(model):
        assert not torch.backends.mha.get_fastpath_enabled()
        outputs = model(torch.randn(5, 3))
        assert outputs.requires_grad
        assert outputs.dtype == torch.float32
        inside: Any = weight.grad
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled() is fast
    assert inside is None
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones(4, 3))


class Writing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        outputs: Tensor = self.layer(x)
        return outputs


class Storing(nn.Module):
    old: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.old = self.new = self.layer(x)
        return self.old


TRAINING = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Dropout(), nn.Dropout(), nn.Linear(3, 2)).eval()
TRAINING[1:4].train()
FROZEN = nn.Linear(3, 2).eval().requires_grad_(False)
X = torch.linspace(-1, 1, 15).view(5, 3)


@pytest.mark.parametrize(
    ("error", "model", "x", "message"),
    [
        (TypeError, len, X, r"`model` must be an nn.Module, whose parameters span the kernel, got builtin_function"),
        (ValueError, TRAINING, X, r"call model.eval\(\) first; in training mode: 1, 2, 3$"),
        (ValueError, nn.BatchNorm1d(3), X, r"`model` must be in eval mode.*in training mode: BatchNorm1d"),
        (ValueError, FROZEN, X, r"requires_grad=True.*got 2 parameters, none of which requires grad: unfreeze some"),
        (ValueError, nn.Flatten().eval(), X, r"got 0 parameters"),
        (ValueError, nn.LazyLinear(2).eval(), X, r"'weight' of `model` has no shape yet: call the model on some"),
        (
            TypeError,
            nn.Linear(3, 2, dtype=torch.complex64).eval(),
            X,
            r"must be real, got 'weight' of dtype torch.complex",
        ),
        (TypeError, nn.Linear(3, 2).eval(), X.double(), r"`x` must be torch.float32 as.*got torch.float64: cast one"),
        (TypeError, nn.Linear(3, 2).eval(), [1.0, 2, 3], r"`x` must be a tensor of inputs \[N, ...\], got list"),
        (ValueError, nn.Linear(3, 2).eval(), X[:0], r"`x` must be inputs .* at least one sample, got shape \[0, 3\]"),
        (ValueError, nn.Linear(3, 2).eval(), X[0, 0], r"at least one sample, got shape \[\]"),
        (ValueError, nn.Linear(3, 2).eval(), X.to("meta"), r"`x` must be on the model's device, cpu, got meta"),
        (
            ValueError,
            nn.Linear(3, 2).eval(),
            X.masked_fill(X.abs() < 0.01, torch.nan),
            r"`x` holds NaN or infinite values in samples \[2\]",
        ),
        (
            ValueError,
            nn.Linear(3, 2).eval(),
            X.to(torch.uint8),
            r"does not take integers, and `x` is torch.uint8: give",
        ),
        (ValueError, Function(lambda z: (z, z)).eval(), X, r"real outputs \[N, C\] or \[N\] for N inputs, got tuple"),
        (ValueError, Function(lambda z: z[:, None]).eval(), X, r"got torch.float32 \[4, 1, 2\] for N=4: wrap it"),
        (ValueError, Function(lambda z: z.sum()).eval(), X, r"got torch.float32 \[\] for N=4"),
        (ValueError, Function(lambda z: z.argmax(1)).eval(), X, r"got torch.int64 \[4\]"),
        (ValueError, Function(lambda z: z.detach()).eval(), X, r"do not depend on its trainable parameters"),
    ],
)
def test_what_is_wrong_is_said(error: type[Exception], model: Any, x: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        check_model(model, x)


def test_a_model_from_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        model = nn.Linear(3, 2).eval()
    with pytest.raises(ValueError, match="made in inference mode"):
        check_model(model, X)


def test_the_second_inputs_are_named() -> None:
    parameters = check_model(nn.Linear(3, 2).eval(), X)
    with pytest.raises(TypeError, match=r"`x2` must be torch.float32"):
        check_inputs(X.half(), parameters, "x2")


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 2)).eval()
    model.get_parameter("0.bias").register_hook(lambda gradient: 2 * gradient)  # type: ignore[no-untyped-call]
    return model


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (hooked(), X, r"parameter '0.bias' of `model` has a hook .*: call remove\(\)"),
        (nn.Sequential(nn.EmbeddingBag(4, 2, max_norm=1.0)), None, r"layer '0' of `model` has max_norm=1.0"),
        (
            nn.Embedding(4, 2, scale_grad_by_freq=True),
            None,
            r"layer 'Embedding' of `model` has scale_grad_by_freq=True",
        ),
        (nn.Linear(3, 2, device="meta"), X, r"parameter 'weight' of `model` is on the meta device .*to_empty"),
        (nn.Linear(4, 2), X, r"`model` cannot take `x`, inputs of shape \[4, 3\]: .*mat1 and mat2"),
        (Function(lambda z: z[:, :0]), X, r"must give real outputs .* got torch.float32 \[4, 0\]"),
    ],
)
def test_a_model_without_true_derivatives_is_refused(model: nn.Module, x: Tensor | None, message: str) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with pytest.raises(ValueError, match=message):
        check_model(model.eval(), torch.randint(4, (5, 2)) if x is None else x)
    if not model.get_parameter(next(iter(before))).is_meta:
        assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_a_frozen_embedding_may_scale_its_gradients() -> None:
    embedding = nn.Embedding(4, 2, scale_grad_by_freq=True).requires_grad_(False)
    check_model(nn.Sequential(embedding, nn.Flatten(), nn.Linear(4, 2)).eval(), torch.randint(4, (5, 2)))


def test_a_model_that_writes_into_its_input_leaves_the_callers_as_it_is() -> None:
    model = Writing().eval()
    x = torch.randn(5, 3)
    before = x.clone()
    parameters = check_model(model, x)
    check_vector(torch.ones(5, 2), "v", model, x)
    split_samples(model, x, None)
    with derivatives(model):
        jacobian = Jacobian(model, parameters, torch.split(x, 2))
        jacobian.push(jacobian.pull(torch.ones(5, 2)))
    assert torch.equal(x, before)


def test_what_a_forward_stores_in_attributes_is_put_back() -> None:
    model = Storing().eval()
    model.old = torch.ones(1)
    old = model.old
    with derivatives(model):
        model(torch.randn(5, 3))
        assert model.old is not old
    assert model.old is old
    assert not hasattr(model, "new")


def test_a_layer_in_two_places_keeps_its_parameters() -> None:
    from pl_robust.ntk import ntk_eigh, ntk_vector_product

    layer = nn.Linear(2, 2)
    net, x = nn.Sequential(layer, nn.Tanh(), layer).eval(), torch.rand(3, 2)
    before = [*net.parameters()]
    ntk_vector_product(net, x, torch.rand(3, 2))
    ntk_eigh(net, x, k=1, method="lanczos")
    assert [id(parameter) for parameter in net.parameters()] == [id(parameter) for parameter in before]
    assert layer.weight is before[0]
