"""A network of half precision, seen in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pl_robust._call_with import call_with

_HALF = (torch.float16, torch.bfloat16)


def is_half(module: nn.Module) -> bool:
    """Tell whether some of a module's trainable parameters are of half precision."""
    return any(parameter.dtype in _HALF for parameter in module.parameters() if parameter.requires_grad)


def in_float32(tensor: Tensor) -> Tensor:
    """Take a tensor of half precision to float32; any other stays as it is."""
    return tensor.float() if tensor.dtype in _HALF else tensor


class Float32View(nn.Module):
    """The function that a module computes, in float32, at the values that its parameters have now.

    It has copies of the module's parameters under their names, in float32 where they are of half precision, and lends
    them to the module for each call, with its buffers likewise. The module itself stays as it is.

    Args:
        module: the module to see; it must not outlive the view.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._lent: list[Any] = [module, {name: in_float32(buffer) for name, buffer in module.named_buffers()}]
        for name, parameter in module.named_parameters():
            *path, own = name.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            copy = nn.Parameter(in_float32(parameter.detach()), requires_grad=parameter.requires_grad)
            owner.register_parameter(own, copy)

    def forward(self, x: Tensor) -> Tensor:
        """Give what the module gives for the same inputs."""
        module, buffers = self._lent
        outputs: Tensor = call_with(module, {**dict(self.named_parameters()), **buffers}, in_float32(x))
        return outputs
