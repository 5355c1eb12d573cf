"""From a name on the command line to a class: a file of `data/` or `model/`, or a dotted path. Never imports torch."""

import ast
import importlib
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import UsageError, nearest, simplify

ROOT = Path(__file__).resolve().parents[2]


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
    """What `folder` offers: its files, less the interface and those that begin with an underscore."""
    stems = (path.stem for path in (ROOT / folder).glob("*.py"))
    return sorted(stem for stem in stems if not stem.startswith("_") and not stem.endswith("_interface"))


def find(folder: str, name: str) -> ClassReference:
    """The class that `name` means: `my_net` is a class MyNet (case and underscores aside) in `folder`/my_net.py.

    Raises:
        UsageError: no such file, class, package or attribute; the message says what there is.
        SyntaxError: the file is no valid Python.
    """
    stem = name.rpartition("/")[2].removesuffix(".py")
    if name not in names(folder) and (same := [one for one in names(folder) if simplify(one) == simplify(stem)]):
        raise UsageError(f"{folder}/ has no {name!r}; did you mean {same[0]!r}?")
    if "." in name:
        return _find_dotted(name)
    path = ROOT / folder / f"{name}.py"
    camel = "".join(part.capitalize() for part in name.split("_"))
    if name not in names(folder):
        offers = ", ".join(names(folder)) or "nothing yet"
        raise UsageError(
            f"{folder}/ has no {name!r}{nearest(name, names(folder)) or '.'} It has: {offers}. "
            f"To add it, write class {camel} in {folder}/{name}.py"
        )
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for found in classes:
        if simplify(found) == simplify(name):
            return ClassReference(f"{folder}.{name}", found, tree, classes[found])
    defines = ", ".join(classes) or "no class at all"
    raise UsageError(f"{folder}/{name}.py should define class {camel}; it defines {defines}")


def _find_dotted(path: str) -> ClassReference:
    module, _, name = path.rpartition(".")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, something that it imports is not
        raise UsageError(f"{path}: there is no module {error.name!r} (is its package installed?)") from None
    if not hasattr(found, name):
        raise UsageError(f"{path}: module {module} has no {name!r}{nearest(name, dir(found))}")
    if not callable(getattr(found, name)):
        raise UsageError(f"{path} is no class or function but a {type(getattr(found, name)).__name__}")
    return ClassReference(module, name)
