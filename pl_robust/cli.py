"""The ``pl-robust`` command: LightningCLI over everything in this package, and little else."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from pl_robust import __version__
from pl_robust._cli_checkpoint import (
    NO_CLASS,
    NOT_OF_LIGHTNING,
    UNREADABLE,
    VERSION_KEY,
    check_checkpoint,
    check_replaced,
    why_unreadable,
)
from pl_robust._cli_errors import ROOMS, ConfigurationError, explain, is_the_users, origin, passes_other_code
from pl_robust._corrupt_command import corrupt_command

_HELP = f"""\
pl-robust {__version__}: robustness and deep-learning-theory tools for PyTorch Lightning

usage: pl-robust {{fit,validate,test,predict}} --config FILE.yaml [--{{model,data,trainer}}.ARG VALUE ...]
       pl-robust corrupt --data CLASS [--data.ARG VALUE ...] --out_dir FOLDER [--table TABLE]

  fit        train a module on a datamodule
  validate   evaluate a checkpoint on the validation data
  test       evaluate a checkpoint on the test data
  predict    compute a network's answers
  corrupt    write the test images under the common corruptions, as CIFAR-10-C has them

  pl-robust fit --help                              every option; likewise corrupt --help
  pl-robust fit --model.help AdversarialTraining    the options of one class
  pl-robust fit --config FILE.yaml --print_config   the whole configuration, defaults included
  pl-robust --version

Classes go by their short names; numbers such as 8/255 are taken as they stand.
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command; a configuration that cannot be run ends it with one line and exit status 2.

    Args:
        args: arguments as on the command line; None takes those of the process.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    # Answered before anything heavy is imported: importing Lightning and torchmetrics takes seconds.
    if arguments in ([], ["--help"], ["-h"]):
        print(_HELP)
    elif arguments == ["--version"]:
        print(f"pl-robust {__version__}")
    else:
        try:
            if arguments[0] == "corrupt":
                corrupt_command(arguments[1:])
            else:
                run(None if args is None else arguments)
        except Exception as error:
            if not (isinstance(error, ConfigurationError) or is_the_users(error)):
                raise
            print(f"pl-robust: error: {' '.join(str(error).split())}", file=sys.stderr)
            raise SystemExit(2) from None


def run(args: Sequence[str] | None = None) -> Any:
    """Run the command from Python.

    Args:
        args: arguments as on the command line; None takes those of the process.

    Returns:
        The finished LightningCLI, with its ``trainer``, ``model`` and ``datamodule``.

    Raises:
        ConfigurationError: if the configuration cannot be read, or a class refuses its arguments.
    """
    for room in ROOMS:
        face = import_module(f"pl_robust.{room}")
        for name in face.__all__:
            getattr(face, name)  # a class goes by its short name once it is imported

    from jsonargparse import ArgumentError

    from pl_robust._lightning import (
        NAMESPACE,
        LightningDataModule,
        LightningModule,
        MisconfigurationException,
        is_before,
        rank_zero_info,
    )

    lightning_cli: Any = import_module(f"{NAMESPACE}.cli").LightningCLI

    class RobustCLI(lightning_cli):  # type: ignore[misc]  # its base is known at run time only
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")

        def parse_arguments(self, parser: Any, args: Any) -> None:
            try:
                with warnings.catch_warnings():
                    # `run` is there to be called from scripts, which may have arguments of their own.
                    warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended to run from within")
                    super().parse_arguments(parser, args)
            except ArgumentError as error:
                raise ConfigurationError(explain(str(error))) from error
            chosen = self.config.get(self.config.get("subcommand")) or {}
            check_checkpoint(chosen.get("ckpt_path"), read=is_before("2.6"))  # later ones read it themselves

        def _parse_ckpt_path(self) -> None:  # the newer Lightnings': the checkpoint's hyperparameters win
            if is_before("2.6"):
                return  # 2.5.5 and 2.5.6 do not look for the class that they belong to, and fail
            chosen = self.config["subcommand"]
            asked = self.config[chosen]["model"].as_dict()
            try:
                super()._parse_ckpt_path()
            except ArgumentError as error:
                said = explain(str(error))
                raise ConfigurationError(
                    NO_CLASS if said.startswith("model: give a class") else f"ckpt_path: {said}"
                ) from error
            except UNREADABLE as error:
                raise ConfigurationError(why_unreadable(self.config[chosen]["ckpt_path"], error)) from error
            if changed := check_replaced(asked, self.config[chosen]["model"].as_dict()):
                rank_zero_info(changed)

        def _run_subcommand(self, subcommand: str) -> None:
            try:
                super()._run_subcommand(subcommand)
            except KeyError as error:
                if error.args != (VERSION_KEY,) or passes_other_code(error):
                    raise
                raise ConfigurationError(NOT_OF_LIGHTNING) from error
            except IsADirectoryError as error:
                path = self.config[subcommand].get("ckpt_path")
                if path is None or Path(path).resolve() != Path(str(error.filename)).resolve():
                    raise
                raise ConfigurationError(f"ckpt_path: {path!r} is a folder, and this strategy reads files") from error

        def instantiate_classes(self) -> None:
            try:
                super().instantiate_classes()
            except (ValueError, TypeError, OSError, ImportError, MisconfigurationException) as error:
                if passes_other_code(own := origin(error)):  # a fault inside the user's own class
                    raise own from own.__cause__
                raise ConfigurationError(explain(str(error))) from error
            # Lightning notes the link among the hyperparameters of classes without this argument, too, and
            # `--ckpt_path` would hand it to them. The parser knows their arguments, those behind **kwargs as well.
            if "num_classes" not in (self._get(self.config, "model").get("init_args") or ()):
                for noted in (vars(self.model).get(name, {}) for name in ("_hparams", "_hparams_initial")):
                    if "_instantiator" in noted:  # what the command has given, not the class itself
                        noted.pop("num_classes", None)

    # Never guess: `--trainer.max_epoch` is an error, no abbreviation.
    strict = {"exit_on_error": False, "allow_abbrev": False}
    return RobustCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        auto_configure_optimizers=False,  # our modules take their optimizer as an argument
        parser_kwargs={**strict, **{name: strict for name in RobustCLI.subcommands()}},
        args=None if args is None else list(args),
    )
