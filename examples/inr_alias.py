r"""Fit a tone on every second of its samples and look at the frequencies between them.

    python examples/inr_alias.py --folder runs/inr_alias

makes figure 3 of Yüce, Ortiz-Jimenez, Besbinar & Frossard (CVPR 2022) in ten seconds. A tone of 23 periods in 256
samples has an alias on every second sample, 105 = 128 - 23. A SIREN fits these samples with any w0; with 30 it holds
the tone, with 300 it holds both.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pl_robust._script import one_line_ending

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pl_robust.transforms import Spectrum


def main(args: Sequence[str] | None = None) -> None:
    """Fit one network for each w0, print the table, draw the figure; a mistake ends it with one line and status 2.

    Args:
        args: arguments as on the command line; None takes those of the process.
    """
    parser = _parser()
    options = parser.parse_args(args)
    with one_line_ending(parser.prog):
        compare(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="inr_alias.py", description="Fit a tone on every k-th of its samples.")
    parser.add_argument("--folder", required=True, help="where the figure is put")
    parser.add_argument("--w0", nargs="+", type=float, default=[30.0, 300.0], help="of the first layers")
    parser.add_argument("--frequency", type=int, default=23, help="of the tone, in periods")
    parser.add_argument("--length", type=int, default=256, help="of the tone, in samples")
    parser.add_argument("--stride", type=int, default=2, metavar="K", help="train on every K-th sample")
    parser.add_argument("--steps", type=int, default=2000, help="of Adam 1e-4")
    parser.add_argument("--seed", type=int, default=0, help="of the networks")
    return parser


def compare(options: argparse.Namespace) -> None:
    """Fit, print and draw.

    Args:
        options: the script's arguments.

    Raises:
        ValueError: if the tone has no alias, or is none itself, or an argument is refused.
    """
    path = Path(options.folder) / "alias.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    group = aliases_of_tone(options)
    fits = {w0: fit(w0, options) for w0 in options.w0}
    from pl_robust.transforms import leaked_components

    print(f"The same with stride {options.stride}: {', '.join(f'{one:g}' for one in group)}")
    titles = "".join(f"|F({one:g})|".rjust(10) for one in group)
    print(f"{'w0':>6}{'train PSNR':>14}{titles}  leaked")
    for w0, (psnr, train, full) in fits.items():
        amplitudes = "".join(f"{one:10.3f}" for one in full.at(group)[:, 0].tolist())
        leaked = leaked_components(train, full).frequencies[:, 0].tolist()
        print(f"{w0:6g}{psnr:11.1f} dB{amplitudes}  {', '.join(f'{one:g}' for one in leaked) or '-'}")
    draw({w0: full for w0, (_, _, full) in fits.items()}, group).savefig(path, dpi=100)
    print(f"Figure: {path}")


def aliases_of_tone(options: argparse.Namespace) -> list[float]:
    """The tone's frequency, and those that are the same on the training samples.

    Raises:
        ValueError: if there are none, or the tone itself is one of a lower frequency.
    """
    from pl_robust.transforms import find_aliases, fold_frequencies

    length, stride, frequency = options.length, options.stride, options.frequency
    if not 1 <= stride <= length or length % stride:
        raise ValueError(f"--stride must divide the {length} samples, got {stride}")
    rate = length / stride  # on a domain of length 1
    (tone,) = fold_frequencies([frequency], rate).tolist()
    if tone != frequency:
        raise ValueError(f"with stride {stride}, {length} samples show {frequency} as {tone:g}: lower --frequency")
    for group in find_aliases(range(length // 2 + 1), rate):
        if tone in group:
            return group.tolist()  # type: ignore[no-any-return]
    raise ValueError(f"{frequency} has no alias below {length / 2:g} with stride {stride}: raise --stride")


def fit(w0: float, options: argparse.Namespace) -> tuple[float, Spectrum, Spectrum]:
    """Fit a SIREN to the tone's training samples.

    Args:
        w0: of its first layer; that of the other one stays 30.
        options: the script's arguments.

    Returns:
        PSNR on the training samples, the network's spectrum on them, and on all samples.
    """
    import torch

    from pl_robust._lightning import Trainer
    from pl_robust.datamodules import SignalDataModule
    from pl_robust.models import SIREN
    from pl_robust.modules import INRFitting
    from pl_robust.transforms import network_spectrum

    data = SignalDataModule(
        "tone",
        frequency=options.frequency,
        length=options.length,
        split="every",
        stride=options.stride,
        coordinate_range=(0.0, 1.0),
        steps_per_epoch=options.steps,
    )
    torch.manual_seed(options.seed)
    module = INRFitting(SIREN(1, 1, hidden_features=128, num_layers=3, w0=w0), data_range=data.data_range)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them wait for each other on so few samples
    trainer.fit(module, datamodule=data)
    torch.set_num_threads(threads)
    train, full = (
        network_spectrum(module.net, (points,), (0.0, 1.0))
        for points in (options.length // options.stride, options.length)
    )
    return float(trainer.callback_metrics["train/psnr"]), train, full


def draw(spectra: Mapping[float, Spectrum], marked: Sequence[float]) -> Figure:
    """Draw amplitudes over frequency, a panel for each network.

    Args:
        spectra: w0 -> spectrum on all samples.
        marked: frequencies that are the same on the training samples.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 1 + 1.6 * len(spectra)), layout="constrained")
    panels = figure.subplots(len(spectra), sharex=True, squeeze=False)[:, 0]
    for axes, (w0, spectrum) in zip(panels, spectra.items(), strict=True):
        half = spectrum.frequencies[0].abs().argmax() + 1
        heights = spectrum.amplitudes[:half, 0]
        axes.bar(spectrum.frequencies[0][:half].abs().numpy(), heights.numpy(), width=1)
        for frequency in marked:
            axes.annotate(f"{frequency:g}", (frequency, float(spectrum.at([frequency]))), ha="center", va="bottom")
        axes.set(ylabel="amplitude", title=f"SIREN with w0 {w0:g}", ylim=(0, 1.2))
    panels[-1].set(xlabel="frequency, periods in the signal")
    return figure


if __name__ == "__main__":
    main()
