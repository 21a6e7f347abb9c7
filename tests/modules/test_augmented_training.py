from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset

from pl_robust._lightning import MisconfigurationException
from pl_robust.callbacks import PRIMETransform
from pl_robust.datamodules import ImageDataModule
from pl_robust.losses import jsd_consistency
from pl_robust.models import SmallCNN
from pl_robust.modules import AugmentedTraining
from pl_robust.modules.augmented_training import published_sgd, split_views
from pl_robust.transforms import AugMix
from tests.modules.test_adversarial_training import small_net
from tests.toys import assert_identical, loader, needs_named_loaders, quiet_trainer, stripes

pytestmark = pytest.mark.lightning


class Views(Dataset[Any]):
    """Samples ((clean, brighter, darker), label), as AugMix's released data set gives them."""

    def __init__(self, count: int, as_dict: bool = False) -> None:
        self.stripes = stripes(count)
        self.as_dict = as_dict

    def __len__(self) -> int:
        return len(self.stripes)

    def __getitem__(self, index: int) -> Any:
        x, y = self.stripes[index]
        views = (x, (1.2 * x).clamp(0, 1), 0.7 * x)
        return {"views": views, "label": y} if self.as_dict else (views, y)


def views_loader(count: int, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(Views(count, **arguments), batch_size=16)


def fit(net: nn.Module, data: Any, epochs: int = 2, **arguments: Any) -> AugmentedTraining:
    module = AugmentedTraining(net, num_classes=3, **arguments)
    quiet_trainer(max_epochs=epochs).fit(module, data)
    return module


def bare_loop(net: nn.Module, data: DataLoader[Any], epochs: int, weight: float = 12.0) -> None:
    """The released code's training, but for the augmentation."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = OneCycleLR(optimizer, max_lr=0.2, epochs=epochs, steps_per_epoch=len(data), pct_start=0.25)
    for _ in range(epochs):
        for images, y in data:
            if isinstance(images, Tensor):
                loss = F.cross_entropy(net(images), y)
            else:
                clean, one, two = torch.split(net(torch.cat(images, 0)), len(y))
                p_clean, p_one, p_two = F.softmax(clean, dim=1), F.softmax(one, dim=1), F.softmax(two, dim=1)
                mixture = torch.clamp((p_clean + p_one + p_two) / 3.0, 1e-7, 1).log()
                terms = [F.kl_div(mixture, p, reduction="batchmean") for p in (p_clean, p_one, p_two)]
                loss = F.cross_entropy(clean, y) + weight * (terms[0] + terms[1] + terms[2]) / 3.0
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


@pytest.mark.parametrize("data", [loader(64), views_loader(64)], ids=["plain", "views"])
def test_it_trains_as_the_released_code_does(data: DataLoader[Any]) -> None:
    net = small_net()
    bare_loop(net, data, epochs=2)
    module = fit(small_net(), data)
    for key, value in net.state_dict().items():
        torch.testing.assert_close(module.net.state_dict()[key], value, rtol=1e-4, atol=1e-5)
    assert (net[4].weight - small_net()[4].weight).abs().max() > 0.1  # type: ignore[index]


def test_the_weight_is_the_divergences() -> None:
    """A step of plain SGD from the same weights moves them by the two gradients."""
    images, y = next(iter(views_loader(16)))
    parts = []
    for term in ("entropy", "divergence"):
        net = small_net()
        clean, *others = net(torch.cat(images)).chunk(3)
        value = F.cross_entropy(clean, y) if term == "entropy" else jsd_consistency(clean, *others)
        parts.append(torch.autograd.grad(value, list(net.parameters())))
    module = fit(
        small_net(),
        views_loader(16),
        epochs=1,
        jsd_weight=5.0,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lr_scheduler="constant",
    )
    for before, after, entropy, divergence in zip(
        small_net().parameters(), module.net.parameters(), *parts, strict=True
    ):
        torch.testing.assert_close(after, before - 0.1 * (entropy + 5.0 * divergence))


def test_without_weight_only_the_clean_images_are_seen() -> None:
    weightless = fit(small_net(), views_loader(64), jsd_weight=0)
    standard = fit(small_net(), loader(64))
    assert_identical(dict(weightless.net.state_dict()), dict(standard.net.state_dict()))  # batch-norm, too
    assert not weightless.accepts_views
    assert standard.accepts_views


def recorded(module: AugmentedTraining, **arguments: Any) -> Any:
    """The first batch that the module trains on with PRIMETransform."""
    seen: list[Any] = []
    step = module.training_step

    def training_step(batch: Any, batch_idx: int) -> Tensor:
        seen.append(batch)
        return step(batch, batch_idx)

    module.training_step = training_step  # type: ignore[method-assign]
    transform = PRIMETransform(AugMix(severity=5), **arguments)
    quiet_trainer(max_epochs=1, callbacks=[transform]).fit(module, loader(32))
    return seen[0]


def test_a_callback_gives_it_the_views_it_wants() -> None:
    x, y = next(iter(loader(32)))
    views, labels = recorded(AugmentedTraining(small_net(), num_classes=3), views=3)
    assert torch.equal(labels, y)
    assert len(views) == 3
    assert torch.equal(views[0], x)
    assert (views[1] - x).abs().max() > 0.1
    assert (views[1] - views[2]).abs().max() > 0.1
    view, _ = recorded(AugmentedTraining(small_net(), num_classes=3), views=1)
    assert (view - x).abs().max() > 0.1
    weightless = AugmentedTraining(small_net(), num_classes=3, jsd_weight=0)
    with pytest.warns(UserWarning, match="one augmented view"):
        view, _ = recorded(weightless, views=3)  # as the released code without JSD
    assert isinstance(view, Tensor)
    assert (view - x).abs().max() > 0.1


def test_consistency_brings_the_answers_together() -> None:
    divergences = []
    for weight in (0.0, 12.0):
        module = fit(small_net(), views_loader(128), epochs=6, jsd_weight=weight).eval()
        images, y = next(iter(DataLoader(Views(64), batch_size=64)))
        with torch.no_grad():
            divergences.append(jsd_consistency(*module(torch.cat(images)).chunk(3)).item())
            assert (module(images[0]).argmax(1) == y).float().mean() > 0.9
    assert divergences[1] < 0.2 * divergences[0]


def rates_of(steps: int, optimizer: Any = published_sgd, peak: float = 0.25) -> list[tuple[float, float]]:
    seen: list[tuple[float, float]] = []

    class Watching(AugmentedTraining):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            group = self.optimizers().param_groups[0]  # type: ignore[union-attr]
            seen.append((float(group["lr"]), group.get("momentum", 0)))

    module = Watching(small_net(), num_classes=3, optimizer=optimizer, lr_peak=peak)
    quiet_trainer(max_epochs=1).fit(module, loader(2 * steps, batch_size=2))
    return seen


@pytest.mark.parametrize("peak", [0.25, 0.1])
def test_the_cycle_is_torchs(peak: float) -> None:
    optimizer = published_sgd(nn.Linear(1, 1).parameters())
    schedule = OneCycleLR(optimizer, max_lr=0.2, total_steps=40, pct_start=peak)
    expected = []
    for _ in range(40):
        expected.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        schedule.step()
    rates = rates_of(40, peak=peak)
    assert rates == expected
    assert max(rates)[0] == pytest.approx(0.2)
    assert min(momentum for _, momentum in rates) == pytest.approx(0.85)


@pytest.mark.parametrize("peak", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_shortest_runs_have_a_cycle_too(steps: int, peak: float) -> None:
    """Torch divides by zero at 4 steps and .25, or 2 steps and .5."""
    rates = rates_of(steps, peak=peak)
    assert len(rates) == steps
    assert rates[0][0] == pytest.approx(0.2 / 25)
    assert all(0 < rate <= 0.2 + 1e-9 for rate, _ in rates)
    assert steps == 1 or rates[1] > rates[0]  # it rises first


def test_the_cycle_gives_no_momentum_where_there_is_none() -> None:
    assert {momentum for _, momentum in rates_of(9, lambda parameters: torch.optim.SGD(parameters, lr=0.1))} == {0}
    rates = rates_of(8, lambda parameters: torch.optim.Adagrad(parameters, lr=0.1))  # one that knows no momentum
    assert rates[1][0] == pytest.approx(0.1)


def test_evaluation_counts_right_answers() -> None:
    module = fit(small_net(), loader(64))
    trainer = quiet_trainer()
    (metrics,) = trainer.test(module, loader(50, seed=2), verbose=False)  # the last batch is ragged
    assert set(metrics) == {"test/loss", "test/acc"}
    (validated,) = trainer.validate(module, loader(50, seed=2), verbose=False)
    assert validated == {key.replace("test", "val"): value for key, value in metrics.items()}
    module.eval()
    x, y = stripes(50, seed=2).tensors
    with torch.no_grad():
        assert metrics["test/acc"] == pytest.approx((module(x).argmax(1) == y).float().mean().item())
        assert metrics["test/loss"] == pytest.approx(F.cross_entropy(module(x), y).item(), abs=1e-5)


def test_training_logs_loss_and_accuracy_on_clean_images() -> None:
    module = AugmentedTraining(small_net(), num_classes=3, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, views_loader(16), loader(40, seed=1))
    images, y = next(iter(views_loader(16)))
    logits = small_net()(torch.cat(images)).chunk(3)
    logged = trainer.callback_metrics
    assert set(logged) == {"train/loss", "train/acc", "val/loss", "val/acc"}
    assert logged["train/acc"].item() == pytest.approx((logits[0].argmax(1) == y).float().mean().item())
    expected = F.cross_entropy(logits[0], y) + 12 * jsd_consistency(*logits)
    assert logged["train/loss"].item() == pytest.approx(expected.item(), rel=1e-5)


@needs_named_loaders
def test_dataloaders_in_a_dict_are_logged_by_their_names_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    module = AugmentedTraining(small_net(), num_classes=3)
    data = {"clean": loader(48), "noise/3": [loader(32, seed=1), loader(40, seed=2)]}
    trainer = quiet_trainer()
    results = trainer.test(module, data, verbose=False)
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["acc"]
    for metrics, name, row in zip(results, ("clean", "noise/3/0", "noise/3/1"), rows, strict=True):
        assert set(metrics) == {f"test/loss/{name}", f"test/acc/{name}"}
        assert row.split() == [name, f"{metrics[f'test/acc/{name}']:.1%}"]
    (alone,) = trainer.test(module, loader(40, seed=2), verbose=False)
    assert alone["test/acc"] == results[2]["test/acc/noise/3/1"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "arguments",
    [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.5}],
    ids=["bf16", "accumulation", "clipping"],
)
def test_it_trains_everywhere(arguments: dict[str, Any]) -> None:
    module = AugmentedTraining(small_net(), num_classes=3)
    trainer = quiet_trainer(max_epochs=4, callbacks=[PRIMETransform(AugMix(), views=3)], **arguments)
    trainer.fit(module, loader(128), loader(40, seed=1))
    (metrics,) = trainer.test(module, loader(64), verbose=False)
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values())
    assert metrics["test/acc"] > 0.8


def test_dict_batches_are_read_by_key() -> None:
    data = views_loader(32, as_dict=True)
    module = AugmentedTraining(small_net(), num_classes=3, input_key="views", label_key="label")
    quiet_trainer(max_epochs=2).fit(module, data)
    assert_identical(dict(module.net.state_dict()), dict(fit(small_net(), views_loader(32)).net.state_dict()))


def test_a_net_goes_by_its_name_and_a_checkpoint_is_plain(tmp_path: Path) -> None:
    module = AugmentedTraining("SmallCNN", num_classes=3, jsd_weight=5.0)
    assert isinstance(module.net, SmallCNN)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, loader(32), loader(16))
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    torch.load(tmp_path / "net.ckpt", weights_only=True)
    again = AugmentedTraining.load_from_checkpoint(tmp_path / "net.ckpt")
    assert_identical(dict(module.state_dict()), dict(again.state_dict()))
    assert again.jsd_weight == 5.0
    logits: Any = trainer.predict(again, loader(16))
    with torch.no_grad():
        assert torch.equal(logits[0], again.eval()(stripes(16).tensors[0]))


def test_a_resumed_run_may_be_made_longer(tmp_path: Path) -> None:
    rates = []
    for epochs, checkpoint in ((2, None), (4, tmp_path / "last.ckpt"), (4, None)):
        trainer = quiet_trainer(max_epochs=epochs)
        trainer.fit(AugmentedTraining(small_net(), num_classes=3), loader(48), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        rates.append(trainer.optimizers[0].param_groups[0]["lr"])
    assert trainer.global_step == 12
    assert rates[1] == rates[2]  # torch's own would refuse the seventh step


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    class Stopping(AugmentedTraining):
        def on_train_epoch_end(self) -> None:
            self.trainer.should_stop = self.current_epoch == 1

    def start(kind: type[AugmentedTraining], checkpoint: str | None = None) -> dict[str, Any]:
        module = kind(small_net(), num_classes=3)
        trainer = quiet_trainer(max_epochs=4, callbacks=[PRIMETransform(AugMix(), views=3)])
        trainer.fit(module, loader(48), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return {**module.net.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}

    whole = start(AugmentedTraining)
    stopped = start(Stopping)
    assert not torch.equal(stopped["0.weight"], whole["0.weight"])
    assert_identical(start(AugmentedTraining, str(tmp_path / "last.ckpt")), whole)


X, Y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])


@dataclass
class Sample:
    views: Any
    label: Tensor


@pytest.mark.parametrize(
    ("batch", "keys"),
    [
        ((X, Y), (0, 1)),
        ([[X, X, X], Y], (0, 1)),
        (((X, X), Y, "more"), (0, 1)),
        ({"label": Y, "views": [X]}, ("views", "label")),
        (Sample([X, X, X, X], Y), ("views", "label")),
    ],
)
def test_views_are_found_in_any_batch(batch: Any, keys: tuple[Any, Any]) -> None:
    views, y = split_views(batch, *keys)
    assert y is Y
    assert all(view is X for view in views)
    given = batch.views if isinstance(batch, Sample) else batch[keys[0]]
    assert len(views) == (1 if isinstance(given, Tensor) else len(given))


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (([X, X[:2]], Y), ValueError, r"views must be images of one shape.*got \[\[4, 1, 8, 8\], \[2, 1, 8, 8\]\]"),
        (([X, "x"], Y), ValueError, r"got \[\[4, 1, 8, 8\], 'str'\] in the batch's entry 0"),
        ((["x", "x"], Y), TypeError, r"the batch's entry 0 \(`input_key`\) must be a tensor, got str"),
        (([], Y), TypeError, r"the batch's entry 0 \(`input_key`\) must be a tensor, got list"),
        (("x", Y), TypeError, r"the batch's entry 0 \(`input_key`\) must be a tensor, got str"),
        (([X, X],), KeyError, r"`label_key`=1 is not in the batch, which has \[0\]"),
        ({"image": X, "label": Y}, KeyError, "`input_key`=0 is not in the batch"),
        (X, TypeError, "a batch must be a tuple, list"),
    ],
)
def test_batches_of_other_kinds_are_refused(batch: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        split_views(batch, 0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"jsd_weight": -1}, "`jsd_weight` must be finite and at least 0, got -1"),
        ({"jsd_weight": math.inf}, "`jsd_weight` must be finite"),
        ({"jsd_weight": None}, "`jsd_weight` must be a number"),
        ({"lr_scheduler": "triangular"}, "`lr_scheduler` must be 'one_cycle', 'constant' or a callable"),
        ({"lr_peak": 0.0}, "`lr_peak` must lie between 0 and 1, a share of the run, got 0.0"),
        ({"num_classes": 1}, "`num_classes` must be at least 2, got 1"),
        ({"optimizer": "sgd"}, "`optimizer` must be a callable parameters -> optimizer, got 'sgd'"),
    ],
)
def test_errors_speak(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        AugmentedTraining(small_net(), **arguments)


def test_an_endless_run_has_no_cycle() -> None:
    module = AugmentedTraining(small_net(), num_classes=3)
    with pytest.raises(MisconfigurationException, match="lr_scheduler='one_cycle' needs to know where the run ends"):
        quiet_trainer(max_epochs=-1).fit(module, loader(32))


def test_fit_goes_on_after_validate() -> None:
    """Validation by itself is in inference mode, that of a fit is not."""
    module, data = AugmentedTraining(SmallCNN(width=4)), ImageDataModule("digits")
    for _ in range(2):
        quiet_trainer(max_epochs=1, limit_val_batches=1).validate(module, data, verbose=False)
        quiet_trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=1).fit(module, data)
