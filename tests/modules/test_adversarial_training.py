from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pl_robust._lightning import MisconfigurationException, unsavable
from pl_robust.attacks import FGSM, NFGSM, PGD, Attack, fgsm, pgd
from pl_robust.losses import TRADES, GradAlign, Regularizer
from pl_robust.models import PreActResNet, SmallCNN
from pl_robust.modules import AdversarialTraining
from tests.attacks.test_attack import Own
from tests.toys import (
    assert_identical,
    loader,
    needs_lightning,
    needs_named_loaders,
    needs_torch_2_6,
    quiet_trainer,
    stripes,
)

pytestmark = pytest.mark.lightning


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def fit(attack: Attack, net: nn.Module | None = None, epochs: int = 2, **arguments: Any) -> AdversarialTraining:
    module = AdversarialTraining(small_net() if net is None else net, attack, num_classes=3)
    quiet_trainer(max_epochs=epochs, **arguments).fit(module, loader(64), loader(40, seed=1))
    return module


def test_it_trains_as_a_bare_loop_does() -> None:
    """The published recipe, written out: attack in train mode, SGD, a triangle of learning rates."""
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-4)
    rates = iter([1 / 4.5, 2 / 4.5, 3 / 4.5, 4 / 4.5, 4 / 4.5, 3 / 4.5, 2 / 4.5, 1 / 4.5])
    for _ in range(2):
        for x, y in loader(64):
            optimizer.param_groups[0]["lr"] = 0.2 * next(rates)
            x_adv = fgsm(net, x, y, eps=0.1)
            optimizer.zero_grad()
            F.cross_entropy(net(x_adv), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    module = fit(FGSM(0.1))
    for key, value in net.state_dict().items():
        torch.testing.assert_close(module.net.state_dict()[key], value)


def test_the_learning_rate_is_a_triangle() -> None:
    seen = []

    class Watching(AdversarialTraining):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            optimizer: Any = self.optimizers()
            seen.append(optimizer.param_groups[0]["lr"])

    module = Watching(small_net(), FGSM(0.1), num_classes=3)
    quiet_trainer(max_epochs=5).fit(module, loader(64))
    rise = torch.arange(1, 11) * 0.2 / 10.5
    torch.testing.assert_close(torch.tensor(seen), torch.cat([rise, rise.flip(0)]))


def test_evaluation_counts_what_the_attacks_leave_right() -> None:
    module = fit(FGSM(0.1))
    data = loader(50, seed=2)  # the last batch is ragged: 16, 16, 16, 2
    trainer = quiet_trainer()
    (metrics,) = trainer.test(module, data, verbose=False)
    module.eval()
    x, y = stripes(50, seed=2).tensors
    with torch.no_grad():
        assert metrics["test/acc"] == pytest.approx((module(x).argmax(1) == y).float().mean().item())
        assert metrics["test/loss"] == pytest.approx(F.cross_entropy(module(x), y).item(), abs=1e-5)
        x_adv = fgsm(module.net, x, y, eps=0.1)
        assert metrics["test/acc_adv"] == pytest.approx((module(x_adv).argmax(1) == y).float().mean().item())
        x_adv = pgd(module.net, x, y, eps=0.1)
        assert metrics["test/acc_pgd"] == pytest.approx((module(x_adv).argmax(1) == y).float().mean().item(), abs=0.041)
    assert 0 < metrics["test/acc_pgd"] <= metrics["test/acc_adv"] < metrics["test/acc"]
    assert trainer.test(module, data, verbose=False) == [metrics]  # the noise depends on the batch only


def test_evaluation_attacks_are_logged_by_name_for_each_dataloader() -> None:
    module = AdversarialTraining(
        small_net(), FGSM(0.1), num_classes=3, eval_attacks={"pgd": PGD(0.1), "pgd_l2": PGD(0.5, norm="l2", restarts=2)}
    )
    results = quiet_trainer().validate(module, [loader(16), loader(32, seed=1)], verbose=False)
    names = ("loss", "acc", "acc_adv", "acc_pgd", "acc_pgd_l2")
    for index, metrics in enumerate(results):
        assert set(metrics) == {f"val/{name}/dataloader_idx_{index}" for name in names}


@pytest.mark.parametrize("attack", [FGSM(0.1), NFGSM(0.1), PGD(0.1, steps=3)], ids=["fgsm", "nfgsm", "pgd"])
@pytest.mark.parametrize(
    "arguments", [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}], ids=["bf16", "acc"]
)
def test_it_trains_validates_and_tests_everywhere(attack: Attack, arguments: dict[str, Any]) -> None:
    module = AdversarialTraining(small_net(), attack, num_classes=3)
    trainer = quiet_trainer(max_epochs=2, **arguments)
    trainer.fit(module, loader(64), loader(40, seed=1))
    (metrics,) = trainer.test(module, loader(40, seed=1), verbose=False)
    assert all(value == value for value in metrics.values())  # no NaN
    assert metrics["test/acc_pgd"] <= metrics["test/acc"]


