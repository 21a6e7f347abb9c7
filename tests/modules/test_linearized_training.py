from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pl_robust._lightning import MisconfigurationException
from pl_robust.attacks import FGSM
from pl_robust.cli import main
from pl_robust.models import MLP, BinaryLogits, SmallCNN
from pl_robust.modules import AdversarialTraining, LinearizedTraining
from pl_robust.modules.linearized_training import published_sgd
from pl_robust.ntk import LinearizedModel, linearize
from tests.modules.test_adversarial_training import small_net
from tests.toys import assert_identical, loader, needs_rebuilding, quiet_trainer, stripes

pytestmark = pytest.mark.lightning

linearize(nn.Linear(1, 1))  # at the first use of forward mode torch sets environment variables: not inside a test


def mlp(num_classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MLP(64, num_classes, (8,))


def fit(net: nn.Module | str, data: Any, epochs: int = 2, **arguments: Any) -> LinearizedTraining:
    module = LinearizedTraining(net, **{"num_classes": 3, **arguments})
    quiet_trainer(max_epochs=epochs).fit(module, data)
    return module


def bare_loop(function: Any, parameters: Any, data: DataLoader[Any], epochs: int, lr: float = 0.05) -> None:
    """The published recipe: momentum 0.9, and a learning rate that falls from lr to 0 along a line."""
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    step = 0
    for _ in range(epochs):
        for x, y in data:
            optimizer.param_groups[0]["lr"] = lr * (1 - step / (epochs * len(data)))
            optimizer.zero_grad()
            function(x, y).backward()
            optimizer.step()
            step += 1


def test_a_linearization_is_trained_as_regression_on_the_jacobian() -> None:
    net, data = mlp(), loader(48)
    start = {name: parameter.detach() for name, parameter in net.named_parameters()}
    weights = {name: torch.zeros_like(parameter, requires_grad=True) for name, parameter in start.items()}

    def logits(x: Tensor) -> Tensor:
        jacobian: Any = jacrev(lambda parameters: functional_call(net, parameters, (x,)))(start)
        outputs: Tensor = net(x).detach() + sum(jacobian[name].flatten(2) @ weights[name].flatten() for name in start)
        return outputs

    bare_loop(lambda x, y: F.cross_entropy(logits(x), y), weights.values(), data, epochs=4)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    module = fit(net, data, epochs=4)
    assert isinstance(module.net, LinearizedModel)
    displacement = dict(module.net.displacement.named_parameters())
    for name, weight in weights.items():
        torch.testing.assert_close(displacement[name], weight, rtol=1e-3, atol=1e-5)
    assert weights["layers.2.weight"].abs().max() > 0.02
    assert_identical(dict(net.state_dict()), before)  # a copy was linearized


def test_without_linearization_the_network_itself_is_trained_in_the_same_way() -> None:
    data = loader(48)
    expected = small_net()
    bare_loop(lambda x, y: F.cross_entropy(expected(x), y), expected.parameters(), data, epochs=2)
    net = small_net()
    module = fit(net, data, linearized=False)
    assert module.net is net
    for key, value in expected.state_dict().items():  # batch norm's statistics, too
        torch.testing.assert_close(net.state_dict()[key], value, rtol=1e-4, atol=1e-5)
    assert (net[4].weight - small_net()[4].weight).abs().max() > 0.05  # type: ignore[index]


def test_a_net_of_one_output_is_trained_with_the_binary_cross_entropy() -> None:
    x, y = stripes(64).tensors
    data = DataLoader(TensorDataset(x, (y == 2).long()), batch_size=16)
    expected = linearize(mlp(1))
    bare_loop(
        lambda x, y: F.binary_cross_entropy_with_logits(expected(x).flatten(), y.float()),
        expected.parameters(),
        data,
        epochs=2,
    )
    module = fit(BinaryLogits(mlp(1)), data, num_classes=2)
    torch.testing.assert_close(module(x)[:, 1:], expected(x), rtol=1e-4, atol=1e-5)
    (metrics,) = quiet_trainer().test(module, data, verbose=False)
    assert metrics["test/acc"] == pytest.approx(((expected(x).flatten() > 0) == (y == 2)).float().mean().item())


def test_the_learning_rate_falls_along_a_line() -> None:
    seen: list[float] = []

    class Watching(LinearizedTraining):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            seen.append(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]

    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(Watching(mlp(), num_classes=3), loader(80))
    assert seen == pytest.approx([0.05 * (1 - step / 10) for step in range(10)])
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0
    assert trainer.optimizers[0].param_groups[0]["momentum"] == 0.9
    assert trainer.optimizers[0].param_groups[0]["weight_decay"] == 0


def test_a_run_without_batches_has_a_schedule() -> None:
    quiet_trainer(max_epochs=0).fit(LinearizedTraining(mlp(), num_classes=3), loader(16))


def test_it_trains_the_displacement_only_and_in_eval_mode() -> None:
    net = small_net()
    module = fit(net, loader(48))
    assert {name.split(".")[1] for name, parameter in module.named_parameters() if parameter.requires_grad} == {
        "displacement"
    }
    initial = module.net.initial.state_dict()  # type: ignore[union-attr]
    assert_identical(dict(initial), dict(linearize(small_net()).initial.state_dict()))


def test_logged_numbers_are_those_of_what_is_trained() -> None:
    module = LinearizedTraining(mlp(), num_classes=3, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, loader(16), loader(41, seed=1))
    logged = {key: value.item() for key, value in trainer.callback_metrics.items()}
    expected = {}
    for split, (x, y) in {"train": stripes(16).tensors, "val": stripes(41, seed=1).tensors}.items():
        logits = mlp()(x)
        expected[f"{split}/loss"] = F.cross_entropy(logits, y).item()
        expected[f"{split}/acc"] = (logits.argmax(1) == y).float().mean().item()
    assert logged == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("linearized", [True, False])
def test_it_learns_and_predicts(linearized: bool) -> None:
    module = fit(small_net(), loader(256), epochs=10, linearized=linearized)
    trainer = quiet_trainer()
    (metrics,) = trainer.test(module, loader(100, seed=3), verbose=False)  # in inference mode
    assert metrics["test/acc"] > 0.8
    logits: Any = trainer.predict(module, DataLoader(stripes(100, seed=3), batch_size=100))
    x, y = stripes(100, seed=3).tensors
    assert torch.equal(logits[0], module.eval()(x))
    assert metrics["test/acc"] == pytest.approx((logits[0].argmax(1) == y).float().mean().item())


def test_the_kernel_after_training() -> None:
    trained = fit(small_net(), loader(128), linearized=False).net.eval()
    x = stripes(8, seed=4).tensors[0]
    assert torch.equal(LinearizedTraining(trained, num_classes=3)(x), trained(x))
    centered = fit(trained, loader(128), epochs=8, centered=True)
    assert not LinearizedTraining(trained, num_classes=3, centered=True)(x).any()
    (metrics,) = quiet_trainer().test(centered, loader(100, seed=3), verbose=False)
    assert metrics["test/acc"] > 0.8


@pytest.mark.parametrize("linearized", [True, False])
def test_a_checkpoint_brings_back_the_point_of_linearization(linearized: bool, tmp_path: Path) -> None:
    module = LinearizedTraining(mlp(), num_classes=3, linearized=linearized)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, loader(32), loader(16))
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    torch.load(tmp_path / "net.ckpt", weights_only=True)
    again = LinearizedTraining.load_from_checkpoint(tmp_path / "net.ckpt", net=mlp(seed=1))
    assert_identical(dict(module.state_dict()), dict(again.state_dict()))
    x = stripes(8).tensors[0]
    assert torch.equal(module.eval()(x), again.eval()(x))
    assert again.linearized == linearized


