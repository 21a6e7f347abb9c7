"""Train students by adversarial training, AKD, ARD, RSLAD and IAD, and print accuracies and calibration side by side.

    python examples/akd_table.py --folder runs/akd --jobs 2

trains the teachers first, on the digits. Other data: ``--config`` and ``--teacher``. Every figure is reported as it
comes out.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from pl_robust._script import make_parser, refuse_seed, run_script

COLUMNS = {
    "clean": "test/acc",
    "PGD": "test/acc_pgd",
    "ECE": "test/ece",
    "ECE adv": "test/ece_adv",
    "NLL adv": "test/nll_adv",
}

_EPILOG = """\
The configuration trains AKDStudent with AKD, that of the teachers AdversarialTraining, with a network of its own; both
need `pgd` in `eval_attacks`. Each seed N has a teacher, of seed 1000 + N, since of the same seed both would start from
the same weights. Teachers are the epoch of their best val/acc_pgd; they have a line of their own, early-stopped AT. The
ensembles are the teachers of all the seeds. Weak adversarial training has half the eps: of the student in one variant,
of its teacher in another; all are validated and tested with `pgd` as it is configured. Students are tested as they are
after their last epoch. Runs leave no checkpoint but the teachers', no log and no figure.

Everything behind `--` goes to pl-robust:  akd_table.py --config ... --teacher ... -- --trainer.max_epochs 10

