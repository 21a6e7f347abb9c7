from __future__ import annotations

import copy
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from pl_robust._lightning import Trainer
from pl_robust.attacks import FGSM, NFGSM, PGD, TorchAttacks
from pl_robust.cli import run
from pl_robust.datamodules import ImageDataModule
from pl_robust.models import Normalize, SmallCNN
from pl_robust.modules import AdversarialTraining

torchattacks = pytest.importorskip("torchattacks")

NAMES = [name for name in torchattacks.__all__ if name not in torchattacks.__wrapper__]
L2 = {"PGDL2", "PGDRSL2"}
# No eps in their constructors: they minimize the perturbation or change a few pixels.
FREE = {"VANILA", "GN", "JSMA", "EADL1", "EADEN", "CW", "DeepFool", "SparseFool", "OnePixel", "Pixle"}
CHEAP: dict[str, dict[str, Any]] = {
    "Square": {"n_queries": 50},
    "SPSA": {"nb_sample": 8},
    "EADL1": {"max_iterations": 10},
    "EADEN": {"max_iterations": 10},
    "DeepFool": {"steps": 5},
}

theirs_on_new_numpy = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def net(channels: int = 3, classes: int = 10) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, classes),
    ).eval()


def batch(model: nn.Module, *shape: int) -> tuple[Tensor, Tensor]:
    """Images and the labels that the model gives them: there is something to attack."""
    x = torch.rand(6, *(shape or (3, 8, 8)))
    with torch.no_grad():
        y: Tensor = model(x).argmax(1)
    return x, y


def attack(name: str) -> TorchAttacks:
    """The attack, in a ball that what needs no eps cannot leave."""
    eps = 1.0 if name in FREE else 0.1
    return TorchAttacks(name, eps, arguments=CHEAP.get(name), norm="l2" if name in L2 else "linf")


