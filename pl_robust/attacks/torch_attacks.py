"""The attacks of the package torchattacks, AutoAttack first, as evaluation attacks beside ours."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from pl_robust._number import parse_number
from pl_robust.attacks._input_gradient_model import InputGradientModel, seeded
from pl_robust.attacks._target import BatchNormMode, Loss, Model, Normalization, Target
from pl_robust.attacks._threat_model import Norm, Radius
from pl_robust.attacks.attack import Attack

_RADIUS = ("eps", "max_epsilon")  # what torchattacks calls it
_OURS = ("model", *_RADIUS, "norm")


class TorchAttacks(Attack):
    """Any attack of the package torchattacks (``pip install "pl_robust[attacks]"``), AutoAttack among them.

    ``TorchAttacks("AutoAttack", eps="8/255")`` in ``AdversarialTraining(eval_attacks=...)`` logs the accuracy under
    AutoAttack. Attacks that look for the smallest perturbation (CW, DeepFool) or change a few pixels (OnePixel, JSMA)
    take no eps, and their result may lie outside the ball: a sample whose perturbation leaves it by more than rounding,
    or is NaN, counts as a failed attack and is given back clean. ``TorchAttacks("CW", eps=0.5, norm="l2")`` so measures
    the robustness against CW at radius 0.5.

    torchattacks' AutoAttack takes 10 steps in APGD and FAB, where the reference code takes 100; for more, name them one
    by one: ``TorchAttacks("APGDT", eps="8/255", arguments={"steps": 100})``.

    All randomness, torchattacks' ``seed`` too, comes from one number drawn from the generator; nothing follows the
    clock. Other than in torchattacks alone, the net keeps the modes it comes in: attack it in eval mode, as
    AdversarialTraining's validation does.

    Args:
        name: the attack's class in torchattacks: ``"AutoAttack"``, ``"APGD"``, ``"Square"``, ``"CW"``, ``"PGDL2"`` …
        eps: radius in input units, 8/255 for images in [0, 1]; a float or ``"8/255"``.
        arguments: what else the class takes, by name: ``{"alpha": "2/255", "steps": 50}``; None as a value means not
            given. Lengths are for images in [0, 1], whatever the bounds. torchattacks' own steps (alpha=2/255) suit eps
            8/255: give yours with another eps. ``n_classes``, where taken, is the number of logits unless given; fewer
            make AutoAttack try fewer target classes.
        norm: ``"linf"`` or ``"l2"``.
        bounds: lowest and highest valid input value; torchattacks sees this box as [0, 1].
        normalization: (mean, std) per channel of already normalized data.
        batch_norm: ``"train"``, ``"eval"`` or ``"batch_stats"``: see ``Attack``.

    Raises:
        ModuleNotFoundError: at construction, if torchattacks is not installed.
        ValueError: at construction, for a name or argument that torchattacks has not, a norm that the attack does not
            work in, an eps per channel, or ``bounds=None``; in a call, for images or a number of classes that the
            attack cannot work on.
        TypeError: in a call, for a ``loss`` or ``targets``: these attacks have their own.
    """

    def __init__(
        self,
        name: str,
        eps: Radius,
        *,
        arguments: dict[str, Any] | None = None,
        norm: Norm = "linf",
        bounds: tuple[float, float] | None = (0.0, 1.0),
        normalization: Normalization | None = None,
        batch_norm: BatchNormMode = "train",
    ) -> None:
        super().__init__(eps, norm=norm, bounds=bounds, normalization=normalization, batch_norm=batch_norm)
        if isinstance(self.eps, Tensor):
            raise ValueError(f"`eps` must be one number for torchattacks, got one per channel: {self.eps.tolist()}")
        if bounds is None:
            raise ValueError(
                "`bounds` must be (low, high), because torchattacks clips to a box, got None: give the box that holds "
                "your data, (-beta, 1 + beta) for images with a feature of strength beta injected"
            )
        self._low, self._width = bounds[0], bounds[1] - bounds[0]
        self.name = name
        self.arguments = _read_arguments(name, norm, arguments)
        try:  # now, not on the first batch
            self._build(InputGradientModel(nn.Identity(), torch.device("cpu")), seed=0, classes=10)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"torchattacks' {name} refuses `arguments`={arguments!r}: {error}") from error

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        *,
        loss: Loss | None = None,
        targets: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Perturb a batch, as ``Attack`` describes; ``loss`` and ``targets`` are not for these attacks."""
        if loss is not None or targets is not None:
            raise TypeError(
                "TorchAttacks takes no `loss` and no `targets`, the attacks of torchattacks have their own, "
                f"got loss={loss!r}: take PGD to ascend a loss of yours"
            )
        return super().__call__(model, x, y, generator=generator)

    def _perturb(self, target: Target, generator: torch.Generator | None) -> Tensor:
        device = "cpu" if generator is None else generator.device
        seed = int(torch.randint(2**32, (), generator=generator, device=device))
        x = target.x
        if len(x) == 0:
            return x
        with torch.no_grad():
            logits, _ = target.evaluate(x)
        classes = logits.shape[1]
        self._check_fit(x, classes)

        def give_logits(images: Tensor) -> Tensor:
            # Parts or multiples of the batch, of which torchattacks does not say which samples they are: label 0's.
            rows = target.y.new_zeros(len(images))
            return target.evaluate(images * self._width + self._low, rows)[0].float()

        model = InputGradientModel(give_logits, x.device)
        try:
            with seeded(seed):
                images = ((x - self._low) / self._width).float()
                images_adv: Tensor = self._build(model, seed, classes)(images, target.y)
        except torch.cuda.OutOfMemoryError:
            raise
        except (AssertionError, IndexError, RuntimeError, ZeroDivisionError) as error:
            # Some attacks want three channels, square or larger images; the model itself has answered above.
            raise ValueError(
                f"torchattacks' {self.name} with arguments={self.arguments} fails on images {list(x.shape[1:])} "
                f"({type(error).__name__}: {error}): take another attack or other arguments"
            ) from error
        finally:
            # torchattacks' objects hang in reference cycles: without this, the batch would wait for the collector.
            model.give_logits = nn.Identity()
        return self._keep_to_ball(images_adv.detach().to(x.dtype) * self._width + self._low, x)

    def _build(self, model: nn.Module, seed: int, classes: int) -> Any:
        """Make torchattacks' object."""
        eps = float(self.eps) / self._width
        ours = {**dict.fromkeys(_RADIUS, eps), "norm": self.norm.capitalize(), "seed": seed, "n_classes": classes}
        constructor = _constructors()[self.name]
        taken = signature(constructor).parameters
        return constructor(model, **{key: ours[key] for key in ours if key in taken} | self.arguments)

    def _check_fit(self, x: Tensor, classes: int) -> None:
        if x.dim() != 4:
            raise ValueError(f"torchattacks takes images [B, C, H, W], got `x` of shape {list(x.shape)}: take PGD")
        least = _least_classes(self.name, self.arguments)
        if classes < least:
            raise ValueError(
                f"torchattacks' {self.name} with arguments={self.arguments} needs a model of at least {least} classes, "
                f"got {classes}: APGD, FAB and Square, alone and with their default loss, take any"
            )
        if self.arguments.get("n_classes", classes) > classes:
            raise ValueError(
                f"`n_classes` must be at most {classes}, the number of logits, got {self.arguments['n_classes']}"
            )

    def _keep_to_ball(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Undo what rounding did, and give the clean image where the perturbation left the ball or is NaN."""
        eps = float(self.eps)
        slack = 4 * torch.finfo(torch.float32).eps * max(1.0, abs(self._low), abs(self._low + self._width))
        delta = (x_adv - x).flatten(1)
        if self.norm == "linf":
            size = delta.abs().amax(1)
            # Not x + delta: what lies inside shall keep its bits.
            nearest = x_adv.clamp(x - eps, x + eps)
        else:
            size = torch.linalg.vector_norm(delta, dim=1)
            slack *= delta.shape[1] ** 0.5
            nearest = torch.where((size > eps).view(-1, 1, 1, 1), self.ball.project(x_adv, x), x_adv)
        return torch.where((size <= eps + slack).view(-1, 1, 1, 1), self.ball.clip(nearest), x)


def _constructors() -> dict[str, Any]:
    """The attack classes of torchattacks that need no more than a model (LGV and MultiAttack do), by name."""
    try:
        package = import_module("torchattacks")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'TorchAttacks needs the package torchattacks: pip install "pl_robust[attacks]" ({error})'
        ) from error
    classes = {name: getattr(package, name) for name in package.__all__}
    return {
        name: constructor
        for name, constructor in classes.items()
        if [key for key, part in signature(constructor).parameters.items() if part.default is part.empty] == ["model"]
    }


def _read_arguments(name: str, norm: Norm, arguments: dict[str, Any] | None) -> dict[str, Any]:
    """Check what is to be passed on to torchattacks' constructor, with fractions made numbers.

    Raises:
        ValueError: if there is no such attack, it does not work in this norm, or it takes no such argument.
    """
    constructors = _constructors()
    if name not in constructors:
        lower = {known.lower(): known for known in constructors}
        close = [lower[match] for match in get_close_matches(str(name).lower(), lower)]
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(f"`name` must be an attack of torchattacks, got {name!r}: {hint}It has {sorted(constructors)}")
    taken = list(signature(constructors[name]).parameters)
    own = "l2" if name.endswith("L2") else "linf"
    if "norm" not in taken and any(key in taken for key in _RADIUS) and norm != own:
        raise ValueError(
            f"torchattacks' {name} works in norm={own!r} only, got norm={norm!r}: AutoAttack, APGD, FAB and Square "
            "work in both"
        )
    free = [key for key in taken if key not in _OURS]
    for key in arguments or {}:
        if key not in free:
            raise ValueError(
                f"`arguments` for torchattacks' {name} may hold {free}, got {key!r}; model, eps and norm come from "
                "TorchAttacks itself"
            )
    return {
        key: parse_number(value, key) if isinstance(value, str) and "/" in value else value
        for key, value in (arguments or {}).items()
        if value is not None
    }


def _least_classes(name: str, arguments: dict[str, Any]) -> int:
    if name == "JSMA":
        return 10  # its target is (label + 1) % 10
    if name == "APGDT" or (name == "AutoAttack" and arguments.get("version") != "rand"):
        return 4  # the targeted DLR loss looks at the fourth largest logit
    if name == "AutoAttack" or arguments.get("loss") == "dlr":
        return 3  # DLR looks at the third
    return 2
