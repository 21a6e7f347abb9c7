"""The frame of the example scripts: arguments of their own, arguments for pl-robust, and how a mistake ends them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


def make_parser(prog: str, description: str, epilog: str, *, folder: str) -> argparse.ArgumentParser:
    """Make the parser of a script that sweeps: what all have in common, ``--folder`` and ``--jobs`` among it.

    Args:
        prog: name of the script's file.
        description: what it does, in a line.
        epilog: what is to know about it, printed as it stands.
        folder: what is kept in the folder.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--folder", required=True, help=f"where {folder} are kept")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes on this machine (default: 1)")
    return parser


def run_script(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace, Sequence[str]], None],
    args: Sequence[str] | None = None,
) -> None:
    """Parse the arguments and do the work; a mistake ends the script with one line and exit status 2.

    Args:
        parser: of the script's own arguments.
        work: (the script's own arguments, those behind ``--``, which go to pl-robust) -> nothing.
        args: arguments as on the command line; None takes those of the process.

    Raises:
        SystemExit: with status 2 after a mistake, with 130 after an interruption.
    """
    given = list(sys.argv[1:] if args is None else args)
    # argparse would hand what stands behind `--` to an argument of its own.
    cut = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:cut])
    with one_line_ending(parser.prog, "; the same command goes on with the runs that are missing"):
        work(options, given[cut + 1 :])


def refuse_seed(extra: Sequence[str]) -> None:
    """Refuse a seed among the arguments for pl-robust of a script that has ``--seeds``.

    Raises:
        ValueError: if there is one.
    """
    for argument in extra:
        if argument.startswith("--seed_everything"):
            raise ValueError(f"the seeds are set by --seeds: leave out {argument}")


@contextmanager
def one_line_ending(prog: str, hint: str = "") -> Iterator[None]:
    """End the script with one line where the work inside meets a mistake of its user.

    Args:
        prog: name of the script's file.
        hint: what to say behind "interrupted".

    Raises:
        SystemExit: with status 2 after a mistake, with 130 after an interruption.
    """
    from pl_robust._sweep import SweepError  # late: it imports torch, which --help does not need

    name = prog.removesuffix(".py")
    try:
        yield
    except (ValueError, OSError, ImportError, SweepError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"{name}: interrupted{hint}", file=sys.stderr)
        raise SystemExit(130) from None
