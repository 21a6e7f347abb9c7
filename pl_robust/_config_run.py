"""Runs of a ``pl-robust`` configuration of which nothing is kept but their numbers: what sweeps are made of."""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import yaml

from pl_robust._lightning import NAMESPACE, LightningModule
from pl_robust.cli import run


def read_config(path: str, extra: Sequence[str] = ()) -> dict[str, Any]:
    """Read a configuration of ``pl-robust fit``, defaults included, without what only saves or prints.

    The Trainer's logger, progress bar, model summary and checkpoints are switched off, and callbacks for them are left
    out.

    Args:
        path: of the YAML file.
        extra: further arguments of the command line, which overrule the file.

    Raises:
        ConfigurationError: if pl-robust refuses it.
    """
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        run(["fit", "--config", path, *extra, "--print_config"])
    config: dict[str, Any] = yaml.safe_load(printed.getvalue())
    trainer = config["trainer"]
    trainer.update(logger=True, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    callbacks = trainer["callbacks"] or []
    endings = ("Checkpoint", "ProgressBar", "ModelSummary")
    trainer["callbacks"] = [
        callback
        for callback in (callbacks if isinstance(callbacks, list) else [callbacks])
        if not callback["class_path"].endswith(endings)
    ]
    return config


def fit_and_test(config: Mapping[str, Any], ckpt_path: str | None = None) -> tuple[Any, dict[str, float]]:
    """Fit a network and test it; print nothing and leave no file.

    Args:
        config: what ``read_config`` returned, filled in.
        ckpt_path: which state is tested, ``"best"`` as in ``Trainer.test``; None means the last.

    Returns:
        The finished LightningCLI, and what the test logged.

    Raises:
        KeyboardInterrupt: if the run was interrupted.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        # A callback of the configuration may ask for a logger: it gets one that leaves nothing behind.
        logger = {"class_path": f"{NAMESPACE}.loggers.CSVLogger", "init_args": {"save_dir": folder}}
        trainer = {**config["trainer"], "logger": logger, "default_root_dir": folder}
        path = Path(folder) / "run.yaml"
        path.write_text(yaml.safe_dump({**config, "trainer": trainer}), "utf-8")
        cli = _fit(path)
        tested = cli.trainer.test(cli.model, cli.datamodule, ckpt_path=ckpt_path, verbose=False)
    return cli, {name: value for part in tested for name, value in part.items()}


def fit_again(cli: Any, module: LightningModule) -> dict[str, float]:
    """Fit another module as a finished run has been, on its data but without its callbacks, and test it.

    Args:
        cli: what ``fit_and_test`` returned.
        module: the module.

    Returns:
        What the test logged.

    Raises:
        KeyboardInterrupt: if the run was interrupted.
    """
    with _quiet():
        trainer = cli.instantiate_trainer(callbacks=[], logger=False)
        trainer.fit(module, cli.datamodule)
        if trainer.interrupted:
            raise KeyboardInterrupt
        tested = trainer.test(module, cli.datamodule, verbose=False)
    return {name: value for part in tested for name, value in part.items()}


def _fit(path: Path) -> Any:
    """Fit, and let an interruption be one: Lightning turns it into SystemExit, or returns as if the run were over."""
    try:
        cli = run(["fit", "--config", str(path)])
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    if cli.trainer.interrupted:
        raise KeyboardInterrupt
    return cli


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the run prints, logs and warns of away from the terminal, which shows the progress bar."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
