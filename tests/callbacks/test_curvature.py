from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pl_robust._lightning import Callback, LightningModule, Trainer
from pl_robust.attacks import FGSM
from pl_robust.callbacks import CatastrophicOverfittingDetector, CurvatureLogger
from pl_robust.losses.input_curvature import input_hessian_eigenvalues
from pl_robust.losses.local_linearity import local_linearity_error
from pl_robust.modules import AdversarialTraining
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


@pytest.mark.parametrize(
    "arguments",
    [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}],
    ids=["plain", "accumulate", "bf16-mixed"],
)
@pytest.mark.parametrize("cadence", [{}, {"every_n_steps": 1}], ids=["epochs", "steps"])
def test_training_is_bit_identical_with_and_without_it(arguments: dict[str, Any], cadence: dict[str, Any]) -> None:
    logger = CurvatureLogger(eps=0.1, k=2, **cadence)
    other = CurvatureLogger(eps=0.05, norm="l2", **cadence)
    with_it = training_state(*train(logger, other, **arguments))
    assert len(logger.history) == (2 if not cadence else len(other.history))
    assert logger.history
    assert_identical(with_it, training_state(*train(**arguments)))


@pytest.mark.parametrize("precision", [32, "bf16-mixed", 64])
def test_it_measures_what_the_functions_measure_outside_autocast(precision: int | str) -> None:
    logger = CurvatureLogger(eps=0.1, k=3)
    trainer, module = train(logger, precision=precision)
    module.eval()
    x, y = stripes(40, seed=1).tensors
    if precision == 64:
        module, x = module.double(), x.double()
    eigenvalues, errors = [], []
    batches = zip(torch.split(x, 16), torch.split(y, 16), strict=True)  # the loader's
    for index, (part, labels) in enumerate(batches):
        generator = torch.Generator().manual_seed(index)
        eigenvalues.append(input_hessian_eigenvalues(module, part, labels, k=3, generator=generator))
        errors.append(local_linearity_error(module, part, labels, eps=0.1, generator=generator))
    error = float(torch.cat(errors).mean())
    last = logger.history[-1]
    found = [last[f"eigenvalue_{number}"] for number in (1, 2, 3)]
    assert found == pytest.approx(torch.cat(eigenvalues).mean(0).tolist(), rel=1e-4, abs=1e-6)
    assert last["linearity_error"] == pytest.approx(error, rel=1e-4)
    assert found[0] > 0.01 < error
    assert trainer.callback_metrics["curvature/eigenvalue_1"] == pytest.approx(found[0])
    assert trainer.callback_metrics["curvature/linearity_error"] == pytest.approx(error, rel=1e-4)


