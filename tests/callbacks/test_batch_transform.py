"""The hook that callbacks change batches in: whose it is, what is left of it, and what copies of its owner have."""

from __future__ import annotations

import contextlib
import copy
import pickle
import signal
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
import torch

from pl_robust._lightning import NAMESPACE, Callback, LightningDataModule, LightningModule, Trainer
from pl_robust.callbacks import PRIMETransform
from tests.callbacks.test_prime_transform import Recorder, batches, brighten, halve, images
from tests.toys import OLD, assert_identical, needs_torch_2_6, quiet_trainer

pytestmark = pytest.mark.lightning

HOOK = "on_after_batch_transfer"


class Hooked(Recorder):
    """A user's module with a transform of its own."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * 0.25, batch[1]]


class Data(LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.data, self.held_out = batches(), batches(count=2)

    def train_dataloader(self) -> Any:
        return self.data

    def val_dataloader(self) -> Any:
        return self.held_out

    test_dataloader = val_dataloader


class HookedData(Data):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * 0.125, batch[1]]


class WrappingData(Data):
    """Takes the hook of another one as its own attribute, as our wrapping datamodules do."""

    def __init__(self) -> None:
        super().__init__()
        self.base = HookedData()
        setattr(self, HOOK, self.base.on_after_batch_transfer)


class Also(Callback):
    """Does something to the module at a hook."""

    def __init__(self, hook: str, action: Callable[[LightningModule], Any]) -> None:
        def call(trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
            action(pl_module)

        setattr(self, hook, call)


def traces(*owners: Any) -> list[dict[str, Any]]:
    """What an owner's own hook leaves to be seen, in instance and class."""
    return [
        {name: value for name, value in {**vars(type(owner)), **vars(owner)}.items() if "batch_transfer" in name}
        for owner in owners
    ]


OWNERS: dict[str, tuple[type[Recorder], type[Data] | None, float]] = {
    "neither": (Recorder, Data, 1.0),
    "module": (Hooked, None, 0.25),
    "datamodule": (Recorder, HookedData, 0.125),
    "both": (Hooked, HookedData, 0.125),
    "an attribute of the datamodule": (Recorder, WrappingData, 0.125),
}


