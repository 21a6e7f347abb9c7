"""What an objective of adversarial distillation is: a loss of student, teacher, attack and batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from pl_robust.attacks import Attack


class Progress(NamedTuple):
    """How far a run has come, for what changes in its course.

    Attributes:
        epoch: the current epoch, from 0.
        epochs: how many the run has in all; None if nothing says (a run of so many steps, or without an end).
    """

    epoch: int
    epochs: int | None = None


class Teacher(Protocol):
    """What a ``Distillation`` asks for soft labels; an ensemble has averaged its members' answers already."""

    def __call__(self, inputs: Tensor, temperature: float = 1.0, *, clean: bool) -> Tensor:
        """Answer a batch, in eval mode and without gradients.

        Args:
            inputs: float [B, ...], images [B, C, H, W].
            temperature: what the logits are divided by before the softmax, above 0.
            clean: whether ``inputs`` are the batch as it was loaded, so that a stored answer will do.

        Returns:
            Log-probabilities at that temperature, float32 [B, K], detached.
        """


class Distillation(ABC):
    """Base class of the objectives of adversarial distillation, and the type under which configurations name them.

    A distillation decides how the attack is run, what the teacher is asked, and what is made of both: ``AKDStudent``
    calls it for each training batch. It holds no state, so that nothing of it has to be saved.
    """

    @abstractmethod
    def __call__(
        self, net: nn.Module, teacher: Teacher, attack: Attack, x: Tensor, y: Tensor, *, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """Compute the training loss of a batch.

        Args:
            net: the bare student, in training mode.
            teacher: gives log-probabilities, without gradients.
            attack: the training attack, run against the student.
            x: clean inputs, float [B, ...], images [B, C, H, W].
            y: labels, int64 [B].
            progress: where in the run this batch is.

        Returns:
            The loss, a scalar; and the student's logits [B, K] of the adversarial examples.
        """

    @property
    @abstractmethod
    def clean_teacher(self) -> bool:
        """Whether the teacher is asked about clean inputs only, so that its answers can be stored."""

    def check(self, attack: Attack) -> None:  # noqa: B027  # most have nothing to ask
        """Refuse an attack that this cannot work with, as soon as it is known.

        Raises:
            ValueError: saying what the attack should be like.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"