def from_seed(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_states() -> bytes:
    legacy = np.random.get_state()  # noqa: NPY002
    return pickle.dumps((torch.get_rng_state().numpy(), legacy, random.getstate()))


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


@theirs_on_new_numpy
@pytest.mark.parametrize("name", NAMES)
def test_every_attack_gives_what_torchattacks_gives(name: str) -> None:
    model = net()
    x, y = batch(model)
    ours = attack(name)(model, x, y, generator=from_seed())
    seed = int(torch.randint(2**32, (), generator=from_seed()))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    settings = dict(CHEAP.get(name, {}))
    if name in ("APGD", "APGDT", "FAB", "Square", "AutoAttack"):
        settings["seed"] = seed
    if name not in FREE:
        settings["max_epsilon" if name.startswith("PIFGSM") else "eps"] = 0.1
    theirs = getattr(torchattacks, name)(model, **settings)(x, y).detach()
    if name in L2:
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    else:
        assert torch.equal(ours, theirs)
    assert (name == "VANILA") == torch.equal(ours, x) or accuracy(model, theirs, y) == 1


@theirs_on_new_numpy
@pytest.mark.parametrize("name", NAMES)
def test_no_attack_touches_anything_but_the_images(name: str) -> None:
    model = net().train()
    model[1].eval()
    x, y = batch(model)
    F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    model[5].bias.requires_grad_(False)
    before, gradients = (
        copy.deepcopy(model),
        [part.grad.clone() for part in model.parameters() if part.grad is not None],
    )
    computed: list[Tensor] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(computed.append)  # type: ignore[no-untyped-call]  # when it is computed
            parameter.register_post_accumulate_grad_hook(computed.append)  # type: ignore[no-untyped-call]  # as DDP's
    states = random_states()
    x_adv = attack(name)(model, x, y, generator=from_seed())
    assert computed == []
    assert [part.requires_grad for part in model.parameters()] == [part.requires_grad for part in before.parameters()]
    assert all(torch.equal(old, new) for old, new in zip(before.parameters(), model.parameters(), strict=True))
    kept = [part.grad for part in model.parameters() if part.grad is not None]
    assert all(torch.equal(old, new) for old, new in zip(gradients, kept, strict=True))
    assert all(torch.equal(old, new) for old, new in zip(before.buffers(), model.buffers(), strict=True))
    assert [part.training for part in model.modules()] == [part.training for part in before.modules()]
    assert random_states() == states
    assert not x_adv.requires_grad
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    delta = (x_adv - x).flatten(1)
    eps = 1.0 if name in FREE else 0.1
    assert (delta.norm(dim=1) if name in L2 else delta.abs().amax(1)).max() <= eps + 1e-6
    with torch.inference_mode():  # as in validation, and the same once more
        again = attack(name)(model, x + 0, y + 0, generator=from_seed())
    assert torch.equal(again, x_adv)


def test_the_global_generators_move_by_the_one_draw() -> None:
    model = net()
    x, y = batch(model)
    state = torch.get_rng_state()
    x_adv = TorchAttacks("PGD", 0.1)(model, x, y)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    assert torch.equal(TorchAttacks("PGD", 0.1)(model, x, y), x_adv)
    torch.set_rng_state(state)
    torch.randint(2**32, ())
    assert torch.equal(torch.get_rng_state(), after)
    other = TorchAttacks("PGD", 0.1)(model, x, y)
    assert not torch.equal(other, x_adv)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("version", ["rand", pytest.param("standard", marks=pytest.mark.slow)])
def test_autoattack_with_a_seed_is_torchattacks_autoattack(version: str, norm: Any) -> None:
    model = net()
    x, y = batch(model)
    settings = {"seed": 3, "version": version}
    eps = 0.04 if norm == "linf" else 0.4
    theirs = torchattacks.AutoAttack(model, norm=norm.capitalize(), eps=eps, **settings)(x, y)
    ours = TorchAttacks("AutoAttack", eps, arguments=settings, norm=norm)(model, x, y)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert accuracy(model, ours, y) == accuracy(model, theirs, y)
    assert 0 < accuracy(model, ours, y) < 1


def test_normalized_data_are_attacked_as_by_normalizing_inside_the_net() -> None:
    model, (mean, std) = net(), ([0.5, 0.4, 0.3], [0.2, 0.3, 0.25])
    inside = nn.Sequential(Normalize(mean, std), model).eval()
    x, y = batch(inside)
    expected = TorchAttacks("APGD", 0.05)(inside, x, y, generator=from_seed())
    shift, scale = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    x_adv = TorchAttacks("APGD", 0.05, normalization=(mean, std))(model, (x - shift) / scale, y, generator=from_seed())
    torch.testing.assert_close(x_adv * scale + shift, expected, atol=1e-5, rtol=0)


class Rescale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 - 1


@pytest.mark.parametrize(("name", "norm"), [("FGSM", "linf"), ("PGD", "linf"), ("PGDL2", "l2"), ("FAB", "l2")])
def test_another_box_is_the_rescaled_problem(name: str, norm: Any) -> None:
    model = net()
    inside = nn.Sequential(Rescale(), model).eval()
    x, y = batch(inside)
    expected = TorchAttacks(name, 0.1, norm=norm)(inside, x, y, generator=from_seed())
    x_adv = TorchAttacks(name, 0.2, norm=norm, bounds=(-1.0, 1.0))(model, x * 2 - 1, y, generator=from_seed())
    torch.testing.assert_close((x_adv + 1) / 2, expected, atol=1e-5, rtol=0)
    assert not torch.equal(expected, x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_minimum_norm_attack_counts_inside_the_ball_only(norm: Any) -> None:
    linear = nn.Linear(192, 2)
    model = nn.Sequential(nn.Flatten(), linear)
    x = torch.rand(200, 3, 8, 8) * 0.2 + 0.4  # far from the box
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    normal = linear.weight[1] - linear.weight[0]
    # DeepFool is exact on a linear model: the way to the boundary, 2 % further.
    length = 1.02 * (logits[:, 1] - logits[:, 0]).abs() / normal.norm()
    size = length if norm == "l2" else length * normal.abs().max() / normal.norm()
    eps = size.median().item() * 1.001
    x_adv = TorchAttacks("DeepFool", eps, norm=norm)(model, x, y)
    with torch.no_grad():
        fooled = model(x_adv).argmax(1) != y
    assert torch.equal(fooled, size <= eps)
    assert torch.equal(x_adv[~fooled], x[~fooled])
    assert 0.4 < fooled.float().mean() < 0.6


def test_what_is_no_number_counts_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, images: Tensor, labels: Tensor) -> Tensor:
        images = images + 0.05
        images[0, 0, 0, 0] = torch.nan
        images[1] += 0.0501  # beyond rounding
        images[2] += 0.05 + 2e-7  # by rounding
        return images

    monkeypatch.setattr(torchattacks.VANILA, "forward", forward)
    model = net()
    x = torch.full((4, 3, 8, 8), 0.5)
    x_adv = TorchAttacks("VANILA", 0.1)(model, x, torch.zeros(4, dtype=torch.long))
    assert torch.equal(x_adv[:2], x[:2])
    assert torch.equal(x_adv[2], x[2] + 0.1)
    assert torch.equal(x_adv[3], x[3] + 0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    x = torch.rand(6, 3, 8, 8).to(dtype)
    y = model(x).argmax(1)
    for name in ("AutoAttack", "PGD", "CW"):
        x_adv = TorchAttacks(name, 0.3, arguments=CHEAP.get(name))(model, x, y)
        assert x_adv.dtype == dtype
        assert (x_adv - x).abs().max() <= 0.3 + (2e-3 if dtype == torch.bfloat16 else 1e-6)
    assert accuracy(model, TorchAttacks("AutoAttack", 0.3)(model, x, y), y) == 0


def test_any_callable_can_be_attacked_also_one_without_gradients() -> None:
    model = net()
    x, y = batch(model)
    blind = lambda images: model(images.detach()).detach()  # noqa: E731
    assert accuracy(model, TorchAttacks("Square", 0.1, arguments={"n_queries": 200})(blind, x, y), y) < 1
    with pytest.raises(ValueError, match="does not depend on its input through autograd"):
        TorchAttacks("PGD", 0.1)(blind, x, y)
    assert torch.equal(
        TorchAttacks("FGSM", 0.1)(lambda images: model(images), x, y), TorchAttacks("FGSM", 0.1)(model, x, y)
    )


def test_an_empty_batch_and_the_base_s_ways() -> None:
    model = net()
    x, y = batch(model)
    pgd = TorchAttacks("PGD", "8/255", arguments={"alpha": "2/255", "steps": 3})
    assert pgd(model, x[:0], y[:0]).shape == (0, 3, 8, 8)
    assert pgd.for_evaluation() is pgd
    assert pgd.arguments == {"alpha": 2 / 255, "steps": 3}
    assert "name='PGD'" in repr(pgd)
    delta = (pgd.scaled(0.5)(model, x, y) - x).abs().max()
    assert 3 / 255 < delta < 4.001 / 255
    x_adv, gradient = pgd.with_start_gradient(model, x, y, generator=from_seed())
    assert gradient is None  # taken inside torchattacks
    assert torch.equal(x_adv, copy.deepcopy(pgd)(model, x, y, generator=from_seed()))


def test_importing_the_room_does_not_import_torchattacks(tmp_path: Path) -> None:
    code = "import sys, pl_robust.attacks; print('torchattacks' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert answer.stdout.strip() == "False"


def test_a_missing_package_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(
        ModuleNotFoundError, match=r'needs the package torchattacks: pip install "pl_robust\[attacks\]"'
    ):
        TorchAttacks("PGD", 0.1)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown name": (
        lambda: TorchAttacks("autoatack", 0.1),
        r"`name` must be an attack of torchattacks, got 'autoatack': did you mean AutoAttack\? It has \['APGD', .*'VNI",
    ),
    "nothing like it": (lambda: TorchAttacks("xyz", 0.1), r"got 'xyz': It has \['APGD'"),
    "no attack": (lambda: TorchAttacks("__version__", 0.1), r"must be an attack of torchattacks, got '__version__'"),
    "wrapper": (lambda: TorchAttacks("LGV", 0.1), r"must be an attack of torchattacks, got 'LGV'"),
    "unknown argument": (
        lambda: TorchAttacks("PGD", 0.1, arguments={"step_size": 0.1}),
        r"torchattacks' PGD may hold \['alpha', 'steps', 'random_start'\], got 'step_size'; model, eps and norm come",
    ),
    "eps twice": (
        lambda: TorchAttacks("PGD", 0.1, arguments={"eps": 0.1}),
        r"got 'eps'; model, eps and norm come from",
    ),
    "norm twice": (lambda: TorchAttacks("APGD", 0.1, arguments={"norm": "L2"}), r"got 'norm'; model, eps and norm"),
    "model": (lambda: TorchAttacks("CW", 0.1, arguments={"model": 1}), r"got 'model'; model, eps and norm come from"),
    "other norm": (
        lambda: TorchAttacks("PGD", 0.1, norm="l2"),
        r"PGD works in norm='linf' only, got norm='l2': AutoAttack, APGD, FAB and Square work in both",
    ),
    "linf of an l2 attack": (lambda: TorchAttacks("PGDL2", 0.1), r"PGDL2 works in norm='l2' only, got norm='linf'"),
    "eps per channel": (
        lambda: TorchAttacks("PGD", [0.1, 0.2, 0.3]),
        r"`eps` must be one number for torchattacks, got one per channel: \[0.1",
    ),
    "no box": (
        lambda: TorchAttacks("PGD", 0.1, bounds=None),
        r"`bounds` must be \(low, high\), because torchattacks clips to a box, got None: .* \(-beta, 1 \+ beta\)",
    ),
    "value that it refuses": (
        lambda: TorchAttacks("AutoAttack", 0.1, arguments={"version": "fast"}),
        r"AutoAttack refuses `arguments`=\{'version': 'fast'\}: Not valid version. \['standard', 'plus', 'rand'\]",
    ),
    "fraction in words": (
        lambda: TorchAttacks("PGD", 0.1, arguments={"alpha": "2/x"}),
        r"`alpha` must be a number or a fraction",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_mistakes_are_named_at_construction(name: str) -> None:
    construct, message = BAD[name]
    with pytest.raises(ValueError, match=message) as error:
        construct()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "arguments", "classes", "least"),
    [
        ("AutoAttack", {}, 3, 4),
        ("AutoAttack", {"version": "plus"}, 2, 4),
        ("AutoAttack", {"version": "rand"}, 2, 3),
        ("APGDT", {}, 3, 4),
        ("APGD", {"loss": "dlr"}, 2, 3),
        ("JSMA", {}, 9, 10),
    ],
)
def test_too_few_classes_are_refused_and_enough_are_not(
    name: str, arguments: dict[str, Any], classes: int, least: int
) -> None:
    model = net(classes=classes)
    x, y = batch(model)
    made = TorchAttacks(name, 0.3, arguments=arguments)
    with pytest.raises(ValueError, match=f"{name} .*needs a model of at least {least} classes, got {classes}: APGD"):
        made(model, x, y)
    model = net(classes=least)
    x, y = batch(model)
    x_adv = made(model, x, y)
    assert name == "JSMA" or accuracy(model, x_adv, y) == 0


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", ["APGD", "FAB", "Square"])
def test_few_classes_are_enough_for_the_parts_of_autoattack(name: str, classes: int) -> None:
    model = net(classes=classes)
    x, y = batch(model)
    arguments = {"n_queries": 500} if name == "Square" else {}
    assert accuracy(model, TorchAttacks(name, 0.3, arguments=arguments)(model, x, y), y) == 0


