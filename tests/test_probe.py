from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pl_robust._probe import probe
from tests.toys import assert_identical


class Restless(nn.Module):
    """Everything that a careless look would disturb."""

    calls: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.BatchNorm1d(4).eval()
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(4))
        self.register_buffer("expanded", torch.ones(1).expand(4))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1  # written into, in eval mode too
        self.seen = x.mean(0).detach()  # bound anew
        random.random()  # noqa: S311
        np.random.rand()  # noqa: NPY002
        dropped: Tensor = self.drop(self.frozen(self.norm(x)))
        return dropped + torch.rand_like(x)


def state(module: nn.Module) -> dict[str, object]:
    return {
        "flags": [part.training for part in module.modules()],
        "buffers": {name: value.clone() for name, value in module.named_buffers()},
        "grads": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "python": str(random.getstate()),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "torch": torch.get_rng_state(),
    }


@pytest.mark.parametrize("fails", [False, True])
def test_a_look_leaves_no_trace_even_when_it_fails(fails: bool) -> None:
    module = Restless()
    module(torch.rand(8, 4)).sum().backward()
    before = state(module)
    buffer = module.seen
    try:
        with probe(module):
            assert not module.norm.training
            module(torch.rand(8, 4)).sum().backward()  # careless on purpose
            module.train()
            module(torch.rand(8, 4))
            if fails:
                raise KeyError("on purpose")
    except KeyError:
        assert fails
    assert_identical(before, state(module))
    assert module.seen is buffer


def test_autograd_works_inside_inference_mode() -> None:
    module = nn.Linear(3, 1)
    with torch.inference_mode():
        x = torch.rand(2, 3)
        with probe(module):
            inside = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(module(inside).sum(), inside)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(gradient, module.weight.expand(2, 3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_net_is_not_compiled_again() -> None:
    compiled = []
    torch.compiler.reset()  # what other tests have compiled would be taken from the cache

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        compiled.append(graph)
        return graph.forward

    net = torch.compile(nn.Linear(3, 1), backend=backend)
    net(torch.rand(4, 3))
    with probe(net):  # type: ignore[arg-type]
        net(torch.rand(5, 3))
        net(torch.rand(7, 3))
    assert len(compiled) == 1