def test_a_net_goes_by_its_name(tmp_path: Path) -> None:
    module = LinearizedTraining("SmallCNN", num_classes=3, centered=True)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, loader(32))
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    again = LinearizedTraining.load_from_checkpoint(tmp_path / "net.ckpt")
    assert isinstance(again.net, LinearizedModel)
    assert "SmallCNN, centered=True" in repr(again.net)
    x = stripes(8).tensors[0]
    assert torch.equal(module(x), again(x))


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    class Stopping(LinearizedTraining):
        def on_train_epoch_end(self) -> None:
            self.trainer.should_stop = self.current_epoch == 1

    def start(kind: type[LinearizedTraining], seed: int, checkpoint: str | None = None) -> dict[str, Any]:
        module = kind(mlp(seed=seed), num_classes=3)
        trainer = quiet_trainer(max_epochs=4)
        trainer.fit(module, loader(48), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return {**module.net.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}

    whole = start(LinearizedTraining, 0)
    stopped = start(Stopping, 0)
    assert not torch.equal(stopped["displacement.layers.2.weight"], whole["displacement.layers.2.weight"])
    # From another initialization, because the checkpoint knows the first one.
    assert_identical(start(LinearizedTraining, 1, str(tmp_path / "last.ckpt")), whole)


@pytest.mark.parametrize(
    "arguments",
    [{"precision": "bf16-mixed"}, {"precision": "64-true"}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.5}],
    ids=["bf16", "double", "accumulation", "clipping"],
)
def test_it_trains_everywhere(arguments: dict[str, Any]) -> None:
    module = LinearizedTraining(small_net(), num_classes=3)
    trainer = quiet_trainer(max_epochs=8, **arguments)
    trainer.fit(module, loader(256), loader(40, seed=1))
    (metrics,) = trainer.test(module, loader(64), verbose=False)
    assert metrics["test/acc"] > 0.8


