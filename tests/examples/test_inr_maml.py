"""The meta-learned initialization against a new network, over three seeds; and the recipe at published scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pl_robust.cli import run
from pl_robust.modules import INRMetaLearning
from tests.examples.test_quickstart import QUIET
from tests.modules.test_inr_meta_learning import siren

pytestmark = pytest.mark.lightning

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(*arguments: str, stem: str = "inr_maml") -> list[str]:
    return ["--config", str(EXAMPLES / f"{stem}.yaml"), *QUIET, "--trainer.logger=false", *arguments]


def test_the_example_runs() -> None:
    pytest.importorskip("skimage")
    cli = run(["fit", *example("--trainer.max_epochs=1")])
    assert cli.trainer.global_step == 30
    assert len(cli.datamodule.train_dataloader().dataset) == 150
    (metrics,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    assert metrics["test/psnr"] > metrics["test/psnr_0"] + 3


@pytest.mark.long
@pytest.mark.slow  # half a minute for each seed
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_steps_from_the_learned_initialization_beat_a_new_network(seed: int) -> None:
    pytest.importorskip("skimage")
    cli = run(["fit", *example(f"--seed_everything={seed}")])
    (learned,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    new = siren(seed, hidden_features=64, num_layers=5, bias_init="zeros")
    ratios = {}
    for lr in (0.01, 0.03, 0.1):  # a new one may choose how to take its two steps
        module = INRMetaLearning(new, inner_lr=lr, coordinate_range=(0.0, 1.0))
        (metrics,) = cli.trainer.test(module, cli.datamodule, verbose=False)
        ratios[lr] = metrics["test/psnr"]
    print(seed, learned, ratios)
    assert 27 < learned["test/psnr"] < 33
    assert learned["test/psnr"] > max(ratios.values()) + 3


def test_the_published_recipe_starts() -> None:
    stem = "papers/4_inr_dictionaries/inr_maml_celeba"
    config = yaml.safe_load((EXAMPLES / f"{stem}.yaml").read_text())
    small = ["--data.name=digits", "--data.image_size=16", "--data.num_workers=0", "--trainer.fast_dev_run=2"]
    cli = run(["fit", *example(*small, "--trainer.accelerator=cpu", stem=stem)])
    model = cli.model
    assert (model.method, model.inner_steps, model.inner_lr, model.coordinate_range) == ("maml", 2, 0.01, (0, 1))
    assert cli.trainer.optimizers[0].defaults["lr"] == 1e-5
    assert [tuple(layer.weight.shape) for layer in model.net.layers] == [(256, 2), *[(256, 256)] * 3, (1, 256)]
    assert (config["trainer"]["max_steps"], config["data"]["init_args"]["batch_size"]) == (5000, 3)
