"""The frame of the example scripts: arguments of their own, arguments for pl-robust, and how a mistake ends them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


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