def test_under_accumulation_the_gradient_is_that_of_all_batches() -> None:
    net = small_net().eval()  # no batch-norm update, so that the order of forwards does not matter
    reference = copy.deepcopy(net)
    module = AdversarialTraining(
        net, FGSM(0.1), num_classes=3, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), lr_scheduler="constant"
    )
    module.net.train = lambda mode=True: module.net  # type: ignore[method-assign]
    quiet_trainer(max_epochs=1, accumulate_grad_batches=4).fit(module, loader(64))
    losses = [F.cross_entropy(reference(fgsm(reference, x, y, eps=0.1)), y) for x, y in loader(64)]
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(reference.parameters()))
    for before, after, gradient in zip(reference.parameters(), net.parameters(), gradients, strict=True):
        torch.testing.assert_close(after, before - 0.1 * gradient)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_a_compiled_net_gives_the_same_training() -> None:
    plain = fit(NFGSM(0.1), epochs=1)
    compiled = fit(NFGSM(0.1), torch.compile(small_net(), backend="eager"), epochs=1)  # type: ignore[arg-type]
    ours = {key.removeprefix("_orig_mod."): value for key, value in compiled.net.state_dict().items()}
    assert_identical(dict(plain.net.state_dict()), ours)


def test_a_net_goes_by_its_name() -> None:
    module = AdversarialTraining("SmallCNN", FGSM(0.1), num_classes=7)
    assert isinstance(module.net, SmallCNN)
    assert module(torch.rand(2, 1, 8, 8)).shape == (2, 7)
    assert module.hparams["net"] == "SmallCNN"


def test_a_checkpoint_is_plain_and_loads(tmp_path: Path) -> None:
    module = AdversarialTraining("SmallCNN", FGSM(0.1), num_classes=3)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, loader(32), loader(16))
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    torch.load(tmp_path / "net.ckpt", weights_only=True)
    again = AdversarialTraining.load_from_checkpoint(tmp_path / "net.ckpt", attack=FGSM(0.1))
    assert_identical(dict(module.state_dict()), dict(again.state_dict()))


def test_dict_batches_are_read_by_key() -> None:
    def collate(samples: list[Any]) -> dict[str, Tensor]:
        return {"image": torch.stack([x for x, _ in samples]), "label": torch.stack([y for _, y in samples])}

    data = DataLoader(stripes(32), batch_size=16, collate_fn=collate)
    module = AdversarialTraining(small_net(), FGSM(0.1), num_classes=3, input_key="image", label_key="label")
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, data, data)
    assert torch.cat(trainer.predict(module, data)).shape == (32, 3)  # type: ignore[arg-type]


def test_an_endless_run_has_no_triangle() -> None:
    module = AdversarialTraining(small_net(), FGSM(0.1), num_classes=3)
    with pytest.raises(MisconfigurationException, match="set the Trainer's `max_epochs`"):
        quiet_trainer(max_epochs=-1).fit(module, loader(32))


def test_a_scheduler_of_ones_own_steps_as_told() -> None:
    module = AdversarialTraining(
        small_net(),
        FGSM(0.1),
        num_classes=3,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
        lr_scheduler_interval="step",
    )
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, loader(64))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.2 * 0.5**4)


def test_only_live_objects_are_left_out_of_the_hyperparameters() -> None:
    assert unsavable(a=1, b="x", c=[1, {"d": None}], e=FGSM(0.1), f={"pgd": PGD(0.1)}) == ["e", "f"]