FOLDER keeps the teachers and a JSON file for each finished run. The same command takes up interrupted runs, more seeds
extend them but for the ensembles, which are then others; a changed configuration needs another folder.
"""


_TEACHERS_FROM = 1000  # the first teacher's seed


class Method(NamedTuple):
    """How a student is trained.

    Attributes:
        distillation: what makes its loss; None for adversarial training.
        teachers: whether its teacher is the one of its seed ("one"), all seeds' ("all"), or the weak one ("weak").
        eps: share of the configuration's eps in its attack.
    """

    distillation: str | None
    teachers: str = "one"
    eps: float = 1.0


METHODS = {
    "AT": Method(None),
    "AT, weak": Method(None, eps=0.5),
    "AKD": Method("AKD"),
    "AKD, ensemble": Method("AKD", teachers="all"),
    "AKD, weak": Method("AKD", eps=0.5),
    "AKD, weak teacher": Method("AKD", teachers="weak"),
    "ARD": Method("ARD"),
    "RSLAD": Method("RSLAD"),
    "IAD": Method("IAD"),
}


def main(args: Sequence[str] | None = None) -> None:
    """Run everything and print the table; a mistake ends it with one line and exit status 2.

    Args:
        args: arguments as on the command line; None takes those of the process.
    """
    run_script(_parser(), lambda options, extra: print(compare(options, extra)), args)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "akd_table.py",
        "Compare adversarial training with adversarial distillation: accuracy and calibration.",
        _EPILOG,
        folder="teachers and results",
    )
    here = Path(__file__).parent
    student, teacher = str(here / "akd_digits.yaml"), str(here / "akd_teacher.yaml")
    parser.add_argument("--config", default=student, metavar="FILE", help="of AKDStudent (default: akd_digits.yaml)")
    parser.add_argument(
        "--teacher", default=teacher, metavar="FILE", help="of AdversarialTraining (default: akd_teacher.yaml)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="seeds of the students")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME")
    return parser


def compare(options: argparse.Namespace, extra: Sequence[str]) -> str:
    """Train the teachers, then each method with each seed, and make the table.

    Args:
        options: the script's own arguments.
        extra: arguments for pl-robust, of students and teachers.

    Raises:
        ValueError: if a configuration or an argument is refused, or the folder holds other runs.
        SweepError: if runs failed.
    """
    import torch

    from pl_robust import __version__
    from pl_robust._sweep import run_cells

    folder = Path(options.folder).resolve()
    student = read_config(options.config, extra, "AKDStudent")
    teacher = read_config(options.teacher, extra, "AdversarialTraining")
    versions = {"pl_robust": __version__, "torch": torch.__version__}
    methods = {name: METHODS[name] for name in options.methods}
    eps = [1.0] + [0.5] * any(method.teachers == "weak" for method in methods.values())
    numbers = {seed: _TEACHERS_FROM + seed for seed in options.seeds}
    teachers = [{"seed": number, "eps": share} for share in eps for number in numbers.values()]
    early = run_cells(
        partial(train_teacher, teacher, folder / "teachers"),
        teachers,
        folder / "teachers",
        experiment={"config": teacher, **versions},
        jobs=options.jobs,
        description="teachers",
    )
    every = ",".join(map(str, sorted(numbers.values())))
    cells = [
        {"method": name, "seed": seed, "teachers": every if method.teachers == "all" else str(numbers[seed])}
        for name, method in methods.items()
        for seed in options.seeds
    ]
    results = run_cells(
        partial(train_student, student, teacher["model"]["init_args"]["net"], folder / "teachers"),
        cells,
        folder / "students",
        experiment={"config": student, "teacher": teacher, **versions},
        jobs=options.jobs,
        description="students",
    )
    seeds = len(options.seeds)
    rows = {"AT, early-stopped (the teachers)": early[:seeds]}
    rows |= {name: results[seeds * row :][:seeds] for row, name in enumerate(methods)}
    return tabulate(rows)


def read_config(path: str, extra: Sequence[str], model: str) -> dict[str, Any]:
    """Read a whole configuration, defaults included, with calibration on test data and the eps of the attack a number.

    Raises:
        ValueError: if pl-robust refuses the configuration, it is none of ``model`` with the attack ``pgd``, or does not
            say what the methods change.
    """
    from pl_robust import _config_run
    from pl_robust._number import parse_number

    refuse_seed(extra)
    try:
        config = _config_run.read_config(path, extra)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None  # there are two files
    named = (config["model"] or {"class_path": "none"})["class_path"].rpartition(".")[2]
    if named != model:
        raise ValueError(f"{path}: `model` must be {model}, got {named}")
    arguments = config["model"]["init_args"]
    evaluated = arguments["eval_attacks"] or {}
    if "pgd" not in evaluated:
        raise ValueError(
            f"{path}: `eval_attacks` must have an attack named pgd, with which all methods are tested, "
            f"got {list(evaluated) or 'none'}"
        )
    attack = arguments["attack"].get("init_args", {})
    if "eps" not in attack:
        raise ValueError(f"{path}: `attack` must have an eps, which weak training halves, got {arguments['attack']}")
    attack["eps"] = parse_number(attack["eps"], "eps")
    objective = arguments.get("distillation") or {"class_path": "AKD"}
    if objective["class_path"].rpartition(".")[2] != "AKD":
        raise ValueError(
            f"{path}: `distillation` must be AKD, whose place the other methods take, got {objective['class_path']}"
        )
    epochs = config["trainer"]["max_epochs"]
    if epochs is None or epochs < 1:
        raise ValueError(f"{path}: `trainer.max_epochs` must be at least 1, got {epochs}: IAD starts at a share of it")
    callbacks = config["trainer"]["callbacks"]
    looks_on = {"class_path": "pl_robust.callbacks.CalibrationLogger"}
    # At the attack of the evaluation, whatever a student is trained with.
    looks_on["init_args"] = {"attack": evaluated["pgd"], "every_n_epochs": 10**9}
    ours = ("CalibrationLogger", "LearningDynamics")
    config["trainer"]["callbacks"] = [one for one in callbacks if not one["class_path"].endswith(ours)] + [looks_on]
    config["seed_everything"] = "set by each run"
    return config


def train_teacher(config: Mapping[str, Any], folder: Path, cell: Mapping[str, Any]) -> dict[str, float]:
    """Train a teacher, keep its best epoch in the folder, and test that.

    Args:
        config: what ``read_config`` returned.
        folder: where its checkpoint is written.
        cell: its seed, and the share of eps that it is trained with.
    """
    from pl_robust._config_run import fit_and_test

    filled = fill(config, cell["seed"], cell["eps"])
    path = checkpoint(folder, cell["seed"], cell["eps"])
    keep = {"dirpath": str(folder), "filename": path.stem, "monitor": "val/acc_pgd", "mode": "max"}
    keep |= {"enable_version_counter": False, "save_weights_only": True}
    filled["trainer"]["enable_checkpointing"] = True
    filled["trainer"]["callbacks"].append({"class_path": "ModelCheckpoint", "init_args": keep})
    return row(fit_and_test(filled, ckpt_path="best")[1])


def train_student(config: Mapping[str, Any], net: Any, folder: Path, cell: Mapping[str, Any]) -> dict[str, float]:
    """Train a student and test it; the arguments are those of ``fill_student``."""
    from pl_robust._config_run import fit_and_test

    return row(fit_and_test(fill_student(config, net, folder, cell))[1])


def fill_student(config: Mapping[str, Any], net: Any, folder: Path, cell: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the configuration that trains a student by a method.

    Args:
        config: what ``read_config`` returned.
        net: the teachers' network, as their configuration has it.
        folder: where the teachers' checkpoints are.
        cell: the method, the seed, and its teachers' seeds.
    """
    method = METHODS[cell["method"]]
    filled = fill(config, cell["seed"], method.eps)
    arguments = filled["model"]["init_args"]
    share = 0.5 if method.teachers == "weak" else 1.0
    arguments["teachers"] = [
        {
            "class_path": "pl_robust.models.Pretrained",
            "init_args": {"net": net, "checkpoint": str(checkpoint(folder, seed, share))},
        }
        for seed in cell["teachers"].split(",")
    ]
    if method.distillation is None:
        arguments["distillation"] = {"class_path": "pl_robust.losses.AKD", "init_args": {"teacher_weight": 0.0}}
    elif method.distillation == "IAD":  # published: from epoch 60 of 200
        start = round(0.3 * filled["trainer"]["max_epochs"])
        arguments["distillation"] = {"class_path": "pl_robust.losses.IAD", "init_args": {"start_epoch": start}}
    elif method.distillation != "AKD":
        arguments["distillation"] = {"class_path": f"pl_robust.losses.{method.distillation}"}
    return filled


