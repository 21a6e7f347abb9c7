"""Meta-learning as pure functions: some steps of gradient descent on each signal, and the losses of two methods."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from pl_robust._call_with import call_with

# Points of all tasks that are adapted at once where no graph is kept: 64 MiB for each layer of width 256.
_POINTS_AT_ONCE = 2**16


def inner_loop(
    net: nn.Module, coordinates: Tensor, values: Tensor, *, steps: int, lr: float, chunked: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    r"""Descend from the network's parameters on the mean squared error of each signal.

    :math:`\theta_{k+1} = \theta_k - lr\, \nabla \frac{1}{Nc} \|f_{\theta_k}(x) - y\|^2` from the same
    :math:`\theta_0` for all signals, which do not see each other. Only parameters with ``requires_grad`` move. Nothing
    of the network is changed. With grad enabled, the result can be differentiated with respect to :math:`\theta_0`,
    the inner gradients included.

    Args:
        net: coordinates [N, d] -> values [N, c].
        coordinates: float [N, d], shared by all signals.
        values: float [B, N, c].
        steps: number of steps, 0 or more.
        lr: learning rate of each.
        chunked: whether to bound the memory by taking the signals in groups. The graph of all of them, where one is
            recorded, is kept none the less.

    Returns:
        How far each parameter has gone down, name -> :math:`\theta_0 - \theta_K` [B, ...], summed up from the steps and
        so free of cancellation; and the mean squared errors before the first step, after it ... after the last,
        [steps + 1, B].

    Raises:
        ValueError: if the network gives values of another shape.
    """
    start: dict[str, Tensor] = {name: value for name, value in net.named_parameters() if value.requires_grad}

    def squared_error(parameters: dict[str, Tensor], target: Tensor) -> Tensor:
        prediction: Tensor = call_with(net, parameters, coordinates)
        if prediction.shape != target.shape:
            raise ValueError(
                f"`net` must give {target.shape[-1]} values, the channels of the images, at each of the "
                f"{len(coordinates)} points: {list(target.shape)}, got {list(prediction.shape)}; set its out_features, "
                "or make the images gray"
            )
        return (prediction - target).square().mean()

    def descend(target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        # The first step's forward pass does not depend on the target, so vmap makes one of it for all signals.
        parameters, errors = start, []
        descent = {name: torch.zeros_like(parameter) for name, parameter in start.items()}
        for _ in range(steps):
            gradients, error = grad_and_value(squared_error)(parameters, target)
            errors.append(error)
            descent = {name: descent[name] + lr * gradients[name] for name in start}
            parameters = {name: start[name] - descent[name] for name in start}
        return descent, torch.stack([*errors, squared_error(parameters, target)])

    chunk_size = max(1, _POINTS_AT_ONCE // len(coordinates)) if chunked else None
    results: tuple[dict[str, Tensor], Tensor] = vmap(
        descend, out_dims=(0, 1), randomness="different", chunk_size=chunk_size
    )(values)
    return results


def check_steps(steps: object, name: str) -> int:
    """Refuse what is no number of inner steps, 0 or more."""
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"`{name}` must be an integer, got {steps!r}")
    if steps < 0:
        raise ValueError(f"`{name}` must be at least 0, got {steps}")
    return steps


def maml_loss(net: nn.Module, coordinates: Tensor, values: Tensor, *, steps: int, lr: float) -> tuple[Tensor, Tensor]:
    """The signals' mean error after the inner steps; its gradient goes through them (Finn, Abbeel, Levine 2017).

    Args:
        net: as for ``inner_loop``, as are the others.
        coordinates: float [N, d].
        values: float [B, N, c].
        steps: of the inner loop.
        lr: of the inner loop.

    Returns:
        The loss, and the mean squared error of each signal after the steps [B], without graph.
    """
    _, errors = inner_loop(net, coordinates, values, steps=steps, lr=lr)
    return errors[-1].mean(), errors[-1].detach()


def reptile_loss(
    net: nn.Module, coordinates: Tensor, values: Tensor, *, steps: int, lr: float
) -> tuple[Tensor, Tensor]:
    r"""The same error, with :math:`\frac1B \sum_i (\theta - \theta_K^i)` for its gradient (Nichol et al. 2018).

    Arguments and results are those of ``maml_loss``.
    """
    with torch.no_grad():
        descent, errors = inner_loop(net, coordinates, values, steps=steps, lr=lr, chunked=True)
    # Linear in the parameters, with this gradient; less itself, so that the loss keeps its value.
    pull = torch.stack([(net.get_parameter(name) * moved.mean(0)).sum() for name, moved in descent.items()]).sum()
    return errors[-1].mean() + (pull - pull.detach()), errors[-1]
