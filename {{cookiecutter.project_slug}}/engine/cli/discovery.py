"""From a name on the command line to a class: a file of `data/` or `model/`, or a dotted path. Never imports torch."""

import ast
import importlib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import UsageError, nearest, simplify

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"model_name": "model", "dataset": "data"}  # flag -> folder
DottedPath = str  # the type of an argument that takes `package.module.name` and no other text


class ClassReference(NamedTuple):
    """Where a class stands. `node` and `tree` are its source, None for a dotted path."""

    module: str
    name: str
    tree: ast.Module | None = None
    node: ast.ClassDef | None = None

    def load(self) -> Any:
        """The class itself. An error inside the user's file passes through untouched."""
        return getattr(importlib.import_module(self.module), self.name)


def names(folder: str) -> list[str]:
    """The datasets or networks in `folder`: its files, less the interface and those that begin with an underscore."""
    stems = (path.stem for path in (ROOT / folder).glob("*.py"))
    return sorted(stem for stem in stems if not stem.startswith("_") and not stem.endswith("_interface"))


def find(folder: str, name: str) -> ClassReference:
    """The class that `name` means: `my_net` is a class MyNet (case and underscores aside) in `folder`/my_net.py.

    Raises:
        UsageError: no such file, class, package or attribute; the message says what there is.
        SyntaxError: the file is no valid Python.
    """
    known = names(folder)
    camel = "".join(part.capitalize() for part in name.split("_"))
    if name not in known:
        stem = simplify(name.rpartition("/")[2].removesuffix(".py"))
        if same := [one for one in known if simplify(one) == stem]:
            raise UsageError(f"{folder}/ has no {name!r}; did you mean {same[0]!r}?")
        if "." in name and all(part.isidentifier() for part in name.split(".")):
            return _find_dotted(name)
        there = f"{nearest(name, known) or '.'} It has: {', '.join(known) or 'nothing yet'}"
        raise UsageError(f"{folder}/ has no {name!r}{there}. To add it, write class {camel} in {folder}/{name}.py")
    path = ROOT / folder / f"{name}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for key, node in classes.items():
        if simplify(key) == simplify(name):
            return ClassReference(f"{folder}.{name}", key, tree, node)
    defines = ", ".join(classes) or "no class at all"
    raise UsageError(f"{folder}/{name}.py should define class {camel}; it defines {defines}")


def _find_dotted(path: str) -> ClassReference:
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, something that it imports is not
        raise UsageError(f"{path}: there is no module {error.name!r} (is its package installed?)") from None
    if not hasattr(module, name):
        raise UsageError(f"{path}: module {module_name} has no {name!r}{nearest(name, dir(module))}")
    if isinstance(getattr(module, name), partial):
        raise UsageError(f"{path} is a functools.partial: name what it calls, or write a function around it")
    if not callable(getattr(module, name)):
        raise UsageError(f"{path} is no class or function but a {type(getattr(module, name)).__name__}")
    return ClassReference(module_name, name)
