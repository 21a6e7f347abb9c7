"""Gradients of each sample by itself, for the parameters whose part in the network has no structure that we know."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from pl_robust._call_with import call_with
from pl_robust.ntk._model import as_outputs, reads_hidden_parameters
from pl_robust.ntk._readout import Readout


def per_sample_gradients(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor, readout: Readout
) -> dict[str, Tensor]:
    """Differentiate a model's outputs in some of its parameters, for each sample alone.

    All samples at once by vmap; where an operation has no rule for that, one after the other.

    Args:
        model: the network, inside ``derivatives``.
        parameters: those that are wanted.
        x: inputs [n, ...].
        readout: gives C values of the outputs.

    Returns:
        Gradients [n, C, P] for each parameter.
    """
    with torch.enable_grad():
        if reads_hidden_parameters(model, parameters, x[:1]):  # which vmap over functional_call would miss
            return _in_turn(model, parameters, x, readout)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # torch's own, about rules that it lacks
            return _together(model, parameters, x, readout)
    except (RuntimeError, TypeError, ValueError):  # if the model is to blame, the next lines say so
        with torch.enable_grad():
            return _in_turn(model, parameters, x, readout)


def _together(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor, readout: Readout
) -> dict[str, Tensor]:
    constants = {name: parameter.detach() for name, parameter in parameters.items()}

    def gradients(sample: Tensor) -> dict[str, Tensor]:
        def values(changed: dict[str, Tensor]) -> Tensor:
            return readout(as_outputs(call_with(model, changed, sample[None]), 1))[0]

        given, pull, *_ = vjp(values, constants)
        rows = [pull(row)[0] for row in torch.eye(len(given), dtype=given.dtype, device=given.device)]
        return {name: torch.stack([row[name].flatten() for row in rows]) for name in constants}

    found: dict[str, Tensor] = vmap(gradients)(x.clone())  # into which some models write
    return found


def _in_turn(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor, readout: Readout
) -> dict[str, Tensor]:
    wanted = list(parameters.values())
    samples = []
    for sample in torch.split(x, 1):
        values = readout(as_outputs(model(sample.clone()), 1))[0]
        rows = [
            torch.autograd.grad(value, wanted, retain_graph=True, materialize_grads=True)
            if values.requires_grad
            else [torch.zeros_like(parameter) for parameter in wanted]
            for value in values
        ]
        samples.append([torch.stack([_dense(row[place]) for row in rows]) for place in range(len(wanted))])
    return {name: torch.stack(list(parts)) for name, parts in zip(parameters, zip(*samples, strict=True), strict=True)}


def _dense(gradient: Tensor) -> Tensor:
    return (gradient.to_dense() if gradient.is_sparse else gradient).flatten()
