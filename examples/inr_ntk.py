r"""Compare how well tangent kernels of networks on coordinates suit pictures of faces.

    python examples/inr_ntk.py --folder runs/inr_ntk

makes figures 4 and 5 of Yüce, Ortiz-Jimenez, Besbinar & Frossard (CVPR 2022) in miniature: the cumulative energy of 100
faces on the eigenfunctions of the kernel, against the eigenvalues, and the first eigenfunctions as pictures. Pictures
are learned fast where their energy is above a tenth of the largest eigenvalue. With ``--meta FILE``, an npz file of
``save_siren`` on coordinates in [0, 1], such as the meta-learned one of the authors, it joins the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pl_robust._script import one_line_ending

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from pl_robust.ntk import EnergyCurve

_THRESHOLD = 0.1  # of the largest eigenvalue, as published


def main(args: Sequence[str] | None = None) -> None:
    """Decompose each network's kernel, print the table, draw the figures; a mistake ends it with one line and status 2.

    Args:
        args: arguments as on the command line; None takes those of the process.
    """
    parser = _parser()
    options = parser.parse_args(args)
    with one_line_ending(parser.prog):
        compare(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inr_ntk.py", description="Compare how well tangent kernels of networks suit pictures of faces."
    )
    parser.add_argument("--folder", required=True, help="where the figures are put")
    parser.add_argument("--size", type=int, default=32, metavar="N", help="pixels of a side (published: 64)")
    parser.add_argument(
        "--w0", nargs="+", type=float, default=[5, 10, 20, 40, 60, 80, 100], help="of the first layers of the SIRENs"
    )
    parser.add_argument("--width", type=int, default=256, metavar="N", help="of the networks")
    parser.add_argument("--meta", metavar="FILE", help="weights of a meta-learned SIREN")
    parser.add_argument("--seed", type=int, default=0, help="of the networks")
    return parser


def compare(options: argparse.Namespace) -> None:
    """Decompose, print and draw.

    Args:
        options: the script's arguments.

    Raises:
        ValueError: if an argument or the file of weights is refused.
        OSError: if there is no such file.
        ImportError: if scikit-image is missing.
    """
    from pl_robust._signal import grid_coordinates
    from pl_robust.ntk import energy_curve, ntk_eigh, plot_eigenfunctions

    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    nets, targets = networks(options), read_faces(options.size)
    grid = grid_coordinates((options.size, options.size), (0.0, 1.0))
    curves = {}
    print(f"{'network':<14}{f'energy above {_THRESHOLD:g}':>20}{'eigenfunctions':>16}")
    for name, net in nets.items():
        eigen = ntk_eigh(net.eval(), grid)
        curve = curves[name] = energy_curve(eigen, targets)
        above = curve.above(_THRESHOLD)
        count = int((curve.values > _THRESHOLD).sum())
        print(f"{name:<14}{f'{above.mean():.3f} ± {above.std():.3f}':>20}{count:>16}", flush=True)
        figure = plot_eigenfunctions(
            eigen.vectors,
            image_size=(options.size, options.size),
            values=eigen.values,
            indices=range(min(12, len(grid))),
        )
        figure.savefig(folder / f"eigenfunctions_{name}.png", dpi=100)
    draw(curves).savefig(folder / "energy.png", dpi=100)
    print(f"Figures: {folder / 'energy.png'}, {folder / 'eigenfunctions_*.png'}")


def read_faces(size: int) -> Tensor:
    """Read the faces of scikit-image's lfw_subset, [100, size²], each less its own mean."""
    import torch

    from pl_robust.datamodules import ImageDataModule

    data = ImageDataModule("lfw", image_size=size, val_fraction=0.0)
    data.setup()
    batches = [batch for loader in (data.train_dataloader(), data.test_dataloader()) for batch in loader]
    faces = torch.cat([images[labels == 1] for images, labels in batches]).flatten(1)
    return faces - faces.mean(1, keepdim=True)


def networks(options: argparse.Namespace) -> dict[str, nn.Module]:
    """Make the networks, by name: five linear layers each, as published."""
    import torch

    from pl_robust.models import MLP, SIREN, load_siren

    torch.manual_seed(options.seed)
    nets: dict[str, nn.Module] = {"ReLU": MLP(2, 1, hidden=(options.width,) * 4)}
    for w0 in options.w0:
        torch.manual_seed(options.seed)
        nets[f"SIREN-{w0:g}"] = SIREN(hidden_features=options.width, w0=w0, bias_init="zeros")
    if options.meta:
        nets["SIREN-meta"] = load_siren(options.meta)
    return nets


def draw(curves: Mapping[str, EnergyCurve]) -> Figure:
    """Draw the mean cumulative energy against the eigenvalues, the largest on the left.

    Args:
        curves: by name.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    styles = {"ReLU": {"color": "tab:gray", "linestyle": "--"}, "SIREN-meta": {"color": "black"}}
    for name, curve in curves.items():
        known = curve.values > 1e-7  # what is below is rounding
        axes.plot(curve.values[known].numpy(), curve.energy.mean(0)[known].numpy(), label=name, **styles.get(name, {}))
    axes.axvline(_THRESHOLD, color="black", linewidth=0.6)
    axes.set(
        xscale="log",
        xlim=(1, 1e-7),
        ylim=(0, 1),
        xlabel="eigenvalue / largest",
        ylabel="cumulative energy",
        title="Faces on the eigenfunctions of tangent kernels",
    )
    axes.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    main()
