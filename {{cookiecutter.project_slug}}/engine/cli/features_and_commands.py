"""The features and the commands of a project: whatever lies in engine/features and engine/commands. No torch here.

What a file there defines stands in the `__init__.py` of its folder.
"""

import argparse
import ast
import importlib
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn

from engine.cli.discovery import ROOT
from engine.cli.signatures_from_source import find_definition
from engine.errors import UsageError

# What main.py hands to a command's `run`, by the name of the argument. Without `trainer`, none is made.
NEEDS = ("settings", "build_data", "build_model", "trainer", "model", "data", "ckpt_path", "run_dir")

_TRAINER_ACTIONS = {
    "fit": "train, keep the best and the last checkpoint, test the best one (the default action)",
    "validate": "evaluate a checkpoint on the validation split",
    "test": "evaluate a checkpoint on the test split",
}


class CommandParser(argparse.ArgumentParser):
    """For a command that reads its words itself: flags in full, and a mistake is a UsageError."""

    def __init__(self, name: str, description: str | None) -> None:
        super().__init__(f"main.py {name}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        said = message.removeprefix("argument ").replace("unrecognized arguments:", "unknown flag")
        raise UsageError(f"{said}; see python {self.prog.partition(' [')[0]} --help")


@cache
def features() -> list[str]:
    """The names of the features, in alphabetical order. Raises: UsageError: one of them does not define `callbacks`."""
    for path in sources("features").values():
        if not _defines(path, "callbacks"):
            raise UsageError(f"{_relative(path)} is no feature: it should define callbacks(*, FLAGS)")
    return list(sources("features"))


@cache
def commands() -> dict[str, list[str]]:
    """The commands, each with the arguments that its `run` needs; ["argv"] where it has `main(argv)`.

    Raises: UsageError: one of them defines neither or both, or needs what there is not.
    """
    commands = {}
    for name, path in sources("commands").items():
        functions = [function for function in ("run", "main") if _defines(path, function)]
        if len(functions) != 1:
            has = "both" if functions else "neither"
            raise UsageError(f"{_relative(path)} is no command: it should define run(...) or main(argv), and has {has}")
        spec = find_definition(path, functions[0])[0].args
        needs = [one.arg for one in spec.posonlyargs + spec.args]
        if functions == ["run"] and (unknown := [one for one in needs if one not in NEEDS]):
            raise UsageError(f"{_relative(path)}: run asks for {', '.join(unknown)}; there are {', '.join(NEEDS)}")
        commands[name] = ["argv"] if functions == ["main"] else needs
    return commands


def actions() -> dict[str, str]:
    """The actions of main.py with a line of help each; of a command, what follows the colon in its first line."""
    lines = {name: _text(path).partition("\n")[0] for name, path in sources("commands").items()}
    return _TRAINER_ACTIONS | {name: line.partition(": ")[2].strip('."') for name, line in lines.items()}


def placeholder_network(action: str) -> str | None:
    """A dotted path to the class `NoNetwork` of a command, which then needs no --model_name; None of any other."""
    has_one = action in commands() and "\nclass NoNetwork(" in _text(sources("commands")[action])
    return f"engine.commands.{action}.NoNetwork" if has_one else None


def load_command(name: str) -> Callable[..., Any]:
    """The function of a command."""
    module = importlib.import_module(f"engine.commands.{name}")
    return module.main if commands()[name] == ["argv"] else module.run


def load_features(run_dir: Path, model: Any, data: Any, arguments: dict[str, dict[str, Any]]) -> list[Any]:
    """The callbacks of all features. arguments: those of each feature, by its name."""
    import inspect  # torch is imported by now: the cost no longer shows

    there, found = {"run_dir": run_dir, "model": model, "data": data}, list[Any]()
    for name, callbacks in hooks("callbacks").items():
        asked = inspect.getfullargspec(callbacks).args
        if len(asked) != len(there) and (unknown := [one for one in asked if one not in there]):
            where = _relative(sources("features")[name])
            raise UsageError(f"{where}: callbacks asks for {', '.join(unknown)}; there are {', '.join(there)}")
        # All three, in this order, may have names of their own.
        needs = {one: there.get(one, in_order) for one, in_order in zip(asked, there.values(), strict=False)}
        found += callbacks(**needs, **arguments[name])
    return found


def hooks(function: str) -> dict[str, Callable[..., Any]]:
    """The features that define an optional function, one of those that engine/features/__init__.py lists."""
    modules = {name: importlib.import_module(f"engine.features.{name}") for name in features()}
    return {name: getattr(module, function) for name, module in modules.items() if hasattr(module, function)}


def listed(constant: Literal["NOT_KEPT", "SPLIT_FLAGS"]) -> set[str]:
    """The flags in that constant of all features, a line `NOT_KEPT = ("FLAG", ...)`.

    Raises: UsageError: a feature writes it otherwise.
    """
    flags = set[str]()
    for path in sources("features").values():
        for rest in re.findall(rf"^{constant}\b(.*)", _text(path), re.MULTILINE):
            if not (line := re.match(r" = (\(.*\))", rest)):
                raise UsageError(f'{_relative(path)}: write {constant} = ("flag", "other_flag"), in one line')
            flags.update(ast.literal_eval(line[1]))
    return flags


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _defines(path: Path, function: str) -> bool:
    return f"\ndef {function}(" in _text(path)


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def sources(folder: str) -> dict[str, Path]:
    """Name -> first file of the modules and sub-packages of a folder of engine/, in alphabetical order."""
    root = ROOT / "engine" / folder
    files = {path.stem: path for path in root.glob("*.py")}
    packages = {path.parent.name: path for path in root.glob("*/__init__.py")}
    return {name: path for name, path in sorted((files | packages).items()) if not name.startswith(("_", "."))}
