from __future__ import annotations

import copy
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from torch_geometric.data import Batch, Data
from torch_geometric.utils import k_hop_subgraph

from pl_robust._lightning import NAMESPACE, Callback, MisconfigurationException
from pl_robust.cli import run
from pl_robust.datamodules import GraphDataModule
from pl_robust.models import GCN, SGC, NodeMLP
from pl_robust.modules import NodeClassification
from pl_robust.modules._node_best import BestWeights
from tests.toys import assert_identical, needs_rebuilding, quiet_trainer

pytestmark = pytest.mark.lightning

FEATURES, CLASSES = 12, 3


def graph(seed: int = 0, **arguments: Any) -> GraphDataModule:
    """Sixty nodes of three classes."""
    small = {"sbm_nodes": 60, "sbm_classes": CLASSES, "sbm_features": FEATURES, "sbm_degree": 4.0, "seed": seed}
    return GraphDataModule(**{**small, "steps_per_epoch": 3, "train_fraction": 0.3, "val_fraction": 0.2, **arguments})


def gcn(seed: int = 0, **arguments: Any) -> nn.Module:
    torch.manual_seed(seed)
    return GCN(FEATURES, CLASSES, **{"hidden_features": 8, **arguments})


class Hand(nn.Module):
    """A network as users write it: nothing of it is published."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.saw: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Tensor:
        self.saw.append((x, edge_index, edge_weight))
        logits: Tensor = self.layer(x)
        return logits.index_add(0, edge_index[1], logits[edge_index[0]])


def fit(net: nn.Module, data: Any, epochs: int = 4, trainer: dict[str, Any] | None = None, **arguments: Any) -> Any:
    module = NodeClassification(net, **{"num_classes": CLASSES, "patience": None, **arguments})
    quiet_trainer(max_epochs=epochs, **(trainer or {})).fit(module, data)
    return module


def test_it_trains_as_the_published_loop_does() -> None:
    """Adam at the net's rate, the L2 term on the first layer alone, the training nodes' cross-entropy."""
    data = graph()
    batch = data.batch()
    expected = gcn()
    optimizer = torch.optim.Adam(expected.parameters(), lr=0.01)
    torch.manual_seed(3)  # of dropout
    for _ in range(12):
        logits = expected(batch.x, batch.edge_index)[batch.train_mask]
        penalty = 0.5 * 5e-4 * expected.layers[0].lin.weight.square().sum()  # type: ignore[index,union-attr]
        optimizer.zero_grad()
        (F.cross_entropy(logits, batch.y[batch.train_mask]) + penalty).backward()
        optimizer.step()
    net = gcn()
    torch.manual_seed(3)
    fit(net, data)
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(net.state_dict()[key], value, rtol=1e-4, atol=1e-5)
    assert (net.layers[1].lin.weight - gcn().layers[1].lin.weight).abs().max() > 0.02  # type: ignore[index,union-attr]


def test_weight_decay_goes_where_it_was_published() -> None:
    data = graph()

    def groups(net: nn.Module, **arguments: Any) -> dict[float, set[str]]:
        module = fit(net, data, epochs=1, **arguments)
        names = {id(parameter): name for name, parameter in net.named_parameters()}
        (optimizer,) = module.trainer.optimizers
        return {group["weight_decay"]: {names[id(one)] for one in group["params"]} for group in optimizer.param_groups}

    assert groups(SGC(FEATURES, CLASSES)) == {5e-3: {"head.layers.0.weight"}, 0.0: {"head.layers.0.bias"}}
    assert groups(gcn()) == {
        5e-4: {"layers.0.lin.weight"},
        0.0: {"layers.0.bias", "layers.1.lin.weight", "layers.1.bias"},
    }
    assert groups(Hand()) == {5e-4: {"layer.weight"}, 0.0: {"layer.bias"}}
    own = groups(gcn(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, weight_decay=0.3))
    assert own == {0.3: {"layers.0.lin.weight"}, 0.0: {"layers.0.bias", "layers.1.lin.weight", "layers.1.bias"}}


def test_logged_numbers_are_those_of_the_nodes_asked_for() -> None:
    data = graph()
    batch = data.batch()
    module = NodeClassification(
        gcn(dropout=0.0), num_classes=CLASSES, patience=None, optimizer=lambda p: torch.optim.SGD(p, lr=0.0)
    )
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, data)
    logged = {key: value.item() for key, value in trainer.callback_metrics.items()}
    (test,) = trainer.test(module, data, verbose=False)
    predicted: Any = trainer.predict(module, data)
    (logits,) = predicted
    assert torch.equal(logits, module(batch.x, batch.edge_index))
    expected = {}
    for split in ("train", "val", "test"):
        mask = batch[f"{split}_mask"]
        expected[f"{split}/loss"] = F.cross_entropy(logits[mask], batch.y[mask]).item()
        expected[f"{split}/acc"] = (logits[mask].argmax(1) == batch.y[mask]).float().mean().item()
    del expected["train/acc"]
    expected["val/objective"] = expected["val/loss"]  # SGD without weight decay
    assert {**logged, **test} == pytest.approx(expected, rel=1e-5)


def test_labels_outside_of_training_and_validation_change_nothing() -> None:
    whole = graph().graph
    flipped = copy.copy(whole)
    flipped.y = torch.where(whole.test_mask, (whole.y + 1) % CLASSES, whole.y)
    nets = []
    for one in (whole, flipped):
        nets.append(gcn())
        torch.manual_seed(3)
        fit(nets[-1], GraphDataModule(graph=one, split="public", steps_per_epoch=3), patience=6)
    assert_identical(dict(nets[0].state_dict()), dict(nets[1].state_dict()))


class Watch(Callback):
    """Notes what was validated, before the module decides."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float, dict[str, Tensor]]] = []

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        weights = {key: value.clone() for key, value in pl_module.net.state_dict().items()}
        weight = pl_module.net.layers[0].lin.weight
        loss = pl_module.val_loss.compute() + 0.5 * 5e-4 * weight.square().sum()
        self.seen.append((trainer.global_step, float(loss), weights))


