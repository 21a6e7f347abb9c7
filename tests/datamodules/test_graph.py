from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pl_robust._lightning import LightningDataModule
from pl_robust.datamodules import GraphDataModule
from pl_robust.datamodules._graph_features import reduce_features
from tests._processes import run_ranks
from tests.datamodules.graph_toys import GraphModule, mask, pairs_graph
from tests.toys import assert_identical, needs_lightning, quiet_trainer

pytestmark = pytest.mark.lightning
SHARED = Path(__file__).parents[3] / "shared" / "data" / "planetoid"


def _fit(data: GraphDataModule, **arguments: Any) -> tuple[GraphModule, Any]:
    torch.manual_seed(0)
    module = GraphModule(data.in_features, data.num_classes)
    trainer = quiet_trainer(**{"max_epochs": 3, **arguments})
    trainer.fit(module, datamodule=data)
    return module, trainer


def _read(graph: Any, **arguments: Any) -> Any:
    return GraphDataModule(graph=graph, **{"split": "public", **arguments}).graph


# the graph


def test_karate_is_pygs() -> None:
    from torch_geometric.datasets import KarateClub

    data = GraphDataModule("karate", split="public")
    assert (data.num_nodes, data.in_features, data.num_classes, data.num_train) == (34, 34, 4, 4)
    theirs = KarateClub()[0]
    for name in ("x", "edge_index", "y", "train_mask"):
        assert torch.equal(data.graph[name], theirs[name])
    assert data.graph.edge_weight is None
    assert (data.graph.val_mask.sum(), data.graph.test_mask.sum()) == (3, 27)


