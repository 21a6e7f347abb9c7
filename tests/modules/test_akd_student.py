from __future__ import annotations

import copy
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_robust._lightning import NAMESPACE, Callback
from pl_robust.attacks import FGSM, PGD, Attack, fgsm
from pl_robust.callbacks import CatastrophicOverfittingDetector, ExactResume
from pl_robust.losses import AKD, ARD, IAD, RSLAD, Distillation
from pl_robust.modules import AdversarialTraining, AKDStudent
from pl_robust.modules._teachers import Teachers
from tests.modules.test_adversarial_training import small_net
from tests.toys import assert_identical, loader, quiet_trainer, stripes

pytestmark = pytest.mark.lightning
ModelCheckpoint = import_module(f"{NAMESPACE}.callbacks").ModelCheckpoint


def teacher(seed: int = 1) -> nn.Module:
    """Another network than the student's, sure of itself, with running statistics of its own; in eval mode."""
    net = small_net()
    torch.manual_seed(seed)
    for parameter in net.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    net(torch.rand(8, 1, 8, 8))
    return net.eval()


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def always_eval(net: nn.Module) -> nn.Module:
    """A student whose batch-norm stays in eval mode, so that what it answers does not depend on the batch."""
    net.train = lambda mode=True: net  # type: ignore[method-assign]
    return net


def fit(distillation: Distillation | None = None, teachers: Any = None, **arguments: Any) -> AKDStudent:
    given = teacher() if teachers is None else teachers
    module = AKDStudent(
        small_net(), given, FGSM(0.1), distillation=distillation, num_classes=3, optimizer=sgd, **arguments
    )
    torch.manual_seed(3)
    quiet_trainer(max_epochs=2).fit(module, loader(64, shuffle=True), loader(16, seed=1))
    return module