def test_it_stops_when_patience_has_run_out_and_puts_the_best_weights_back() -> None:
    watch = Watch()
    module = fit(
        gcn(hidden_features=32, dropout=0.0),
        graph(sbm_signal=0.0),  # nothing to learn but by heart
        epochs=200,
        patience=9,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=5e-4),
        trainer={"callbacks": [watch], "num_sanity_val_steps": 1},
    )
    (sanity_step, _, _), *seen = watch.seen
    assert sanity_step == 0
    steps = [step for step, _, _ in seen]
    assert steps == list(range(3, 3 * len(seen) + 1, 3))  # an epoch is three steps
    best_step, _, weights = min(seen, key=lambda one: one[1])
    assert steps[-1] - best_step == 9
    assert 0 < best_step < steps[-1] < 600
    assert_identical(dict(module.net.state_dict()), weights)
    assert float(module.trainer.callback_metrics["val/objective"]) == pytest.approx(seen[-1][1])
    assert not torch.equal(seen[-1][2]["layers.0.lin.weight"], weights["layers.0.lin.weight"])


def test_the_watched_loss_has_the_term_that_the_optimizer_adds_and_no_other() -> None:
    def penalty(optimizer: Any) -> float:
        return float(fit(gcn(), graph(), epochs=1, optimizer=optimizer)._penalty())

    square = gcn().layers[0].lin.weight.square().sum().item()  # type: ignore[index,union-attr]
    for kind in (torch.optim.Adam, torch.optim.SGD):
        assert penalty(lambda p, kind=kind: kind(p, lr=0.0, weight_decay=0.2)) == pytest.approx(0.1 * square)
    assert penalty(lambda p: torch.optim.AdamW(p, lr=0.0, weight_decay=0.2)) == 0