class Records(Dataset[Any]):
    """The same stripes as dicts."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = stripes(48)[index]
        return {"image": x, "label": y}


def test_dict_batches_are_read_by_key() -> None:
    module = fit(mlp(), DataLoader(Records(), batch_size=16), input_key="image", label_key="label")
    assert_identical(dict(module.net.state_dict()), dict(fit(mlp(), loader(48)).net.state_dict()))


def test_adversarial_training_takes_a_linearized_net() -> None:
    module = AdversarialTraining(linearize(small_net()), FGSM(0.05), num_classes=3)
    trainer = quiet_trainer(max_epochs=6)
    trainer.fit(module, loader(128))
    (metrics,) = trainer.test(module, loader(64, seed=1), verbose=False)
    assert metrics["test/acc_pgd"] <= metrics["test/acc_adv"] <= metrics["test/acc"]
    assert metrics["test/acc_adv"] > 0.4


@pytest.mark.parametrize("linearized", [True, False])
@needs_rebuilding
def test_one_flag_of_a_configuration_decides(linearized: bool, tmp_path: Path) -> None:
    net = {"class_path": "pl_robust.models.MLP", "init_args": {"in_features": 64, "hidden": [16], "activation": "tanh"}}
    run = {
        "seed_everything": 0,
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False},
        "model": {"class_path": "LinearizedTraining", "init_args": {"net": net}},
        "data": {"class_path": "ImageDataModule", "init_args": {"name": "digits", "eval_batch_size": 64}},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    main(["fit", "--config", str(tmp_path / "run.yaml"), f"--model.linearized={linearized}".lower()])
    (checkpoint,) = tmp_path.glob("checkpoints/*.ckpt")
    again = LinearizedTraining.load_from_checkpoint(checkpoint)  # builds the net from what the configuration says
    assert again.linearized == linearized
    assert isinstance(again.net, LinearizedModel if linearized else MLP)


@pytest.mark.parametrize(
    ("net", "arguments", "message"),
    [
        (mlp, {"linearized": "yes"}, "`linearized` must be true or false, got 'yes'"),
        (mlp, {"centered": 1}, "`centered` must be true or false, got 1"),
        (mlp, {"centered": True, "linearized": False}, "`centered` must be false for a network that is not linearized"),
        (mlp, {"lr_scheduler": "one_cycle"}, "`lr_scheduler` must be 'linear', 'constant' or a callable"),
        (mlp, {"num_classes": 1}, "`num_classes` must be at least 2, got 1"),
        (lambda: mlp().requires_grad_(False), {}, "`model` must have parameters with requires_grad=True"),
        (
            lambda: mlp().requires_grad_(False),
            {"linearized": False},
            "`net` must have parameters with requires_grad=True to be trained, got none: unfreeze some",
        ),
        (mlp, {"num_classes": "10"}, "`num_classes` must be an integer, got '10'"),
        (lambda: "MLP", {}, r"or one of the names .*'LeNet'.*got 'MLP'"),  # nobody knows its inputs
        (lambda: "resnet99", {}, r"one of the names .*'LeNet'.*got 'resnet99'"),
    ],
)
def test_errors_speak(net: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        LinearizedTraining(net(), **arguments)


def test_logits_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the net must give logits \[16, 2\] .*got \[16, 1\]; one of a single output"):
        fit(mlp(1), loader(32), num_classes=2)


def test_an_endless_run_has_no_line() -> None:
    module = LinearizedTraining(mlp(), num_classes=3)
    with pytest.raises(MisconfigurationException, match="lr_scheduler='linear' needs to know where the run ends"):
        quiet_trainer(max_epochs=-1).fit(module, loader(32))


def test_the_published_optimizer() -> None:
    defaults = published_sgd(SmallCNN().parameters()).defaults
    assert (defaults["lr"], defaults["momentum"], defaults["weight_decay"]) == (0.05, 0.9, 0)