# Lightning's word on two hooks of one name; it comes once per process, and for "both" only.
@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer` in both")
@pytest.mark.parametrize("owner", OWNERS)
def test_the_users_own_hook_comes_first_and_the_callbacks_in_their_order(owner: str) -> None:
    kind, data_kind, factor = OWNERS[owner]
    datamodule = None if data_kind is None else data_kind()
    for transforms in ([halve], [halve, brighten], [brighten, halve]):
        module = kind()
        data = [module] if datamodule is None else [module, datamodule]
        before = traces(*data)
        callbacks = [PRIMETransform(transform) for transform in transforms]
        trainer = quiet_trainer(max_epochs=2, callbacks=callbacks)
        if datamodule is None:
            trainer.fit(module, batches(), batches(count=2))
        else:
            trainer.fit(module, datamodule=datamodule)
        wanted = [x * factor for x in images(batches())]
        for transform in transforms:
            wanted = [transform(x) for x in wanted]
        assert_identical(module.trained, 2 * wanted)
        assert_identical(module.validated, 3 * [x * factor for x in images(batches(count=2))])
        assert traces(*data) == before


def test_without_it_a_later_fit_is_as_if_it_had_never_been() -> None:
    module, datamodule = Recorder(), Data()
    quiet_trainer(max_epochs=1, callbacks=[PRIMETransform(halve)]).fit(module, datamodule=datamodule)
    module.trained.clear()
    quiet_trainer(max_epochs=1).fit(module, datamodule=datamodule)
    assert_identical(module.trained, images(batches()))


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Lightning ignores SIGINT for the rest of the process once it has seen a KeyboardInterrupt."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def fail(error: type[BaseException]) -> Callable[[LightningModule], None]:
    def action(module: LightningModule) -> None:
        raise error("on purpose")

    return action


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.filterwarnings("ignore:Detected KeyboardInterrupt")  # Lightning 1.9
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["setup", "on_fit_start", "on_train_batch_start", "on_validation_start"])
def test_an_error_leaves_nothing_behind(error: type[BaseException], where: str) -> None:
    module, datamodule = Recorder(), HookedData()
    before = traces(module, datamodule)
    callbacks = [PRIMETransform(halve), PRIMETransform(brighten)]
    trainer = quiet_trainer(max_epochs=1, callbacks=[*callbacks, Also(where, fail(error))])
    with contextlib.suppress(error, SystemExit):  # which of the two, if any, depends on Lightning's version
        trainer.fit(module, datamodule=datamodule)
    assert trainer.state.status == "interrupted"
    assert traces(module, datamodule) == before
    module.trained.clear()
    quiet_trainer(max_epochs=1, callbacks=callbacks).fit(module, datamodule=datamodule)
    assert_identical(module.trained, [brighten(halve(x * 0.125)) for x in images(batches())])
    assert traces(module, datamodule) == before


def pickled(module: Any) -> Any:
    if OLD:
        pytest.skip("Lightning 1.9 has no picklable modules during fit")
    return pickle.loads(pickle.dumps(module))  # noqa: S301


@pytest.mark.skipif(
    import_module(NAMESPACE).__version__.startswith("2.0."),
    reason="a module of Lightning 2.0 takes its trainer along when it is copied during fit",
)
@pytest.mark.parametrize("kind", [Recorder, Hooked])
@pytest.mark.parametrize("how", [copy.deepcopy, pickled])
def test_copies_made_during_fit_come_without_it(how: Callable[[Any], Any], kind: type[Recorder]) -> None:
    copies: list[Any] = []
    module, data = kind(), batches()
    x = images(data)[0]
    own = x * 0.25 if kind is Hooked else x

    def check(module: LightningModule) -> None:
        copied = how(module)
        copies.append(copied)
        assert_identical(module.on_after_batch_transfer([x, x], 0), [own / 2, x])
        assert_identical(copied.on_after_batch_transfer([x, x], 0), [own, x])
        assert copied.on_after_batch_transfer.__self__ is copied

    trainer = quiet_trainer(max_epochs=1, callbacks=[PRIMETransform(halve), Also("on_train_batch_end", check)])
    trainer.fit(module, data)
    copied = copies[-1]
    copied.trained.clear()
    quiet_trainer(max_epochs=1, callbacks=[PRIMETransform(brighten)]).fit(copied, data)
    assert_identical(copied.trained[0], brighten(own))
    copied.trained.clear()
    quiet_trainer(max_epochs=1).fit(copied, data)
    assert_identical(copied.trained[0], own)


def test_who_wraps_the_hook_after_it_keeps_the_wrapper() -> None:
    module, data = Recorder(), batches()
    seen: list[Any] = []

    def wrap(module: LightningModule) -> None:
        inner = module.on_after_batch_transfer

        def wrapper(batch: Any, dataloader_idx: int) -> Any:
            seen.append(inner(batch, dataloader_idx))
            return seen[-1]

        setattr(module, HOOK, wrapper)

    callbacks = [PRIMETransform(halve), Also("on_fit_start", wrap), PRIMETransform(halve, seed=1)]
    quiet_trainer(max_epochs=1, callbacks=callbacks).fit(module, data)
    assert_identical(module.trained, [x / 4 for x in images(data)])
    module.trained.clear()
    quiet_trainer(max_epochs=1).fit(module, data)
    assert_identical(module.trained, images(data))
    assert len(seen) == 6


def test_a_module_whose_hook_is_replaced_draws_a_warning() -> None:
    def replace(module: LightningModule) -> None:
        setattr(module, HOOK, lambda batch, dataloader_idx: batch)

    module, data = Recorder(), batches()
    trainer = quiet_trainer(max_epochs=1, callbacks=[PRIMETransform(halve), Also("on_fit_start", replace)])
    with pytest.warns(UserWarning, match="PRIMETransform augments nothing"):
        trainer.fit(module, data)
    assert_identical(module.trained, images(data))


@pytest.mark.skipif(OLD, reason="Lightning 1.9 takes no compiled modules")
@needs_torch_2_6
def test_a_compiled_module() -> None:
    module, data = Hooked(), batches()
    compiled: Any = torch.compile(module, backend="eager")
    before = traces(module)
    quiet_trainer(max_epochs=2, callbacks=[PRIMETransform(halve)]).fit(compiled, data, batches(count=2))
    assert_identical(module.trained, 2 * [x * 0.25 / 2 for x in images(data)])
    assert_identical(module.validated, 3 * [x * 0.25 for x in images(batches(count=2))])
    assert traces(module) == before