def test_the_default_is_generated_and_does_not_move_the_global_generator() -> None:
    before = torch.get_rng_state()
    some = GraphDataModule(num_features=7)
    assert (some.num_nodes, some.in_features, some.num_classes) == (1000, 7, 4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    again = GraphDataModule(num_features=7)  # from another state of the global generator
    assert_identical(dict(some.graph), dict(again.graph))
    small = GraphDataModule("csbm", sbm_nodes=40, sbm_classes=2, sbm_features=3, sbm_degree=2.0, sbm_seed=1)
    assert (small.num_nodes, small.in_features, small.num_classes) == (40, 3, 2)


def test_seeds_draw_split_and_projection_but_not_the_graph() -> None:
    arguments: Any = {"sbm_nodes": 80, "sbm_degree": 3.0}
    plain, other = GraphDataModule(**arguments).graph, GraphDataModule(seed=1, **arguments).graph
    assert torch.equal(plain.edge_index, other.edge_index)
    assert torch.equal(plain.x, other.x)
    assert not torch.equal(plain.train_mask, other.train_mask)
    fewer = GraphDataModule(num_features=4, **arguments).graph
    assert torch.equal(fewer.train_mask, plain.train_mask)
    assert not torch.equal(fewer.x, GraphDataModule(num_features=4, seed=1, **arguments).graph.x)
    assert not torch.equal(plain.edge_index[:, :9], GraphDataModule(sbm_seed=1, **arguments).graph.edge_index[:, :9])


def test_loops_go_parallel_edges_add_up_and_isolated_nodes_stay() -> None:
    masks = {"train_mask": mask(0, 1, count=4)}
    edges = torch.tensor([[0, 1, 0, 1, 2, 1, 2], [1, 0, 1, 0, 2, 2, 1]])
    weight = torch.tensor([1.0, 1.5, 2.0, 1.5, 7.0, 0.0, 0.0])
    x, y = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    from torch_geometric.data import Data

    graph = _read(Data(x=x, edge_index=edges, edge_weight=weight, y=y, **masks), val_fraction=0.0)
    assert graph.edge_index.tolist() == [[0, 1], [1, 0]]
    assert graph.edge_weight.tolist() == [3.0, 3.0]
    plain = _read(Data(x=x, edge_index=edges, y=y, **masks), val_fraction=0.0)
    assert plain.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert plain.edge_weight is None
    assert len(plain.y) == 4
    columns = _read(Data(x=x, edge_index=edges, edge_attr=weight[:, None], y=y[:, None], **masks), val_fraction=0.0)
    assert columns.edge_weight.tolist() == [3.0, 3.0]
    assert torch.equal(columns.y, y)


def test_a_graph_that_is_changed_later_stays_as_it_was_read() -> None:
    graph = pairs_graph(edge_weight=torch.full((22,), 0.5), train_mask=torch.stack([mask(0, 1)], 1))
    with torch.inference_mode():  # as a validation may be the first to ask
        data = GraphDataModule(graph=graph, split="public")
        before = {name: value.clone() for name, value in dict(data.graph).items()}
    for name in ("x", "edge_index", "y", "edge_weight", "train_mask"):
        graph[name].zero_()
    assert_identical(dict(data.graph), before)
    assert not data.graph.x.is_inference()


def test_directed_edges_are_refused_made_two_way_or_kept() -> None:
    one_way = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 3]])
    graph = pairs_graph(edge_index=one_way, train_mask=mask(0, 1))
    with pytest.raises(ValueError, match=r"the graph is directed: 2 of 4 edges have no counterpart .* 'symmetrize'"):
        _read(graph)
    assert torch.equal(_read(graph, directed="keep").edge_index, one_way)
    both = _read(graph, directed="symmetrize").edge_index
    assert both.tolist() == [[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]]
    graph.edge_weight = torch.tensor([1.0, 4.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="4 of 4 edges have no counterpart of equal weight"):
        _read(graph)
    assert _read(graph, directed="symmetrize").edge_weight.tolist() == [4.0, 4.0, 2.0, 2.0, 3.0, 3.0]


def test_the_largest_component() -> None:
    graph = pairs_graph(train_mask=mask(0, 1, 11), test_mask=mask(2, 3))
    kept = _read(graph, largest_component=True)
    assert torch.equal(kept.x, graph.x[:11])
    assert (kept.train_mask.sum(), len(kept.y)) == (2, 11)
    assert len(_read(graph).y) == 12


# features


def test_the_projection_is_gaussian_linear_and_scaled_by_the_root_of_the_dimension() -> None:
    r = reduce_features(torch.eye(400), 300, "projection", 0) * 20
    assert abs(r.mean()) < 5 / (400 * 300) ** 0.5
    assert abs(r.var() - 1) < 5 * (2 / (400 * 300)) ** 0.5
    x = torch.randn(30, 400)
    torch.testing.assert_close(reduce_features(x, 300, "projection", 0), x @ r / 20, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_principal_components_are_scikit_learns(shape: tuple[int, int]) -> None:
    from sklearn.decomposition import PCA

    x = torch.randn(shape) @ torch.diag(torch.linspace(3, 0.5, shape[1]))
    theirs = torch.from_numpy(PCA(5, svd_solver="full").fit_transform(x.double().numpy()))
    ours = reduce_features(x, 5, "pca", 0).double()
    torch.testing.assert_close(ours.abs(), theirs.abs(), rtol=0, atol=1e-5)
    loadings = (x - x.mean(0)).double().T @ ours
    assert (loadings.gather(0, loadings.abs().argmax(0)[None]) > 0).all()


def test_rows_are_normalized_before_and_zeros_stay() -> None:
    x = torch.tensor([[1.0, 3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [-1.0, 1.0, 2.0, 0.0]]).repeat(4, 1)
    graph = pairs_graph(x=x, train_mask=mask(0, 1))
    normalized = _read(graph, row_normalize=True).x
    assert normalized[:3].tolist() == [[0.25, 0.75, 0, 0], [0, 0, 0, 0], [-0.25, 0.25, 0.5, 0]]
    first = _read(graph, row_normalize=True, num_features=2, feature_reduction="first").x
    assert torch.equal(first, normalized[:, :2])


# the split


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.5])
def test_random_splits_are_balanced_as_published(fraction: float) -> None:
    data = GraphDataModule(sbm_nodes=403, sbm_degree=3.0, train_fraction=fraction, val_fraction=0.25)
    graph = data.graph
    each = int(fraction * 403 / 4) + 1
    if each <= torch.bincount(graph.y).min():
        assert torch.bincount(graph.y[graph.train_mask]).tolist() == [each] * 4
    else:
        assert data.num_train == int(fraction * 403)
    assert graph.val_mask.sum() == round(0.25 * 403)
    assert (graph.train_mask.int() + graph.val_mask.int() + graph.test_mask.int() == 1).all()


def test_where_a_class_is_too_small_the_draw_is_uniform() -> None:
    y = torch.zeros(200, dtype=torch.long)
    y[:40] = 1
    graph = pairs_graph(x=torch.randn(200, 2), y=y)
    counts = []
    for seed in range(30):
        drawn = GraphDataModule(graph=graph, train_fraction=0.5, seed=seed).graph
        assert drawn.train_mask.sum() == 100
        counts.append(int(drawn.y[drawn.train_mask].sum()))
    assert len(set(counts)) > 3
    assert abs(sum(counts) / 30 - 20) < 5 * (100 * 0.2 * 0.8 * 0.5 / 30) ** 0.5  # hypergeometric


def test_what_a_public_split_leaves_open_is_drawn() -> None:
    given = {"train_mask": mask(0, 1), "val_mask": mask(2), "test_mask": mask(3, 5)}
    graph = _read(pairs_graph(**given))
    assert all(torch.equal(graph[name], given[name]) for name in given)
    open_val = _read(pairs_graph(train_mask=mask(0, 1), test_mask=mask(3, 5)), val_fraction=0.25)
    assert open_val.val_mask.sum() == 3
    assert not (open_val.val_mask & mask(0, 1, 3, 5)).any()
    open_test = _read(pairs_graph(train_mask=mask(0, 1), val_mask=mask(2)))
    assert torch.equal(open_test.test_mask, ~mask(0, 1, 2))
    several = pairs_graph(train_mask=torch.stack([mask(0, 1), mask(4, 5)], 1))
    assert torch.equal(_read(several, seed=1).train_mask, mask(4, 5))
    assert (
        _read(pairs_graph(train_mask=mask(0, 1)), val_fraction=0.75).val_mask.sum() == 9
    )  # 0.5 to train plays no part
    with pytest.raises(ValueError, match="`seed` must be at most 1, the index of one of the 2 public splits, got 2"):
        _read(several, seed=2)


def test_labels_outside_of_training_change_nothing_that_is_learned() -> None:
    """All options of the features on: only the evaluation may know of them."""
    answers = []
    for flip in (False, True):
        graph = pairs_graph(train_mask=mask(0, 1, 4, 5), val_mask=mask(2, 3))
        graph.x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
        if flip:
            outside = ~mask(0, 1, 4, 5)
            graph.y[outside] = 1 - graph.y[outside]
        for reduction in ("projection", "pca", "first"):
            data = GraphDataModule(
                graph=graph, split="public", num_features=3, feature_reduction=reduction, row_normalize=True
            )
            module, trainer = _fit(data)
            answers.append(trainer.predict(module, datamodule=data)[0])
    for plain, flipped in zip(answers[:3], answers[3:], strict=True):
        assert torch.equal(plain, flipped)


# the loops


def test_all_steps_get_the_same_tensors_and_the_network_filters_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from pl_robust.models import _graph

    calls: list[int] = []
    original = _graph.filter_features

    def counted(*arguments: Any) -> Tensor:
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(_graph, "filter_features", counted)
    data = GraphDataModule("karate", split="public", steps_per_epoch=4)
    module, trainer = _fit(data)
    assert trainer.global_step == 12
    assert len(module.batches) == 12
    assert len(module.evaluated) == 4  # one of them to try it
    first = module.batches[0]
    for batch in (*module.batches, *module.evaluated):
        assert batch.x is first.x
        assert batch.edge_index is first.edge_index
        assert batch.edge_weight is None
        assert torch.equal(batch.val_mask, data.graph.val_mask)
    assert len(calls) == 1
    trainer.test(module, datamodule=data, verbose=False)
    assert module.evaluated[-1].y is not None


@needs_lightning("2.0", "Lightning does not warn of it")
def test_without_validation_nodes_there_is_no_loader() -> None:
    data = GraphDataModule("karate", split="public", val_fraction=0.0)
    assert data.val_dataloader() == []
    with pytest.warns(UserWarning, match="Total length of `list` across ranks is zero"):
        module, _ = _fit(data, max_epochs=1)
    assert module.evaluated == []


def test_the_graph_is_in_the_trainers_precision() -> None:
    weight = torch.full((22,), 0.5)
    data = GraphDataModule(graph=pairs_graph(edge_weight=weight, train_mask=mask(0, 1)), split="public")
    module, _ = _fit(data, precision="64-true", max_epochs=1)
    batch = module.batches[0]
    assert (batch.x.dtype, batch.edge_weight.dtype, batch.y.dtype) == (torch.float64, torch.float64, torch.int64)
    assert data.graph.x.dtype == torch.float32


def test_without_a_trainer_there_is_the_batch() -> None:
    data = GraphDataModule("karate", split="public")
    data.setup("fit")
    batch = data.batch()
    assert torch.equal(batch.x, data.graph.x)
    batch.more = 1
    assert "more" not in data.batch()
    assert len(list(data.train_dataloader())) == 10


def test_validation_may_come_first() -> None:
    data = GraphDataModule("karate", split="public")
    module = GraphModule(data.in_features, data.num_classes)
    trainer = quiet_trainer(max_epochs=1)
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.fit(module, datamodule=data)


def _on_a_rank(ranks: int) -> dict[str, Tensor]:
    strategy: dict[str, Any] = {"strategy": "ddp", "devices": ranks} if ranks > 1 else {}
    data = GraphDataModule(sbm_nodes=60, sbm_degree=3.0, sbm_features=5, steps_per_epoch=3)
    module, trainer = _fit(data, **strategy)
    loss = trainer.callback_metrics["val/loss"]
    return {"loss": loss, **{name: value.detach().clone() for name, value in module.net.state_dict().items()}}


def test_two_processes_train_as_one_does() -> None:
    alone = _on_a_rank(1)
    for result in run_ranks(_on_a_rank, 2, 2):
        torch.testing.assert_close(result, alone, rtol=0, atol=1e-6)


def test_it_is_built_from_a_configuration_and_its_hyperparameters() -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    config = {
        "class_path": "pl_robust.datamodules.GraphDataModule",
        "init_args": {"sbm_nodes": 60, "sbm_degree": 3, "num_features": 4, "train_fraction": 0.3},
    }
    built = parser.instantiate_classes(parser.parse_object({"data": config})).data
    assert built.in_features == 4
    again = GraphDataModule(**built.hparams)
    assert_identical(dict(again.graph), dict(built.graph))
    own = GraphDataModule(graph=pairs_graph(train_mask=mask(0, 1)), split="public")
    assert "graph" not in own.hparams


# files


@pytest.mark.skipif(not SHARED.is_dir(), reason="the raw Planetoid files are optional")
def test_cora(tmp_path: Path) -> None:
    shutil.copytree(SHARED / "Cora", tmp_path / "Cora")
    arguments: Any = {"name": "Cora", "data_dir": tmp_path}
    public = GraphDataModule(split="public", row_normalize=True, **arguments)
    public.prepare_data()
    public.setup()
    graph = public.graph
    assert (public.num_nodes, public.in_features, public.num_classes) == (2708, 1433, 7)
    assert [int(part.sum()) for part in (graph.train_mask, graph.val_mask, graph.test_mask)] == [140, 500, 1000]
    torch.testing.assert_close(graph.x.sum(1), torch.ones(2708))
    published = GraphDataModule(num_features=300, largest_component=True, **arguments)
    assert (published.num_nodes, published.in_features) == (2485, 300)
    assert published.graph.edge_index.shape == (2, 2 * 5069)
    assert published.num_train == 1242  # the smallest class has 131, fewer than 178
    few = GraphDataModule(train_fraction=0.052, largest_component=True, **arguments)
    assert few.num_train == 7 * 19


@pytest.mark.skipif(not SHARED.is_dir(), reason="the raw Planetoid files are optional")
def test_other_files_than_the_published_ones_are_not_unpickled(tmp_path: Path) -> None:
    shutil.copytree(SHARED / "Cora" / "raw", tmp_path / "Cora" / "raw")
    (tmp_path / "Cora" / "raw" / "ind.cora.graph").write_bytes(b"cos\nsystem\n(S'touch harm'\ntR.")
    with pytest.raises(ValueError, match=r"ind.cora.graph' is not the published file \(its SHA-256 differs\)"):
        GraphDataModule("Cora", data_dir=tmp_path).setup()
    assert not (tmp_path / "harm").exists()
    assert not Path("harm").exists()


@pytest.mark.parametrize(("name", "folder"), [("Cora", "Cora"), ("Actor", "Actor"), ("Amazon/Photo", "Amazon/Photo")])
def test_missing_files_are_not_fetched_in_setup(name: str, folder: str, tmp_path: Path) -> None:
    data = GraphDataModule(name, data_dir=tmp_path, download=False)
    message = rf"the files of {name} are not in '.*{folder}/raw', and downloads happen in prepare_data alone"
    with pytest.raises(FileNotFoundError, match=message):
        data.prepare_data()
    with pytest.raises(FileNotFoundError, match=message):
        GraphDataModule(name, data_dir=tmp_path).setup()


# what is refused


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "cora"}, ValueError, "`name` must be one of csbm, karate, .* got 'cora': did you mean Cora?"),
        ({"name": 3}, TypeError, "`name` must be a string such as 'csbm', got 3"),
        ({"name": "Amazon"}, ValueError, "`name` must be 'Amazon/<name>' for this dataset, got 'Amazon'"),
        ({"name": "WikiCS/x"}, ValueError, "`name` must be 'WikiCS' for this dataset, got 'WikiCS/x'"),
        ({"name": "KarateClub"}, ValueError, "`name`='KarateClub' is to be given as 'karate'"),
        ({"name": "Planetoid/PubMed"}, ValueError, "`name`='Planetoid/PubMed' is to be given as 'PubMed'"),
        ({"name": "FakeDataset"}, ValueError, "needs more arguments than a name"),
        ({"name": "karate", "graph": 1}, ValueError, "`name` and `graph` are two graphs, got 'karate' and a int"),
        ({"num_features": 0}, ValueError, "`num_features` must be at least 1, got 0"),
        ({"feature_reduction": "last"}, ValueError, "`feature_reduction` must be one of projection, pca, first"),
        ({"split": "full"}, ValueError, "`split` must be one of random, public, got 'full'"),
        ({"directed": True}, ValueError, "`directed` must be one of error, symmetrize, keep, got True"),
        ({"train_fraction": 0.0}, ValueError, r"`train_fraction` must be in \(0, 1\), got 0.0"),
        ({"train_fraction": "a"}, TypeError, "`train_fraction` must be a number, got 'a'"),
        ({"val_fraction": 1.0}, ValueError, r"`val_fraction` must be in \[0, 1\), got 1.0"),
        (
            {"train_fraction": 0.8, "val_fraction": 0.2},
            ValueError,
            r"`train_fraction` \+ `val_fraction` must be less than 1, .* got 0.8 \+ 0.2",
        ),
        ({"seed": -1}, ValueError, "`seed` must be at least 0, got -1"),
        ({"steps_per_epoch": 0}, ValueError, "`steps_per_epoch` must be at least 1, got 0"),
        ({"batch_size": 5}, ValueError, "`batch_size` is for `neighbors`, got 5 without them"),
        ({"name": "karate", "sbm_nodes": 5}, ValueError, "`sbm_nodes` is for name='csbm', got it for 'karate'"),
    ],
)
def test_refuses_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GraphDataModule(**arguments)


