from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pl_robust._lightning import Callback, LightningModule, MisconfigurationException, Trainer
from pl_robust.callbacks import CurvatureLogger, NTKAlignmentLogger
from pl_robust.callbacks._float32_view import Float32View
from pl_robust.callbacks._kernel_target import kernel_target
from pl_robust.ntk import ntk_alignment
from tests.toys import (
    PlainModule,
    assert_identical,
    loader,
    needs_frozen_parts,
    needs_torch_2_6,
    quiet_trainer,
    stripes,
    training_state,
)

pytestmark = pytest.mark.lightning


def train(*callbacks: Callback, module: LightningModule | None = None, **arguments: Any) -> tuple[Trainer, Any]:
    torch.manual_seed(0)
    module = PlainModule() if module is None else module
    trainer = quiet_trainer(max_epochs=2, callbacks=list(callbacks), **arguments)
    trainer.fit(module, loader(70, shuffle=True), loader(40, seed=1))
    return trainer, module


class Fixed(LightningModule):
    """A net whose weights stay as they are."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.net(x)
        return outputs

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        # No forward, which would move batch norm.
        return 0.0 * torch.cat([value.flatten() for value in self.parameters()]).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        return None

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.0)


def watch(
    net: nn.Module, x: Tensor, y: Tensor, *, precision: Any = 32, batch_size: int = 8, **arguments: Any
) -> NTKAlignmentLogger:
    """Look at a net on samples, once before and once after an epoch in which it stays as it is."""
    logger = NTKAlignmentLogger(**arguments)
    data = DataLoader(TensorDataset(x, y), batch_size=batch_size)
    module = net if isinstance(net, LightningModule) else Fixed(net)
    quiet_trainer(max_epochs=1, callbacks=[logger], precision=precision).fit(module, data, data)
    before, after = logger.history
    assert (before["epoch"], before["step"], after["epoch"]) == (-1, 0, 0)
    assert {**before, "epoch": 0, "step": 0} == {**after, "epoch": 0, "step": 0}
    return logger


def jacobian(net: nn.Module, x: Tensor) -> Tensor:
    """The Jacobian [N C, P] of a net in eval mode in float64, by torch.func."""
    parameters = {name: value.detach() for name, value in net.named_parameters() if value.requires_grad}
    parts = jacrev(lambda given: functional_call(net, given, (x,)))(parameters)
    return torch.cat([part.reshape(-1, parameters[name].numel()) for name, part in parts.items()], dim=1)


def small_net(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(108, outputs)
    )


@pytest.mark.parametrize(
    "arguments",
    [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}, {"precision": "bf16-true"}],
    ids=["plain", "accumulate", "bf16-mixed", "bf16-true"],
)
@pytest.mark.parametrize("cadence", [{}, {"every_n_steps": 2}], ids=["epochs", "steps"])
def test_training_is_bit_identical_with_and_without_it(arguments: dict[str, Any], cadence: dict[str, Any]) -> None:
    logger = NTKAlignmentLogger(eigenvalues=0 if cadence else 1, per_layer=True, max_samples=40, **cadence)
    other = NTKAlignmentLogger(cka=False, max_samples=10, **cadence)
    with_it = training_state(*train(logger, other, **arguments))
    assert len(logger.history) == len(other.history) >= 3
    assert_identical(with_it, training_state(*train(**arguments)))


def test_the_kernel_of_a_linear_net_is_known() -> None:
    x, y = torch.randn(12, 5), torch.tensor([0, 1, 2] * 4)
    target = F.one_hot(y, 3) - 1 / 3
    kernel = x @ x.mT + 1  # of one output; outputs share no parameter
    alignment = float((target * (kernel @ target)).sum() / target.square().sum())
    norm = float(kernel.norm()) * math.sqrt(3)
    logger = watch(nn.Linear(5, 3), x, y, eigenvalues=4, per_layer=True, samples=40)
    row = logger.history[0]
    assert row["alignment"] == pytest.approx(alignment, rel=1e-5)
    assert row["share/net"] == pytest.approx(1)
    values = torch.linalg.eigvalsh(kernel).flip(0).repeat_interleave(3)[:4]
    assert [row[f"eigenvalue_{number}"] for number in (1, 2, 3, 4)] == pytest.approx(values.tolist(), rel=1e-4)
    assert 0 < row["cka_error"] < 0.2 * row["cka"]
    assert abs(row["cka"] - alignment / norm) < 4 * row["cka_error"]


@pytest.mark.parametrize(("precision", "rel"), [(32, 1e-4), ("bf16-mixed", 1e-4), (64, 1e-10)])
def test_it_measures_the_kernel_in_eval_mode_and_outside_autocast(precision: Any, rel: float) -> None:
    x, y = stripes(20).tensors
    net = small_net()
    net[0].bias.requires_grad_(False)  # is not in the kernel
    net.get_buffer("1.running_mean").add_(0.3)  # is in it
    exact = small_net()
    exact.load_state_dict(net.state_dict())
    exact[0].bias.requires_grad_(False)
    j = jacobian(exact.double().eval(), x.double())
    target = (F.one_hot(y, 3).double() - 1 / 3).flatten()
    pulled = target @ j
    kernel = j @ j.mT
    inputs = x.double() if precision == 64 else x
    row = watch(net, inputs, y, precision=precision, eigenvalues=3, per_layer=True, samples=60).history[0]
    alignment = float(pulled.square().sum() / target.square().sum())
    assert row["alignment"] == pytest.approx(alignment, rel=rel)
    values = torch.linalg.eigvalsh(kernel).flip(0)[:3].tolist()
    assert [row[f"eigenvalue_{number}"] for number in (1, 2, 3)] == pytest.approx(values, rel=rel)
    # The convolution's weight, batch norm, the linear layer.
    parts = torch.split(pulled.square(), [27, 3, 3, 108 * 3 + 3])
    shares = [float(part.sum() / pulled.square().sum()) for part in (parts[0], torch.cat(parts[1:3]), parts[3])]
    assert [row[f"share/net.{layer}"] for layer in (0, 1, 5)] == pytest.approx(shares, rel=10 * rel)
    cka = alignment / float(kernel.norm())
    assert abs(row["cka"] - cka) < 4 * row["cka_error"]
    assert 0 < row["cka_error"] < 0.1 * cka


def test_it_is_the_function_of_the_room_below() -> None:
    x, y = stripes(101).tensors
    net = small_net()
    row = watch(net, x, y, samples=7, per_layer=True, batch_size=80).history[0]
    target = (F.one_hot(y, 3) - 1 / 3).float()
    generator = torch.Generator().manual_seed(0)
    alone = ntk_alignment(net.eval(), x, target, cka=True, samples=7, per_layer=True, generator=generator)
    assert alone.cka is not None
    assert alone.per_layer is not None
    assert row["alignment"] == pytest.approx(alone.total, rel=1e-5)
    assert row["cka"] == pytest.approx(alone.cka, rel=1e-5)
    assert row["cka_error"] == pytest.approx(alone.cka_error, rel=1e-3)
    assert row["share/net.5"] == pytest.approx(alone.per_layer["5"], rel=1e-4)


def test_a_net_of_half_precision_is_measured_in_float32_at_its_own_weights() -> None:
    x, y = stripes(20).tensors
    net, rounded = small_net(), small_net()
    for tensor in (*rounded.parameters(), *rounded.buffers()):
        tensor.data = tensor.data.bfloat16().to(tensor.dtype)
    half = watch(net, x, y, precision="bf16-true", per_layer=True).history[0]
    assert net[0].weight.dtype == torch.bfloat16
    single = watch(rounded, x.bfloat16().float(), y, per_layer=True).history[0]
    assert half == pytest.approx(single, rel=1e-5)


def test_the_float32_view_lends_copies_and_keeps_ties() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.scale = nn.Parameter(torch.ones(()))
            self.first.bias.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.scale * self.second(self.first(x).tanh())
            return outputs

    torch.manual_seed(0)
    net = Tied().bfloat16()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    view = Float32View(net)
    wanted = {name: value.requires_grad for name, value in net.named_parameters()}
    assert {name: value.requires_grad for name, value in view.named_parameters()} == wanted
    x = torch.randn(5, 4)
    single = Tied()
    single.load_state_dict({name: value.float() for name, value in before.items()})
    ours = [value for value in view.parameters() if value.requires_grad]
    theirs = [value for value in single.parameters() if value.requires_grad]
    assert torch.equal(view(x), single(x))
    gradients = torch.autograd.grad(view(x).sum(), ours), torch.autograd.grad(single(x).sum(), theirs)
    for left, right in zip(*gradients, strict=True):
        assert torch.equal(left, right)
        assert left.dtype == torch.float32
    assert_identical(dict(net.state_dict()), before)
    assert all(value.grad is None for value in net.parameters())


def test_what_is_compared_with_the_kernel() -> None:
    labels = torch.tensor([2, 0])
    assert torch.allclose(kernel_target(labels, 3).float(), torch.tensor([[-1, -1, 2], [2, -1, -1]]) / 3)
    signs = torch.tensor([[-1.0], [1.0]])
    for single in (torch.tensor([0, 1]), torch.tensor([[0], [1]]), torch.tensor([False, True])):
        assert torch.equal(kernel_target(single, 1).float(), signs)
    values = torch.tensor([[0.5, 2.0]])
    assert torch.equal(kernel_target(values, 2), values)
    assert torch.equal(kernel_target(values[0], 1), values.mT)
    assert torch.equal(kernel_target(values.mT, 1), values.mT)


@pytest.mark.parametrize(
    ("y", "outputs", "error", "message"),
    [
        (torch.tensor([0, 3]), 3, ValueError, "class labels for 3 logits must be 0 to 2, got 0 to 3"),
        (torch.tensor([0, -100]), 3, ValueError, "must be 0 to 2, got -100 to 0; leave samples of no class out by"),
        (
            torch.tensor([0, 7]),
            1,
            ValueError,
            "a single logit must be 0 to 1, got 0 to 7; values to regress on must be",
        ),
        (torch.tensor([[0, 1]]), 2, TypeError, r"labels \[N, 2\] for 2 outputs must be values in floating point, got"),
        (torch.tensor([[0, 1]]), 3, ValueError, r"class labels must be integers \[N\], got shape \[1, 2\]"),
        (torch.zeros(4), 3, ValueError, r"outputs' shape \[N, 3\], got \[4\]; classes must be integers"),
        (torch.zeros(4, 2), 1, ValueError, r"outputs' shape \[N\] or \[N, 1\], got \[4, 2\]"),
        (torch.tensor([[0.0], [math.nan]]), 1, ValueError, "must be finite, got NaN or infinity"),
        (torch.zeros(2, dtype=torch.complex64), 1, TypeError, "classes .* or values .*, got torch.complex64"),
    ],
)
def test_labels_that_fit_no_outputs_are_refused(y: Tensor, outputs: int, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        kernel_target(y, outputs)


@pytest.mark.parametrize("shape", [(9,), (9, 1)])
@pytest.mark.parametrize("squeezed", [True, False])
def test_regressors_and_binary_classifiers_of_one_output(shape: tuple[int, ...], squeezed: bool) -> None:
    x, y = torch.randn(9, 4), torch.randn(9)
    net: nn.Module = nn.Linear(4, 1)
    if squeezed:
        net = nn.Sequential(net, nn.Flatten(0))  # outputs [N]
    kernel = x @ x.mT + 1
    row = watch(net, x, y.view(shape)).history[0]
    assert row["alignment"] == pytest.approx(float(y @ kernel @ y / (y @ y)), rel=1e-5)
    signs = (y > 0).float() * 2 - 1
    row = watch(net, x, (y > 0).long().view(shape)).history[0]
    assert row["alignment"] == pytest.approx(float(signs @ kernel @ signs) / 9, rel=1e-5)


def test_classes_in_floating_point_draw_a_warning() -> None:
    x, y = torch.randn(9, 4), torch.tensor([0.0, 1.0, 1.0] * 3)
    with pytest.warns(UserWarning, match="taken for values to regress on, and those of the probe set are all 0.0 or"):
        watch(nn.Linear(4, 1), x, y)


def test_inputs_that_forward_converts_itself_are_taken() -> None:
    class Converts(Fixed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float() / 255)

    x, y = torch.randint(256, (9, 4), dtype=torch.uint8), torch.tensor([0, 1, 2] * 3)
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    bytes_, doubles = (watch(Converts(net), given, y).history[0] for given in (x, x.double()))
    assert bytes_ == pytest.approx(watch(net, x.float() / 255, y).history[0])
    assert doubles == pytest.approx(bytes_)


def digits() -> tuple[Tensor, Tensor]:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)


class Classifier(Fixed):
    def __init__(self, hidden: int = 100) -> None:
        super().__init__(nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_kernel_of_a_net_that_learns_turns_towards_the_labels(seed: int) -> None:
    x, y = digits()
    torch.manual_seed(seed)
    logger = NTKAlignmentLogger()
    training = DataLoader(TensorDataset(x[:1400], y[:1400]), batch_size=64, shuffle=True)
    held_out = DataLoader(TensorDataset(x[1400:], y[1400:]), batch_size=128)
    quiet_trainer(max_epochs=3, callbacks=[logger]).fit(Classifier(), training, held_out)
    first, last = logger.history[0], logger.history[-1]
    assert last["alignment"] > 1.5 * first["alignment"]
    assert last["cka"] > 1.5 * first["cka"]  # more than the kernel as a whole has grown


def test_two_live_beside_another_observer_and_resume(tmp_path: Path) -> None:
    def three() -> list[Any]:
        return [NTKAlignmentLogger(), CurvatureLogger(eps=0.1), NTKAlignmentLogger(cka=False, per_layer=True)]

    first = three()
    trainer, _ = train(*first)
    names = {"ntk/alignment", "ntk/cka", "ntk_2/alignment", "ntk_2/share/net.5", "curvature/eigenvalue_1"}
    assert names <= set(trainer.callback_metrics)
    assert not {"ntk/cka_error", "ntk_2/cka"} & set(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    assert torch.load(tmp_path / "three.ckpt", weights_only=True)["epoch"] == 2
    second = three()
    resumed = quiet_trainer(max_epochs=3, callbacks=second)
    resumed.fit(PlainModule(), loader(70), loader(40, seed=1), ckpt_path=tmp_path / "three.ckpt")
    for before, after in zip(first, second, strict=True):
        assert after.history[: len(before.history)] == before.history
        assert after.history[-1]["epoch"] == 2
    assert [row["epoch"] for row in second[0].history] == [-1, 0, 1, 2]


def test_a_second_run_starts_from_scratch() -> None:
    logger = NTKAlignmentLogger()
    train(logger)
    before = logger.history
    train(logger)
    assert logger.history == before


def test_checks_by_steps_come_before_training_and_after_every_nth_optimizer_step() -> None:
    logger = NTKAlignmentLogger(every_n_steps=2)
    train(logger, accumulate_grad_batches=2)  # 5 batches, so 3 optimizer steps an epoch
    assert [row["step"] for row in logger.history] == [0, 2, 4, 6]


def test_iterable_data_is_not_read_before_validation() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(zip(*stripes(40, seed=1).tensors, strict=True))

    logger, ahead = NTKAlignmentLogger(), NTKAlignmentLogger()
    torch.manual_seed(0)
    quiet_trainer(max_epochs=2, callbacks=[logger]).fit(PlainModule(), loader(70), DataLoader(Stream(), batch_size=16))
    assert [row["epoch"] for row in logger.history] == [0, 1]
    torch.manual_seed(0)
    quiet_trainer(max_epochs=2, callbacks=[ahead]).fit(PlainModule(), loader(70), loader(40, seed=1))
    found, wanted = ([row["alignment"] for row in rows] for rows in (logger.history, ahead.history[1:]))
    assert found == pytest.approx(wanted, rel=1e-5)


def test_figure_numbers_and_summary_find_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from pl_robust._lightning import NAMESPACE

    loggers = pytest.importorskip(f"{NAMESPACE}.loggers")
    logger = loggers.TensorBoardLogger(tmp_path)
    observer = NTKAlignmentLogger(eigenvalues=1, per_layer=True)
    trainer, _ = train(observer, logger=logger, log_every_n_steps=50)
    assert (Path(trainer.log_dir or "") / "ntk_curves.png").stat().st_size > 5000
    panels = observer._draw().axes
    assert [axes.get_ylabel() for axes in panels] == ["alignment", "CKA", "eigenvalues", "share of the layer"]
    line: Any = panels[0].get_lines()[0]
    assert [axes.get_ylabel() for axes in panels[0].child_axes] == ["relative to the first"]
    assert list(line.get_xdata()) == [-1, 0, 1]
    assert list(line.get_ydata()) == [row["alignment"] for row in observer.history]
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert "ntk/curves" in events.Tags()["images"]
    scalars = events.Scalars("ntk/alignment")
    assert [scalar.step for scalar in scalars] == [0, 4, 9]  # Lightning counts from 0
    assert [scalar.value for scalar in scalars] == pytest.approx([row["alignment"] for row in observer.history])
    said = capsys.readouterr().out
    growth = observer.history[-1]["alignment"] / observer.history[0]["alignment"]
    assert "first, before training" in said
    assert f"{growth:.2f} x" in said


def test_a_dead_or_diverged_network_is_drawn_and_ends_no_run(tmp_path: Path) -> None:
    from pl_robust._lightning import NAMESPACE

    class Dead(Fixed):
        worth = 0.0

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.worth

    class Diverged(Dead):
        worth = float("nan")

    class Overflowing(Dead):
        worth = 1e25

    loggers = pytest.importorskip(f"{NAMESPACE}.loggers")
    for kind, alignment in ((Dead, 0.0), (Diverged, math.nan), (Overflowing, None)):
        module = kind(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
        logger = NTKAlignmentLogger(eigenvalues=2, per_layer=True)
        train(logger, module=module, logger=loggers.CSVLogger(tmp_path))
        row = logger.history[-1]
        if alignment is not None:
            assert row["alignment"] == pytest.approx(alignment, nan_ok=True)
        assert row["eigenvalue_1"] == pytest.approx(0.0 if kind is Dead else math.nan, nan_ok=True)
        assert len(logger.history) == 3


def test_heads_that_forward_does_not_use_count_nothing_and_frozen_layers_are_out() -> None:
    class TwoHeads(Fixed):
        def __init__(self) -> None:
            super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)))
            self.other = nn.Linear(8, 5)
            self.temperature = nn.Parameter(torch.ones(()))
            self.net[1].requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.temperature

    x, y = stripes(20).tensors
    row = watch(TwoHeads(), x, y, per_layer=True).history[0]
    assert set(row) >= {"share/net.3", "share/other", "share/TwoHeads"}
    assert "share/net.1" not in row
    assert row["share/other"] == 0
    assert row["share/net.3"] + row["share/TwoHeads"] == pytest.approx(1)
    assert row["share/TwoHeads"] > 0


def test_layers_that_are_unfrozen_during_training_enter_the_kernel() -> None:
    class Unfreezing(Fixed):
        def __init__(self) -> None:
            super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)))
            self.net[1].requires_grad_(False)

        def on_train_epoch_start(self) -> None:
            self.net[1].requires_grad_(self.current_epoch == 1)

    logger = NTKAlignmentLogger(per_layer=True)
    train(logger, module=Unfreezing())
    assert ["share/net.1" in row for row in logger.history] == [False, False, True]
    assert logger.history[2]["alignment"] > logger.history[1]["alignment"] == logger.history[0]["alignment"]
    assert len(logger._draw().axes) == 3


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["net", "module"])
@needs_torch_2_6
def test_a_compiled_network_is_looked_at_without_being_compiled_anew(whole: bool) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    def fit(*callbacks: Callback) -> int:
        torch._dynamo.reset()
        torch.manual_seed(0)
        counter = CompileCounterWithBackend("aot_eager" if whole else "eager")
        module: Any = PlainModule()
        if whole:
            module = torch.compile(module, backend=counter)
        else:
            module.net = torch.compile(module.net, backend=counter)
        quiet_trainer(max_epochs=1, callbacks=callbacks).fit(module, loader(32), loader(32, seed=1))
        return counter.frame_count

    watched, plain = (NTKAlignmentLogger(eigenvalues=1, per_layer=True, max_samples=20) for _ in range(2))
    assert fit(watched) == fit() > 0
    torch.manual_seed(0)
    quiet_trainer(max_epochs=1, callbacks=[plain]).fit(PlainModule(), loader(32), loader(32, seed=1))
    for row, same in zip(watched.history, plain.history, strict=True):
        assert list(row) == list(same)  # the layers' names too
        assert row == pytest.approx(same, rel=1e-4)


def test_dicts_and_given_samples_are_understood_and_other_stages_left_alone() -> None:
    def collate(samples: list[Any]) -> Any:
        return {"image": torch.stack([x for x, _ in samples]), "label": torch.stack([y for _, y in samples])}

    module = PlainModule("image", "label")
    data = DataLoader(stripes(32), batch_size=16, collate_fn=collate)
    read = NTKAlignmentLogger(input_key="image", label_key="label", max_samples=20)
    x, y = stripes(32).tensors
    given = NTKAlignmentLogger(probe_data=(x[:20], y[:20]))
    trainer = quiet_trainer(fast_dev_run=True, callbacks=[read, given])
    trainer.fit(module, data, data)
    assert len(read.history) == 2
    for left, right in zip(read.history, given.history, strict=True):
        assert left == pytest.approx(right, rel=1e-4)
    trainer.validate(module, data, verbose=False)
    trainer.test(module, data, verbose=False)
    assert len(read.history) == 2


def test_one_sample_is_enough() -> None:
    x, y = torch.randn(1, 4), torch.tensor([1])
    row = watch(nn.Linear(4, 2), x, y, eigenvalues=1).history[0]
    value = float(x.square().sum()) + 1
    assert row["alignment"] == pytest.approx(value, rel=1e-5)
    assert row["eigenvalue_1"] == pytest.approx(value, rel=1e-5)
    assert row["cka"] == pytest.approx(1 / math.sqrt(2), rel=1e-5)  # K is a multiple of the identity: no noise


class Mixing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Steps(Fixed):
    """Counts the steps that training makes."""

    steps = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1


def frozen() -> nn.Module:
    return nn.Linear(4, 3).requires_grad_(False)


@pytest.mark.parametrize(
    ("net", "y", "arguments", "error", "message"),
    [
        (nn.Linear(4, 3), torch.full((9,), 3), {}, ValueError, "class labels for 3 logits must be 0 to 2, got 3 to 3"),
        (nn.Linear(4, 3), torch.zeros(9, 2), {}, ValueError, r"outputs' shape \[N, 3\], got \[9, 2\]"),
        (nn.Linear(4, 3), torch.zeros(9, 3), {}, ValueError, "`y` must not be zero everywhere"),
        (nn.Unflatten(1, (2, 2)), None, {}, ValueError, "has no parameter with requires_grad=True"),
        (nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (2, 2))), None, {}, ValueError, r"real outputs \[N, C\]"),
        (nn.Sequential(nn.Linear(4, 3), Mixing()), None, {}, ValueError, "must treat samples one by one"),
        (frozen(), None, {}, ValueError, "the module has no parameter with requires_grad=True.*: unfreeze some"),
        (nn.Linear(4, 3), None, {"eigenvalues": 27}, ValueError, r"`eigenvalues` must be less .* 9 \* 3, got 27"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_step(
    net: nn.Module, y: Tensor | None, arguments: dict[str, Any], error: Any, message: str
) -> None:
    module = Steps(net)
    module.frozen = nn.Parameter(torch.zeros(()), requires_grad=False)  # an optimizer wants some parameter
    data = DataLoader(TensorDataset(torch.randn(9, 4), torch.arange(9) % 3 if y is None else y), batch_size=9)
    with pytest.raises(error, match=message):
        quiet_trainer(max_epochs=1, callbacks=[NTKAlignmentLogger(**arguments)]).fit(module, data, data)
    assert module.steps == 0


@pytest.mark.parametrize("error", [TypeError, RuntimeError, ValueError, NotImplementedError])
def test_a_forward_that_fails_is_named_in_one_line(error: type[Exception]) -> None:
    class Failing(Fixed):
        def forward(self, x: Tensor) -> Tensor:
            raise error("no\nsuch")

    data = DataLoader(TensorDataset(torch.randn(9, 4), torch.arange(9) % 3), batch_size=9)
    said = r"\ANTKAlignmentLogger calls Failing.forward\(x\) with the probe inputs \[9, 4\], and [^\n]*no[^\n]*: "
    with pytest.raises(
        ValueError, match=said + r"give the module a forward\(x\) that returns \[N, C\], or leave [^\n]+\Z"
    ):
        quiet_trainer(max_epochs=1, callbacks=[NTKAlignmentLogger()]).fit(Failing(nn.Linear(4, 3)), data, data)


def test_the_check_before_training_is_logged_as_epoch_minus_one(tmp_path: Path) -> None:
    import csv

    from pl_robust._lightning import NAMESPACE

    logger = pytest.importorskip(f"{NAMESPACE}.loggers").CSVLogger(tmp_path)
    train(NTKAlignmentLogger(cka=False, every_n_steps=1), logger=logger)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("ntk/alignment")]
    assert [(row["epoch"], row["step"]) for row in rows[:2]] == [("-1", "0"), ("0", "0")]


def test_a_run_without_validation_data_or_of_split_parameters_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"this run has none: give .* `probe_data=\(x, y\)`"):
        quiet_trainer(max_epochs=1, callbacks=[NTKAlignmentLogger()]).fit(PlainModule(), loader(16))

    class FSDPStrategy:
        pass

    trainer = quiet_trainer()
    trainer._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(MisconfigurationException, match="needs whole parameters on every rank, FSDPStrategy splits"):
        NTKAlignmentLogger().setup(trainer, PlainModule(), "fit")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"samples": 1}, ValueError, "`samples` must be at least 2, because one tells no standard error, got 1"),
        ({"samples": 0}, ValueError, "`samples` must be at least 1, got 0"),
        ({"eigenvalues": -1}, ValueError, "`eigenvalues` must be at least 0, got -1"),
        ({"eigenvalues": 1.5}, TypeError, "`eigenvalues` must be an integer, got 1.5"),
        ({"max_samples": 0}, ValueError, "`max_samples` must be at least 1, got 0"),
        (
            {"probe_data": (torch.rand(3, 1), torch.zeros(2))},
            ValueError,
            r"`probe_data` must be \(x, y\) of one length",
        ),
        ({"probe_data": [1, 2]}, TypeError, r"two tensors \(x, y\) .* got \['int', 'int'\]"),
        ({"probe_data": torch.rand(3, 1)}, TypeError, "two tensors .* got Tensor"),
        ({"probe_data": (torch.rand(()), torch.rand(()))}, TypeError, "with a dimension of samples"),
        ({"cka": "no"}, TypeError, "`cka` must be true or false, got 'no'"),
        ({"per_layer": "false"}, TypeError, "`per_layer` must be true or false, got 'false'"),
        ({"prefix": 3}, TypeError, "`prefix` must be a name, got 3"),
        ({"prefix": ""}, ValueError, "`prefix` must be a name of at least one letter"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        NTKAlignmentLogger(**arguments)


@needs_frozen_parts
def test_the_module_is_put_back_after_an_exception() -> None:
    class Broken(PlainModule):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training and self.current_epoch == 1 and torch.is_grad_enabled():
                raise RuntimeError("broken on purpose")
            return super().forward(x)

    module = Broken()
    module.net[3].eval()  # a frozen part must stay frozen
    logger = NTKAlignmentLogger()
    with pytest.raises(RuntimeError, match="on purpose"):
        quiet_trainer(max_epochs=2, callbacks=[logger]).fit(module, loader(32), loader(32))
    assert len(logger.history) == 2
    assert [part.training for part in module.modules()] == [True, True, True, True, True, False, True, True]
    assert torch.is_grad_enabled()
