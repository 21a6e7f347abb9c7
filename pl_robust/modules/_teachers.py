"""The teachers of a student: asked, averaged, and otherwise left alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from pl_robust._number import parse_number

Average: TypeAlias = Literal["probabilities", "logits"]


class Teachers:
    """Networks that answer without gradients, and the mean of what they say.

    No nn.Module, so that a student that holds them has neither their parameters nor their state. They stay in the eval
    mode that they must be given in.

    Args:
        teachers: a network, or a list or ModuleList of them; images [B, C, H, W] -> logits [B, num_classes].
        average: what the mean is taken of.
        weights: share of each in the mean, positive, of any sum; None gives all the same.
        num_classes: number of classes.

    Attributes:
        nets: the networks.

    Raises:
        TypeError: if a teacher is no nn.Module, or a weight no number.
        ValueError: if there is none, one is in training mode, or weights or ``average`` are not as described.
    """

    def __init__(
        self,
        teachers: nn.Module | Sequence[nn.Module],
        *,
        average: Average,
        weights: Sequence[float | str] | None,
        num_classes: int,
    ) -> None:
        is_several = isinstance(teachers, nn.ModuleList | list | tuple)
        self.nets: list[nn.Module] = list(teachers) if is_several else [teachers]  # type: ignore[arg-type, list-item]
        if not self.nets:
            raise ValueError("`teachers` must be at least one network, got none")
        for net in self.nets:
            if not isinstance(net, nn.Module):
                raise TypeError(
                    f"`teachers` must be an nn.Module or a list of them, got {type(net).__name__}"
                    + (" in the list" if is_several else "")
                )
        if average not in get_args(Average):
            raise ValueError(f"`average` must be one of {get_args(Average)}, got {average!r}")
        self.average = average
        self.num_classes = num_classes
        self._shares = torch.tensor(_shares(weights, len(self.nets)), dtype=torch.float32)[:, None]
        self._seen_finite = False
        self.check_mode()

    def check_mode(self) -> None:
        """Refuse teachers of which any part is in training mode; and look at their next answers closely.

        Raises:
            ValueError: naming the part.
        """
        self._seen_finite = False
        for index, net in enumerate(self.nets):
            for name, part in net.named_modules():
                if part.training:
                    where = f"its part {name!r}" if name else "it"
                    raise ValueError(
                        f"`teachers` must be in eval mode, with all their parts, and stay so: {where} is in training "
                        f"mode in teacher {index} ({type(net).__name__}); call its .eval(), or load it by Pretrained"
                    )

    def check_apart(self, student: nn.Module) -> None:
        """Refuse teachers that share parameters or buffers with the student, and so would learn with it.

        Raises:
            ValueError: saying what to do.
        """
        own = _addresses(student)
        for index, net in enumerate(self.nets):
            if not own.isdisjoint(_addresses(net)):
                raise ValueError(
                    f"`teachers` must not share parameters or buffers with `net`, and teacher {index} "
                    f"({type(net).__name__}) does: give copy.deepcopy(net).eval()"
                )

    def to(self, device: torch.device) -> None:
        """Move the networks and their weights in the mean."""
        self._shares = self._shares.to(device)
        for net in self.nets:
            net.to(device)

    def logits(self, x: Tensor) -> Tensor:
        """Ask each teacher.

        Under autocast the forwards take part in it; otherwise each works in the precision of its own parameters. Values
        are checked on every batch on the CPU, elsewhere on the first one after ``check_mode``.

        Args:
            x: float [B, ...], images [B, C, H, W].

        Returns:
            Their logits, float32 [B, T, K], detached.

        Raises:
            ValueError: if a teacher gives another shape, or NaN or infinity.
        """
        with torch.no_grad():
            answers = [net(_in_precision(x, net)) for net in self.nets]
        for index, (net, answer) in enumerate(zip(self.nets, answers, strict=True)):
            shape = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            if shape != [len(x), self.num_classes]:
                raise ValueError(
                    f"a teacher must give logits {[len(x), self.num_classes]} (`num_classes`), as the student does, "
                    f"got {shape} from teacher {index} ({type(net).__name__}): give one of the same classes"
                )
        logits = torch.stack([answer.detach().float() for answer in answers], 1)
        if x.device.type == "cpu" or not self._seen_finite:
            is_broken = ~logits.isfinite().flatten(2).all(2).all(0)
            if is_broken.any():
                culprits = is_broken.nonzero().flatten().tolist()
                raise ValueError(
                    f"teachers must give finite logits, got NaN or infinity from teacher {culprits} (counted from 0): "
                    "look at their weights, and at the range of the inputs"
                )
            self._seen_finite = len(x) > 0
        return logits

    def mix(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Average what the teachers say; the order of the teachers does not change a bit of it.

        Args:
            logits: float32 [B, T, K].
            temperature: what logits are divided by before the softmax, above 0.

        Returns:
            Log-probabilities of the mean, float32 [B, K].
        """
        if temperature != 1:
            logits = logits / temperature
        if len(self.nets) == 1:
            return F.log_softmax(logits[:, 0], dim=1)
        shares = self._shares.to(logits.device)
        if self.average == "logits":
            return F.log_softmax(_ordered(logits * shares).sum(1), dim=1)
        return torch.logsumexp(_ordered(F.log_softmax(logits, dim=2) + shares.log()), dim=1)