_TRAINED = {"train_mask": mask(0, 1)}


@pytest.mark.parametrize(
    ("attributes", "arguments", "error", "message"),
    [
        ({"x": None}, {}, ValueError, r"the graph needs features `x` \[N, D\], got NoneType: .*torch.eye"),
        ({"x": torch.full((12, 2), torch.nan)}, {}, ValueError, "`x` must be finite, got NaN or infinity at 12 nodes"),
        ({"x": torch.zeros(12)}, {}, ValueError, r"`x` must be \[N, D\], .* got \[12\]"),
        ({"x": torch.zeros(12, 0)}, {}, ValueError, r"`x` must be \[N, D\], .* got \[12, 0\]"),
        ({"y": None}, {}, ValueError, r"the graph needs labels `y` \[N\], got NoneType"),
        ({"y": torch.zeros(12)}, {}, TypeError, "`y` must hold integers, classes 0 to C - 1, got torch.float32"),
        ({"y": torch.zeros(5).long()}, {}, ValueError, r"`y` must be \[12\], a class for each node, got \[5\]"),
        ({"y": torch.arange(12) - 1}, {}, ValueError, "`y` must hold classes 0 to C - 1, got -1: .*leave them out"),
        ({"y": torch.zeros(12).long()}, {}, ValueError, "`y` must hold at least two classes, got 0 alone"),
        ({"y": torch.arange(12) * 10**9}, {}, ValueError, "of 12 nodes at most 12, got 11000000000"),
        ({"y": torch.arange(12) % 2 * 2}, {}, ValueError, r"each of the 3 classes needs training nodes, \[1\] of y"),
        ({"edge_index": None}, {}, ValueError, r"the graph needs edges `edge_index` \[2, E\], got NoneType"),
        ({"edge_index": torch.zeros(2, 3)}, {}, TypeError, "`edge_index` must be int64, got torch.float32"),
        ({"edge_index": torch.zeros(3, 2).long()}, {}, ValueError, r"`edge_index` must be \[2, E\], got \[3, 2\]"),
        (
            {"edge_index": torch.tensor([[0, 12], [12, 0]])},
            {},
            ValueError,
            "`edge_index` must hold nodes 0 to 11, as `x` has 12 rows, got 0 to 12",
        ),
        ({"edge_weight": torch.ones(3)}, {}, ValueError, r"`edge_weight` must be \[22\], .* got \[3\]"),
        ({"edge_attr": torch.ones(22, 4)}, {}, ValueError, r"`edge_attr` must be \[22\], .* got \[22, 4\]: set"),
        ({"edge_weight": [1.0] * 22}, {}, TypeError, "`edge_weight` must be a tensor of real numbers, .* got list"),
        ({"edge_weight": torch.ones(22) * 1j}, {}, TypeError, "a tensor of real numbers, .* got torch.complex64"),
        ({"edge_weight": -torch.ones(22)}, {}, ValueError, "`edge_weight` must be finite and 0 or more, got -1 to -1"),
        ({"train_mask": None}, {}, ValueError, "needs the data's own `train_mask`, this has none: set split='random'"),
        ({"train_mask": torch.ones(12)}, {}, TypeError, "`train_mask` must be a bool tensor, got torch.float32"),
        ({"train_mask": [True] * 12}, {}, TypeError, "`train_mask` must be a bool tensor, got list"),
        ({"train_mask": mask(0, count=5)}, {}, ValueError, r"`train_mask` must be \[12\], .* got \[5\]"),
        ({"train_mask": mask(0, 2)}, {}, ValueError, r"each of the 2 classes needs training nodes, \[1\] of y have"),
        ({"test_mask": mask(1, 2)}, {}, ValueError, "train_mask and test_mask must not overlap, got 1 nodes in more"),
        ({"val_mask": mask(), "test_mask": mask(2)}, {}, ValueError, "`val_mask` must hold nodes, it has none"),
        ({}, {"num_features": 5, "feature_reduction": "first"}, ValueError, "`num_features` must be at most 4 for"),
        (
            {},
            {"num_features": 5, "feature_reduction": "pca"},
            ValueError,
            "at most 4 for .* of 4 features and 12 nodes",
        ),
        (
            {"test_mask": ~mask(0, 1)},
            {},
            ValueError,
            "`val_fraction`=0.1 of 12 nodes is 1, and 0 are in none of the masks train_mask and test_mask: lower",
        ),
        ({}, {"val_fraction": 0.8}, ValueError, "is 10, and 10 are in none of the masks train_mask, of which one is"),
        ({}, {"val_fraction": 0.01}, ValueError, "`val_fraction`=0.01 of 12 nodes is none: raise it"),
        (
            {},
            {"split": "random", "val_fraction": 0.01},
            ValueError,
            "`val_fraction`=0.01 of 12 nodes is none: raise it",
        ),
        (
            {},
            {"split": "random", "train_fraction": 0.7, "val_fraction": 0.29},
            ValueError,
            "`train_fraction`=0.7 or `val_fraction`=0.29",
        ),
    ],
)
def test_refuses_graphs(
    attributes: dict[str, Any], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _read(pairs_graph(**{**_TRAINED, **attributes}), **arguments)


def test_pygs_refusal_of_a_name_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PyG's Amazon refuses `name`='Amazon/Foto'"):
        GraphDataModule("Amazon/Foto", data_dir=tmp_path).setup()


def test_refuses_what_is_no_single_graph() -> None:
    from torch_geometric.data import HeteroData

    for given in (HeteroData(), {"x": 1}):
        with pytest.raises(TypeError, match=f"`graph` must be a torch_geometric.data.Data, .* {type(given).__name__}"):
            GraphDataModule(graph=given).setup()


def test_a_generated_graph_has_no_public_split() -> None:
    with pytest.raises(ValueError, match="split='public' needs the data's own `train_mask`"):
        GraphDataModule(split="public").setup()
