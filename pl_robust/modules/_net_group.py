"""Several independent networks of one architecture, side by side."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from pl_robust.modules._batched_linear import BatchedLinear
from pl_robust.modules._part_by_part import errors_part_by_part, mean_squared_errors

_CACHE = 16 * 2**20  # bytes of activations of the networks in one pass on a CPU: beyond, they are fetched from memory
_WORTHWHILE = 4  # networks: fewer in one pass gain less than a pass over stacked parameters costs
_GPU_SHARE = 3  # of the device's memory, for the activations; the backward pass needs as much again
_FEW, _MORE = 32, 64  # points


class NetGroup(nn.Module):
    """S networks with parameters of their own, stacked [S, ...] under the network's names.

    All see the same inputs. They run in passes over some of them: as many as their activations' size makes fast, and
    forward and backward pass of one part come before the next part's, so that no more is held at a time.

    Args:
        net: the architecture; it is copied.
        count: S.
        shared_init: whether all start with the parameters of ``net``, rather than draws of its ``reset_parameters()``.
        at_once: networks in one pass; ``None``: chosen by the device and the size of the activations.

    Raises:
        ValueError: if ``net`` cannot draw its parameters, or has batch-norm layers.
    """

    def __init__(self, net: nn.Module, count: int, shared_init: bool = False, at_once: int | None = None) -> None:
        super().__init__()
        name = type(net).__name__
        if any(isinstance(part, _BatchNorm) for part in net.modules()):
            raise ValueError(
                f"networks with batch norm cannot be stacked, got {name}: fit one signal at a time, num_signals=1"
            )
        template = copy.deepcopy(net)
        draws = [template] * count
        if not shared_init:
            draw: Any = getattr(template, "reset_parameters", None)
            if not callable(draw):
                raise ValueError(
                    f"`net` must have a method `reset_parameters()` that draws its initialization, once for each of "
                    f"the {count} signals, got {name} without; or start all from the same values with shared_init=True"
                )
            draws = [copy.deepcopy(template) for _ in range(count)]
            for one in draws:
                one.reset_parameters()  # type: ignore[operator]
        self.count = count
        self.at_once = at_once
        self.stacked = copy.deepcopy(template)
        _replace(self.stacked, draws)
        self._template = (template,)  # in a tuple: its parameters are none of the group's
        self._bytes_per_point: float | None = None
        # Each place of a tensor, and the name it goes by: torch's own handling of tied tensors does not restore a
        # module that stands in two places.
        tensors = (*self.stacked.named_parameters(), *self.stacked.named_buffers())
        names = {id(tensor): name for name, tensor in tensors}
        self._places = {
            f"{path}.{name}" if path else name: names[id(tensor)]
            for path, part in self.stacked.named_modules()
            for name, tensor in (*part._parameters.items(), *part._buffers.items())
            if tensor is not None
        }

    @property
    def template(self) -> nn.Module:
        """The architecture; its values are nobody's."""
        return self._template[0]

    def forward(self, x: Tensor) -> Tensor:
        """Map coordinates [N, d] to the values [S, N, c] of all networks."""
        parameters = dict(self.stacked.named_parameters())
        return torch.cat([self._run(parameters, part, x) for part in self._parts(x)])

    def errors(self, x: Tensor, values: Tensor) -> Tensor:
        """Mean squared error of each network: [S], with a gradient.

        Args:
            x: coordinates [N, d].
            values: targets [S, N, c].
        """
        parts = list(self._parts(x))
        if len(parts) == 1 or not torch.is_grad_enabled():
            parameters = dict(self.stacked.named_parameters())
            return torch.cat([mean_squared_errors(self._run(parameters, part, x), values[part]) for part in parts])
        trained = {name: one for name, one in self.stacked.named_parameters() if one.requires_grad}
        tensors = (*self.stacked.named_parameters(), *self.stacked.named_buffers())
        fixed: dict[str, Tensor] = {name: one for name, one in tensors if not one.requires_grad}
        return errors_part_by_part(self._outputs, parts, trained, fixed, x, values)

    def passes(self, x: Tensor) -> int:
        """Number of passes over coordinates [N, d]."""
        return len(list(self._parts(x)))

    def net_of(self, index: int) -> nn.Module:
        """A copy of one network, as a module of its own."""
        net = copy.deepcopy(self.template)
        source = {**dict(self.stacked.named_parameters()), **dict(self.stacked.named_buffers())}
        with torch.no_grad():
            for name, tensor in (*net.named_parameters(), *net.named_buffers()):
                tensor.data = source[name][index].detach().clone()
        return net

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{self.count} networks"

    def _run(self, parameters: Mapping[str, Tensor], part: slice, x: Tensor) -> Tensor:
        """Outputs [g, N, c] of a part of the networks; of ``parameters``, those of all are given."""
        tensors = {**parameters, **dict(self.stacked.named_buffers())}
        if part != slice(0, self.count):
            tensors = {name: tensor[part] for name, tensor in tensors.items()}
        return self._outputs(tensors, x)

    def _outputs(self, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        """Outputs [g, N, c] of the g networks that the tensors belong to."""
        size = len(next(iter(tensors.values())))
        if size == 1:  # as it runs alone
            return self._call({name: one[0] for name, one in tensors.items()}, x)[None]
        with BatchedLinear():
            # Expanded, because vmap makes less handy products of what the networks share.
            outputs: Tensor = torch.vmap(self._call, randomness="different")(tensors, x.expand(size, *x.shape))
        return outputs

    def _call(self, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        placed = {place: tensors[name] for place, name in self._places.items()}
        # The flags are those of the registered networks, which whoever switches modes reaches.
        for layer, registered in zip(self.template.modules(), self.stacked.modules(), strict=True):
            layer.training = registered.training
        output: Tensor = functional_call(self.template, placed, (x,), tie_weights=False)
        return output

    def _parts(self, x: Tensor) -> Iterator[slice]:
        """Which networks go into each pass."""
        size = self.at_once
        if size is None and torch.compiler.is_compiling():
            size = self.count  # a compiler makes its own loops, and cannot look at what is kept
        elif size is None:
            needed = max(1.0, self._measure(x) * len(x))
            if x.device.type == "cuda":
                size = int(torch.cuda.get_device_properties(x.device).total_memory / _GPU_SHARE / needed)
            else:
                size = int(_CACHE / needed)
                size = size if size >= _WORTHWHILE else 1
        passes = -(-self.count // min(self.count, max(1, size)))
        bounds = [self.count * index // passes for index in range(passes + 1)]  # passes of about one size
        return (slice(start, stop) for start, stop in pairwise(bounds))

    def _measure(self, x: Tensor) -> float:
        """Bytes that one network keeps for its backward pass, for each point."""
        if self._bytes_per_point is None:
            few, more = (self._kept(x[:1].detach().expand(points, -1).clone()) for points in (_FEW, _MORE))
            self._bytes_per_point = max(0.0, (more - few) / (_MORE - _FEW))
        return self._bytes_per_point

    def _kept(self, x: Tensor) -> int:
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(x.device.type, enabled=False),  # the same whoever asks first, an observer or a training step
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            output = self.net_of(0).eval()(x.clone())  # in eval mode, which draws no random numbers
        del output
        return sum(kept.values())


def clip_each_norm(parameters: Iterable[Tensor], largest: float) -> None:
    """Clip the norm of each network's gradient, in place.

    Args:
        parameters: stacked ones [S, ...].
        largest: norm allowed.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    squares = [gradient.flatten(1).square().sum(1) for gradient in gradients]
    factor = (largest / (torch.stack(squares).sum(0).sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient *= factor.view(-1, *[1] * (gradient.ndim - 1))


def _replace(stacked: nn.Module, draws: list[nn.Module]) -> None:
    """Put the stacked parameters and buffers of all draws in the place of one's; tied ones stay tied."""
    made: dict[int, Tensor] = {}
    replaced: list[Tensor] = []  # kept, or another could get the id of one
    modules = [dict(one.named_modules(remove_duplicate=False)) for one in draws]
    for path, part in list(stacked.named_modules()):
        for kind in ("_parameters", "_buffers"):
            own: dict[str, Any] = getattr(part, kind)
            for name, tensor in own.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    whole = torch.stack([getattr(one[path], kind)[name].detach() for one in modules])
                    is_parameter = kind == "_parameters"
                    made[id(tensor)] = (
                        nn.Parameter(whole, requires_grad=tensor.requires_grad) if is_parameter else whole
                    )
                    replaced.append(tensor)
                own[name] = made[id(tensor)]