def test_calls_that_cannot_work_are_refused() -> None:
    model = net()
    x, y = batch(model)
    with pytest.raises(ValueError, match=r"`n_classes` must be at most 10, the number of logits, got 11"):
        TorchAttacks("FAB", 0.1, arguments={"n_classes": 11})(model, x, y)
    with pytest.raises(TypeError, match=r"takes no `loss` and no `targets`"):
        TorchAttacks("PGD", 0.1)(model, x, y, loss=F.cross_entropy)
    gray = net(channels=1)
    x, y = batch(gray, 1, 8, 8)
    with pytest.raises(
        ValueError, match=r"PIFGSM with arguments=\{\} fails on images \[1, 8, 8\] \(RuntimeError: .*3 ch"
    ):
        TorchAttacks("PIFGSM", 0.1)(gray, x, y)
    with pytest.raises(ValueError, match=r"takes images \[B, C, H, W\], got `x` of shape \[6, 5\]: take PGD"):
        TorchAttacks("PGD", 0.1)(nn.Linear(5, 4), torch.rand(6, 5), torch.zeros(6, dtype=torch.long))


@pytest.mark.lightning
def test_from_yaml_to_the_logged_accuracy(tmp_path: Path) -> None:
    evaluation = {
        "aa": {
            "class_path": "TorchAttacks",
            "init_args": {"name": "AutoAttack", "eps": "128/255", "arguments": {"version": "rand"}},
        },
        "cw": {
            "class_path": "TorchAttacks",
            "init_args": {"name": "CW", "eps": 0.001, "norm": "l2", "arguments": {"steps": 3, "lr": "1/100"}},
        },
    }
    fgsm = {"class_path": "FGSM", "init_args": {"eps": 0.1}}
    init_args = {"net": "SmallCNN", "attack": fgsm, "eval_attacks": evaluation}
    content = {
        "model": {"class_path": "AdversarialTraining", "init_args": init_args},
        "data": {"class_path": "ImageDataModule", "init_args": {"name": "digits", "batch_size": 32}},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    cli = run(["fit", "--config", str(tmp_path / "run.yaml"), "--trainer.fast_dev_run=1", *quiet])
    assert cli.model.eval_attacks["aa"].eps == 128 / 255
    assert cli.model.eval_attacks["cw"].arguments == {"steps": 3, "lr": 0.01}
    metrics = cli.trainer.callback_metrics
    assert metrics["val/acc_aa"] < metrics["val/acc"]
    assert metrics["val/acc_cw"] == metrics["val/acc"]  # nothing within so small a ball


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.lightning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_stronger_attacks_find_more(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    eps = 0.2
    attacks = {
        "fgsm": FGSM(eps),
        "pgd10": PGD(eps, steps=10),
        "pgd50x10": PGD(eps, steps=50, restarts=10),
        "aa": TorchAttacks("AutoAttack", eps),
    }
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu"}
    torch.manual_seed(seed)
    module = AdversarialTraining(
        SmallCNN(width=16),
        NFGSM(eps),
        eval_attacks=attacks,
        optimizer=partial(torch.optim.SGD, lr=0.4, momentum=0.9, weight_decay=5e-4),
    )
    Trainer(max_epochs=8, limit_val_batches=0, **quiet).fit(module, ImageDataModule("digits", batch_size=64))
    # One batch of all 497 digits: Square asks 5000 times, whatever the batch.
    (test,) = Trainer(**quiet).test(module, ImageDataModule("digits", batch_size=497), verbose=False)
    with capsys.disabled():
        print(f"\nseed {seed}: " + ", ".join(f"{key} {test[f'test/acc_{key}']:.3f}" for key in attacks))
    fgsm, pgd10, pgd50, aa = (test[f"test/acc_{key}"] for key in attacks)
    assert 0.2 < aa <= pgd50 + 0.01
    assert pgd50 <= pgd10 + 0.01
    assert pgd10 <= fgsm + 0.01
    assert aa < fgsm - 0.1
