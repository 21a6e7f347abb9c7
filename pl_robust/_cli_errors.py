"""One line out of the parser's nested reports: what is wrong, where, and what there is instead."""

from __future__ import annotations

import difflib
import inspect
import re
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
_NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|Subclass types expect|Not a valid subclass|"
    r"a class path \(str\)|a dict with|Expected a (<class '\w+'>|typing\.Literal\[[^\]]*\])$"
)


class ConfigurationError(ValueError):
    """A configuration that cannot be run; the message is one line."""


def explain(message: str) -> str:
    """Distil the message of a parser's or constructor's error into one line that says what exists.

    Args:
        message: text of jsonargparse's nested report, or of an error raised by a constructor.
    """
    if re.search(r"yaml\.\w+Error|while (parsing|scanning) a ", message):
        return " ".join(message.split())  # the parser of YAML says best where it failed
    if "unexpected keyword argument 'linked_targets'" in message:  # jsonargparse's own fault
        return (
            "the command line cannot change arguments of a function that stands as a class_path, such as "
            "preact_resnet18: write them into the YAML file, or take the class, PreActResNet"
        )
    keys: list[str] = []
    owner = types = ""
    for line in (line.strip().removeprefix("- ") for line in message.splitlines()):
        if match := re.fullmatch(r'Parser key "(.+)":', line):
            keys.append(match[1])
        elif match := re.fullmatch(r"Problem with given class_path '(.+)':", line):
            owner = match[1]
        elif match := re.fullmatch(r"Subtypes: \[(.+)\]", line):
            types = (
                re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", match[1]).replace("NoneType", "null").replace("typing.", "")
            )
        elif match := re.fullmatch(r"Given value: (.*)", line):
            # No report between the types and the value: none of the types was even near.
            hint = " (write null into the YAML file: the command line has no null for nested classes)"
            return f"{'.'.join(keys)}: expected one of {types}, got {match[1]}{hint if match[1] == 'None' else ''}"
        elif line and not _NOISE.match(line):
            where = f"{'.'.join(keys)}: " if keys else ""
            return where + _reword(line, owner, keys)
    return " ".join(message.split())


def _reword(line: str, owner: str, keys: list[str]) -> str:
    if match := re.fullmatch(r"Option '(.+)' is not accepted", line):
        return f"{owner.rpartition('.')[2]} has no argument {match[1]!r}; {_offer(match[1], _arguments(owner))}"
    no_class = r"Expected a dot import path string: (.+)|Expected a path but (.+) either not accessible or invalid"
    if match := re.fullmatch(no_class, line):
        wrong = match[1] or match[2]
        return f"there is no class {wrong!r}; {_offer(wrong, _classes(keys))}"
    if match := re.match(r"Import path (\S+) does not correspond to a subclass of (\w+)", line):
        return f"{match[1]} is no {match[2]}; {_offer(match[1], _classes(keys))}"
    unknown = r"Subcommand '\w+' does not accept option '(.+)'|unrecognized arguments: --([\w.]+).*"
    if match := re.fullmatch(unknown, line):
        key = match[1] or match[2]
        head, _, argument = key.partition(".")
        if head == "trainer" and argument:
            return f"trainer has no argument {argument!r}; {_offer(argument, _arguments(_lightning('Trainer')))}"
        return f"there is no key {key!r}; {_offer(head, _TOP)}"
    if match := re.search(r"expects a function or a callable class: (.+?)\. Got value", line):
        return match[1]
    if match := re.fullmatch(r"Expected a typing\.Literal\[(.+)\]\. Got value: (.*)", line):
        return f"expected one of {match[1]}, got {match[2]!r}"
    if match := re.fullmatch(r"Expected a <class '(.+)'>\. Got value: (.*)", line):
        return f"expected {match[1]}, got {match[2]!r}"
    return line


def _offer(wrong: str, known: Iterable[str]) -> str:
    names = sorted(known)
    if not names:
        return "give its full import path, such as torch.optim.Adam"
    close = difflib.get_close_matches(wrong.rpartition(".")[2], names, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"There are: {', '.join(names)}"


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
