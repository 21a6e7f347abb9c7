"""One line out of the parser's nested reports: what is wrong, where, and what there is instead."""

from __future__ import annotations

import difflib
import inspect
import linecache
import re
import sys
import traceback
from collections.abc import Iterable
from importlib import import_module

ROOMS = ("attacks", "transforms", "ntk", "models", "losses", "metrics", "modules", "callbacks", "datamodules")

# Keys of a configuration -> the room whose classes fit there.
_ROOM_OF_KEY = {
    "model": "modules",
    "data": "datamodules",
    "base": "datamodules",
    "trainer.callbacks": "callbacks",
    "net": "models",
    "teachers": "models",
    "attack": "attacks",
    "strong_attack": "attacks",
    "fallback_attack": "attacks",
    "eval_attacks": "attacks",
    "regularizer": "losses",
    "distillation": "losses",
    "transform": "transforms",
}
_BASE_OF_KEY = {"regularizer": "Regularizer", "distillation": "Distillation"}  # where a room has classes of two kinds
_CALLED = ("attacks", "transforms", "models", "losses")  # rooms of functions, as objects
_TOP = ("ckpt_path", "data", "model", "seed_everything", "trainer")
_COMMANDS = ("corrupt", "fit", "predict", "test", "validate")
_WHERE = "(pl-robust looks among the installed packages; `python -m pl_robust` into this folder, too)"
_USAGE = "pl-robust fit --config FILE.yaml"
_NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|Subclass types expect|Not a valid subclass|"
    r"a class path \(str\)|a dict with|Expected a (<class '\w+'>|typing\.Literal\[[^\]]*\])$"
)


# Lightning's of a `ckpt_path`, and torch's.
_REFUSALS = re.compile(
    r"Error\(s\) in loading state_dict for|You cannot execute `\.\w+\(ckpt_path=|`\.\w+\(ckpt_path=.*\)` is set but|"
    r"Checkpoint file not found: "
)
# What stands between a configuration and the place that refuses it.
_MACHINERY = {
    "pl_robust",
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "jsonargparse",
    "torch",
    "torchmetrics",
}


class ConfigurationError(ValueError):
    """A configuration that cannot be run; the message is one line."""


def is_the_users(error: Exception) -> bool:
    """Tell a mistake in a configuration, found when the run was under way, from a fault of the program.

    Only what says so itself counts: Lightning's MisconfigurationException and refusal of a ``ckpt_path``, weights of
    another network, and what a ``raise`` in this package refuses. Whatever else goes wrong keeps its traceback, and so
    does what came by way of the user's own code.
    """
    if passes_other_code(error):
        return False
    speaks = _REFUSALS.search(str(error))
    if speaks or type(error).__name__ == "MisconfigurationException":
        return True
    if error.__traceback__ is None or not isinstance(error, (ValueError, TypeError, OSError, ImportError)):
        return False
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    ours = str(frame.f_globals.get("__name__")).startswith("pl_robust.")
    return ours and linecache.getline(frame.f_code.co_filename, line).strip().startswith("raise ")


def passes_other_code(error: Exception) -> bool:
    """Tell whether an error came through code of the user or of another package, where only a traceback helps."""
    return not set(_packages(error)) <= _MACHINERY | sys.stdlib_module_names


def origin(error: Exception) -> Exception:
    """The error of a constructor that jsonargparse has put into a report of its own."""
    while isinstance(error.__cause__, Exception) and _packages(error)[-1:] == ["jsonargparse"]:
        error = error.__cause__
    return error


def _packages(error: Exception) -> list[str]:
    """Where an error came along, the place that raised it last."""
    frames = traceback.walk_tb(error.__traceback__)
    return [str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in frames]


