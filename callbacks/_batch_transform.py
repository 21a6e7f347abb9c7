"""Change the training batches from a callback, for which Lightning has no hook: behind the batch's transfer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any, TypeAlias

from pl_robust._lightning import Trainer

BatchTransform: TypeAlias = Callable[[Any], Any]

_HOOK = "on_after_batch_transfer"


def add_batch_transform(trainer: Trainer, transform: BatchTransform) -> Callable[[], None]:
    """Call ``transform`` on each batch that is trained on, and on no other, once it is on its device.

    It is called after the ``on_after_batch_transfer`` of the module, or of the datamodule if that has one, and after
    the transforms added before; outside autocast. All that tells of it is an attribute of that name on the one whose
    hook it is. Copies of that one, by ``copy.deepcopy`` or pickle, come without the transforms.

    Args:
        trainer: one that is in ``fit``, from the callbacks' ``setup`` on.
        transform: batch -> the batch to train on; it leaves the one it is given as it is.

    Returns:
        What takes the transform away; calling it twice does no harm.
    """

    def in_training(batch: Any) -> Any:
        return transform(batch) if trainer.training else batch  # else: sanity check, validation

    # Lightning's own judge of whose hook is called; it is asked again for each batch.
    selector: Any = trainer._data_connector._datahook_selector
    owner = selector.get_instance(_HOOK)
    hook = vars(owner).get(_HOOK)
    if not isinstance(hook, _TransformingHook):
        hook = _TransformingHook(owner)
        setattr(owner, _HOOK, hook)
    hook.transforms.append(in_training)
    return partial(_remove, owner, hook, in_training)


class _TransformingHook:
    """An instance's own ``on_after_batch_transfer``, then the transforms in the order in which they were added."""

    __wrapped__: Callable[..., Any]

    def __init__(self, owner: Any) -> None:
        # As functools.wraps does: Lightning looks through it when it asks whether the user overrides the hook.
        update_wrapper(self, getattr(owner, _HOOK))
        self.replaced = {name: value for name, value in vars(owner).items() if name == _HOOK}
        self.transforms: list[BatchTransform] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        batch = self.__wrapped__(*args, **kwargs)
        for transform in self.transforms:
            batch = transform(batch)
        return batch

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.__wrapped__,)


def _itself(hook: Callable[..., Any]) -> Callable[..., Any]:
    return hook


def _remove(owner: Any, hook: _TransformingHook, transform: BatchTransform) -> None:
    hook.transforms = [other for other in hook.transforms if other is not transform]
    # Whoever has wrapped the hook since keeps it, without the transforms.
    if not hook.transforms and vars(owner).get(_HOOK) is hook:
        delattr(owner, _HOOK)
        vars(owner).update(hook.replaced)
