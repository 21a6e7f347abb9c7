"""What a regularizer of adversarial training is: another loss of the same network, attack and batch."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from pl_robust.attacks import Attack


class Regularizer(ABC):
    """Base class of the regularizers, and the type under which configurations name them.

    A regularizer decides how the attack is run and what is made of its result: ``AdversarialTraining`` calls it in
    place of its own "attack, then cross-entropy on the adversarial examples".
    """

    @abstractmethod
    def __call__(self, net: nn.Module, attack: Attack, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the training loss of a batch.

        Args:
            net: the bare network, in training mode.
            attack: the training attack.
            x: clean inputs, float [B, ...], images [B, C, H, W].
            y: labels, int64 [B].

        Returns:
            The loss, a scalar averaged over the batch, regularization included; and the logits [B, K] of the
            adversarial examples.
        """

    def check(self, attack: Attack) -> None:  # noqa: B027  # most have nothing to ask
        """Refuse an attack that this cannot work with, as soon as it is known.

        Raises:
            ValueError: saying what the attack should be like.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"
