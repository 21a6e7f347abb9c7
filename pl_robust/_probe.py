"""Look at a network in the middle of its training and leave no trace."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pl_robust._grad_mode import autograd_on


def _is_expanded(tensor: Tensor) -> bool:
    """Tell whether several entries share memory: torch writes into no such tensor, and it needs no restoring."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


@contextmanager
def probe(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode for extra forwards and gradients, and put everything back afterwards.

    Inside, autograd works whatever the caller's grad or inference mode, compiled nets run eagerly (a probe must not
    cost a recompilation), and gradients that somebody accumulates land nowhere. On leaving, also by an exception, these
    are bit for bit as before: the train/eval flag of every submodule, every buffer, every parameter's ``.grad``, and
    the random number generators of Python, NumPy, torch's CPU and the module's devices.

    Parameters are not saved: an observer that changes them is no observer. Clone what was made in inference mode before
    it enters autograd (the attacks do).
    """
    flags = [(part, part.training) for part in module.modules()]
    # By owner and name, because a layer may rebind its buffer instead of writing into it.
    buffers = [
        (part, name, buffer, None if buffer is None or _is_expanded(buffer) else buffer.detach().clone())
        for part in module.modules()
        for name, buffer in part._buffers.items()
    ]
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002  # the legacy generator is the one that users' code draws from
    devices = sorted({tensor.device.index for tensor in module.parameters() if tensor.device.type == "cuda"})
    # torch 2.6 and later. Where nothing is compiled torch's compiler is not loaded, which would take seconds.
    stance: Any = getattr(torch.compiler, "set_stance", None) if "torch._dynamo" in sys.modules else None
    try:
        with (
            torch.random.fork_rng(devices=devices),
            autograd_on(),
            stance("force_eager") if stance is not None else nullcontext(),
        ):
            for parameter, _ in gradients:
                parameter.grad = None
            module.eval()
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for part, name, buffer, saved in buffers:
                if buffer is not None and saved is not None:
                    buffer.copy_(saved)
                part._buffers[name] = buffer
        for part, training in flags:
            part.training = training