class Unasked(nn.Module):
    """A teacher that nobody should ask."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("asked")


def test_without_a_teachers_weight_it_is_adversarial_training_bit_for_bit() -> None:
    results: list[Any] = []
    attack = PGD(0.1, steps=2)
    for module in (
        AdversarialTraining(small_net(), attack, num_classes=3),
        AKDStudent(small_net(), Unasked().eval(), attack, distillation=AKD(0), num_classes=3),
    ):
        torch.manual_seed(3)
        trainer = quiet_trainer(max_epochs=2)
        trainer.fit(module, loader(70, shuffle=True), loader(40, seed=1))
        optimizer = copy.deepcopy(trainer.optimizers[0].state_dict())
        results.append([dict(module.state_dict()), optimizer, dict(trainer.callback_metrics), torch.get_rng_state()])
    assert "val/acc_pgd" in results[0][2]
    assert_identical(*results)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_it_trains_as_a_bare_loop_does(average: Any) -> None:
    """Adversarial examples of the student, and the weighted mean of two teachers that see them, written out."""
    net, teachers = small_net(), [teacher(1), teacher(2)]
    optimizer = sgd(net.parameters())
    for x, y in loader(64):
        x_adv = fgsm(net, x, y, eps=0.1)
        first, second = (one(x_adv).detach() for one in teachers)
        if average == "probabilities":
            target = 0.25 * first.softmax(1) + 0.75 * second.softmax(1)
        else:
            target = (0.25 * first + 0.75 * second).softmax(1)
        target = 0.4 * F.one_hot(y, 3) + 0.6 * target
        optimizer.zero_grad()
        F.cross_entropy(net(x_adv), target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    module = AKDStudent(
        small_net(),
        nn.ModuleList(teachers).eval(),
        FGSM(0.1),
        distillation=AKD(0.6),
        average=average,
        teacher_weights=[1, 3],
        num_classes=3,
        optimizer=sgd,
        lr_scheduler="constant",
    )
    quiet_trainer(max_epochs=1).fit(module, loader(64))
    for key, value in net.state_dict().items():
        torch.testing.assert_close(module.net.state_dict()[key], value)


@pytest.mark.parametrize("distillation", [AKD(1), AKD(1, temperature=4)], ids=["akd", "warm"])
def test_there_is_nothing_to_learn_from_a_frozen_copy_of_oneself(distillation: Distillation) -> None:
    net = teacher()
    copied = copy.deepcopy(net)
    module = AKDStudent(
        always_eval(net),
        copied,
        PGD(0.1),
        distillation=distillation,
        num_classes=3,
        optimizer=sgd,
        lr_scheduler="constant",
    )
    sizes: list[float] = []

    class Look(Callback):
        def on_after_backward(self, *_: Any) -> None:
            sizes.extend(parameter.grad.abs().max().item() for parameter in net.parameters())  # type: ignore[union-attr]

    quiet_trainer(max_epochs=1, callbacks=[Look()]).fit(module, loader(32))
    assert len(sizes) == 2 * len(list(net.parameters()))
    assert max(sizes) < 1e-6


@pytest.mark.parametrize(
    "distillation", [AKD(), ARD(), RSLAD(), IAD(start_epoch=1)], ids=lambda one: type(one).__name__
)
def test_teachers_are_left_as_they_are_and_are_no_part_of_the_student(distillation: Distillation) -> None:
    teachers = [teacher(1), teacher(2)]
    next(iter(teachers[0].parameters())).requires_grad_(False)
    next(iter(teachers[1].parameters())).grad = torch.ones_like(next(iter(teachers[1].parameters())))

    def state() -> Any:
        return [
            (
                {name: value.clone() for name, value in one.state_dict().items()},
                [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in one.parameters()],
                [part.training for part in one.modules()],
            )
            for one in teachers
        ]

    before = state()
    attack = PGD(0.1, steps=2)
    module = AKDStudent(small_net(), teachers, attack, distillation=distillation, num_classes=3)
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(module, loader(32), loader(16))
    assert_identical(state(), before)
    strange = {id(tensor) for one in teachers for tensor in (*one.parameters(), *one.buffers())}
    assert not strange & {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    assert not strange & {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert set(module.state_dict()) == {f"net.{name}" for name in module.net.state_dict()}
    assert "teachers" not in module.hparams
    assert dict(module.state_dict()).keys() == dict(AdversarialTraining(small_net(), attack).state_dict()).keys()


def test_a_checkpoint_is_as_large_as_without_teachers_and_loads(tmp_path: Path) -> None:
    large = nn.Sequential(nn.Flatten(), nn.Linear(64, 4096), nn.Linear(4096, 3)).eval()
    sizes = []
    for module in (
        AdversarialTraining(small_net(), FGSM(0.1), num_classes=3),
        AKDStudent(small_net(), [large], FGSM(0.1), num_classes=3),
    ):
        trainer = quiet_trainer(max_epochs=1)
        trainer.fit(module, loader(32))
        trainer.save_checkpoint(tmp_path / "net.ckpt")
        sizes.append((tmp_path / "net.ckpt").stat().st_size)
    assert abs(sizes[1] - sizes[0]) < 500  # the names of a few arguments more
    torch.load(tmp_path / "net.ckpt", weights_only=True)
    again = AKDStudent.load_from_checkpoint(tmp_path / "net.ckpt", net=small_net(), teachers=large, attack=FGSM(0.1))
    assert_identical(dict(again.state_dict()), dict(module.state_dict()))
    (metrics,) = quiet_trainer().test(again, loader(32), verbose=False)
    assert metrics == quiet_trainer().test(module, loader(32), verbose=False)[0]


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_the_order_of_teachers_changes_no_bit(average: Any) -> None:
    teachers, weights = [teacher(seed) for seed in (1, 2, 3, 4)], [0.1, 0.7, 3.0, 0.3]
    order = [2, 0, 3, 1]
    trained = [
        fit(AKD(0.9), one, average=average, teacher_weights=shares)
        for one, shares in ((teachers, weights), ([teachers[i] for i in order], [weights[i] for i in order]))
    ]
    assert_identical(dict(trained[0].state_dict()), dict(trained[1].state_dict()))
    equal = fit(AKD(0.9), teachers, average=average)
    assert not torch.equal(equal.state_dict()["net.0.weight"], trained[0].state_dict()["net.0.weight"])


def test_the_mean_keeps_what_is_unlikely_and_one_teacher_is_itself() -> None:
    """In log-space: a class of probability 1e-60 must not become minus infinity."""
    logits = torch.tensor([[[0.0, -140.0, 3.0], [1.0, -138.0, 0.0]]])
    average: Any
    for average in ("probabilities", "logits"):
        both = Teachers([teacher(), teacher()], average=average, weights=[1, 4], num_classes=3)
        for temperature in (1.0, 3.0):
            z = logits.double() / temperature
            mean = (z * torch.tensor([[0.2], [0.8]])).sum(1).log_softmax(1)
            if average == "probabilities":
                mean = (z.softmax(2) * torch.tensor([[0.2], [0.8]], dtype=torch.float64)).sum(1).log()
            torch.testing.assert_close(both.mix(logits, temperature), mean.float(), rtol=1e-5, atol=1e-5)
    one = Teachers(teacher(), average="probabilities", weights=[7], num_classes=3)
    assert torch.equal(one.mix(logits[:, :1], 3.0), (logits[:, 0] / 3).log_softmax(1))


class Spy(AKD):
    """Keeps what the teachers said."""

    said: Tensor

    def __call__(self, net: Any, teacher: Any, attack: Any, x: Tensor, y: Tensor, **arguments: Any) -> Any:
        self.said = teacher(x, 2.0, clean=True)
        assert torch.equal(self.said, teacher(x, 2.0, clean=True))
        return super().__call__(net, teacher, attack, x, y, **arguments)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_answers_are_float32_in_every_precision(precision: Any) -> None:
    spy, teachers = Spy(), [teacher(1), teacher(2).bfloat16() if precision != "bf16-mixed" else teacher(2)]
    dtypes = [next(one.parameters()).dtype for one in teachers]
    module = AKDStudent(small_net(), teachers, PGD(0.1, steps=2), distillation=spy, num_classes=3)
    quiet_trainer(max_epochs=1, precision=precision).fit(module, loader(32))
    assert spy.said.dtype == torch.float32
    assert not spy.said.requires_grad
    torch.testing.assert_close(spy.said.exp().sum(1), torch.ones(16))  # rounded to half precision it is off by 1e-3
    assert [next(one.parameters()).dtype for one in teachers] == dtypes
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values())


def test_it_goes_with_its_callbacks_and_resumes_exactly(tmp_path: Path) -> None:
    states = []
    for stop in (3, 2):
        for epochs in (stop, 3):
            path = tmp_path / "last.ckpt"
            module = AKDStudent(
                small_net(), [teacher(1), teacher(2)], PGD(0.1, steps=2), num_classes=3, lr_scheduler="constant"
            )
            saves = ModelCheckpoint(dirpath=str(tmp_path), save_last=True, monitor="val/acc_pgd", mode="max")
            detector = CatastrophicOverfittingDetector(max_samples=16)
            callbacks = [ExactResume(), detector, saves]
            torch.manual_seed(3)
            trainer = quiet_trainer(max_epochs=epochs, callbacks=callbacks, enable_checkpointing=True)
            resumes = epochs != stop
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Checkpoint directory|The dirpath has changed|.*Masked gradients")
                trainer.fit(module, loader(48, shuffle=True), loader(16), ckpt_path=path if resumes else None)
            if stop == 3:
                break
        assert len(detector.history) == 3
        states.append([dict(module.state_dict()), trainer.optimizers[0].state_dict()])
        path.unlink()
    assert_identical(states[0], states[1])


def test_it_evaluates_and_runs_fast_without_its_teachers_being_asked() -> None:
    module = AKDStudent(small_net(), Unasked().eval(), FGSM(0.1), num_classes=3)
    for evaluate in ("validate", "test"):
        (metrics,) = getattr(quiet_trainer(), evaluate)(module, loader(16), verbose=False)
        assert {name.partition("/")[2] for name in metrics} == {"loss", "acc", "acc_adv", "acc_pgd"}
    with pytest.raises(AssertionError, match="asked"):
        quiet_trainer(fast_dev_run=True).fit(module, loader(16), loader(16))
    quiet_trainer(fast_dev_run=True).fit(AKDStudent(small_net(), teacher(), FGSM(0.1), num_classes=3), loader(16))


class Flip(Callback):
    """Puts a part of a teacher into training mode after the first epoch."""

    def __init__(self, part: nn.Module) -> None:
        self.part = part

    def on_train_epoch_end(self, *_: Any) -> None:
        self.part.train()


def test_a_teacher_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be in eval mode.*it is in training mode in teacher 0 \(Sequential\)"):
        AKDStudent(small_net(), small_net(), FGSM(0.1))
    half = teacher()
    half[1].train()  # type: ignore[index]
    with pytest.raises(ValueError, match=r"its part '1' is in training mode in teacher 1"):
        AKDStudent(small_net(), [teacher(), half], FGSM(0.1))
    good = teacher()
    module = AKDStudent(small_net(), good, FGSM(0.1), num_classes=3)
    flip = Flip(good[1])  # type: ignore[index]
    with pytest.raises(ValueError, match=r"its part '1' is in training mode in teacher 0"):
        quiet_trainer(max_epochs=2, callbacks=[flip]).fit(module, loader(16))


def test_answers_of_the_wrong_kind_are_refused_at_the_first_batch() -> None:
    def train(*teachers: nn.Module) -> None:
        module = AKDStudent(small_net(), list(teachers), FGSM(0.1), num_classes=3)
        quiet_trainer(max_epochs=1).fit(module, loader(16))

    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval()
    with pytest.raises(ValueError, match=r"must give logits \[16, 3\] .* got \[16, 5\] from teacher 1 \(Sequential\)"):
        train(teacher(), other)
    with pytest.raises(ValueError, match=r"must give logits \[16, 3\] .* got \[16, 64\] from teacher 0 \(Flatten\)"):
        train(nn.Flatten().eval())
    broken = teacher()
    broken[4].bias.data[1] = torch.nan  # type: ignore[index]
    with pytest.raises(ValueError, match=r"finite logits, got NaN or infinity from teacher \[1\]"):
        train(teacher(), broken, teacher())


class Picky(AKD):
    def check(self, attack: Attack) -> None:
        raise ValueError("no such attack")


def test_bad_arguments_are_refused() -> None:
    def student(**arguments: Any) -> AKDStudent:
        return AKDStudent(**{"net": small_net(), "teachers": teacher(), "attack": FGSM(0.1), **arguments})

    with pytest.raises(ValueError, match=r"`teachers` must be at least one network, got none"):
        student(teachers=[])
    with pytest.raises(TypeError, match=r"`teachers` must be an nn.Module or a list of them, got str"):
        student(teachers="SmallCNN")
    with pytest.raises(TypeError, match=r"got NoneType in the list"):
        student(teachers=[teacher(), None])
    net = teacher()
    with pytest.raises(ValueError, match=r"must not share parameters or buffers with `net`.*copy.deepcopy\(net\).eval"):
        student(net=net, teachers=[teacher(), net])
    sharing = teacher()
    sharing.load_state_dict(net.state_dict(), assign=True)  # other parameters, in the same memory
    with pytest.raises(ValueError, match=r"must not share parameters or buffers with `net`, and teacher 0"):
        student(net=net, teachers=sharing)
    with pytest.raises(TypeError, match=r"`cache` must be the path of a folder, or None, got 5"):
        student(distillation=ARD(), cache=5)
    with pytest.raises(ValueError, match=r"`average` must be one of \('probabilities', 'logits'\), got 'mean'"):
        student(average="mean")
    for weights, wrong in (([1], "one number for each of 2"), ([1, 0], "above 0, of any sum"), ([1, -2], "above 0")):
        with pytest.raises(ValueError, match=rf"`teacher_weights` must be .*{wrong}"):
            student(teachers=[teacher(), teacher()], teacher_weights=weights)
    with pytest.raises(TypeError, match=r"`teacher_weights` must be a list of numbers, got 1"):
        student(teacher_weights=1)
    with pytest.raises(TypeError, match=r"`distillation` must be a distillation such as AKD\(\), or None, got 'AKD'"):
        student(distillation="AKD")
    with pytest.raises(TypeError, match=r"`attack` must be an attack such as"):
        student(attack=None)
    for asks in (AKD(), IAD()):
        with pytest.raises(ValueError, match=r"`cache` holds .* about adversarial ones, got .*: leave `cache` out"):
            student(distillation=asks, cache="cache")
    with pytest.raises(ValueError, match=r"no such attack"):
        student(distillation=Picky())


def test_dict_batches_and_attacks_as_in_adversarial_training() -> None:
    data = stripes(32)
    batches = [{"image": x[None], "label": y[None]} for x, y in zip(*data.tensors, strict=True)]
    attacks: dict[str, Attack] = {"weak": FGSM(0.05)}
    module = AKDStudent(
        small_net().eval(),
        teacher(),
        FGSM(0.1),
        num_classes=3,
        input_key="image",
        label_key="label",
        eval_attacks=attacks,
        optimizer=sgd,
    )
    always_eval(module.net)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert {"train/loss", "train/acc_adv"} <= set(trainer.callback_metrics)
    (metrics,) = trainer.test(module, torch.utils.data.DataLoader(batches, batch_size=None), verbose=False)  # type: ignore[arg-type]
    assert "test/acc_weak" in metrics
