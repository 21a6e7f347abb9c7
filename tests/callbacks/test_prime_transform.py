from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pl_robust._lightning import NAMESPACE, Callback, LightningModule, MisconfigurationException, Trainer
from pl_robust.callbacks import CurvatureLogger, ExactResume, PRIMETransform
from pl_robust.cli import run
from pl_robust.modules import AugmentedTraining
from pl_robust.transforms import PRIME, AugMix, RandomFilter
from tests.datamodules.toys import Pair
from tests.toys import (
    OLD,
    PlainModule,
    assert_identical,
    loader,
    needs_lightning,
    quiet_trainer,
    stripes,
    training_state,
)

ModelCheckpoint = import_module(f"{NAMESPACE}.callbacks").ModelCheckpoint

pytestmark = [
    pytest.mark.lightning,
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`"),
]


def halve(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return x / 2


def brighten(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return x * 0.5 + 0.5


def noise(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Nothing but random numbers."""
    return torch.rand(x.shape, generator=generator)


def same(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """No change, though random numbers are drawn."""
    torch.rand(3, generator=generator)
    return x.clone()


def entry_of(batch: Any, key: Any) -> Any:
    """A copy of what stands there; of the batch itself, if it is a tensor."""
    if isinstance(batch, Tensor):
        return batch.clone()
    entry = batch[key] if isinstance(batch, Mapping | Sequence) else getattr(batch, key)
    return [part.clone() for part in entry] if isinstance(entry, list) else entry.clone()


class Recorder(LightningModule):
    """Keeps a copy of every batch's entry that holds the images, wherever it is handed one."""

    def __init__(self, key: Any = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.key = key
        self.batches: list[Any] = []
        self.trained: list[Any] = []
        self.validated: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batches.append(batch)
        self.trained.append(entry_of(batch, self.key))
        return 0 * self.weight

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(entry_of(batch, self.key))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.validation_step(batch, batch_idx)
        return self.weight

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class Viewing(Recorder):
    accepts_views = True


@dataclass
class Fields:
    x: Tensor
    y: Tensor


KINDS: dict[str, tuple[Any, Callable[[Tensor, Tensor], Any]]] = {
    "tuple": (0, lambda x, y: (x, y)),
    "list": (0, lambda x, y: [x, y]),
    "namedtuple": (0, Pair),
    "dict": ("image", lambda x, y: {"name": "batch", "image": x, "label": y}),
    "ordered dict": ("image", lambda x, y: OrderedDict(label=y, image=x)),
    "tensor": (0, lambda x, y: x),
    "dataclass": ("x", Fields),
    "second place": (1, lambda x, y: (y, x)),
}


def batches(make: Callable[[Tensor, Tensor], Any] = lambda x, y: (x, y), count: int = 3, **options: Any) -> Any:
    """Batches that are the data set's own memory: made once, handed out again in every epoch."""
    drawn = torch.Generator().manual_seed(2)
    made = [make(torch.rand(4, 3, 8, 8, generator=drawn, **options), torch.arange(4)) for _ in range(count)]
    return DataLoader(made, batch_size=None, collate_fn=_as_it_is)  # type: ignore[arg-type]  # a list will do


def _as_it_is(batch: Any) -> Any:
    return batch


def images(loaded: Any, key: Any = 0) -> list[Tensor]:
    return [entry_of(batch, key) for batch in loaded.dataset]


@pytest.mark.parametrize("kind", KINDS)
def test_the_images_of_any_batch_are_augmented_while_training_and_only_then(kind: str) -> None:
    key, make = KINDS[kind]
    data, held_out = batches(make), batches(make, count=2)
    before = images(data, key)
    module = Recorder(key)
    trainer = quiet_trainer(max_epochs=2, callbacks=[PRIMETransform(halve, input_key=key)], num_sanity_val_steps=2)
    trainer.fit(module, data, held_out)
    assert_identical(module.trained, 2 * [x / 2 for x in before])
    assert_identical(module.validated, 3 * images(held_out, key))  # sanity check and two epochs
    assert_identical(images(data, key), before)  # the data set's own memory
    assert {type(batch) for batch in module.batches} == {type(batch) for batch in data.dataset}
    if kind != "tensor":
        other = {"image": "label", "x": "y", 0: 1, 1: 0}[key]
        assert_identical([entry_of(batch, other) for batch in module.batches], 6 * [torch.arange(4)])
    module.validated.clear()
    trainer.validate(module, held_out, verbose=False)
    trainer.test(module, held_out, verbose=False)
    trainer.predict(module, held_out)
    assert_identical(module.validated, 3 * images(held_out, key))


def test_prime_gets_the_images_as_they_are() -> None:
    """Against PRIME called by hand on the same batches, with generators that differ from batch to batch."""
    seen: list[Tensor] = []
    prime = PRIME.cifar()

    def watched(x: Tensor, generator: torch.Generator) -> Tensor:
        state = generator.get_state()
        y = prime(x, generator)
        assert not torch.equal(generator.get_state(), state)
        seen.append(prime(x, generator.set_state(state)))
        return y

    module = Recorder()
    quiet_trainer(max_epochs=2, callbacks=[PRIMETransform(watched)]).fit(module, batches())
    assert_identical(module.trained, seen)
    assert all(0 <= float(x.min()) <= float(x.max()) <= 1 for x in seen)
    by_name = Recorder()
    quiet_trainer(max_epochs=2, callbacks=[PRIMETransform("cifar")]).fit(by_name, batches())
    assert_identical(by_name.trained, seen)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_nothing_but_the_images_is_touched(accumulate: int) -> None:
    """With an augmentation that changes nothing, training ends with the same bits, generators included."""

    def train(*callbacks: Callback) -> dict[str, Any]:
        torch.manual_seed(0)
        module = PlainModule()
        trainer = quiet_trainer(max_epochs=2, callbacks=callbacks, accumulate_grad_batches=accumulate)
        trainer.fit(module, loader(100, shuffle=True), loader(40, seed=1))
        return {**training_state(trainer, module), **trainer.callback_metrics}

    alone = train()
    assert_identical(train(PRIMETransform(same), PRIMETransform(same, views=1, seed=1)), alone)
    augmented = train(PRIMETransform())
    assert not torch.equal(augmented["module"]["net.5.weight"], alone["module"]["net.5.weight"])
    assert torch.equal(augmented["rng"], alone["rng"])


def test_draws_differ_between_batches_epochs_seeds_and_transforms() -> None:
    drawn: list[Tensor] = []

    def noted(x: Tensor, generator: torch.Generator) -> Tensor:
        drawn.append(torch.rand(1, generator=generator))
        return x.clone()

    for callbacks in ([PRIMETransform(noted)], [PRIMETransform(noted, seed=1), PRIMETransform(noted, seed=2)]):
        quiet_trainer(max_epochs=2, callbacks=callbacks).fit(Recorder(), batches())
    other = [PRIMETransform(same), PRIMETransform(noted)]  # the same seed, but not the first
    quiet_trainer(max_epochs=2, callbacks=other).fit(Recorder(), batches())
    assert len({float(value) for value in drawn}) == len(drawn) == 24


def test_a_second_fit_draws_the_same_and_a_continued_one_goes_on() -> None:
    def drawn(trainer: Trainer) -> list[Tensor]:
        module = Recorder()
        trainer.fit(module, batches())
        return module.trained

    callback = PRIMETransform(noise)
    trainer = quiet_trainer(max_epochs=2, callbacks=[callback])
    first = drawn(trainer)
    trainer.fit_loop.max_epochs = 3
    assert_identical(first + drawn(trainer), drawn(quiet_trainer(max_epochs=3, callbacks=[callback])))


@pytest.mark.parametrize("every_n_train_steps", [1, 3])
def test_a_resumed_run_goes_on_with_the_draws_of_the_uninterrupted_one(
    every_n_train_steps: int, tmp_path: Path
) -> None:
    """Saved inside epochs and at their ends."""
    saving = ModelCheckpoint(
        str(tmp_path),
        save_top_k=-1,
        every_n_train_steps=every_n_train_steps,
        filename="{step}",
        save_weights_only=False,
    )
    whole = Recorder()
    callbacks = [PRIMETransform(noise), PRIMETransform(noise, seed=1), saving]
    quiet_trainer(max_epochs=3, callbacks=callbacks, enable_checkpointing=True).fit(whole, batches())
    for path in sorted(tmp_path.glob("step=*.ckpt")):
        step = int(path.stem.removeprefix("step="))
        states = torch.load(path, weights_only=True)["callbacks"]
        assert sum(state == {"batches": step} for state in states.values()) == 2
        module = Recorder()
        fresh = [PRIMETransform(noise), PRIMETransform(noise, seed=1)]
        quiet_trainer(max_epochs=3, callbacks=fresh).fit(module, batches(), ckpt_path=str(path))
        left = whole.trained[step:]
        assert len(module.trained) >= len(left)  # an old Lightning trains a batch too many
        assert_identical(module.trained[: len(left)], left)


def test_with_exact_resume_the_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    def train(resume: str | None) -> dict[str, Any]:
        torch.manual_seed(0 if resume is None else 5)
        module = PlainModule()
        saving = ModelCheckpoint(str(tmp_path), save_top_k=-1, filename="{epoch}", save_on_train_epoch_end=True)
        callbacks = [PRIMETransform(views=1), ExactResume(), PRIMETransform(AugMix()), saving]
        trainer = quiet_trainer(max_epochs=3, callbacks=callbacks, enable_checkpointing=True)
        trainer.fit(module, loader(64, shuffle=True), loader(16, seed=1), ckpt_path=resume)
        return training_state(trainer, module)

    whole = train(None)
    for epoch in range(2):
        assert_identical(train(str(tmp_path / f"epoch={epoch}.ckpt")), whole)


def test_three_views_for_a_module_that_takes_them() -> None:
    data = batches()
    module = Viewing()
    callbacks = [PRIMETransform(halve), PRIMETransform(noise, views=3)]
    quiet_trainer(max_epochs=1, callbacks=callbacks).fit(module, data, batches(count=1))
    assert all(isinstance(entry, list) for entry in module.trained)
    assert_identical([clean for clean, _, _ in module.trained], [x / 2 for x in images(data)])
    drawn = [float(view.flatten()[0]) for _, *views in module.trained for view in views]
    assert len(set(drawn)) == 6
    assert_identical(module.validated, 2 * images(batches(count=1)))
    bare = Viewing()
    quiet_trainer(max_epochs=1, callbacks=[PRIMETransform(halve, views=3)]).fit(bare, batches(lambda x, y: x))
    assert_identical(bare.batches, [[x, x / 2, x / 2] for x in images(data)])


def test_augmented_training_on_its_views_is_training_on_batches_of_views() -> None:
    def train(data: Any, *callbacks: Callback) -> dict[str, Tensor]:
        torch.manual_seed(0)
        module = AugmentedTraining(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), num_classes=4)
        quiet_trainer(max_epochs=2, callbacks=callbacks).fit(module, data)
        return module.state_dict()

    assert_identical(
        train(batches(), PRIMETransform(halve, views=3)), train(batches(lambda x, y: ([x, x / 2, x / 2], y)))
    )


def test_three_views_for_another_module_are_one_and_a_warning() -> None:
    module, data = Recorder(), batches()
    trainer = quiet_trainer(max_epochs=1, callbacks=[PRIMETransform(halve, views=3)])
    with pytest.warns(UserWarning, match="gives Recorder one augmented view, since its attribute `accep"):
        trainer.fit(module, data)
    assert_identical(module.trained, [x / 2 for x in images(data)])


def test_no_transform_may_come_behind_views() -> None:
    callbacks = [PRIMETransform(views=3), PRIMETransform(halve)]
    with pytest.raises(MisconfigurationException, match="only the last of several PRIMETransforms may have views=3"):
        quiet_trainer(max_epochs=1, callbacks=callbacks).fit(Viewing(), batches())


@pytest.mark.parametrize(("precision", "arrives"), [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)])
def test_the_computation_is_in_float32_whatever_the_precision(precision: str, arrives: torch.dtype) -> None:
    if OLD:
        precision, arrives = "bf16", torch.float32
    seen = []

    def watched(x: Tensor, generator: torch.Generator) -> Tensor:
        seen.append((x.dtype, torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return x * (1 / 3)

    class InAutocast(Recorder):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch

    module, data = InAutocast(), batches()
    quiet_trainer(max_epochs=1, callbacks=[PRIMETransform(watched)], precision=precision).fit(module, data)
    assert seen == 3 * [(torch.float32, False, False)]
    assert_identical(module.trained, [(x.to(arrives).float() * (1 / 3)).to(arrives) for x in images(data)])


def test_a_batch_of_another_kind_passes_with_one_warning() -> None:
    class Graph:
        """As a PyG Data: attributes, and a way to its device."""

        def __init__(self, x: Tensor) -> None:
            self.x = x

        def to(self, *args: Any, **kwargs: Any) -> Graph:
            return self

    module = Recorder("x")
    trainer = quiet_trainer(max_epochs=2, callbacks=[PRIMETransform(halve)])
    graphs = [Graph(torch.rand(5, 2)) for _ in range(3)]
    data: Any = DataLoader(graphs, batch_size=None)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="lets batches of type Graph pass as they are") as caught:
        trainer.fit(module, data)
    assert sum("PRIMETransform" in str(warning.message) for warning in caught) == 1
    assert_identical(module.trained, 2 * [graph.x for graph in graphs])


class Fetching(Recorder):
    def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
        batch = next(dataloader_iter)
        return super().training_step(batch if OLD else batch[0], 0)


@pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument in the `training_step`")
@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
@needs_lightning("2.1", "such a step's batches pass, as a type that nobody knows")
def test_a_step_that_fetches_its_own_batches_draws_a_warning() -> None:
    module, data = Fetching(), batches()
    callback = PRIMETransform(halve)
    for _ in range(2):
        with pytest.warns(UserWarning, match="PRIMETransform augments nothing: the batches do not pass"):
            quiet_trainer(max_epochs=1, callbacks=[callback]).fit(module, data)
        quiet_trainer(max_epochs=1, callbacks=[callback]).fit(Recorder(), data)
    assert_identical(module.trained, 2 * images(data))


def test_observers_look_at_images_as_they_are() -> None:
    class Watching(CurvatureLogger):
        def _inspect(self, trainer: Trainer, pl_module: LightningModule) -> None:
            super()._inspect(trainer, pl_module)
            ((_, self.seen, _),) = self._probe_set.mine

    watching = Watching(eps=0.1, every_n_steps=100, max_samples=16)
    trainer = quiet_trainer(max_epochs=1, callbacks=[PRIMETransform(halve), watching], limit_train_batches=1)
    with pytest.warns(UserWarning, match="Watching has made no check"):
        trainer.fit(PlainModule(), loader(16), loader(16, seed=1))
    assert torch.equal(watching.seen, stripes(16, seed=1).tensors[0])


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "uint8": (
        batches(lambda x, y: ((255 * x).to(torch.uint8), y)),
        TypeError,
        r"PRIMETransform\(input_key=0\): images must be .* got torch.uint8; divide uint8 images by 255, in the data",
    ),
    "no batch": (
        batches(lambda x, y: (x[0], y)),
        ValueError,
        r"PRIMETransform\(input_key=0\): images must be a batch \[B, C, H, W\], got shape \[3, 8, 8\]",
    ),
    "levels": (
        batches(lambda x, y: (255 * x, y)),
        ValueError,
        r"must lie in \[0, 1\], got values from .* to 25\d.*: divide them by 255, pass `normalization=\(mean, std\)`",
    ),
    "no such key": (
        batches(lambda x, y: {"image": x}),
        KeyError,
        r"`input_key`=0 is not in the batch, which has \['image'\]; set `input_key`",
    ),
    "no tensor": (
        batches(lambda x, y: ([x, x], y)),
        TypeError,
        r"the batch's entry 0 \(`input_key`\) must be a tensor, got list",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_augmented_is_said_at_the_first_batch(name: str) -> None:
    data, error, message = WRONG[name]
    callback = PRIMETransform(halve)
    quiet_trainer(max_epochs=1, callbacks=[callback]).fit(Recorder(), batches())  # an earlier fit does not excuse it
    with pytest.raises(error, match=message):
        quiet_trainer(max_epochs=1, callbacks=[callback]).fit(Recorder(), data)


def test_integer_images_may_be_made_floating_point_in_the_hook() -> None:
    class Scaling(Recorder):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] / 255, batch[1]]

    module, data = Scaling(), batches(lambda x, y: ((255 * x).to(torch.uint8), y))
    quiet_trainer(max_epochs=1, callbacks=[PRIMETransform(halve)]).fit(module, data)
    assert_identical(module.trained, [x / 255 / 2 for x in images(data)])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"transform": "cifar10"}, ValueError, r"`transform` must be 'cifar', 'imagenet' or .*, got 'cifar10'"),
        ({"transform": AugMix}, TypeError, r"a batch augmentation such as AugMix\(\), got <class"),
        ({"transform": 3}, TypeError, r"a batch augmentation such as AugMix\(\), got 3"),
        ({"transform": nn.ReLU()}, TypeError, r"`transform` must take images and `generator`.* and ReLU does not: wr"),
        ({"transform": lambda x: x}, TypeError, r"must take images and `generator`.*<lambda> does not"),
        ({"views": 2}, ValueError, r"`views` must be 1, or 3 for \[images, view, view\], got 2"),
        ({"seed": -1}, ValueError, "`seed` must be an integer of at least 0, got -1"),
        ({"seed": 0.5}, ValueError, r"`seed` must be an integer of at least 0, got 0\.5"),
        ({"normalization": (0.5, 0.5)}, ValueError, r"`normalization` must be \(mean, std\), each one number per chan"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PRIMETransform(**arguments)


CONFIGURED: dict[str, tuple[Any, type]] = {
    "a preset": ("imagenet", PRIME),
    "a short name": ({"class_path": "AugMix", "init_args": {"severity": 1}}, AugMix),
    "a primitive": ({"class_path": "RandomFilter", "init_args": {"sigma": 2.0}}, RandomFilter),
    "a class in a class": ({"class_path": "PRIME", "init_args": {"primitives": ["RandomFilter"]}}, PRIME),
    "a path": ({"class_path": "pl_robust.transforms.PRIME.imagenet"}, PRIME),
    "a function": (f"{__name__}.halve", type(halve)),
}


@pytest.mark.parametrize("name", CONFIGURED)
def test_it_goes_into_a_configuration(name: str, tmp_path: Path) -> None:
    transform, kind = CONFIGURED[name]
    arguments = {"transform": transform, "views": 1, "input_key": 0, "normalization": [[0.0], [1.0]]}
    content = {
        "trainer": {
            "accelerator": "cpu",
            "fast_dev_run": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "PRIMETransform", "init_args": arguments}],
        },
        "model": {
            "class_path": "AdversarialTraining",
            "init_args": {"net": "SmallCNN", "attack": {"class_path": "FGSM", "init_args": {"eps": "8/255"}}},
        },
        "data": {"class_path": "ImageDataModule", "init_args": {"name": "digits"}},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    cli = run(["fit", "--config", str(path)])
    (callback,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, PRIMETransform)]
    assert isinstance(callback._augmentation.transform, kind)
    assert callback.state_dict() == {"batches": 1}