def fill(config: Mapping[str, Any], seed: int, eps: float) -> dict[str, Any]:
    """A copy of the configuration with a seed, and a share of its eps in the training attack."""
    filled: dict[str, Any] = copy.deepcopy(dict(config))
    filled["seed_everything"] = seed
    attack = filled["model"]["init_args"]["attack"]["init_args"]
    attack["eps"] = attack["eps"] * eps
    return filled


def checkpoint(folder: Path, seed: int | str, eps: float) -> Path:
    """Where a teacher is kept."""
    return folder / f"seed-{seed}-eps-{eps}.ckpt"


def row(logged: Mapping[str, float]) -> dict[str, float]:
    """The numbers of the table, accuracies in percent."""
    scale = {name: 100.0 if "acc" in logged_as else 1.0 for name, logged_as in COLUMNS.items()}
    return {name: scale[name] * float(logged[logged_as]) for name, logged_as in COLUMNS.items()}


def tabulate(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Write a line for each method: mean over the seeds, and standard deviation.

    Args:
        results: method -> the results of its seeds.
    """
    width = max(map(len, results)) + 2
    lines = [" " * width + "".join(f"{name:>16}" for name in COLUMNS)]
    for method, seeds in results.items():
        texts = []
        for name, logged_as in COLUMNS.items():
            digits = 1 if "acc" in logged_as else 3
            own = [one[name] for one in seeds]
            spread = f" ± {stdev(own):.{digits}f}" if len(own) > 1 else ""
            texts.append(f"{mean(own):.{digits}f}{spread}")
        lines.append(f"{method:<{width}}" + "".join(f"{text:>16}" for text in texts))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
