r"""Fit a picture by networks whose first layer has one frequency only: they hold its harmonics and nothing else.

    python examples/inr_spectrum.py --folder runs/inr_spectrum

makes figure 2 of Yüce, Ortiz-Jimenez, Besbinar & Frossard (CVPR 2022) in miniature. Fourier features of many random
frequencies fit a picture; of the frequency 1 alone, which has two periods in [-1, 1], they make four equal tiles, the
mean of the picture's own at best; of 0.5, which has one, they can hold the picture again, though its high frequencies
come late. ``--size 512 --steps 2000 --lr 1e-4`` is the published scale, for a GPU.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pl_robust._script import one_line_ending

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from pl_robust.datamodules import SignalDataModule
    from pl_robust.models import FourierFeatureNetwork

_EXTENT = 2  # of the coordinates, [-1, 1]
_LAYERS = 4


def main(args: Sequence[str] | None = None) -> None:
    """Fit each network, print the table, draw the figure; a mistake ends it with one line and exit status 2.

    Args:
        args: arguments as on the command line; None takes those of the process.
    """
    parser = _parser()
    options = parser.parse_args(args)
    with one_line_ending(parser.prog):
        compare(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inr_spectrum.py", description="Fit a picture by Fourier features of one frequency."
    )
    parser.add_argument("--folder", required=True, help="where the figure is put")
    parser.add_argument("--signal", default="china.jpg", metavar="PICTURE", help="a name or file for SignalDataModule")
    parser.add_argument("--size", type=int, default=64, metavar="N", help="pixels of a side, of the centred square")
    parser.add_argument("--sigma", type=float, default=10.0, help="of the random frequencies")
    parser.add_argument(
        "--frequencies", nargs="+", type=float, default=[1.0, 0.5], metavar="F", help="single ones, multiples of 0.5"
    )
    parser.add_argument("--steps", type=int, default=150, help="of Adam")
    parser.add_argument("--lr", type=float, default=1e-3, help="of Adam")
    parser.add_argument("--seed", type=int, default=0, help="of the networks")
    return parser


def compare(options: argparse.Namespace) -> None:
    """Fit, print and draw.

    Args:
        options: the script's arguments.

    Raises:
        ValueError: if an argument is refused.
    """
    for frequency in options.frequencies:
        if frequency <= 0 or frequency * _EXTENT % 1 or options.size % (frequency * _EXTENT):
            raise ValueError(f"--frequencies must have periods that divide {options.size} pixels, got {frequency:g}")
    path = Path(options.folder) / "spectrum.png"
    path.parent.mkdir(parents=True, exist_ok=True)

    import torch

    from pl_robust.datamodules import SignalDataModule
    from pl_robust.models import FourierFeatureNetwork
    from pl_robust.transforms import polynomial_order

    data = SignalDataModule(options.signal, center_crop=True, size=options.size, steps_per_epoch=options.steps)
    target = data.signal.values
    nets: dict[str, FourierFeatureNetwork] = {}
    for frequency in (None, *options.frequencies):
        torch.manual_seed(options.seed)
        mapping = None if frequency is None else frequency * torch.eye(2)
        name = f"sigma {options.sigma:g}" if frequency is None else f"only {frequency:g}"
        nets[name] = FourierFeatureNetwork(
            2, data.out_features, sigma=options.sigma, frequencies=mapping, num_layers=_LAYERS
        )
    pictures = {"target": target}
    for name, net in nets.items():
        pictures[name] = fit(net, data, options.lr)
    order = polynomial_order(2, _LAYERS)
    print(f"{'mapping':<12}{'PSNR':>10}{'at best':>10}{f'in order {order}':>14}{'in any order':>14}")
    for name, frequency in zip(nets, (None, *options.frequencies), strict=True):
        line = f"{name:<12}{psnr(pictures[name], target):7.1f} dB"
        if frequency is not None:
            shares = (share_inside(nets[name], frequency, some, options.size) for some in (order, None))
            line += f"{psnr(tiled(target, frequency), target):7.1f} dB" + "".join(f"{share:14.6f}" for share in shares)
        print(line)
    draw(pictures).savefig(path, dpi=100)
    print(f"Figure: {path}")


def fit(net: FourierFeatureNetwork, data: SignalDataModule, lr: float) -> Tensor:
    """Train a network on the whole picture and give its values on the grid, [H, W, c]."""
    from functools import partial

    import torch

    from pl_robust._lightning import Trainer
    from pl_robust.modules import INRFitting

    module = INRFitting(net, optimizer=partial(torch.optim.Adam, lr=lr))
    trainer = Trainer(
        max_epochs=1,
        devices=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    return data.signal.on_grid(module.reconstruct(data.signal.coordinates)).cpu()


def tiled(target: Tensor, frequency: float) -> Tensor:
    """The best approximation by multiples of a frequency: the mean of the periods in place of each."""
    count = round(frequency * _EXTENT)
    height, width, channels = target.shape
    tiles = target.reshape(count, height // count, count, width // count, channels)
    return tiles.mean((0, 2), keepdim=True).expand_as(tiles).reshape(target.shape)


def share_inside(net: FourierFeatureNetwork, frequency: float, order: int | None, size: int) -> float:
    """Share of a network's energy, less its mean, at the combinations of its frequencies up to an order.

    Measured on a grid twice as fine as that of the fit.

    Args:
        net: the network, with one frequency.
        frequency: along each axis.
        order: None means any.
        size: pixels of a side of the fit.
    """
    import torch

    from pl_robust._signal import grid_coordinates
    from pl_robust.transforms import frequency_support, spectrum

    shape = (2 * size, 2 * size)
    with torch.no_grad():
        values = net.cpu()(grid_coordinates(shape))
    measured = spectrum((values - values.mean(0)).reshape(*shape, -1), (0, 1), (-1.0, 1.0))
    highest = math.ceil(size / _EXTENT / frequency)  # along an axis, in both of them twice that
    support = frequency_support(frequency * torch.eye(2, dtype=torch.float64), order or 2 * highest)
    return 1 - float(measured.energy_outside(support).mean())


def psnr(values: Tensor, target: Tensor) -> float:
    """PSNR in dB of a picture in [0, 1]."""
    error = float((values - target).double().square().mean())
    return -10 * math.log10(error) if error else math.inf


def draw(pictures: Mapping[str, Tensor]) -> Figure:
    """Draw each picture above its spectrum.

    Args:
        pictures: by name, [H, W, c].
    """
    import torch
    from matplotlib.figure import Figure

    from pl_robust.transforms import spectrum

    figure = Figure(figsize=(2.4 * len(pictures), 5), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(2, len(pictures)).T, pictures.items(), strict=True):
        heights = torch.fft.fftshift(spectrum(values, (0, 1)).amplitudes.mean(-1))
        axes[0].imshow(values.clamp(0, 1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
        axes[0].set_title(name)
        axes[1].imshow(heights.clamp(min=1e-5).log10().numpy(), cmap="magma", vmin=-5, vmax=-1)
        for one in axes:
            one.set_axis_off()
    return figure


if __name__ == "__main__":
    main()
