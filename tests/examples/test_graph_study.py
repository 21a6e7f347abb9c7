"""The study of architectures on graphs: what differs between the runs, what it says, and what the numbers show."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
import yaml
from scipy import stats

from pl_robust.cli import run
from tests.examples.test_quickstart import QUIET

pytestmark = pytest.mark.lightning

EXAMPLES = Path(__file__).parents[2] / "examples"
PAPER = EXAMPLES / "papers" / "6_graph_architectures"
PLANETOID = EXAMPLES.parent.parent / "shared" / "data" / "planetoid"
SBM = str(EXAMPLES / "graph_sbm.yaml")
SMALL = ["--data.sbm_nodes=120", "--data.sbm_features=20", "--trainer.max_epochs=3"]


@pytest.fixture(scope="module")
def script() -> Any:
    """The script as a module that no other process can import: it travels by value, as ``__main__`` does."""
    spec: Any = importlib.util.spec_from_file_location("__graph_study__", EXAMPLES / "graph_study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def planetoid(tmp_path: Path) -> Path:
    """A copy of Cora and CiteSeer, because PyG writes beside them."""
    if not PLANETOID.is_dir():
        pytest.skip(f"needs Cora and CiteSeer in {PLANETOID}")
    for name in ("Cora", "CiteSeer"):
        shutil.copytree(PLANETOID / name / "raw", tmp_path / "planetoid" / name / "raw")
    return tmp_path / "planetoid"


def test_the_generated_graph_runs_by_itself() -> None:
    cli: Any = run(["fit", "--config", SBM, *QUIET, "--trainer.logger=false"])
    assert cli.trainer.global_step < 1000  # patience ended it
    (metrics,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    assert metrics["test/acc"] > 0.94  # SGC is at 92 %
    batch = cli.datamodule.batch()
    answers = cli.model.eval()(batch.x, batch.edge_index).argmax(1)
    assert metrics["test/acc"] == pytest.approx((answers == batch.y)[batch.test_mask].float().mean().item())


PUBLISHED = {
    "graph_cora": ("Cora", "random", 300, 0.5, True),
    "graph_citeseer": ("CiteSeer", "random", 300, 0.5, True),
    "graph_cora_public": ("Cora", "public", None, 0.5, False),
}


@pytest.mark.parametrize("stem", PUBLISHED)
def test_the_citation_graphs_are_configured_as_published(stem: str, planetoid: Path) -> None:
    arguments = [f"--data.data_dir={planetoid}", "--data.download=false", "--trainer.logger=false"]
    path = str(PAPER / f"{stem}.yaml")
    cli: Any = run(["fit", "--config", path, *arguments, "--trainer.accelerator=cpu", "--trainer.fast_dev_run=2"])
    data = cli.datamodule
    found = (data.name, data.split, data.num_features, data.train_fraction, data.largest_component)
    assert found == PUBLISHED[stem]
    assert cli.model.patience == 50
    assert cli.model.optimizer is None
    assert data.steps_per_epoch * yaml.safe_load(Path(path).read_text())["trainer"]["max_epochs"] >= 1000


def test_the_runs_of_a_split_differ_in_the_network_alone(script: Any) -> None:
    from pl_robust._config_run import fit_and_test

    config = script.read_config(SBM, [*SMALL, "--trainer.max_epochs=1", "--model.net.dropout=0.25"])
    cell = {"num_features": 7, "train_fraction": 0.2, "split": 3}
    sgc, gcn, again = (script.fill(config, {**cell, "net": net}) for net in ("SGC", "GCN", "pl_robust.models.GCN"))
    assert gcn == again
    sizes = {"in_features": 7, "out_features": 4}
    assert sgc["model"]["init_args"].pop("net") == {"class_path": "pl_robust.models.SGC", "init_args": sizes}
    net = gcn["model"]["init_args"].pop("net")
    assert net["class_path"] == "pl_robust.models.GCN"
    assert {"dropout": 0.25, **sizes}.items() <= net["init_args"].items()  # the configured one keeps its arguments
    assert sgc == gcn
    clis = [fit_and_test(script.fill(config, {**cell, "net": net}))[0] for net in ("SGC", "GCN")]
    for name in ("x", "edge_index", "train_mask", "test_mask"):
        torch.testing.assert_close(*(cli.datamodule.graph[name] for cli in clis), rtol=0, atol=0)
    other = fit_and_test(script.fill(config, {**cell, "split": 4, "net": "SGC"}))[0].datamodule.graph
    assert torch.equal(other.y, clis[0].datamodule.graph.y)  # the same graph,
    assert not torch.equal(other.train_mask, clis[0].datamodule.graph.train_mask)  # another split
    assert not torch.equal(other.x, clis[0].datamodule.graph.x)  # and projection


def test_the_study_from_start_to_end_and_again(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--config", SBM, "--folder", "runs", "--num_features", "5", "20", "--train_fraction", "0.1", "0.4"]
    arguments += ["--nets", "SGC", "NodeMLP", "--splits", "2", "--margin", "2", "--", *SMALL]
    script.main(arguments)
    said = capsys.readouterr()
    assert "graph_study: 100%" in said.err
    with (tmp_path / "runs" / "graph_study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    kept = {path.stem: json.loads(path.read_text())["result"] for path in (tmp_path / "runs").glob("*.json")}
    for row in rows:
        name = ",".join(f"{key}={row[key]}" for key in ("num_features", "train_fraction", "net", "split"))
        assert float(row["acc"]) == kept[name]["acc"]
        assert 0 < float(row["acc"]) <= 100
    head, _, *lines = said.out.split("\n\n")[0].splitlines()
    assert "NodeMLP - SGC (95 %)" in head
    shown = [[text.strip() for text in line.strip("|").split("|")] for line in lines]
    # 13 and 49 of 120 nodes: 0.1 * 120 / 4 + 1 of each class
    assert [(row[0], row[1], row[2]) for row in shown] == [
        ("20", "16", "0.80"),
        ("20", "52", "2.60"),
        ("5", "16", "3.20"),
        ("5", "52", "10.40"),
    ]
    first, second = (
        [float(row["acc"]) for row in rows if (row["num_features"], row["train_fraction"], row["net"]) == key]
        for key in (("20", "0.1", "SGC"), ("20", "0.1", "NodeMLP"))
    )
    assert shown[0][3] == f"{mean(first):.1f} ± {stdev(first):.1f}"
    interval = stats.ttest_rel(second, first).confidence_interval(0.95)
    assert shown[0][5] == f"{mean(second) - mean(first):+.1f} ({interval.low:+.1f} to {interval.high:+.1f})"
    assert said.out.count("N/D = ") == 4
    assert (tmp_path / "runs" / "graph_study.md").read_text() in said.out
    assert (tmp_path / "runs" / "graph_study.png").stat().st_size > 10_000
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}  # no log, no checkpoint

    monkeypatch.setattr(script, "run_cell", lambda config, cell: pytest.fail("it is there already"))
    script.main(arguments)
    assert capsys.readouterr().out == said.out


def test_the_whole_features_are_not_projected(script: Any) -> None:
    config = script.read_config(SBM, SMALL)
    (point,) = script.list_points(config, None, None)
    assert (point.num_features, point.in_features, point.num_train) == (None, 20, 64)
    filled = script.fill(config, {"num_features": None, "train_fraction": 0.5, "net": "GCN", "split": 0})
    assert filled["data"]["init_args"]["num_features"] is None
    assert filled["model"]["init_args"]["net"]["init_args"]["in_features"] == 20


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ([[0.5, 0.3, 0.4], [-1.0, -1.2, -1.1]], "A is enough: no other is more than 0.8 points above it at 95 %"),
        ([[-0.8, -0.6, -0.7], [-1.0, -1.2, -1.1]], "A is enough: no other is more than 0.0 points above it at 95 %"),
        ([[5.0, 5.2, 5.1], [3.0, 3.1, 3.2]], "take B: 4.7 to 5.5 points above A at 95 %"),
        (
            [[-3.0, 3.0, 1.5], [0.0, 0.1, 0.2]],
            "undecided with 3 splits: B -10.7 to +11.7, C -0.3 to +0.5 points from A at 95 %",
        ),
        # surely better, but not by what is worth it
        (
            [[0.5, 0.9, 0.7], [0.4, 0.5, 0.6]],
            "undecided with 3 splits: B -0.0 to +1.4, C +0.1 to +0.9 points from A at 95 %",
        ),
        # better on the average by more than what is worth it, and perhaps by less
        ([[1.0, 1.2, 1.1], [-4.0, 4.0, 0.0]], "undecided with 3 splits: B +0.7 to +1.5, C -14.3 to +14.3 points from"),
        # B has the higher mean, and C alone is sure
        ([[-4.0, 9.0, 7.0], [3.0, 3.1, 3.2]], "take C: 2.7 to 3.5 points above A at 95 %"),
    ],
)
def test_the_advice_is_what_the_intervals_say(gains: Sequence[Sequence[float]], said: str, script: Any) -> None:
    base = [80.0, 90.0, 70.0]
    accuracies = {"A": base}
    for name, differences in zip("BC", gains, strict=True):
        accuracies[name] = [one + difference for one, difference in zip(base, differences, strict=True)]
    advice = script.advise(script.Point(30, 0.5, 30, 15, accuracies), 1.0)
    assert advice.startswith(f"N/D = 0.50 (15 training nodes, 30 features): {said}")


def test_the_figure_has_the_ratio_on_its_axis_and_the_intervals(script: Any) -> None:
    points = [
        script.Point(30, 0.5, 30, 15, {"SGC": [80.0, 81.0], "GCN": [80.5, 81.6]}),
        script.Point(10, 0.5, 10, 50, {"SGC": [70.0, 71.0], "GCN": [75.0, 77.0]}),
    ]
    left, right = script.draw(points, 1.0).axes
    assert left.get_xscale() == "log"
    accuracies = {bar.get_label(): bar.lines[0].get_data() for bar in left.containers}
    assert list(accuracies) == ["SGC", "GCN"]
    assert accuracies["GCN"][0] == pytest.approx([0.5, 5], rel=0.05)
    assert list(accuracies["GCN"][1]) == pytest.approx([81.05, 76.0])
    (gain,) = right.containers
    assert list(gain.lines[0].get_ydata()) == pytest.approx([0.55, 5.5])
    ends = gain.lines[2][0].get_segments()
    assert [end[1] for end in ends[1]] == pytest.approx([points[1].gains()["GCN"].low, points[1].gains()["GCN"].high])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--splits", "1"], "--splits must be at least 2, for an interval, got 1"),
        (["--nets", "SGC"], "--nets must be at least two to be compared, got SGC"),
        (
            ["--nets", "SGC", "GNC"],
            "--nets: there is no network GNC; there are APPNP, APPNPMLP, GAT, GCN, SGC",
        ),
        (["--nets", "SGC", "torch.nn.functional.relu"], "--nets: there is no network torch.nn.functional.relu; there"),
        (
            ["--nets", "SGC", "pl_robust.models.SGC"],
            "--nets must differ from each other, got SGC and pl_robust.models.SGC",
        ),
        (
            ["--num_features", "101"],
            "--num_features must be at most 100, which the graph has, got 101: a projection to",
        ),
        (["--margin", "-1"], "--margin must be 0 or more, got -1.0"),
        (["--num_features", "0"], "`num_features` must be at least 1, got 0"),
        (["--train_fraction", "1.5"], "`train_fraction` must be in (0, 1), got 1.5"),
        (["--", "--data.seed=3"], "the splits are the seeds: leave out --data.seed=3, and set --splits"),
        (["--jobs", "0"], "`jobs` must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(
    arguments: Sequence[str], said: str, script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        script.main(["--config", SBM, "--folder", "runs", *arguments])
    answer = capsys.readouterr()
    assert f"graph_study: error: {said}" in answer.err
    assert answer.out == ""
    assert not (tmp_path / "runs").exists()


def test_a_public_split_has_no_share(script: Any) -> None:
    with pytest.raises(ValueError, match=r"--train_fraction is of random splits, and `data\.split` is public"):
        script.list_points({"data": {"init_args": {"split": "public"}}}, None, [0.1])


def test_other_configurations_are_refused(script: Any) -> None:
    with pytest.raises(ValueError, match="`model` must be NodeClassification, got AdversarialTraining"):
        script.read_config(str(EXAMPLES / "quickstart.yaml"), [])


def measure(script: Any, folder: str, arguments: Sequence[str], extra: Sequence[str] = ()) -> dict[Any, Any]:
    """Run a study; give its points, with their gains, by number of features and share of training nodes."""
    script.main([*arguments, "--folder", folder, "--jobs", "2", "--", *extra])
    points: dict[Any, Any] = {}
    with (Path(folder) / "graph_study.csv").open() as file:
        for row in csv.DictReader(file):
            key = (int(row["num_features"]), float(row["train_fraction"]))
            point = points.setdefault(key, script.Point(*key, key[0], int(float(row["num_train"])), {}))
            point.accuracies.setdefault(row["net"], []).append(float(row["acc"]))
    return points


def check_claims(points: dict[tuple[int, float], Any], few: tuple[int, float], many: tuple[int, float]) -> None:
    """Where labels are few and features many, the linear filter is not far off; where it is the other way, it is."""
    for gain in points[few].gains().values():
        assert gain.high < 2
        assert abs(gain.mean) < 1.5
    for gain in points[many].gains().values():
        assert gain.low > 2


@pytest.mark.long
@pytest.mark.slow  # the example as it stands: 120 runs of a second or two
def test_the_ratio_decides_on_the_generated_graph(script: Any) -> None:
    sweep = ["--num_features", "30", "100", "--train_fraction", "0.05", "0.5"]
    points = measure(script, "sbm", ["--config", SBM, *sweep])
    check_claims(points, (100, 0.05), (30, 0.5))


@pytest.mark.long  # 10 splits of four points with three networks
@pytest.mark.parametrize("name", ["cora", "citeseer"])
def test_the_ratio_decides_on_citation_graphs(name: str, script: Any, planetoid: Path) -> None:
    files = [f"--data.data_dir={planetoid}", "--data.download=false", "--trainer.accelerator=cpu"]
    sweep = ["--num_features", "30", "500", "--train_fraction", "0.052", "0.5"]
    points = measure(script, name, ["--config", str(PAPER / f"graph_{name}.yaml"), *sweep], files)
    check_claims(points, (500, 0.052), (30, 0.5))


@pytest.mark.long  # 10 splits of five networks
def test_the_published_comparison_on_cora(script: Any, planetoid: Path) -> None:
    files = [f"--data.data_dir={planetoid}", "--data.download=false", "--trainer.accelerator=cpu"]
    nets = ["--nets", "SGC", "GCN", "APPNP", "SGCMLP", "APPNPMLP"]
    (point,) = measure(script, "five", ["--config", str(PAPER / "graph_cora.yaml"), *nets], files).values()
    means = {net: mean(values) for net, values in point.accuracies.items()}
    assert 85.5 <= means["GCN"] <= 88.5
    assert means["SGC"] <= min(means["SGCMLP"], means["APPNPMLP"]) - 5


APPNP = [
    "--model.net=pl_robust.models.APPNP",
    "--model.net.hidden_features=64",
    "--model.net.steps=10",
    "--model.net.dropout=0.5",
]
SGC = [
    *("--model.net=pl_robust.models.SGC", "--model.optimizer=torch.optim.Adam", "--model.optimizer.lr=0.2"),
    *("--model.optimizer.weight_decay=1.3e-5", "--model.patience=null", "--trainer.max_epochs=10"),
]


@pytest.mark.long  # 40 runs on Cora
def test_the_public_split_of_cora_as_published(planetoid: Path) -> None:
    """The overrides are those that the example's head has."""
    files = [f"--data.data_dir={planetoid}", "--data.download=false", "--trainer.accelerator=cpu"]
    files += [*QUIET, "--trainer.logger=false", "--trainer.callbacks=null"]
    config = ["--config", str(PAPER / "graph_cora_public.yaml"), *files]
    accuracies: dict[str, float] = {}
    for name, overrides in {"GCN": [], "GAT": ["--model.net=pl_robust.models.GAT"], "APPNP": APPNP, "SGC": SGC}.items():
        values = []
        for seed in range(10):
            cli: Any = run(["fit", *config, *overrides, f"--seed_everything={seed}"])
            (metrics,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
            values.append(100 * metrics["test/acc"])
        accuracies[name] = mean(values)
        print(f"Cora, public split, {name}: {mean(values):.2f} ± {stdev(values):.2f} ({len(values)} seeds)")
    assert abs(accuracies["GCN"] - 81.5) <= 1
    assert abs(accuracies["GAT"] - accuracies["GCN"]) <= 1.5
    assert 80 <= accuracies["SGC"] <= 82
    assert 82 <= accuracies["APPNP"] <= 84


def test_the_overrides_in_the_example_work(planetoid: Path) -> None:
    files = [f"--data.data_dir={planetoid}", "--data.download=false", "--trainer.accelerator=cpu"]
    config = ["--config", str(PAPER / "graph_cora_public.yaml"), *files, "--trainer.fast_dev_run=1"]
    head = (PAPER / "graph_cora_public.yaml").read_text().split("seed_everything")[0]
    for overrides in (APPNP, SGC):
        for override in overrides:
            assert override.replace("=", " ") in head.replace(" \\\n#         ", "")
        cli: Any = run(["fit", *config, *overrides])
        assert cli.model.net.in_features == 1433
    assert cli.model.patience is None
    assert cli.trainer.optimizers[0].param_groups[0]["weight_decay"] == 1.3e-5
