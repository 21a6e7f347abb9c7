"""``pl-robust corrupt``: no training, hence no LightningCLI; the same short names, files and manners."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from inspect import signature
from typing import Any

from pl_robust._cli_errors import ConfigurationError, _offer, explain


def corrupt_command(args: Sequence[str]) -> None:
    """Write a datamodule's test images, corrupted, as files that ``CorruptedImageDataModule`` reads.

    Args:
        args: arguments as on the command line, behind ``corrupt``.

    Raises:
        ConfigurationError: if the configuration cannot be read, or the data or the folder is not what it must be.
    """
    from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser  # type: ignore[attr-defined]

    face = import_module("pl_robust.datamodules")
    for name in face.__all__:
        getattr(face, name)  # a class goes by its short name once it is imported
    from pl_robust._lightning import MisconfigurationException
    from pl_robust.datamodules._write_corruptions import write_corruptions

    parser = ArgumentParser(
        prog="pl-robust corrupt",
        description="Write a datamodule's test images, corrupted at five severities, in the layout of CIFAR-10-C.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the other arguments")
    parser.add_function_arguments(write_corruptions, as_group=False)
    try:
        settings = parser.parse_args(list(args))
        arguments: dict[str, Any] = dict(parser.instantiate(settings))
        del arguments["config"]
        write_corruptions(**arguments)
    except ArgumentError as error:
        raise ConfigurationError(_explain(str(error), list(signature(write_corruptions).parameters))) from error
    except (ValueError, TypeError, KeyError, OSError, ImportError, MisconfigurationException) as error:
        raise ConfigurationError(explain(str(error.args[0] if isinstance(error, KeyError) else error))) from error
    folder = arguments["out_dir"]
    print(f"{folder} is complete; CorruptedImageDataModule(data_dir={folder!r}) reads it")


def _explain(message: str, arguments: list[str]) -> str:
    unknown = re.match(r"unrecognized arguments: -*([\w.]+)|Option '(.+)' is not accepted$", message)
    if unknown is None:
        return explain(message)
    key = unknown[1] or unknown[2]
    if key.partition(".")[0] in ("model", "trainer", "seed_everything"):
        return f"pl-robust corrupt trains nothing: of a configuration of `fit` it takes `data` alone, not {key!r}"
    return f"pl-robust corrupt has no argument {key!r}; {_offer(key.partition('.')[0], arguments)}"
