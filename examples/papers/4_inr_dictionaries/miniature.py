r"""A structured dictionary perspective on implicit neural representations (Yüce et al., CVPR 2022).

    python examples/papers/4_inr_dictionaries/miniature.py --folder runs/papers/4_inr_dictionaries --jobs 2

fits a tone on every second of its samples, a picture with features of one frequency, decomposes tangent kernels on
faces, and meta-learns an initialization. The published scale of the last is in inr_maml_celeba.yaml beside this script,
that of the others is an argument of examples/inr_spectrum.py and examples/inr_ntk.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from pl_robust._claims import (
    Claim,
    Runs,
    column,
    differences,
    load_script,
    read_config,
    run_each,
    run_miniature,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = Path(__file__).parents[2]
SETTINGS: dict[str, dict[str, Any]] = {
    "tone": {"frequency": 23, "length": 256, "stride": 2, "steps": 2000, "w0": [30.0, 300.0]},
    "picture": {"size": 32, "steps": 150, "frequencies": [1.0]},
    "faces": {"size": 24, "width": 256, "w0": [5.0, 40.0]},
}


def measure(options: argparse.Namespace, extra: Sequence[str]) -> tuple[list[Claim], Figure]:
    """Make each experiment with each seed."""
    scripts = {stem: load_script(EXAMPLES / f"{stem}.py") for stem in ("inr_alias", "inr_spectrum", "inr_ntk")}
    shared = {"maml": read_config(EXAMPLES / "inr_maml.yaml", extra), **SETTINGS}
    runs = ("tone", "picture", "faces", "maml")
    results = run_each(partial(run_cell, scripts, shared), runs, options, shared)
    return claims(results), draw(results)


def run_cell(scripts: Mapping[str, Any], shared: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, float]:
    """Make an experiment with a seed."""
    if cell["run"] == "maml":
        return meta_learn({**shared["maml"], "seed_everything": cell["seed"]})
    options = argparse.Namespace(**shared[cell["run"]], seed=cell["seed"])
    experiment, script = {
        "tone": (alias, "inr_alias"),
        "picture": (harmonics, "inr_spectrum"),
        "faces": (energy, "inr_ntk"),
    }[cell["run"]]
    return experiment(scripts[script], options)


def alias(script: Any, options: argparse.Namespace) -> dict[str, float]:
    """Amplitudes of the tone's frequency and its alias, and of all others, for each w0."""
    from pl_robust._config_run import _quiet

    result: dict[str, float] = {}
    for w0 in options.w0:
        with _quiet():
            psnr, _, full = script.fit(w0, options)
        amplitudes = full.at(range(options.length // 2))[:, 0].tolist()
        result |= {f"psnr {w0:g}": psnr} | {f"{w0:g} at {place}": own for place, own in enumerate(amplitudes)}
    return result


def harmonics(script: Any, options: argparse.Namespace) -> dict[str, float]:
    """What features of the frequency 1 alone hold of a picture, and what random ones do."""
    import torch

    from pl_robust._config_run import _quiet
    from pl_robust.datamodules import SignalDataModule
    from pl_robust.models import FourierFeatureNetwork
    from pl_robust.transforms import polynomial_order

    data = SignalDataModule("china.jpg", center_crop=True, size=options.size, steps_per_epoch=options.steps)
    target, (frequency,) = data.signal.values, options.frequencies
    torch.manual_seed(options.seed)
    one = FourierFeatureNetwork(2, data.out_features, frequencies=frequency * torch.eye(2), num_layers=4)
    many = FourierFeatureNetwork(2, data.out_features, sigma=10.0, num_layers=4)
    with _quiet():
        low, high = (script.psnr(script.fit(net, data, 1e-3), target) for net in (one, many))
    inside = script.share_inside(one, frequency, polynomial_order(2, 4), options.size)
    bound = script.psnr(script.tiled(target, frequency), target)
    return {"inside": inside, "one": low, "many": high, "bound": bound}


def energy(script: Any, options: argparse.Namespace) -> dict[str, float]:
    """Mean energy of the faces above a tenth of the largest eigenvalue of each network's tangent kernel."""
    from pl_robust._signal import grid_coordinates
    from pl_robust.ntk import energy_curve, ntk_eigh

    options.meta = None
    targets, grid = script.read_faces(options.size), grid_coordinates((options.size, options.size), (0.0, 1.0))
    nets = script.networks(options)
    return {
        name: float(energy_curve(ntk_eigh(net.eval(), grid), targets).above(0.1).mean()) for name, net in nets.items()
    }


def meta_learn(config: Mapping[str, Any]) -> dict[str, float]:
    """PSNR of unseen pictures after two steps: from the learned initialization, and from a new one."""
    import torch

    from pl_robust._config_run import _quiet, fit_and_test
    from pl_robust.models import SIREN
    from pl_robust.modules import INRMetaLearning

    cli, measured = fit_and_test(config)
    torch.manual_seed(config["seed_everything"])
    new = SIREN(**config["model"]["init_args"]["net"]["init_args"])
    module = INRMetaLearning(new, inner_steps=2, inner_lr=0.01, coordinate_range=(0.0, 1.0))
    with _quiet():
        trainer = cli.instantiate_trainer(callbacks=[], logger=False)
        (tested,) = trainer.test(module, cli.datamodule, verbose=False)
    return {"learned": measured["test/psnr"], "new": tested["test/psnr"]}


def claims(results: Runs) -> list[Claim]:
    """What the paper says, and what was measured."""
    tone, picture, faces, maml = (results[name] for name in ("tone", "picture", "faces", "maml"))
    siren = column(faces, "SIREN-40")
    return [
        Claim(
            "w0 30 recovers the tone of 23 between its samples: amplitude at 23", column(tone, "30 at 23"), 0.98, 1.02
        ),
        Claim("and not its alias 105", column(tone, "30 at 105"), high=0.02),
        Claim("w0 300 leaks into the alias: amplitude at 105", column(tone, "300 at 105"), 0.05, 0.15),
        Claim("although it fits the samples as well: PSNR, dB", column(tone, "psnr 300"), low=50, digits=1),
        Claim(
            "one frequency gives its harmonics: energy in the predicted support", column(picture, "inside"), low=0.98
        ),
        Claim(
            "so that it cannot exceed the tiled picture: dB above that",
            differences(column(picture, "one"), column(picture, "bound")),
            -3,
            0.01,
            digits=2,
        ),
        Claim(
            "which many frequencies do: dB above one frequency",
            differences(column(picture, "many"), column(picture, "one")),
            low=20,
            digits=1,
        ),
        Claim("a SIREN's kernel suits faces: their energy on its large eigenvalues, w0 40", siren, low=0.6),
        Claim("with w0 5 less so: w0 40 - w0 5", differences(siren, column(faces, "SIREN-5")), low=0.3),
        Claim("and a ReLU network's not", column(faces, "ReLU"), high=0.25),
        Claim(
            "from a meta-learned SIREN two steps fit unseen pictures: PSNR, dB", column(maml, "learned"), 26, digits=1
        ),
        Claim(
            "which they do not from a new one: learned - new, dB",
            differences(column(maml, "learned"), column(maml, "new")),
            low=8,
            digits=1,
        ),
    ]


def draw(results: Runs) -> Figure:
    """Draw the tone's spectra, and beside them energies and PSNR."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    panels = figure.subplots(1, 4)
    settings = SETTINGS["tone"]
    for axes, w0 in zip(panels, settings["w0"], strict=False):
        places = range(settings["length"] // 2)
        axes.bar(places, [mean(column(results["tone"], f"{w0:g} at {place}")) for place in places], width=1.5)
        axes.set(title=f"tone of 23, SIREN with w0 {w0:g}", xlabel="frequency", ylabel="amplitude", ylim=(0, 1.1))
    for axes, run, title in zip(
        panels[2:], ("faces", "maml"), ("energy of faces", "PSNR after 2 steps, dB"), strict=True
    ):
        seeds = results[run]
        for place, name in enumerate(seeds[0]):
            axes.bar(place, mean(column(seeds, name)), color=f"C{place}", alpha=0.5)
            axes.plot([place] * len(seeds), column(seeds, name), "k.")
        axes.set(title=title, xticks=range(len(seeds[0])), xticklabels=list(seeds[0]))
    return figure


def main(args: Sequence[str] | None = None) -> None:
    """Run everything; the exit status is 1 if a claim fails."""
    run_miniature(str(__doc__), measure, args)


if __name__ == "__main__":
    main()
