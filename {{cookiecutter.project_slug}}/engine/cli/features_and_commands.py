"""The features and the commands of a project: whatever lies in engine/features and engine/commands.

A file or sub-package of features/ defines `callbacks(run_dir, model, data, *, FLAG: type = default)`. One of commands/
defines `run(NEEDS, *, FLAG: type = default)`, with any of NEEDS, or `main(argv)`, which reads its words itself.
Deleting one removes its flags, or the command. No torch here.
"""

import ast
import importlib
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

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


@cache
def features() -> list[str]:
    """The names of the features, in alphabetical order.

    Raises:
        UsageError: one of them does not define `callbacks`.
    """
    for path in _modules("features").values():
        if not _defines(path, "callbacks"):
            form = "callbacks(run_dir, model, data, *, FLAGS)"
            raise UsageError(f"{_relative(path)} is no feature: it should define {form}")
    return list(_modules("features"))


@cache
def commands() -> dict[str, list[str]]:
    """The commands, each with the arguments that its `run` needs; ["argv"] where it has `main(argv)`.

    Raises:
        UsageError: one of them defines neither or both, or needs what there is not.
    """
    commands = {}
    for name, path in _modules("commands").items():
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
    lines = {name: _text(path).partition("\n")[0] for name, path in _modules("commands").items()}
    return _TRAINER_ACTIONS | {name: line.partition(": ")[2].strip('."') for name, line in lines.items()}


def command_flags(name: str) -> list[str]:
    """The flags of a command's `run`; none of one that reads its words itself."""
    needs_words = commands()[name] == ["argv"]
    spec = find_definition(source("commands", name), "main" if needs_words else "run")[0].args
    return [one.arg for one in spec.kwonlyargs]


def stand_in(action: str) -> str | None:
    """A dotted path to the class `NoNetwork` of a command, which then needs no --model_name; None of any other."""
    has_one = action in commands() and "\nclass NoNetwork(" in _text(source("commands", action))
    return f"engine.commands.{action}.NoNetwork" if has_one else None


def split_flags() -> set[str]:
    """The flags in the SPLIT_FLAGS of features: they say which item is in which split."""
    return _listed("SPLIT_FLAGS")


def load_command(name: str) -> Callable[..., Any]:
    """The function of a command."""
    module = importlib.import_module(f"engine.commands.{name}")
    return module.main if commands()[name] == ["argv"] else module.run


def load_features(run_dir: Path, model: Any, data: Any, arguments: dict[str, dict[str, Any]]) -> list[Any]:
    """The callbacks of all features. arguments: those of each feature, by its name."""
    functions = hooks("callbacks").items()
    return [one for name, callbacks in functions for one in callbacks(run_dir, model, data, **arguments[name])]


def hooks(function: str) -> dict[str, Callable[..., Any]]:
    """The features that define an optional function, one of those that engine/features/__init__.py lists."""
    modules = {name: importlib.import_module(f"engine.features.{name}") for name in features()}
    return {name: getattr(module, function) for name, module in modules.items() if hasattr(module, function)}


def not_kept() -> set[str]:
    """The flags in the NOT_KEPT of features: a resumed run does not take them from its config.yaml."""
    return _listed("NOT_KEPT")


def _listed(constant: str) -> set[str]:
    """What the lines `CONSTANT = ("FLAG", ...)` of all features name."""
    lines = (re.search(rf"^{constant} = (\(.*\))", _text(path), re.MULTILINE) for path in _modules("features").values())
    return {flag for line in lines if line for flag in ast.literal_eval(line[1])}


def source(folder: str, name: str) -> Path:
    """The file in which a feature or a command begins."""
    return _modules(folder)[name]


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _defines(path: Path, function: str) -> bool:
    return f"\ndef {function}(" in _text(path)


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def _modules(folder: str) -> dict[str, Path]:
    """Name -> file of the modules and sub-packages of a folder of engine/, in alphabetical order."""
    root = ROOT / "engine" / folder
    files = {path.stem: path for path in root.glob("*.py")}
    packages = {path.parent.name: path for path in root.glob("*/__init__.py")}
    return {name: path for name, path in sorted((files | packages).items()) if not name.startswith(("_", "."))}