REGULARIZERS = [GradAlign(0.5), TRADES(2.0)]


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=["gradalign", "trades"])
@pytest.mark.parametrize(
    "arguments", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}], ids=["plain", "bf16", "acc"]
)
def test_it_trains_with_a_regularizer_everywhere(regularizer: Regularizer, arguments: dict[str, Any]) -> None:
    attack = FGSM(0.1, random_start=True)
    module = AdversarialTraining(small_net(), attack, regularizer=regularizer, num_classes=3)
    trainer = quiet_trainer(max_epochs=8, **arguments)
    trainer.fit(module, loader(64))
    (metrics,) = trainer.test(module, loader(64), verbose=False)
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values())
    assert metrics["test/acc"] > 0.8
    assert metrics["test/acc_adv"] > 0.5


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=["gradalign", "trades"])
@needs_lightning("2.1", "fit draws another number")
def test_under_accumulation_a_regularized_gradient_is_that_of_all_batches(regularizer: Regularizer) -> None:
    net = small_net().eval()
    reference = copy.deepcopy(net)
    attack = PGD(0.1, steps=2)
    module = AdversarialTraining(
        net,
        attack,
        regularizer=regularizer,
        num_classes=3,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        lr_scheduler="constant",
    )
    module.net.train = lambda mode=True: module.net  # type: ignore[method-assign]
    torch.manual_seed(7)
    quiet_trainer(max_epochs=1, accumulate_grad_batches=4).fit(module, loader(64))
    torch.manual_seed(7)
    batches = list(loader(64))  # takes a number from the generator, as the trainer's loader does
    losses = [regularizer(reference, attack, x, y)[0] for x, y in batches]
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(reference.parameters()))
    for before, after, gradient in zip(reference.parameters(), net.parameters(), gradients, strict=True):
        torch.testing.assert_close(after, before - 0.1 * gradient)


def test_without_weight_a_regularizer_changes_no_gradient() -> None:
    """GradAlign(0) is FGSM training but for batch-norm's running statistics, which see one more forward."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3))
    modules = []
    for regularizer in (None, GradAlign(0.0)):
        module = AdversarialTraining(copy.deepcopy(net), FGSM(0.1), regularizer=regularizer, num_classes=3)
        quiet_trainer(max_epochs=2).fit(module, loader(64))
        modules.append(module)
    assert_identical(dict(modules[0].net.state_dict()), dict(modules[1].net.state_dict()))


@needs_named_loaders
def test_dataloaders_in_a_dict_are_logged_by_their_names() -> None:
    module = AdversarialTraining(small_net(), FGSM(0.1), num_classes=3)
    trainer = quiet_trainer(max_epochs=1)
    data = {"clean": loader(48), "other": [loader(32, seed=1), loader(40, seed=2)]}
    results = trainer.test(module, data, verbose=False)
    names = ("loss", "acc", "acc_adv", "acc_pgd")
    for metrics, name in zip(results, ("clean", "other/0", "other/1"), strict=True):
        assert set(metrics) == {f"test/{metric}/{name}" for metric in names}
    (alone,) = trainer.test(module, loader(40, seed=2), verbose=False)
    assert {key: value for key, value in alone.items()} == {
        key.removesuffix("/other/1"): value for key, value in results[2].items()
    }


@pytest.mark.parametrize("peak", [0.5, 0.4])
def test_the_triangle_peaks_where_told(peak: float) -> None:
    rates: list[float] = []

    class Watching(AdversarialTraining):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            optimizer: Any = self.optimizers()
            rates.append(optimizer.param_groups[0]["lr"])

    module = Watching(small_net(), FGSM(0.1), num_classes=3, lr_peak=peak)
    quiet_trainer(max_epochs=1).fit(module, loader(99, batch_size=1))
    at = torch.arange(1, 100) / 100
    expected = 0.2 * torch.minimum(at / peak, (1 - at) / (1 - peak))
    torch.testing.assert_close(torch.tensor(rates), expected)
    assert max(rates) == pytest.approx(0.2)


class Saturated(nn.Module):
    """Logits times 1e4: the softmax is 0 or 1 in float32, and its gradient zero."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return 1e4 * logits


class Misleading(nn.Module):
    """Right while the mean pixel is below .5, wrong from .55 on; but around .52 lies a hill that stops small steps."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        loss = 4 * (mean - 0.55) + 2 * torch.exp(-(((mean - 0.52) / 0.01) ** 2)) - 1.5
        loss = torch.where(mean > 0.55, torch.ones_like(mean), loss)
        return torch.stack([-loss, loss, loss - 9], 1)


def warned_of(net: nn.Module, data: Any) -> list[str]:
    module = AdversarialTraining(net, FGSM(0.1), num_classes=3, eval_attacks={"pgd": PGD(0.1, random_start=False)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_trainer().test(module, data, verbose=False)
    return [str(warning.message) for warning in caught if "Masked gradients" in str(warning.message)]


def test_a_gradient_masked_net_draws_a_warning() -> None:
    net = fit(FGSM(0.1), epochs=4).net
    assert warned_of(net, loader(64)) == []
    (said,) = warned_of(Saturated(net), loader(64))
    assert "of the input gradients are exactly zero" in said
    assert said.startswith("test: Masked gradients: ")


WEAK = [
    PGD(0.1, steps=2, step_size=0.01),  # cannot come as far as FGSM
    PGD(0.1, steps=10, step_size=0.015),  # nor from one end of the ball to the other
    PGD(0.02),
    PGD(0.1, bounds=None),
]


@pytest.mark.parametrize("weak", WEAK)
def test_a_weak_attack_is_no_sign_of_masking(weak: PGD) -> None:
    module = AdversarialTraining(Misleading(), FGSM(0.1), num_classes=3, eval_attacks={"weak": weak})
    data = DataLoader(TensorDataset(torch.full((64, 1, 8, 8), 0.5), torch.zeros(64, dtype=torch.long)), 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        (metrics,) = quiet_trainer().test(module, data, verbose=False)
    assert metrics["test/acc_adv"] == 0


def test_a_net_that_begins_at_zero_masks_nothing() -> None:
    """Its gradients are zero before the first step only, when Lightning's sanity check looks."""
    net = small_net()
    nn.init.zeros_(net[4].weight)  # type: ignore[index]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Masked gradients")
        fit(FGSM(0.1), net)


