from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn

from pl_robust.cli import run
from pl_robust.datamodules import LinearlySeparableDataModule
from pl_robust.models import BinaryLogits
from pl_robust.modules import LinearizedTraining
from pl_robust.ntk import neural_anisotropy_directions
from tests._processes import run_ranks
from tests.datamodules.toys import Recorder
from tests.toys import needs_shared_shuffling, quiet_trainer

pytestmark = [
    pytest.mark.lightning,
    pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`:UserWarning"),
    pytest.mark.filterwarnings("ignore:the task is made from Net.net, without:UserWarning"),  # the toy's scale
]

SHAPE = (2, 3, 4)


def direction(seed: int = 0) -> Tensor:
    u = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    unit: Tensor = u / u.norm()
    return unit


def everything(loader: Any) -> tuple[Tensor, Tensor]:
    x, y = zip(*loader, strict=True)
    return torch.cat(x), torch.cat(y)


def drawn(**arguments: Any) -> LinearlySeparableDataModule:
    sizes = {"train_size": 3000, "val_size": 200, "test_size": 2000}
    data = LinearlySeparableDataModule(**{"direction": direction(), **sizes, **arguments})
    data.setup()
    return data


class Net(Recorder):
    """A module whose network has anisotropy directions."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net: Any = nn.Sequential(nn.Flatten(), nn.Linear(24, 6), nn.Tanh(), nn.Linear(6, 1))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)


# the distribution


@pytest.mark.parametrize(("eps", "sigma"), [(1.0, 1.0), ("1/2", 3), (3, "0.1"), (1, 0)])
def test_the_classes_lie_on_either_side_and_nothing_else_does(eps: float | str, sigma: float | str) -> None:
    data = drawn(eps=eps, sigma=sigma)
    u = direction().flatten()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        x, y = everything(loader)
        assert x.dtype == torch.float32
        assert x.shape[1:] == SHAPE == data.image_shape
        assert y.dtype == torch.int64
        along = x.flatten(1).double() @ u.double()
        half = data.eps / 2
        torch.testing.assert_close(along, half * (2.0 * y.double() - 1), rtol=0, atol=2e-6 * max(1.0, data.sigma))


def test_the_noise_is_normal_in_all_other_directions() -> None:
    data = drawn(sigma=2.0, train_size=6000)
    x, y = everything(data.train_dataloader())
    others = torch.linalg.qr(torch.cat([direction().flatten()[:, None], torch.randn(24, 23)], 1)).Q[:, 1:]
    noise = (x.flatten(1) @ others).double() / 2
    for column in noise.mT:
        assert kstest(column.numpy(), "norm").pvalue > 1e-4
    covariance = noise.mT @ noise / len(noise)
    torch.testing.assert_close(covariance, torch.eye(23).double(), rtol=0, atol=0.08)
    assert abs(float(y.double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(6000)
    assert kstest(noise[y == 0, 0].numpy(), noise[y == 1, 0].numpy()).pvalue > 1e-4  # the same in both classes


def test_the_best_linear_classifier_is_always_right_and_is_the_direction() -> None:
    data = drawn(eps=0.5)
    x, y = everything(data.train_dataloader())
    weights = torch.linalg.lstsq(x.flatten(1), 2.0 * y[:, None] - 1).solution[:, 0]
    torch.testing.assert_close(weights / weights.norm(), direction().flatten(), rtol=0, atol=1e-4)
    x, y = everything(data.test_dataloader())
    assert torch.equal((x.flatten(1) @ weights > 0).long(), y)
    across = torch.linalg.qr(torch.stack([weights, torch.randn(24)], 1)).Q[:, 1]
    assert abs(float(((x.flatten(1) @ across > 0).long() == y).double().mean()) - 0.5) < 0.06


def test_splits_are_drawn_apart_and_by_the_seed() -> None:
    first, again, other = drawn(), drawn(), drawn(seed=1)
    x, y = everything(first.test_dataloader())
    assert all(torch.equal(one, two) for one, two in zip(everything(again.test_dataloader()), (x, y), strict=True))
    assert not torch.equal(everything(other.test_dataloader())[0], x)
    distances = torch.cdist(everything(first.train_dataloader())[0].flatten(1), x.flatten(1))
    assert float(distances.min()) > 0.1
    smaller = drawn(train_size=5, val_size=0)
    assert torch.equal(everything(smaller.test_dataloader())[0], x)  # whatever the other splits are
    assert smaller.val_dataloader() == []
    turned = drawn(direction=direction(1))  # the same draws for another direction: only two dimensions differ
    difference = everything(turned.test_dataloader())[0] - x
    assert int((torch.linalg.svdvals(difference.flatten(1)) > 1e-2).sum()) == 2


def test_training_is_shuffled_and_predict_runs_over_the_test_data() -> None:
    data = drawn()
    assert not torch.equal(everything(data.train_dataloader())[1], everything(data.train_dataloader())[1])
    x, _ = everything(data.test_dataloader())
    seen: Any = quiet_trainer().predict(Recorder(), datamodule=data)
    assert torch.equal(torch.cat(seen), x)
    assert [len(y) for _, y in data.train_dataloader()][-1] == 3000 % 128


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    LinearlySeparableDataModule(model=Net().net, image_shape=SHAPE)
    torch.set_rng_state(before)
    drawn()
    assert torch.equal(torch.get_rng_state(), before)


# where the direction comes from


@pytest.mark.parametrize("kind", [".npy", ".pt"])
def test_a_file_of_one_or_several_directions(kind: str, tmp_path: Path) -> None:
    several = torch.stack([direction(0), 7 * direction(1)]).double()
    path = tmp_path / f"directions{kind}"

    def save(tensor: Tensor) -> None:
        if kind == ".npy":
            np.save(path, tensor.numpy())
        else:
            torch.save(tensor, path)

    save(several)
    data = LinearlySeparableDataModule(path, index=1, test_size=10)
    assert data.image_shape == SHAPE
    data.setup("test")
    assert data.direction is not None
    torch.testing.assert_close(data.direction, direction(1))
    assert data.hparams["direction"] == str(path)
    save(several[0])
    data = LinearlySeparableDataModule(str(path), test_size=10)
    data.setup("test")
    torch.testing.assert_close(data.direction, direction(0))
    assert torch.equal(everything(data.test_dataloader())[0], everything(drawn(test_size=10).test_dataloader())[0])


def test_a_networks_own_direction() -> None:
    net = Net().net
    expected, _ = neural_anisotropy_directions(copy.deepcopy(net).eval(), SHAPE)
    data = LinearlySeparableDataModule(model=net, index=3, image_shape=SHAPE, train_size=50)
    assert data.image_shape == SHAPE
    nn.init.zeros_(net[1].weight)  # it was copied
    data.setup("fit")
    torch.testing.assert_close(data.direction, expected[3], rtol=0, atol=1e-5)
    assert net.training
    assert LinearlySeparableDataModule().image_shape == (1, 32, 32)


def test_without_a_model_it_is_the_network_under_training() -> None:
    data = LinearlySeparableDataModule(index=1, image_shape=SHAPE, train_size=256, val_size=0)
    with pytest.raises(RuntimeError, match=r"`model`=None takes the network that the Trainer trains"):
        data.setup("fit")
    module = Net()
    expected, _ = neural_anisotropy_directions(copy.deepcopy(module.net).eval(), SHAPE, 2)
    quiet_trainer(max_epochs=1, limit_val_batches=0, log_every_n_steps=1).fit(module, datamodule=data)
    torch.testing.assert_close(data.direction, expected[1], rtol=0, atol=1e-5)
    along = module.batches[0][0].flatten(1) @ expected[1].flatten()
    torch.testing.assert_close(along.abs(), torch.full((128,), 0.5), rtol=0, atol=1e-4)


def test_a_linearized_network_has_the_directions_of_the_network() -> None:
    net = BinaryLogits(Net().net)
    data = LinearlySeparableDataModule(index=2, output=1, image_shape=SHAPE, train_size=64, val_size=0)
    module = LinearizedTraining(net, num_classes=2)
    quiet_trainer(max_epochs=1, limit_val_batches=0, log_every_n_steps=1).fit(module, datamodule=data)
    expected, _ = neural_anisotropy_directions(Net().net.eval(), SHAPE, 3)
    torch.testing.assert_close(data.direction, expected[2], rtol=0, atol=1e-4)


def test_a_resumed_run_keeps_its_direction_whatever_the_network_is_now() -> None:
    arguments: dict[str, Any] = {"index": 1, "image_shape": SHAPE, "train_size": 256, "val_size": 0, "test_size": 40}
    data, module = LinearlySeparableDataModule(**arguments), Net(0)
    trainer = quiet_trainer(max_epochs=1, limit_val_batches=0, log_every_n_steps=1)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint("last.ckpt")
    for run_again in ("fit", "test"):
        other, resumed = LinearlySeparableDataModule(**arguments), Net(1)
        trainer = quiet_trainer(max_epochs=2, limit_val_batches=0, log_every_n_steps=1)
        getattr(trainer, run_again)(resumed, datamodule=other, ckpt_path="last.ckpt")
        assert other.direction is not None
        assert data.direction is not None
        assert torch.equal(other.direction, data.direction)
        along = torch.cat([x for x, _ in resumed.batches]).flatten(1) @ data.direction.flatten()
        torch.testing.assert_close(along.abs(), torch.full_like(along, 0.5), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [">f4", ">f8", np.longdouble, np.float16])
def test_arrays_of_other_floating_types(kind: Any) -> None:
    np.save("u.npy", direction().numpy().astype(kind))
    data = LinearlySeparableDataModule("u.npy", test_size=10)
    data.setup("test")
    assert data.direction is not None
    torch.testing.assert_close(data.direction, direction(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": 1}, "`index`=0, this one has 1: give index=0, or load the weights only"),
        ({"eps": 2, "sigma": 0.5}, "`eps`=1.0, `sigma`=1.0, this one has 2.0, 0.5"),
        ({"seed": 1}, "`seed`=0, this one has 1"),
        ({"output": 1}, "`output`=None, this one has 1"),
        ({"test_size": 41}, "`test_size`=40, this one has 41"),
        ({"image_shape": (1, 4, 6)}, r"`image_shape`=\[2, 3, 4\], this one has \[1, 4, 6\]"),
        ({"direction": direction()}, '`direction`="a network\'s"'),
    ],
)
def test_another_task_than_the_checkpoints_is_refused(arguments: dict[str, Any], message: str) -> None:
    own: dict[str, Any] = {"model": Net().net, "image_shape": SHAPE, "train_size": 20, "test_size": 40}
    data = LinearlySeparableDataModule(**own)
    data.setup()
    if "direction" in arguments:
        own["model"] = None
    with pytest.raises(ValueError, match=message):
        LinearlySeparableDataModule(**{**own, **arguments}).load_state_dict(data.state_dict())


def test_another_given_direction_than_the_checkpoints_is_refused() -> None:
    state = LinearlySeparableDataModule(direction(0)).state_dict()
    LinearlySeparableDataModule(direction(0)).load_state_dict(state)
    with pytest.raises(ValueError, match="the checkpoint's task has another `direction` than the given one"):
        LinearlySeparableDataModule(direction(1)).load_state_dict(state)


def test_can_be_copied_and_pickled() -> None:
    data = drawn()
    for clone in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):  # noqa: S301  # our own bytes
        assert torch.equal(everything(clone.test_dataloader())[0], everything(data.test_dataloader())[0])
    assert "direction" not in data.hparams


def _directions(seeds: tuple[int, int]) -> tuple[list[float], list[Any]]:
    import os

    rank = int(os.environ["RANK"])
    data = LinearlySeparableDataModule(index=2, image_shape=SHAPE, train_size=64, val_size=0, batch_size=32)
    module = Net(seeds[rank])
    trainer = quiet_trainer(devices=2, strategy="ddp_find_unused_parameters_true", max_epochs=1, limit_val_batches=0)
    trainer.fit(module, datamodule=data)
    assert data.direction is not None
    return data.direction.flatten().tolist(), [x.flatten(1).tolist() for x, _ in module.batches]


@needs_shared_shuffling
def test_all_ranks_have_the_same_data() -> None:
    expected, _ = neural_anisotropy_directions(Net(0).net.eval(), SHAPE, 3)
    first, second = run_ranks(_directions, 2, (0, 1))
    assert first[0] == second[0]
    torch.testing.assert_close(torch.tensor(first[0]), expected[2].flatten(), rtol=0, atol=1e-5)
    alone = LinearlySeparableDataModule(expected[2], train_size=64, val_size=0)
    alone.setup("fit")
    x = torch.tensor([*first[1][0], *second[1][0]])
    assert len(x) == 64
    drawn_here = everything(alone.train_dataloader())[0].flatten(1)
    distances = torch.cdist(x, drawn_here, compute_mode="donot_use_mm_for_euclid_dist")
    assert float(distances.min(1).values.max()) < 1e-4
    assert len(set(distances.argmin(1).tolist())) == 64  # each sample on one rank


@pytest.mark.filterwarnings("ignore:(?s).*:DeprecationWarning")  # how Lightning calls jsonargparse
def test_runs_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        """
        trainer:
          max_epochs: 1
          accelerator: cpu
          logger: false
          enable_checkpointing: false
          enable_progress_bar: false
          enable_model_summary: false
        model:
          class_path: LinearizedTraining
          init_args:
            linearized: false
            net:
              class_path: BinaryLogits
              init_args:
                net: {class_path: pl_robust.models.MLP, init_args: {in_features: 64, out_features: 1, activation: gelu}}
        data:
          class_path: LinearlySeparableDataModule
          init_args: {index: 0, output: 1, image_shape: [1, 8, 8], eps: 12/2, train_size: 2000, val_size: 100}
        """
    )
    cli = run(["fit", "--config", "run.yaml"])
    assert cli.model.num_classes == cli.datamodule.num_classes == 2
    assert cli.datamodule.direction.shape == (1, 8, 8)
    assert float(cli.trainer.callback_metrics["val/acc"]) > 0.9


# what it refuses


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"direction": [1.0]}, TypeError, "`direction` must be a tensor, a path or None, got list"),
        (
            {"direction": torch.ones(4)},
            ValueError,
            r"`direction` must be floating point, \[C, H, W\].*got torch.float32",
        ),
        ({"direction": torch.ones(SHAPE).long()}, ValueError, r"floating point.*got torch.int64 \[2, 3, 4\]"),
        ({"direction": torch.zeros(SHAPE)}, ValueError, "finite and not zero, got one of length 0.0"),
        ({"direction": torch.full(SHAPE, torch.nan)}, ValueError, "finite and not zero, got one of length nan"),
        ({"index": 1}, ValueError, "`index` must be one of the directions, 0 to 0, got 1"),
        ({"index": -1}, ValueError, "`index` must be at least 0, got -1"),
        ({"index": "first"}, TypeError, "`index` must be an integer, got 'first'"),
        ({"model": nn.Linear(4, 1)}, ValueError, "`direction` and `model` must not both be given"),
        ({"direction": None, "model": "LeNet"}, TypeError, "`model` must be an nn.Module, or None for"),
        ({"image_shape": (1, 8, 8)}, ValueError, r"that of the given direction, \(2, 3, 4\), or None, got \(1, 8, 8\)"),
        ({"image_shape": (8, 8)}, ValueError, r"`image_shape` must be \(C, H, W\), three positive integers, got"),
        ({"eps": 0}, ValueError, "`eps` must be positive and `sigma` at least 0.*got eps=0 and sigma=1.0"),
        ({"sigma": -1}, ValueError, "got eps=1.0 and sigma=-1"),
        ({"eps": math.inf}, ValueError, "both finite, got eps=inf"),
        ({"eps": "one"}, ValueError, "`eps` must be a number or a fraction"),
        ({"train_size": 0}, ValueError, "`train_size` must be at least 1, got 0"),
        ({"val_size": -1}, ValueError, "`val_size` must be at least 0, got -1"),
        ({"direction": None, "output": "a"}, TypeError, "`output` must be an integer, got 'a'"),
        ({"output": 0}, ValueError, "`output` and `direction` must not both be given.*got 0"),
        ({"pin_memory": "x"}, TypeError, "`pin_memory` must be true or false, got 'x'"),
        ({"seed": 0.5}, TypeError, "`seed` must be an integer, got 0.5"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0, got -1"),
        ({"test_size": 1.5}, TypeError, "`test_size` must be an integer, got 1.5"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1, got 0"),
        ({"num_workers": -2}, ValueError, "`num_workers` must be at least 0, got -2"),
    ],
)
def test_refuses_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LinearlySeparableDataModule(**{"direction": torch.ones(SHAPE), **arguments})


def test_refuses_files_stages_and_networks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a .npy or .pt file, got 'u.txt'"):
        LinearlySeparableDataModule("u.txt").setup()
    with pytest.raises(FileNotFoundError, match=r"`direction`='u.npy' is no file"):
        LinearlySeparableDataModule("u.npy").setup()
    torch.save({"u": torch.ones(SHAPE)}, "u.pt")
    with pytest.raises(ValueError, match=r"`direction`='u.pt' must hold one tensor, got dict"):
        LinearlySeparableDataModule("u.pt").setup()
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(
        ValueError, match=r"'objects.npy' cannot be read .ValueError.: it must hold an array of numbers"
    ):
        LinearlySeparableDataModule("objects.npy").setup()
    for name in ("junk.npy", "junk.pt"):
        Path(name).write_bytes(b"junk")
        with pytest.raises(ValueError, match=rf"\A`direction`='{name}' cannot be read \(\w+\): [^\n]+ writes it\Z"):
            LinearlySeparableDataModule(name).setup()
    torch.save(nn.Linear(2, 2), "module.pt")
    with pytest.raises(
        ValueError, match=r"\A`direction`='module.pt' cannot .* must hold a tensor and no module[^\n]*\Z"
    ):
        LinearlySeparableDataModule("module.pt").setup()
    np.save("words.npy", np.array(["a"]))
    with pytest.raises(ValueError, match="must hold an array of numbers"):
        LinearlySeparableDataModule("words.npy").setup()
    data = LinearlySeparableDataModule(direction())
    with pytest.raises(ValueError, match="`stage` must be fit, validate, test, predict or None, got 'train'"):
        data.setup("train")
    with pytest.raises(RuntimeError, match="the test images have not been drawn: call setup"):
        data.test_dataloader()
    many = nn.Sequential(nn.Flatten(), nn.Linear(24, 2))
    with pytest.raises(ValueError, match="`output` must say which of the 2 outputs"):
        LinearlySeparableDataModule(model=many, image_shape=SHAPE).setup()
    with pytest.raises(ValueError, match="`k` must be at most the number of entries of one input, 24, got 25"):
        LinearlySeparableDataModule(model=many, output=0, index=24, image_shape=SHAPE).setup()