def explain(message: str) -> str:
    """Distil the message of a parser's or constructor's error into one line that says what exists.

    Args:
        message: text of jsonargparse's nested report, or of an error raised by a constructor.
    """
    if re.search(r"Problems parsing config|yaml\.\w+Error|while (parsing|scanning) a ", message):
        return " ".join(message.split())  # the parser of YAML says best where it failed
    if match := re.match(r"Unexpected config:(.*)", message, re.DOTALL):
        found = " ".join(match[1].split())
        held = "nothing but comments" if found.startswith("#") else f"{found[:60]!r}" if found else "nothing"
        return f"a configuration must hold keys and values, such as `model: ...` and `data: ...`, and it holds {held}"
    if "unexpected keyword argument 'linked_targets'" in message:  # jsonargparse's own fault
        return (
            "the command line cannot change arguments of a function that stands as a class_path, such as "
            "preact_resnet18: write them into the YAML file, or take the class, PreActResNet"
        )
    if "Parser key" not in message and "Subtypes:" not in message:  # no report: a sentence, of one line or more
        return _reword(" ".join(message.split()), "", [])
    keys: list[str] = []
    owner = types = ""
    for line in (line.strip().removeprefix("- ") for line in message.splitlines()):
        if match := re.fullmatch(r'Parser key "(.+)":', line):
            keys.append(match[1])
        elif match := re.fullmatch(r"Problem with given class_path '(.+)':", line):
            owner = match[1]
        elif match := re.fullmatch(r"Subtypes: \[(.+)\]", line):
            types = _plain(match[1])
        elif match := re.fullmatch(r"Given value: (.*)", line):
            # No report between the types and the value: none of the types was even near.
            hint = " (write null into the YAML file: the command line has no null for nested classes)"
            return f"{'.'.join(keys)}: expected one of {types}, got {match[1]}{hint if match[1] == 'None' else ''}"
        elif line and not _NOISE.match(line):
            where = f"{'.'.join(keys)}: " if keys else ""
            return where + _reword(line, owner, keys)
    return " ".join(message.split())


def _plain(types: str) -> str:
    types = re.sub(r"<class '([\w.]+)'>", r"\1", types).replace("NoneType", "null")
    return re.sub(r"Literal\[([^\]]*)\]", r"\1", re.sub(r"\b(?:[A-Za-z_]\w*\.)+(\w+)", r"\1", types))


def _reword(line: str, owner: str, keys: list[str]) -> str:
    if match := re.search(r"expects a function or a callable class: (.+?)\. Got value: (.*)", line):
        inner = re.match(r"Namespace\(class_path='([\w.]+)'", match[2])
        return _reword(match[1], inner[1] if inner else "", keys)
    if match := re.fullmatch(r"Option '(.+)' is not accepted", line):
        name = owner.rpartition(".")[2]
        if name in ("LightningModule", "LightningDataModule"):
            example = "AdversarialTraining" if name == "LightningModule" else "ImageDataModule"
            return f"give a class, and its arguments below init_args: {{class_path: {example}, init_args: {{...}}}}"
        return f"{name} has no argument {match[1]!r}; {_offer(match[1], _arguments(owner))}"
    if re.fullmatch(r"Option '.+' is not accepted before subcommand '\w+'", line):
        return f"the subcommand comes first, options behind it: {_USAGE}"
    return _class_error(line, keys) or _command_error(line) or _value_error(line)


def _class_error(line: str, keys: list[str]) -> str | None:
    if match := re.fullmatch(r"--(\S+)\.help: (.+)", line):
        return f"{match[1]}: {_class_error(match[2], [match[1]]) or match[2]}"
    no_class = r"Expected a dot import path string: (.+)|Expected a path but (.+) either not accessible or invalid"
    if match := re.fullmatch(no_class, line):
        return _no_class(match[1] or match[2], keys)
    if match := re.match(r"Multiple subclasses with name (\w+)\.", line):
        return _no_class(match[1], keys)
    if match := re.match(r"Import path (\S+) does not correspond to a subclass of (\w+)", line):
        return f"{match[1]} is no {match[2]}; {_offer(match[1], _classes(keys))}"
    if re.match(r"No module named ", line):
        return f"{line} {_WHERE}"
    return None


def _no_class(wrong: str, keys: list[str]) -> str:
    known = _classes(keys)
    rooms = [room for room in ROOMS if wrong in import_module(f"pl_robust.{room}").__all__]
    if wrong in known:  # a subclass of the same name has been imported with another package
        path = f"pl_robust.{_ROOM_OF_KEY.get(keys[-1], 'callbacks')}.{wrong}"
        return f"other packages have a {wrong!r}, too: give the full path, {path}"
    if keys and keys[-1] == "lr_scheduler":
        return f"there is no {wrong!r}; give a schedule's full import path, such as torch.optim.lr_scheduler.StepLR"
    if rooms:
        return f"{wrong} is one of pl_robust.{rooms[0]} and does not fit here; {_offer(wrong, known)}"
    if "." in wrong:
        return f"there is no {wrong!r} {_WHERE}"
    return f"there is no class {wrong!r}; {_offer(wrong, known)}"