def test_masking_is_said_once_in_a_fit() -> None:
    module = AdversarialTraining(Saturated(small_net()), FGSM(0.1), num_classes=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_trainer(max_epochs=3).fit(module, loader(64), loader(40, seed=1))
    assert sum("Masked gradients" in str(warning.message) for warning in caught) == 1


def test_an_attack_with_a_call_of_its_own_is_evaluated_as_it_is() -> None:
    attacks: dict[str, Attack] = {"pgd": PGD(0.1), "own": Own(0.1)}
    module = AdversarialTraining(small_net(), FGSM(0.1), num_classes=3, eval_attacks=attacks)
    (metrics,) = quiet_trainer().test(module, loader(64), verbose=False)
    assert metrics["test/acc_own"] == metrics["test/acc"]


def test_attacks_may_be_added_between_evaluations() -> None:
    module = AdversarialTraining(small_net(), FGSM(0.1), num_classes=3)
    trainer = quiet_trainer()
    trainer.test(module, loader(64), verbose=False)
    module.eval_attacks["more"] = PGD(0.2)
    (metrics,) = trainer.test(module, loader(64), verbose=False)
    assert metrics["test/acc_more"] <= metrics["test/acc_pgd"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@needs_torch_2_6
def test_a_compiled_net_is_aligned_too() -> None:
    """AOT autograd has no second derivative: that forward runs eagerly."""
    trained = []
    for net in (small_net(), torch.compile(small_net(), backend="aot_eager")):
        torch.manual_seed(1)  # of the noise
        module = AdversarialTraining(net, FGSM(0.1), regularizer=GradAlign(0.5), num_classes=3)  # type: ignore[arg-type]
        quiet_trainer(max_epochs=1).fit(module, loader(32))
        trained.append(list(module.net.parameters()))
    for plain, compiled in zip(*trained, strict=True):
        torch.testing.assert_close(plain, compiled, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@needs_torch_2_6
def test_running_statistics_are_not_written_between_the_derivatives() -> None:
    torch.manual_seed(0)
    net = PreActResNet(width=4)
    x, y = torch.rand(4, 3, 16, 16), torch.arange(4)
    for model in (net, torch.compile(net, backend="aot_eager")):
        net.zero_grad()
        loss, _ = GradAlign(1.0)(model, FGSM(0.01), x, y)  # type: ignore[arg-type]
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


@needs_named_loaders
def test_fgsm_stronger_than_pgd_draws_a_warning() -> None:
    data = DataLoader(TensorDataset(torch.full((64, 1, 8, 8), 0.5), torch.zeros(64, dtype=torch.long)), 16)
    (said,) = warned_of(Misleading(), data)
    assert "FGSM is stronger than PGD (accuracy 0.0% against 100.0%)" in said
    named = warned_of(Misleading(), {"one": data, "two": data})
    assert [text.split(":")[0] for text in named] == ["test/one", "test/two"]


@needs_named_loaders
def test_named_test_sets_are_printed_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    module = AdversarialTraining(small_net(), FGSM(0.1), num_classes=3)
    trainer = quiet_trainer()
    results = trainer.test(module, {"clean": loader(40), "a_longer_name": loader(40, seed=1)}, verbose=False)
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["acc", "acc_adv", "acc_pgd"]
    for row, name, metrics in zip(rows, ("clean", "a_longer_name"), results, strict=True):
        assert row.split() == [name, *(f"{metrics[f'test/{key}/{name}']:.1%}" for key in header.split())]
    trainer.test(module, loader(40), verbose=False)
    trainer.validate(module, {"clean": loader(40)}, verbose=False)
    assert capsys.readouterr().out == ""