class Answers:
    """The teachers' answers to one batch, as a ``Distillation`` asks for them; asked about clean inputs once only.

    Args:
        teachers: who answers.
        stored: inputs -> logits [B, T, K] from a cache, for clean inputs; None asks the teachers themselves.
    """

    def __init__(self, teachers: Teachers, stored: Callable[[Tensor], Tensor] | None = None) -> None:
        self._teachers = teachers
        self._ask_clean = teachers.logits if stored is None else stored
        self._clean: Tensor | None = None

    def __call__(self, inputs: Tensor, temperature: float = 1.0, *, clean: bool) -> Tensor:
        """Give log-probabilities, float32 [B, K]. See ``losses.distillation.Teacher``."""
        if not clean:
            return self._teachers.mix(self._teachers.logits(inputs), temperature)
        if self._clean is None:
            self._clean = self._ask_clean(inputs)
        return self._teachers.mix(self._clean, temperature)


def _shares(weights: Sequence[float | str] | None, count: int) -> list[float]:
    """Divide weights by their sum."""
    if weights is None:
        return [1 / count] * count
    if not isinstance(weights, list | tuple):
        raise TypeError(f"`teacher_weights` must be a list of numbers, got {weights!r}")
    numbers = [parse_number(weight, "teacher_weights") for weight in weights]
    if len(numbers) != count:
        raise ValueError(f"`teacher_weights` must be one number for each of {count} teachers, got {list(weights)}")
    if not all(0 < number < math.inf for number in numbers):
        raise ValueError(
            f"`teacher_weights` must be finite and above 0, of any sum, got {list(weights)}; "
            "leave out a teacher that has no say"
        )
    return [number / math.fsum(numbers) for number in numbers]


def _addresses(net: nn.Module) -> set[int]:
    """Where the values are: ``load_state_dict(..., assign=True)`` makes other parameters of the same memory."""
    tensors = chain(net.parameters(), net.buffers())
    return {tensor.data_ptr() for tensor in tensors if not is_lazy(tensor)} - {0}  # 0: no memory, as of meta tensors


def _in_precision(x: Tensor, net: nn.Module) -> Tensor:
    """Inputs in the precision of a network; the Trainer's ``precision`` changes the student's, not the teachers'."""
    dtype = next((parameter.dtype for parameter in net.parameters() if parameter.is_floating_point()), x.dtype)
    return x.to(dtype)


def _ordered(values: Tensor) -> Tensor:
    """Sort the teachers' terms of each entry of [B, T, K]: sums depend on the order when there are more than two."""
    return values.sort(dim=1).values if values.shape[1] > 2 else values