def _command_error(line: str) -> str | None:
    if match := re.match(r'expected "subcommand" to be one of', line):
        return f"say what to do first, one of {', '.join(_COMMANDS)}: {_USAGE}"
    if match := re.match(r"argument subcommand: (invalid choice: '(.*?)')", line):
        return f"{match[1]}; {_offer(match[2], _COMMANDS)}"
    if match := re.fullmatch(r'Parser key "config": (?:File does not exist|Path is not a file): (.+)', line):
        return f"config: there is no file {match[1]}"
    if match := re.fullmatch(r"unrecognized arguments: ([^-]\S*\.ya?ml)", line):
        return f"{match[1]!r} stands alone; did you mean --config {match[1]}?"
    unknown = r"Subcommand '\w+' does not accept option '(.+)'|unrecognized arguments: --([\w.]+).*"
    if match := re.fullmatch(unknown, line):
        key = match[1] or match[2]
        head, _, argument = key.partition(".")
        if head == "trainer" and argument:
            return f"trainer has no argument {argument!r}; {_offer(argument, _arguments(_lightning('Trainer')))}"
        if head in _COMMANDS and argument:
            return f"the file holds `{head}:`; write the keys below it at the top of the file"
        return f"there is no key {key!r}; {_offer(head, _TOP)}"
    if match := re.fullmatch(r"the following arguments are required: (\w+\..+)", line):
        missing = " and ".join(f"`{key.partition('.')[2]}`" for key in match[1].split(", "))
        return f"{missing} must be given, in the configuration or as --model CLASS --data CLASS"
    if match := re.fullmatch(r"argument (\S+): expected one argument", line):
        return f"an option that begins with {match[1].rpartition('/')[2]} stands without its value"
    return None


def _value_error(line: str) -> str:
    if match := re.fullmatch(r"Expected a typing\.Literal\[(.+)\]\. Got value: (.*)", line):
        return f"expected one of {match[1]}, got {match[2]!r}"
    if match := re.fullmatch(r"Expected a <class '(.+)'>\. Got value: (.*)", line):
        return f"expected {match[1]}, got {match[2]!r}"
    if match := re.fullmatch(r"'(\w+)' object is not a mapping", line):
        return f"a key that holds further keys, such as `trainer`, stands with a plain value of type {match[1]}"
    return line


def _offer(wrong: str, known: Iterable[str]) -> str:
    names = sorted(known)
    if not names:
        return "give its full import path, such as torch.optim.Adam"
    close = difflib.get_close_matches(wrong.rpartition(".")[2], names, n=1)
    return f"did you mean {close[0]!r}? There are: {', '.join(names)}" if close else f"there are: {', '.join(names)}"


def _arguments(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    return [argument for argument in inspect.signature(getattr(import_module(module), name)).parameters]


def _classes(keys: list[str]) -> list[str]:
    key = keys[-1] if keys else ""
    room = _ROOM_OF_KEY.get(key)
    faces = [import_module(f"pl_robust.{room}")] if room else []
    if key in ("trainer.callbacks", "trainer.logger"):
        theirs = import_module(_lightning("callbacks" if key == "trainer.callbacks" else "loggers"))
        faces = [*faces, theirs] if key == "trainer.callbacks" else [theirs]
    public = [(name, getattr(face, name)) for face in faces for name in face.__all__]
    classes = [(name, value) for name, value in public if inspect.isclass(value) and not inspect.isabstract(value)]
    # Beside what is called stand the classes of its results, which no configuration makes.
    base = getattr(faces[0], _BASE_OF_KEY[key]) if key in _BASE_OF_KEY else object
    return [n for n, value in classes if issubclass(value, base) and (room not in _CALLED or _is_called(value))]


def _is_called(value: type) -> bool:
    return any("__call__" in vars(base) for base in value.__mro__)


def _lightning(name: str) -> str:
    from pl_robust._lightning import NAMESPACE

    return f"{NAMESPACE}.{name}"
