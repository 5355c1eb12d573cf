"""From a name on the command line to a class: a file of `data/` or `model/`, or a dotted path. Never imports torch."""

import ast
import importlib
import re
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class UsageError(Exception):
    """A mistake on the command line or in what it names, said in one line to the person who made it."""


class Found(NamedTuple):
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


def actions() -> dict[str, str]:
    """What main.py can do, with a line of help each: three that the Trainer does, and the files of engine/ that define
    `run(trainer, ...)`, or where they need none `run(settings, ...)` or `main(argv)`. Their first line of text is the
    help."""
    found = {
        "fit": "train, keep the best and the last state, test the best (done where no action is named)",
        "validate": "measure a checkpoint on the validation part",
        "test": "measure a checkpoint on the test part",
    }
    for path in sorted((ROOT / "engine").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if re.search(r"^def (run\(\s*(trainer|settings)|main\(argv)\b", text, re.MULTILINE):
            found[path.stem] = text.partition("\n")[0].partition(": ")[2].strip('."')
    return found


def features() -> list[str]:
    """The files of engine/ that bring callbacks and flags of their own: they define `callbacks(...)`."""
    return [path.stem for path in sorted((ROOT / "engine").glob("*.py")) if defines(path.stem, "callbacks")]


def end() -> None:
    """Lets the features that have something left to do when all is done do it: they define `end()`."""
    for name in features():
        if defines(name, "end"):
            importlib.import_module(f"engine.{name}").end()


def defines(stem: str, function: str, first: str = "") -> bool:
    """Whether there is a file of engine/ of this name with such a function, whose first argument begins so."""
    path = ROOT / "engine" / f"{stem}.py"
    return path.is_file() and bool(re.search(rf"^def {function}\(\s*{first}", path.read_text("utf-8"), re.MULTILINE))


def find(folder: str, name: str) -> Found:
    """The class that `name` means: `my_net` is a class MyNet (case and underscores aside) in `folder`/my_net.py.

    Raises:
        UsageError: no such file, class, package or attribute; the message says what there is.
        SyntaxError: the file is no valid Python.
    """
    stem = name.rpartition("/")[2].removesuffix(".py")
    if name not in names(folder) and (same := [one for one in names(folder) if _plain(one) == _plain(stem)]):
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
        if _plain(found) == _plain(name):
            return Found(f"{folder}.{name}", found, tree, classes[found])
    defines = ", ".join(classes) or "no class at all"
    raise UsageError(f"{folder}/{name}.py should define class {camel}; it defines {defines}")


def _find_dotted(path: str) -> Found:
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
    return Found(module, name)


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def nearest(name: str, known: Any) -> str:
    """A question to hang behind a message, or nothing: `; did you mean 'lenet'?`."""
    import difflib  # only mistakes pay for it

    plain = {_plain(one): one for one in known}
    close = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.6)
    return f"; did you mean {plain[close[0]]!r}?" if close else ""
