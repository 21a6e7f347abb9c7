"""One graph whose nodes are to be classified, with the protocol of how many labels and features there are."""

from __future__ import annotations

import os
from copy import copy
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from pl_robust._lightning import LightningDataModule, unsavable
from pl_robust._number import check_count, check_seed
from pl_robust.datamodules._graph_clean import Directed, clean_graph
from pl_robust.datamodules._graph_features import Reduction, normalize_rows, reduce_features
from pl_robust.datamodules._graph_neighbors import NeighborBatches, check_neighbors, share
from pl_robust.datamodules._graph_sbm import check_recipe, contextual_sbm
from pl_robust.datamodules._graph_source import GENERATED, check_name, read_graph
from pl_robust.datamodules._graph_split import check_classes, check_fractions, public_split, random_split
from pl_robust.datamodules._signal_loaders import StepLoader

if TYPE_CHECKING:
    from torch_geometric.data import Data

_BATCH_SIZE = 1024


class GraphDataModule(LightningDataModule):
    """Batches of one graph: a PyG ``Data`` with x, edge_index, y, train_mask, val_mask, test_mask, and edge_weight.

    The graph lives on the device from the first step on. Loaders yield tokens, and ``transfer_batch_to_device`` makes
    the graph of them, the same memory at every step: so nothing is copied, the networks of ``pl_robust.models`` can
    keep what they computed of it, and an epoch of the Trainer is ``steps_per_epoch`` steps. Do not change it in place.
    Validation, test and predict are one batch each; which mask holds is the module's business. Under DDP each rank has
    the whole graph, which is correct and no faster.

    The graph is checked and brought into form: loops are removed (networks add their own), as are edges of weight 0;
    parallel edges add up their weights, or are one edge where there are none. Nodes without edges stay. In this order:
    largest component, normalized rows, fewer features, split. Labels have a part in the split alone, so that those
    outside of the training nodes do not matter to a network trained on a public split.

    The published protocol (Vignac, Ortiz-Jimenez, Frossard, "On the choice of graph neural network architectures",
    ICASSP 2020, https://arxiv.org/abs/1911.05384) is ``num_features=300, train_fraction=0.5, largest_component=True``,
    but for its single validation node; that of Kipf and Welling (ICLR 2017) ``split="public", row_normalize=True``.

    Args:
        name: ``csbm``, a generated graph (see ``sbm_nodes``), the default; ``karate``, 34 nodes, ships with PyG;
            ``Cora``, ``CiteSeer``, ``PubMed``; or a class of torch_geometric.datasets with one graph, such as
            ``WikiCS`` or ``Amazon/Photo``.
        graph: in Python, a torch_geometric Data instead of a name: x [N, D], edge_index, y [N], and masks for a public
            split. ``edge_attr`` [E] counts as weights where there is no ``edge_weight``.
        data_dir: folder of the files: Planetoid's are in ``data_dir/Cora/raw``, others in ``data_dir/WikiCS``. The raw
            files of Cora and CiteSeer are checked by SHA-256, those of PubMed and other datasets are trusted as PyG
            reads them, and may be pickled: get them from where you trust.
        download: fetch missing files; happens in ``prepare_data`` only.
        num_features: D, the number of features to reduce to; ``None``: all there are.
        feature_reduction: ``projection``: X R / sqrt(D0), with a Gaussian matrix R [D0, D], as published; ``pca``:
            principal components of all nodes; ``first``: the first D.
        row_normalize: divide each node's features by the sum of their magnitudes before, for bags of words.
        split: ``random``, as published: equally many training nodes of each class where the smallest has enough, else
            a uniform draw; ``public``: the masks that come with the data. Of these a missing validation mask is drawn
            from what is in no other, and without a test mask all others are tested on.
        train_fraction: share of training nodes of a random split, in (0, 1).
        val_fraction: share of validation nodes, of all nodes; 0: no validation loader. A public split with a validation
            mask keeps that.
        seed: of split and projection, each with a stream of its own; of several public splits the index.
        largest_component: keep the largest connected component only.
        directed: where edges have no counterpart of equal weight: ``error``; ``symmetrize``: each goes both ways, of
            two weights the larger one; ``keep``.
        steps_per_epoch: training steps in an epoch, of the whole graph.
        neighbors: for graphs that do not fit the device: how many neighbours to sample at each hop, -1 for all, such
            as [15, 10]. Training batches are subgraphs around ``batch_size`` training nodes, the first ones in the
            batch. Evaluation takes all neighbours, and of one hop more, so that the degrees are right. Under DDP each
            rank trains on its share of the nodes, and evaluates all. Needs pyg-lib or torch-sparse.
        batch_size: for ``neighbors``; ``None``: 1024.
        sbm_nodes: of ``csbm``, as all that follow, whose ``None`` stands for the number given here: 1000 nodes.
        sbm_classes: 4, each of two communities.
        sbm_features: 100, before ``num_features``.
        sbm_degree: 6 neighbours on average.
        sbm_homophily: 0.8, the share of them in the own community.
        sbm_signal: 2, distance of a community's mean features from zero, in standard deviations.
        sbm_nonlinearity: 0.7, in [0, 1]: 0: classes differ by their means; 1: no linear classifier tells them apart.
        sbm_seed: 0, of the generated graph.

    Attributes:
        graph: the Data of the batches, on the CPU, x float32; read when first asked for, before ``setup``, too.
        num_classes, in_features, num_nodes, num_train: classes, features of a node, nodes, training nodes.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if an argument is not as described; in ``setup``, if the graph is not, or a class or a part of the
            split gets no node.
        FileNotFoundError: in ``setup``, if files are missing.
        ImportError: if ``neighbors`` cannot be sampled.

    Example:
        >>> data = GraphDataModule("karate", split="public")
        >>> data.num_nodes, data.num_train, data.num_classes
        (34, 4, 4)
    """

    def __init__(
        self,
        name: str | None = None,
        graph: Any = None,  # a Data; PyG is not imported for its type, because that takes seconds
        data_dir: str | os.PathLike[str] = "data",
        download: bool = True,
        num_features: int | None = None,
        feature_reduction: Reduction = "projection",
        row_normalize: bool = False,
        split: Literal["random", "public"] = "random",
        train_fraction: float = 0.5,
        val_fraction: float = 0.1,
        seed: int = 0,
        largest_component: bool = False,
        directed: Directed = "error",
        steps_per_epoch: int = 10,
        neighbors: list[int] | None = None,
        batch_size: int | None = None,
        sbm_nodes: int | None = None,
        sbm_classes: int | None = None,
        sbm_features: int | None = None,
        sbm_degree: float | None = None,
        sbm_homophily: float | None = None,
        sbm_signal: float | None = None,
        sbm_nonlinearity: float | None = None,
        sbm_seed: int | None = None,
    ) -> None:
        super().__init__()
        data_dir = os.fspath(data_dir)  # a string in the hyperparameters: a Path could not be read back
        self.save_hyperparameters(ignore=unsavable(graph=graph), logger=False)
        if graph is not None and name is not None:
            raise ValueError(f"`name` and `graph` are two graphs, got {name!r} and a {type(graph).__name__}: give one")
        counts = {
            "num_features": num_features,
            "steps_per_epoch": steps_per_epoch,
            "batch_size": batch_size,
        }
        for argument, value in counts.items():
            if value is not None:
                check_count(value, argument)
        for argument, choice, allowed in (
            ("feature_reduction", feature_reduction, get_args(Reduction)),
            ("split", split, ("random", "public")),
            ("directed", directed, get_args(Directed)),
        ):
            if choice not in allowed:
                raise ValueError(f"`{argument}` must be one of {', '.join(allowed)}, got {choice!r}")
        check_fractions(train_fraction, val_fraction, split)
        check_seed(seed)
        name = GENERATED if name is None and graph is None else name
        recipe = {
            "nodes": sbm_nodes,
            "classes": sbm_classes,
            "features": sbm_features,
            "degree": sbm_degree,
            "homophily": sbm_homophily,
            "signal": sbm_signal,
            "nonlinearity": sbm_nonlinearity,
            "seed": sbm_seed,
        }
        self._recipe: dict[str, Any] = {key: value for key, value in recipe.items() if value is not None}
        check_recipe(self._recipe)
        if name is not None:
            check_name(name)
        if name != GENERATED and self._recipe:
            raise ValueError(
                f"`sbm_{next(iter(self._recipe))}` is for name={GENERATED!r}, got it for "
                f"{'a graph of your own' if name is None else repr(name)}"
            )
        if neighbors is not None:
            check_neighbors(neighbors)
        elif batch_size is not None:
            raise ValueError(
                f"`batch_size` is for `neighbors`, got {batch_size} without them: the whole graph is a batch"
            )
        self.name = name
        self.data_dir = data_dir
        self.download = download
        self.num_features = num_features
        self.feature_reduction: Reduction = feature_reduction
        self.row_normalize = row_normalize
        self.split = split
        self.train_fraction = train_fraction
        self.val_fraction = val_fraction
        self.seed = seed
        self.largest_component = largest_component
        self.directed: Directed = directed
        self.steps_per_epoch = steps_per_epoch
        self.neighbors = neighbors
        self.batch_size = _BATCH_SIZE if batch_size is None else batch_size
        self._given = graph
        self._graph: Data | None = None
        self._resident: dict[torch.device, Data] = {}

    def __str__(self) -> str:
        # Lightning's own looks into the loaders and takes them for lists of loaders; LightningCLI asks for it.
        return f"{type(self).__name__}(name={self.name!r}, split={self.split!r}, seed={self.seed})"

    @property
    def graph(self) -> Data:
        """The graph, on the CPU; read when first asked for."""
        if self._graph is None:
            with torch.inference_mode(False):  # whose tensors could not be trained on
                self._graph = self._read()
        return self._graph

    @property
    def num_nodes(self) -> int:
        """N."""
        return int(self.graph.x.shape[0])

    @property
    def in_features(self) -> int:
        """D, features of a node."""
        return int(self.graph.x.shape[1])

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.graph.y.max()) + 1

    @property
    def num_train(self) -> int:
        """Number of training nodes."""
        return int(self.graph.train_mask.sum())

    def prepare_data(self) -> None:
        """Fetch and unpack the files of a named dataset, on one process."""
        if self.name not in (None, GENERATED):
            read_graph(str(self.name), str(self.data_dir), self.download)

    def setup(self, stage: str | None = None) -> None:
        """Read the graph.

        Args:
            stage: of the Trainer; all of them need the same.
        """
        self._resident.clear()  # another Trainer may have another precision
        _ = self.graph

    def teardown(self, stage: str | None = None) -> None:
        """Free the device's memory.

        Args:
            stage: of the Trainer.
        """
        self._resident.clear()

    def train_dataloader(self) -> StepLoader | NeighborBatches:
        """Numbers of training steps, or subgraphs around training nodes."""
        if self.neighbors is None:
            return _whole_graphs(self.steps_per_epoch)
        rank, ranks = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        nodes = share(self.graph.train_mask.nonzero()[:, 0], rank, ranks)
        order = (self.seed, rank, self._epoch)
        return NeighborBatches(self._converted(), self.neighbors, nodes, self.batch_size, order)

    def val_dataloader(self) -> Any:
        """The whole graph, or subgraphs around validation nodes; without any an empty list: Lightning says so."""
        return self._evaluation("val") if self.graph.val_mask.any() else []

    def test_dataloader(self) -> Any:
        """The whole graph, or subgraphs around test nodes."""
        return self._evaluation("test")

    def predict_dataloader(self) -> Any:
        """The whole graph, or subgraphs around all nodes, in their order."""
        return self._evaluation("predict")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Give the graph on the device for a token.

        Args:
            batch: what one of the loaders yielded; anything else is moved as usual.
            device: where the network is.
            dataloader_idx: not used.
        """
        if isinstance(batch, int):
            return self.batch(device)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def batch(self, device: torch.device | str = "cpu") -> Data:
        """Give the graph on a device: always the same tensors; a new Data, so that adding to it changes no other.

        Args:
            device: where it is to be.

        Returns:
            x, in the Trainer's precision, edge_index, edge_weight if there are weights, y and the masks.
        """
        device = torch.device(device)
        if device not in self._resident:
            # Validation may come first, in inference mode, whose tensors could not be trained on.
            with torch.inference_mode(False):
                self._resident[device] = self._converted().to(device)
        return copy(self._resident[device])

    def _converted(self) -> Data:
        """Give the graph in the Trainer's precision, as a Data of its own on the same memory."""
        graph = copy(self.graph)
        if self.trainer is not None:
            for name in {"x", "edge_weight"} & set(graph.keys()):
                graph[name] = self.trainer.precision_plugin.convert_input(graph[name])
        return graph

    def _read(self) -> Data:
        if self.name == GENERATED:
            found = contextual_sbm(**self._recipe)
        elif self.name is None:
            found = self._given
        else:
            found = read_graph(self.name, str(self.data_dir), download=False)
        graph = clean_graph(found, self.directed, self.largest_component)
        nodes, classes = len(graph.y), int(graph.y.max()) + 1
        if self.split == "public":
            given = (graph.get("train_mask"), graph.get("val_mask"), graph.get("test_mask"))
            masks = public_split(*given, nodes, self.val_fraction, self.seed)
        else:
            masks = random_split(graph.y, classes, self.train_fraction, self.val_fraction, self.seed)
        check_classes(graph.y, masks.train, classes)
        graph.train_mask, graph.val_mask, graph.test_mask = masks
        if self.row_normalize:
            graph.x = normalize_rows(graph.x)
        if self.num_features is not None:
            graph.x = reduce_features(graph.x, self.num_features, self.feature_reduction, self.seed)
        return graph

    def _evaluation(self, loop: Literal["val", "test", "predict"]) -> Any:
        if self.neighbors is None:
            return _whole_graphs(1)
        nodes = torch.arange(self.num_nodes)
        if loop != "predict":
            nodes = nodes[self.graph[f"{loop}_mask"]]
        return NeighborBatches(self._converted(), [-1] * (len(self.neighbors) + 1), nodes, self.batch_size)

    def _epoch(self) -> int:
        return 0 if self.trainer is None else int(self.trainer.current_epoch)


def _whole_graphs(steps: int) -> StepLoader:
    """So many tokens; they are the same in all runs, so that no run's count is needed."""
    return StepLoader(steps, lambda: None)