def test_nan_is_no_best_loss() -> None:
    net, best = nn.Linear(1, 1), BestWeights(patience=2)
    assert not best.note(1.0, 1, net)
    first = net.weight.item()
    with torch.no_grad():
        net.weight.fill_(float("nan"))
    assert not best.note(float("nan"), 2, net)
    assert best.note(float("nan"), 3, net)
    best.put_back(net)
    assert net.weight.item() == first


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    class Keep(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 5:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    # Without dropout: its random numbers are not the module's business.
    settings: dict[str, Any] = {"epochs": 40, "patience": 12, "optimizer": lambda p: torch.optim.Adam(p, lr=0.1)}
    data = graph(sbm_signal=0.0)
    whole = fit(gcn(dropout=0.0), data, trainer={"callbacks": [Keep()]}, **settings)
    assert whole._best.step <= 18 < whole.trainer.global_step  # the best weights are in the checkpoint alone
    torch.load(tmp_path / "middle.ckpt", weights_only=True)
    resumed = NodeClassification(
        gcn(1, dropout=0.0),
        num_classes=CLASSES,
        patience=12,
        optimizer=settings["optimizer"],
    )
    trainer = quiet_trainer(max_epochs=40)
    trainer.fit(resumed, data, ckpt_path=tmp_path / "middle.ckpt")
    assert trainer.global_step == whole.trainer.global_step
    assert_identical(dict(resumed.net.state_dict()), dict(whole.net.state_dict()))
    before = resumed._best.loss  # type: ignore[union-attr]
    quiet_trainer(max_epochs=1).fit(resumed, graph(seed=5))  # another fit has no memory of it
    assert resumed._best.loss != before  # type: ignore[union-attr]


@needs_rebuilding
def test_a_checkpoint_brings_the_network_back(tmp_path: Path) -> None:
    config = {
        "seed_everything": 0,
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False},
        "model": {
            "class_path": "NodeClassification",
            "init_args": {
                "net": {
                    "class_path": "pl_robust.models.SGC",
                    "init_args": {"in_features": FEATURES, "out_features": CLASSES},
                },
                "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1}},
                "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1}},
            },
        },
        "data": {
            "class_path": "GraphDataModule",
            "init_args": {"sbm_nodes": 60, "sbm_classes": CLASSES, "sbm_features": FEATURES, "sbm_degree": 4.0},
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    cli: Any = run(["fit", "--config", str(tmp_path / "run.yaml")])
    assert cli.model.num_classes == CLASSES  # from the data
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.001)
    (checkpoint,) = tmp_path.glob("checkpoints/*.ckpt")
    again = NodeClassification.load_from_checkpoint(checkpoint)
    batch = cli.datamodule.batch()
    assert again.patience == 50
    torch.testing.assert_close(again(batch.x, batch.edge_index), cli.model(batch.x, batch.edge_index))


def test_the_best_checkpoint_holds_the_weights_that_are_put_back(tmp_path: Path) -> None:
    checkpoint = import_module(f"{NAMESPACE}.callbacks").ModelCheckpoint(str(tmp_path), "best", "val/objective")
    settings: dict[str, Any] = {"callbacks": [checkpoint], "enable_checkpointing": True}
    module = fit(gcn(hidden_features=32), graph(sbm_signal=0.5), epochs=60, patience=60, trainer=settings)
    again = NodeClassification.load_from_checkpoint(tmp_path / "best.ckpt", net=gcn(1, hidden_features=32))
    assert_identical(dict(again.state_dict()), dict(module.state_dict()))


def test_a_network_gets_the_tensors_of_the_batch_themselves() -> None:
    """So that what it keeps of them stays good; users' loaders of one Data will do."""
    batch = graph().batch()
    batch.edge_weight = torch.rand(batch.edge_index.shape[1])
    net = Hand()
    fit(net, DataLoader([batch] * 3, batch_size=None), epochs=1)  # type: ignore[arg-type]
    assert len(net.saw) == 3
    for x, edge_index, edge_weight in net.saw:
        assert x is batch.x
        assert edge_index is batch.edge_index
        assert edge_weight is batch.edge_weight


class Stream(IterableDataset[Data]):
    """Three steps, of which nobody knows before."""

    def __iter__(self) -> Iterator[Data]:
        yield from [graph().batch()] * 3


def test_the_training_loss_is_logged_where_the_end_is_not_known_before() -> None:
    module = fit(gcn(), DataLoader(Stream(), batch_size=None), epochs=1)
    assert module.trainer.global_step == 3
    assert module.trainer.callback_metrics["train/loss"] > 0


def test_a_compiled_network_trains_as_it_does_by_itself() -> None:
    nets = gcn(dropout=0.0), gcn(dropout=0.0)
    for net in (nets[0], torch.compile(nets[1], backend="eager")):
        fit(net, graph(), patience=50)  # type: ignore[arg-type]
    for key, value in nets[0].state_dict().items():
        torch.testing.assert_close(nets[1].state_dict()[key], value, rtol=1e-4, atol=1e-5)


def test_several_graphs_make_one_batch() -> None:
    """PyG's Batch has a `batch_size` of its own, which counts graphs."""
    batch: Any = Batch.from_data_list([graph().graph, graph(1).graph])
    module = NodeClassification(gcn(), num_classes=CLASSES)
    mask = torch.cat([graph().graph.test_mask, graph(1).graph.test_mask])
    _, nodes, y = module._reader.read(batch, "test")
    assert torch.equal(nodes, mask.nonzero()[:, 0])
    assert torch.equal(y, batch.y[mask])
    (metrics,) = quiet_trainer().test(module, DataLoader([batch], batch_size=None), verbose=False)  # type: ignore[arg-type]
    right = module.eval()(batch.x, batch.edge_index).argmax(1) == batch.y
    assert metrics["test/acc"] == pytest.approx(right[mask].float().mean().item())


def sample(batch: Data, seeds: Tensor) -> Data:
    """What PyG's NeighborLoader makes of seeds: they come first, with all that two layers see of the graph around."""
    nodes, _, _, _ = k_hop_subgraph(seeds, 3, batch.edge_index, num_nodes=len(batch.x))
    nodes = torch.cat([seeds, nodes[~torch.isin(nodes, seeds)]])
    place = torch.full((len(batch.x),), -1)
    place[nodes] = torch.arange(len(nodes))
    edges = place[batch.edge_index]
    edges = edges[:, (edges >= 0).all(0)]
    return Data(x=batch.x[nodes], edge_index=edges, y=batch.y[nodes], batch_size=len(seeds))


def test_sampled_batches_count_their_first_nodes() -> None:
    batch = graph().batch()
    parts = batch.val_mask.nonzero()[:, 0].split(5)
    loader: Any = DataLoader([sample(batch, seeds) for seeds in parts], batch_size=None)  # type: ignore[arg-type]
    module = NodeClassification(gcn(), num_classes=CLASSES)
    trainer = quiet_trainer()
    (metrics,) = trainer.test(module, loader, verbose=False)
    logits = module.eval()(batch.x, batch.edge_index)[batch.val_mask]
    assert metrics["test/acc"] == pytest.approx((logits.argmax(1) == batch.y[batch.val_mask]).float().mean().item())
    assert metrics["test/loss"] == pytest.approx(F.cross_entropy(logits, batch.y[batch.val_mask]).item(), rel=1e-5)
    predicted: Any = trainer.predict(module, loader)
    torch.testing.assert_close(torch.cat(predicted), logits)


def test_it_trains_on_sampled_batches() -> None:
    batch = graph(sbm_signal=4.0).batch()
    parts = batch.train_mask.nonzero()[:, 0].split(7)
    loader: Any = DataLoader([sample(batch, seeds) for seeds in parts], batch_size=None)  # type: ignore[arg-type]
    module = fit(gcn(dropout=0.0), loader, epochs=30)
    right = module(batch.x, batch.edge_index).argmax(1) == batch.y
    assert right[batch.test_mask].float().mean() > 0.75


@pytest.mark.parametrize(
    "arguments",
    [{"precision": "bf16-mixed"}, {"precision": "64-true"}, {"precision": "bf16-true"}, {"gradient_clip_val": 0.5}],
    ids=["bf16", "double", "bf16-true", "clipping"],
)
def test_it_trains_everywhere(arguments: dict[str, Any]) -> None:
    module = NodeClassification(gcn(), num_classes=CLASSES)
    trainer = quiet_trainer(max_epochs=20, **arguments)
    data = graph(sbm_signal=4.0)
    trainer.fit(module, data)
    (metrics,) = trainer.test(module, data, verbose=False)
    assert metrics["test/acc"] > 0.75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"net": "GCN"}, "`net` must be an nn.Module, graph -> logits, got str"),
        ({"net": nn.ReLU()}, "`net` must have a parameter that requires grad, got none"),
        ({"net": SGC(FEATURES, 7)}, "`net` must have an output for each of 3 classes, got out_features=7"),
        ({"num_classes": 1}, "`num_classes` must be at least 2, got 1"),
        ({"num_classes": "3"}, "`num_classes` must be an integer, got '3'"),
        ({"patience": 0}, "`patience` must be at least 1, got 0"),
        ({"patience": 2.5}, "`patience` must be an integer, got 2.5"),
        ({"optimizer": "adam"}, "`optimizer` must be a callable parameters -> optimizer, or None, got 'adam'"),
        ({"lr_scheduler": "cosine"}, "`lr_scheduler` must be 'constant' or a callable"),
        ({"lr_scheduler_interval": "day"}, "`lr_scheduler_interval` must be 'epoch' or 'step', got 'day'"),
    ],
)
def test_errors_speak(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        NodeClassification(**{"net": NodeMLP(FEATURES, CLASSES), "num_classes": CLASSES, **arguments})


def changed(**changes: Any) -> Data:
    batch = graph().batch()
    for name, value in changes.items():
        if value is None:
            del batch[name]
        else:
            batch[name] = value
    return batch


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            lambda: (torch.zeros(4, FEATURES), torch.zeros(4)),
            r"must be a torch_geometric.data.Data .* got list; Graph",
        ),
        (lambda: changed(x=None), "a batch must have `x`, a tensor, got NoneType"),
        (lambda: changed(y=None), r"a batch must have labels y, int64 \[60\], got NoneType"),
        (lambda: changed(y=torch.zeros(60, 2)), r"labels y, int64 \[60\], got torch.float32 \[60, 2\]"),
        (lambda: changed(train_mask=None), r"must have `train_mask`, bool \[60\], or `batch_size`.* got NoneType"),
        (lambda: changed(train_mask=torch.ones(60)), r"`train_mask`, bool .* got torch.float32 \[60\]"),
        (lambda: changed(train_mask=torch.zeros(60) > 0), "the train split has no node"),
        (lambda: changed(batch_size=0), "the train split has no node"),
        (lambda: changed(y=torch.full((60,), 3)), "labels of the train split must lie in 0 to 2, .* got 3 to 3"),
        (lambda: changed(x=torch.zeros(60, 5)), r"this GCN takes features x \[N, 12\], got \[60, 5\]"),
    ],
)
def test_a_batch_that_is_none_is_named(batch: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        fit(gcn(), DataLoader([batch()], batch_size=None), epochs=1)  # type: ignore[arg-type]


class Wide(nn.Module):
    """Gives two logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 2)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Tensor:
        logits: Tensor = self.layer(x)
        return logits


def test_logits_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the net must give logits \[60, 3\], .*got \[60, 2\]"):
        fit(Wide(), graph(), epochs=1)


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_patience_needs_a_validation() -> None:
    with pytest.raises(MisconfigurationException, match="patience=50 watches the loss on validation nodes, and there"):
        fit(gcn(), graph(val_fraction=0), epochs=1, patience=50)
    fit(gcn(), graph(val_fraction=0), epochs=1)


def test_a_loss_that_is_nan_from_the_start_is_named() -> None:
    batch = changed()
    batch.x[5] = float("nan")
    loader: Any = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
    module = NodeClassification(gcn(), num_classes=CLASSES)
    with pytest.raises(ValueError, match="the loss on the validation nodes is nan after 1 steps"):
        quiet_trainer(max_epochs=1, num_sanity_val_steps=0).fit(module, loader, loader)


class Steep(Wide):
    """Logits so far apart that float32 cannot hold the sum of the losses."""

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Tensor:
        logits = super().forward(x, edge_index, edge_weight)
        return 3e38 * F.pad(logits.clamp(-1, 1), (0, 1))


def test_a_loss_that_is_infinite_from_the_start_is_named() -> None:
    module = NodeClassification(Steep(), num_classes=CLASSES, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    with pytest.raises(ValueError, match="the loss on the validation nodes is inf after 3 steps"):
        quiet_trainer(max_epochs=100).fit(module, graph())
