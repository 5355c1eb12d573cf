"""The features and the commands of a project: whatever lies in engine/features and engine/commands.

A file or sub-package of features/ defines `callbacks(run_dir, model, data, *, FLAG: type = default)`. One of commands/
defines `run(NEEDS, *, FLAG: type = default)`, with any of NEEDS, or `main(argv)`, which reads its words itself.
Deleting one removes its flags, or the command. No torch here.
"""

import importlib
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from engine.cli.discovery import ROOT
from engine.cli.signatures import parse_definition
from engine.errors import UsageError

# What main.py hands to a command's `run`, by the name of the argument. Without `trainer`, none is made.
NEEDS = ("settings", "build_data", "build_model", "trainer", "model", "data", "ckpt_path", "run_dir")

_TRAINER_ACTIONS = {
    "fit": "train, keep the best and the last state, test the best (done where no action is named)",
    "validate": "measure a checkpoint on the validation split",
    "test": "measure a checkpoint on the test split",
}


@cache
def features() -> list[str]:
    """The names of the features, in alphabetical order.

    Raises:
        UsageError: one of them does not define `callbacks`.
    """
    found = _modules("features")
    for path in found.values():
        if not _defines(path, "callbacks"):
            raise UsageError(
                f"{_short(path)} is no feature: it should define callbacks(run_dir, model, data, *, FLAGS)"
            )
    return list(found)


@cache
def commands() -> dict[str, list[str]]:
    """The commands, each with the arguments that its `run` needs; ["argv"] where it has `main(argv)`.

    Raises:
        UsageError: one of them defines neither or both, or asks for what there is not.
    """
    found = {}
    for name, path in _modules("commands").items():
        functions = [function for function in ("run", "main") if _defines(path, function)]
        if len(functions) != 1:
            has = "both" if functions else "neither"
            raise UsageError(f"{_short(path)} is no command: it should define run(...) or main(argv), and has {has}")
        found[name] = ["argv"] if functions == ["main"] else _needs(path)
    return found


def actions() -> dict[str, str]:
    """What main.py can do, with a line of help each; of a command, what follows the colon in its first line."""
    first = {name: path.read_text("utf-8").partition("\n")[0] for name, path in _modules("commands").items()}
    return _TRAINER_ACTIONS | {name: line.partition(": ")[2].strip('."') for name, line in first.items()}


def load_command(name: str) -> Callable[..., Any]:
    """The function of a command."""
    module = importlib.import_module(f"engine.commands.{name}")
    return module.main if commands()[name] == ["argv"] else module.run


def load_features(run_dir: Path, model: Any, data: Any, arguments: dict[str, dict[str, Any]]) -> list[Any]:
    """The callbacks of all features. arguments: those of each feature, by its name."""
    every = {name: importlib.import_module(f"engine.features.{name}").callbacks for name in features()}
    return [one for name, make in every.items() for one in make(run_dir, model, data, **arguments[name])]


def hooks(function: str) -> dict[str, Callable[..., Any]]:
    """The features that define an optional function, one of those that engine/features/__init__.py lists."""
    modules = {name: importlib.import_module(f"engine.features.{name}") for name in features()}
    return {name: getattr(module, function) for name, module in modules.items() if hasattr(module, function)}


def source(folder: str, name: str) -> Path:
    """The file in which a feature or a command begins."""
    return _modules(folder)[name]


def _needs(path: Path) -> list[str]:
    """The positional arguments of a command's `run`."""
    function: Any = next(node for node in parse_definition(path, "run").body if getattr(node, "name", "") == "run")
    names = [one.arg for one in function.args.posonlyargs + function.args.args]
    if unknown := [name for name in names if name not in NEEDS]:
        raise UsageError(f"{_short(path)}: run asks for {', '.join(unknown)}; there are {', '.join(NEEDS)}")
    return names


def _defines(path: Path, function: str) -> bool:
    return bool(re.search(rf"^def {function}\(", path.read_text("utf-8"), re.MULTILINE))


def _short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def _modules(folder: str) -> dict[str, Path]:
    """Name -> file of the modules and sub-packages of a folder of engine/, in alphabetical order."""
    root = ROOT / "engine" / folder
    files = {path.stem: path for path in root.glob("*.py")}
    packages = {path.parent.name: path for path in root.glob("*/__init__.py")}
    found = {name: path for name, path in (files | packages).items() if not name.startswith(("_", "."))}
    return dict(sorted(found.items()))