class Quadratic(LightningModule):
    """Log-odds of 1/2 h |x|^2 with an h that doubles every epoch: the whole curvature is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        value = 0.5 * 2.0**self.current_epoch * x.flatten(1).pow(2).sum(1) * self.weight
        return torch.stack([-0.5 * value, 0.5 * value], dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        total: Tensor = self(batch[0]).sum()
        return 0 * total

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        return None

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_curvature_that_doubles_is_seen_to_double() -> None:
    # At x = 0 the cross-entropy's Hessian is h / 2 times the identity, of the sign of the wrong class's log-odds.
    x, y = torch.zeros(8, 1, 2, 2), torch.zeros(8, dtype=torch.long)
    logger = CurvatureLogger(eps=0.01, k=4, bounds=None, probe_data=(x, y))
    data = DataLoader(TensorDataset(x, y), batch_size=4)
    quiet_trainer(max_epochs=3, callbacks=[logger]).fit(Quadratic(), data)
    for row, h in zip(logger.history, (1.0, 2.0, 4.0), strict=True):
        assert [row[f"eigenvalue_{number}"] for number in (1, 2, 3, 4)] == pytest.approx([h / 2] * 4, rel=1e-4)
        assert row["linearity_error"] == pytest.approx(4 * 0.01**2 * h / 4, rel=1e-2)


def test_two_live_beside_a_detector_and_resume(tmp_path: Path) -> None:
    def three() -> list[Any]:
        return [CurvatureLogger(eps=0.1), CatastrophicOverfittingDetector(eps=0.1), CurvatureLogger(eps="8/255", k=2)]

    first = three()
    trainer, _ = train(*first)
    names = {"curvature/eigenvalue_1", "curvature/linearity_error", "curvature_2/eigenvalue_2", "co/acc_pgd"}
    assert names <= set(trainer.callback_metrics)
    assert "curvature/eigenvalue_2" not in trainer.callback_metrics
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    assert torch.load(tmp_path / "three.ckpt", weights_only=True)["epoch"] == 2
    second = three()
    resumed = quiet_trainer(max_epochs=3, callbacks=second)
    resumed.fit(PlainModule(), loader(70), loader(40, seed=1), ckpt_path=tmp_path / "three.ckpt")
    for before, after in zip(first, second, strict=True):
        assert after.history[:2] == before.history
        assert [row["epoch"] for row in after.history] == [0, 1, 2]


def test_a_second_run_starts_from_scratch() -> None:
    logger = CurvatureLogger(eps=0.1)
    train(logger)
    train(logger)
    assert [row["epoch"] for row in logger.history] == [0, 1]


def test_checks_by_steps_come_after_every_nth_optimizer_step() -> None:
    logger = CurvatureLogger(eps=0.1, every_n_steps=2)
    train(logger, accumulate_grad_batches=2)  # 5 batches, so 3 optimizer steps an epoch
    assert [row["step"] for row in logger.history] == [2, 4, 6]


def test_figure_numbers_and_summary_find_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from pl_robust._lightning import NAMESPACE

    loggers = pytest.importorskip(f"{NAMESPACE}.loggers")
    logger = loggers.TensorBoardLogger(tmp_path)
    trainer, _ = train(CurvatureLogger(eps=0.1), logger=logger, log_every_n_steps=50)
    assert (Path(trainer.log_dir or "") / "curvature_curves.png").stat().st_size > 5000
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert "curvature/curves" in events.Tags()["images"]
    assert len(events.Scalars("curvature/eigenvalue_1")) == 2
    said = capsys.readouterr().out
    assert "eigenvalue_1" in said
    assert "highest, epoch" in said


def test_a_flat_or_diverged_network_is_drawn_and_ends_no_run(tmp_path: Path) -> None:
    from pl_robust._lightning import NAMESPACE

    class Constant(PlainModule):
        worth = 0.0

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = super().forward(x)
            return logits * self.worth if not self.training else logits

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            return None

    class Diverged(Constant):
        worth = float("nan")

    loggers = pytest.importorskip(f"{NAMESPACE}.loggers")
    flat = Constant()
    for module in (flat, Diverged()):
        logger = CurvatureLogger(eps=0.1)
        train(logger, module=module, logger=loggers.CSVLogger(tmp_path))
        values = torch.tensor([row["eigenvalue_1"] for row in logger.history])
        assert torch.equal(values.isnan(), torch.full((2,), module is not flat))
        assert module is not flat or values.tolist() == [0, 0]


@needs_torch_2_6
def test_a_compiled_network_is_looked_at_without_being_compiled_anew() -> None:
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(len(inputs))
        return graph.forward

    class Compiled(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.compile(self.net, backend=backend)  # type: ignore[assignment]

    train(module=Compiled())
    without = len(compiled)
    assert without
    compiled.clear()
    torch._dynamo.reset()
    logger = CurvatureLogger(eps=0.1)
    train(logger, module=Compiled())
    assert len(logger.history) == 2
    assert len(compiled) == without


def test_adversarial_training_needs_no_eps_and_other_stages_are_left_alone() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    logger = CurvatureLogger()
    module = AdversarialTraining(net, FGSM(0.1), num_classes=3)
    trainer = quiet_trainer(fast_dev_run=True, callbacks=[logger])
    trainer.fit(module, loader(32), loader(32))
    assert len(logger.history) == 1
    trainer.validate(module, loader(32), verbose=False)
    trainer.test(module, loader(32), verbose=False)
    assert len(logger.history) == 1


def test_what_is_wrong_is_said_before_the_first_epoch() -> None:
    class Counting(PlainModule):
        steps = 0

        def on_train_batch_end(self, *_: Any) -> None:
            self.steps += 1

    module = Counting()
    x, y = stripes(32).tensors
    normalized = DataLoader(TensorDataset((x - 0.5) / 0.2, y), batch_size=16)
    with pytest.raises(ValueError, match="pass `normalization=\\(mean, std\\)` if the data was normalized"):
        quiet_trainer(max_epochs=1, callbacks=[CurvatureLogger(0.1)]).fit(module, normalized, normalized)
    with pytest.raises(ValueError, match="`k` must be at most the number of entries of one input, 64, got 65"):
        quiet_trainer(max_epochs=1, callbacks=[CurvatureLogger(0.1, k=65, iterations=65)]).fit(
            module, loader(32), loader(32)
        )
    assert module.steps == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "`k` must be at least 1, got 0"),
        ({"k": 11}, "`iterations` must be at least `k`=11, one for each eigenvalue, got 10"),
        ({"max_samples": 0}, "`max_samples` must be at least 1, got 0"),
        ({"probe_data": (torch.rand(3, 1), torch.zeros(2))}, r"`probe_data` must be \(x, y\) of one length"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CurvatureLogger(eps=0.1, **arguments)


@needs_frozen_parts
def test_dicts_are_understood_and_the_module_put_back_after_an_exception() -> None:
    class Broken(PlainModule):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training and self.current_epoch == 1 and torch.is_grad_enabled():
                raise RuntimeError("broken on purpose")
            return super().forward(x)

    def collate(samples: list[Any]) -> Any:
        return {"image": torch.stack([x for x, _ in samples]), "label": torch.stack([y for _, y in samples])}

    module = Broken("image", "label")
    module.net[3].eval()  # a frozen part must stay frozen
    data = DataLoader(stripes(32), batch_size=16, collate_fn=collate)
    logger = CurvatureLogger(eps=0.1, input_key="image", label_key="label")
    with pytest.raises(RuntimeError, match="on purpose"):
        quiet_trainer(max_epochs=2, callbacks=[logger]).fit(module, data, data)
    assert len(logger.history) == 1
    assert [part.training for part in module.modules()] == [True, True, True, True, True, False, True, True]
    assert torch.is_grad_enabled()


def test_the_loss_is_the_cross_entropy_of_the_modules_logits() -> None:
    x, y = stripes(1).tensors
    logger = CurvatureLogger(eps=0.1, iterations=64)
    _, module = train(logger, module=Linear())
    weight = module.net[1].weight.detach()
    p = module(x).softmax(1)[0].detach()
    hessian = weight.mT @ (torch.diag(p) - p[:, None] * p) @ weight
    assert F.cross_entropy(module(x), y) > 0
    expected = float(torch.linalg.eigvalsh(hessian)[-1])
    found = input_hessian_eigenvalues(module, x, y)
    assert float(found) == pytest.approx(expected, rel=1e-4)
    assert logger.history[-1]["eigenvalue_1"] == pytest.approx(expected, rel=0.5)  # a mean over other images


class Linear(PlainModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
