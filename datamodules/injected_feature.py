"""Data with a feature injected into it that a linear classifier could read: x + beta * V[y].

Ortiz-Jimenez, de Jorge, Sanyal, Bibi, Dokania, Frossard, Rogez, Torr, "Catastrophic overfitting can be induced with
discriminative non-robust features", TMLR 2023, https://arxiv.org/abs/2206.08242.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor

from pl_robust._dataloaders import flatten_loaders
from pl_robust._lightning import LightningDataModule, is_before, unsavable
from pl_robust._number import parse_number
from pl_robust.datamodules._injection import InjectedSet, Injection, Mode, check_shuffled
from pl_robust.datamodules._wrapper import DataModuleWrapper

TestSet: TypeAlias = Literal["clean", "injected", "carrier_only", "shuffled_carrier"]


class InjectedFeatureDataModule(DataModuleWrapper):
    """Another datamodule's data, with one carrier per class added to the images: ``x + beta * V[y]``.

    All splits are injected, as in the paper, after everything the base does to a sample. The result is NOT clipped: it
    leaves [0, 1] by up to ``beta``. An attack that clips to [0, 1] would take part of the carrier away and exceed its
    own eps; give it ``bounds=None``, or ``(-beta, 1 + beta)``.

    With ``mode="orthogonal"`` the carrier is all that an image has in the span of the carriers: x is first projected on
    its orthogonal complement, with the inner product over channels and pixels. That removes as many dimensions as the
    carriers have rank, five for the published ten; the released code removes ten.

    What a network uses shows on four test sets: ``clean``, the base's images untouched; ``injected``, as ``mode`` says;
    ``carrier_only``, the carrier on a zero image; ``shuffled_carrier``, injected, but with the carrier of another class
    while the label stays. Which one is drawn by a hash of the image, and hence always the same.

    The base keeps its own say: its loaders, hooks and state are used as they are, it sees the same trainer, and a
    loader it does not have stays missing. Its loaders are copied, not changed.

    Args:
        base: the datamodule to inject into; its loaders must be torch DataLoaders (alone, or in lists and dicts).
        beta: strength of the feature, in the units of the images: a number or a fraction such as ``"8/255"``. 0 leaves
            every bit as it is (with ``mode="orthogonal"``: projects only); a negative one injects the opposite
            carriers.
        carriers: V, float [num_classes, 1 or C, H, W]; ``None``: ``dct_carrier(num_classes, (H, W))``.
        num_classes: number of carriers; ``None``: that of ``carriers``, or the base's ``num_classes``.
        input_key: where a batch has its images: position in a sequence, key in a dict.
        label_key: where a batch has its labels, likewise.
        mode: ``add``: x + beta V[y]; ``orthogonal``: x without its component in the span of the carriers, + beta V[y];
            ``reverse``: x - beta V[y].
        test_sets: what ``test_dataloader`` gives. The default is the base's own test loaders, injected. Any other
            choice is a dict with one loader for each name, over the base's one test loader (under Lightning 1, which
            takes no dict, a list in this order).

    Raises:
        TypeError: if ``base`` is no datamodule; later, if a loader is no torch DataLoader, the images are not float
            [B, C, H, W] or the labels not integer [B].
        ValueError: if ``beta`` is not a finite number, ``carriers`` are not 4-D and finite or contradict
            ``num_classes``, ``mode`` or ``test_sets`` is none of the above, or one class is to be shuffled; later, if
            labels are out of range, carriers do not fit the images, or the base has several test loaders for
            ``test_sets``.
    """

    _way_out = "inject inside its data set instead: x + beta * dct_carrier(num_classes, (H, W))[y]"

    def __init__(
        self,
        base: LightningDataModule,
        beta: float | str,
        carriers: Tensor | None = None,
        num_classes: int | None = None,
        input_key: int | str = 0,
        label_key: int | str = 1,
        mode: Mode = "add",
        test_sets: Sequence[TestSet] = ("injected",),
    ) -> None:
        super().__init__(base)
        self.save_hyperparameters(ignore=unsavable(base=base, carriers=carriers), logger=False)
        self._beta = parse_number(beta, "beta")
        if not math.isfinite(self._beta):
            raise ValueError(f"`beta` must be finite, got {beta!r}")
        if carriers is not None and (carriers.ndim != 4 or not len(carriers)):
            raise ValueError(f"`carriers` must be [num_classes, 1 or C, H, W], got shape {list(carriers.shape)}")
        if carriers is not None and not carriers.isfinite().all():
            raise ValueError("`carriers` must be finite, got NaN or infinity among them")
        if carriers is not None and num_classes not in (None, len(carriers)):
            raise ValueError(f"`num_classes` must be the number of `carriers`, {len(carriers)}, got {num_classes}")
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"`num_classes` must be a positive integer, got {num_classes!r}")
        if mode not in get_args(Mode):
            raise ValueError(f"`mode` must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        _check_test_sets(test_sets)
        self._carriers = carriers
        self._num_classes = num_classes if carriers is None else len(carriers)
        self._mode = mode
        self._test_sets = tuple(test_sets)
        self._keys = (input_key, label_key)
        if "shuffled_carrier" in test_sets:
            # A base that cannot tell yet, or whose files are still to come, is asked again with the loaders.
            with suppress(AttributeError, OSError):
                check_shuffled(self.num_classes)

    @property
    def num_classes(self) -> int:
        """Number of classes: the argument, else the number of carriers, else the base's."""
        number = getattr(self.base, "num_classes", None) if self._num_classes is None else self._num_classes
        if number is None:
            raise AttributeError(f"{type(self.base).__name__} does not tell `num_classes`: give `num_classes=` as well")
        return int(number)

    def test_dataloader(self) -> Any:
        """The test sets asked for, by name; the base's own structure, injected, if that is only ``injected``."""
        if self._test_sets == ("injected",):
            return super().test_dataloader()
        loaders = flatten_loaders(self.base.test_dataloader())
        if len(loaders) != 1:
            raise ValueError(
                f"`test_sets`={list(self._test_sets)} needs a base with one test loader, "
                f"{type(self.base).__name__} gives {len(loaders)}; the default test_sets=['injected'] takes them all"
            )
        (loader,) = loaders
        sets = {
            name: loader if name == "clean" else self._wrap(loader, self._transform(name)) for name in self._test_sets
        }
        # Lightning 1 would iterate over the names.
        return list(sets.values()) if is_before("2.0") else sets

    def _transform(self, which: InjectedSet = "injected") -> Injection:
        return Injection(self._beta, self.num_classes, self._carriers, self._mode, which, *self._keys)


def _check_test_sets(given: Sequence[str]) -> None:
    allowed = get_args(TestSet)
    is_list = isinstance(given, Sequence) and not isinstance(given, str)
    if not is_list or not given or any(name not in allowed or given.count(name) > 1 for name in given):
        raise ValueError(f"`test_sets` must be a list of {', '.join(allowed)}, each at most once, got {given!r}")
