"""The Jacobian of a model in its parameters as an operator: products with it and its transpose, never itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from functools import reduce as fold
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import jvp

from pl_robust._call_with import call_with
from pl_robust.ntk._heads import Head
from pl_robust.ntk._model import as_outputs, plain, reads_hidden_parameters

Reduce: TypeAlias = Callable[[Tensor], Tensor]
"""Sums a tensor over the processes that share the samples; each calls it equally often and gets the same bits."""


def alone(tensor: Tensor) -> Tensor:
    """The reduction of a process that shares its samples with no other."""
    return tensor


class Jacobian:
    r"""J = d head(f(x)) / d theta at one process's samples.

    Only ``pull`` adds up over samples, so only it reduces: ``push(pull(v))`` is this process's rows of K v, with the K
    of the samples of all processes. Both want to be called inside ``derivatives(model)``.

    Args:
        model: the network, checked by ``check_model``.
        parameters: what ``check_model`` gave.
        inputs: this process's samples in chunks [n, ...]; none, if it has none.
        reduce: sums over processes.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        inputs: Sequence[Tensor],
        *,
        reduce: Reduce = alone,
    ) -> None:
        self.inputs = list(inputs)
        self._model = model
        self._parameters = dict(parameters)
        self.reduce = reduce
        self._has_forward_mode: bool | None = None  # not known yet
        self._sizes = [parameter.numel() for parameter in parameters.values()]
        dtypes = (parameter.dtype for parameter in parameters.values())
        self.dtype = fold(torch.promote_types, dtypes, torch.float32)
        """Of the flat vectors: the parameters', at least float32."""
        self.device = next(iter(parameters.values())).device

    def pull(self, vectors: Tensor | Sequence[Tensor], head: Head | None = None) -> Tensor:
        """Give Jᵀ v, one forward and one backward for each chunk.

        Args:
            vectors: this process's rows of v in the shape of the outputs [n, C] (or the head's), at once or by chunk.
            head: a function of the outputs; None takes all of them.

        Returns:
            A flat tensor [P], summed over processes, at least float32: the parameters one after the other.

        Raises:
            ValueError: if the model hides parameters inside an autograd function, or the head its outputs.
        """
        if isinstance(vectors, Tensor):
            vectors = torch.split(vectors, [len(x) for x in self.inputs]) if self.inputs else []
        parameters = list(self._parameters.values())
        total = self.zeros()
        parts = torch.split(total, self._sizes)
        for x, v in zip(self.inputs, vectors, strict=True):
            values = self._values(x, head)
            if not values.requires_grad:
                raise ValueError("`outputs` as a function must depend on the model's outputs through autograd")
            gradients = torch.autograd.grad(values, parameters, plain(v).to(values), materialize_grads=True)
            self._check_hidden()
            for part, gradient in zip(parts, gradients, strict=True):
                # Embeddings may give sparse ones; the zeros of torch 2.4 require gradients.
                part += (gradient.to_dense() if gradient.is_sparse else gradient).detach().reshape(-1).to(part)
        return self.reduce(total)

    def push(self, direction: Tensor, head: Head | None = None) -> Tensor:
        """Give J u at this process's samples, one forward in forward mode for each chunk.

        Where forward mode fails (recurrent kernels, autograd functions without ``jvp``, layers that write into their
        buffers, parameters that are held outside their layers), twice in reverse mode gives the same: the derivative of
        Jᵀ w in w, at twice to three times the cost.

        Args:
            direction: u, flat as ``pull`` gives it.
            head: a function of the outputs; None takes all of them.

        Returns:
            The rows [n, C] (or the head's), detached; [0] without samples.

        Raises:
            RuntimeError: if an operation has neither a forward mode nor a second backward.
        """
        tangents = {
            name: part.view(parameter.shape).to(parameter)
            for (name, parameter), part in zip(
                self._parameters.items(), torch.split(direction, self._sizes), strict=True
            )
        }
        rows = [self._push_chunk(x, tangents, head) for x in self.inputs]
        return torch.cat(rows) if rows else direction.new_zeros(0)

    def by_owner(self, direction: Tensor) -> dict[str, Tensor]:
        """Squared norms of a flat vector's parts, by the module that owns the parameters, as float64 scalars.

        Modules are named as ``named_modules`` does, so the model itself is ``""``; parametrized ones own the originals.
        """
        squares: dict[str, Tensor] = {}
        for name, part in zip(self._parameters, torch.split(direction, self._sizes), strict=True):
            path = name.rpartition(".")[0]
            owner = f".{path}.".partition(".parametrizations.")[0].strip(".")
            squares[owner] = squares.get(owner, 0.0) + squared_norm(part)
        return squares

    def zeros(self) -> Tensor:
        """A flat vector [P] of zeros."""
        return torch.zeros(sum(self._sizes), dtype=self.dtype, device=self.device)

    def _push_chunk(self, x: Tensor, tangents: dict[str, Tensor], head: Head | None) -> Tensor:
        if self._has_forward_mode is not False:
            primals = {name: parameter.detach() for name, parameter in self._parameters.items()}
            try:
                if self._has_forward_mode is None:
                    self._has_forward_mode = not reads_hidden_parameters(self._model, self._parameters, x[:1])
                if not self._has_forward_mode:
                    return self._push_in_reverse(x, list(tangents.values()), head)
                pushed: Tensor = jvp(partial(self._values, x, head), (primals,), (tangents,))[1]
                return pushed.detach()
            except RuntimeError:  # torch has several ways to say that something has no forward mode
                self._has_forward_mode = False
        return self._push_in_reverse(x, list(tangents.values()), head)

    def _push_in_reverse(self, x: Tensor, tangents: list[Tensor], head: Head | None) -> Tensor:
        values = self._values(x, head)
        # Jᵀ w is linear in w, so that any w would do; a random one tells below whether autograd has lost a part.
        noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        weights = noise.to(values).requires_grad_()
        failure = (
            "`model` holds an operation without forward mode, so its products with J take a second backward, and that "
            "{}; empirical_ntk, and ntk_alignment without cka, need neither"
        )
        try:
            gradients = torch.autograd.grad(
                values, list(self._parameters.values()), weights, create_graph=True, materialize_grads=True
            )
            used = [pair for pair in zip(gradients, tangents, strict=True) if pair[0].requires_grad]
            if not used:
                return torch.zeros_like(values)
            (rows,) = torch.autograd.grad([pair[0] for pair in used], weights, [pair[1] for pair in used])
        except RuntimeError as error:
            raise RuntimeError(failure.format(f"failed ({error})")) from error
        with torch.no_grad():
            difference = sum((pair[0] * pair[1]).sum() for pair in used) - (rows * weights).sum()
            allowed = torch.finfo(rows.dtype).eps ** 0.5 * rows.norm() * weights.norm()
        if bool(difference.abs() > allowed):
            raise RuntimeError(failure.format("misses a part: something in it can be differentiated only once"))
        return rows.detach()

    def _check_hidden(self) -> None:
        """Refuse parameters whose gradients went past autograd: ``derivatives`` has left no ``.grad`` behind."""
        hidden = [name for name, parameter in self._parameters.items() if parameter.grad is not None]
        for name in hidden:
            self._parameters[name].grad = None
        if hidden:
            raise ValueError(
                f"`model` uses its parameter {hidden[0]!r} inside an autograd function that runs a backward of its own "
                "(reversible nets, re-entrant checkpointing), which hides it from derivatives: call those layers "
                "plainly, or by torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            )

    def _values(self, x: Tensor, head: Head | None, parameters: dict[str, Tensor] | None = None) -> Tensor:
        x = plain(x)
        given = self._model(x) if parameters is None else call_with(self._model, parameters, x)
        outputs = as_outputs(given, len(x))
        return outputs if head is None else head(outputs)


def squared_norm(tensor: Tensor) -> Tensor:
    """Sum of squares, added up in float64."""
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return norm.square()
