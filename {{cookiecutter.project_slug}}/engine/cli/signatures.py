"""What a class asks for: names, types, defaults and help, read from its source."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from engine.cli import conversion

REQUIRED = type("Required", (), {"__repr__": lambda self: "required"})()
# Bases whose constructors ask for nothing: a class on them without an `__init__` has no arguments.
_EMPTY_BASES = {"Module", "Dataset", "IterableDataset", "object", "MInterface", "LightningModule", "ABC"}


class Source(NamedTuple):
    """A default that only the class itself can work out, as it is written there."""

    text: str


class Parameter(NamedTuple):
    """One constructor argument. `default` is a plain value, REQUIRED, or a Source."""

    name: str
    annotation: ast.expr | None
    default: Any
    help: str
    owner: str


class Signature(NamedTuple):
    """The arguments of `owner`.

    knows: attributes of its instances, as values or Sources; None where only an instance can tell.
    open: it takes any further keyword too.
    fixes: of a subclass of MInterface, the arguments of MInterface that it has or sets itself.
    """

    owner: str
    parameters: dict[str, Parameter]
    knows: dict[str, Any] | None
    open: bool = False
    fixes: set[str] | None = None


@cache
def parse_definition(path: Path, name: str) -> ast.Module:
    """What a file defines by a name, and what stands above it: reading on to the end would cost as much again."""
    text = path.read_text(encoding="utf-8")
    begins = re.search(rf"^(?:def|class) {name}\b", text, re.MULTILINE)
    after = re.compile(r"^(?=[^\s)\]])|^    (?:def (?!__init__)|@(?!.*\n    def __init__))", re.MULTILINE)  # or methods
    ends = after.search(text, begins.end() if begins else 0)
    return ast.parse(text[: ends.start()] if ends else text, str(path))


def from_source(node: ast.ClassDef | ast.FunctionDef, tree: ast.Module, only_named: bool = False) -> Signature | None:
    """The signature as the source tells it; None where only the class itself can tell.

    That is so for an inherited `__init__`, for `*args` or `**kwargs`, and for a decorated class.
    only_named: only the arguments behind a `*` count, and what its instances know does not.
    """
    function: Any = node
    docs = [ast.get_docstring(node, clean=False) or ""]
    if isinstance(node, ast.ClassDef):
        if node.decorator_list:
            return None
        function = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
        if function is None:
            known = all(ast.unparse(base).rpartition(".")[2] in _EMPTY_BASES for base in node.bases)
            fixes = set[str]() if any(ast.unparse(base).endswith("MInterface") for base in node.bases) else None
            return Signature(node.name, {}, _knows(node), fixes=fixes) if known else None
        docs.append(ast.get_docstring(function, clean=False) or "")
    spec = function.args
    extends = [ast.unparse(base).rpartition(".")[2] for base in getattr(node, "bases", [])] == ["MInterface"]
    if spec.vararg or (spec.kwarg and not extends):
        return None  # the `**kwargs` of a system of its own are MInterface's, which stand elsewhere already
    positional = spec.posonlyargs + spec.args
    first_default = len(positional) - len(spec.defaults)
    pairs = [
        (arg, spec.defaults[at - first_default] if at >= first_default else None) for at, arg in enumerate(positional)
    ]
    pairs = [] if only_named else pairs[1:]
    pairs += zip(spec.kwonlyargs, spec.kw_defaults, strict=True)
    aliases, helps = _aliases(tree), helps_in("\n".join(docs))
    parameters = {
        arg.arg: Parameter(
            arg.arg,
            conversion.parse(ast.unparse(arg.annotation) if arg.annotation else "", aliases)
            or of_default(_default(default, tree)),
            _default(default, tree),
            helps.get(arg.arg, ""),
            node.name,
        )
        for arg, default in pairs
    }
    fixes = set(parameters) | _set_by_hand(function) if extends else None
    own = all(ast.unparse(base).rpartition(".")[2] in _EMPTY_BASES for base in getattr(node, "bases", []))
    return Signature(node.name, parameters, {} if only_named else _knows(node) if own else None, fixes=fixes)


def helps_in(doc: str) -> dict[str, str]:
    """Argument -> its words, from Google's `Args:`, from plain `name: words` lines, and from `:param name: words`."""
    helps: dict[str, str] = {}
    name, indent = "", 0
    for line in doc.splitlines():
        found = re.match(r"(\s*)(?::param\s+(?:[\w\[\], .|]+\s)?)?\*{0,2}(\w+)(?:\s*\([^)]*\))?\s*:\s+(\S.*)", line)
        depth = len(line) - len(line.lstrip())
        if found and (not name or depth <= indent):
            name, indent = found[2], depth
            helps.setdefault(name, found[3].strip())
        elif name and line.strip() and depth > indent:
            helps[name] += " " + line.strip()
        else:
            name = ""
    return helps


def _knows(node: ast.AST) -> dict[str, Any]:
    """Attributes set in a class body, as `self.name = ...` anywhere in it, or by a property."""
    knows: dict[str, Any] = {}
    for one in ast.walk(node):
        if isinstance(one, (ast.Assign, ast.AnnAssign)):
            for target, value in _pairs(one):
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                    knows[target.attr] = Source(target.attr)
                elif isinstance(target, ast.Name) and one in getattr(node, "body", []) and value is not None:
                    knows[target.id] = _literal(value, None)
        elif isinstance(one, ast.FunctionDef) and any(
            ast.unparse(mark) in ("property", "cached_property", "functools.cached_property")
            for mark in one.decorator_list
        ):
            knows[one.name] = Source(one.name)
    return knows


def _set_by_hand(function: ast.FunctionDef) -> set[str]:
    """Keywords that `super().__init__(...)` is given by name."""
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    supers = [call for call in calls if ast.unparse(call.func) == "super().__init__"]
    return {word.arg for call in supers for word in call.keywords if word.arg}


def _pairs(one: ast.Assign | ast.AnnAssign) -> list[tuple[ast.expr, ast.expr | None]]:
    """What is set and to what, `a, b = 1, 2` taken apart."""
    if isinstance(one, ast.AnnAssign):
        return [(one.target, one.value)]
    pairs: list[tuple[ast.expr, ast.expr | None]] = []
    for target in one.targets:
        if isinstance(target, ast.Tuple):
            values = one.value.elts if isinstance(one.value, ast.Tuple) else [one.value] * len(target.elts)
            pairs += zip(target.elts, values, strict=False)
        else:
            pairs.append((target, one.value))
    return pairs


def _aliases(tree: ast.Module) -> dict[str, ast.expr]:
    """What names in annotations stand for; a class of the file itself (an Enum, a dataclass) only code can give."""
    own: dict[str, ast.expr] = {node.name: ast.Name("type") for node in tree.body if isinstance(node, ast.ClassDef)}
    return own | {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if isinstance(node.value, (ast.Subscript, ast.BinOp))
    }


def _default(node: ast.expr | None, tree: ast.Module) -> Any:
    return REQUIRED if node is None else _literal(node, tree)


def _literal(node: ast.expr, tree: ast.Module | None) -> Any:
    """The plain value of a default: a literal, or a name that the file itself sets to one."""
    if isinstance(node, ast.Name) and tree is not None:
        for one in tree.body:
            if isinstance(one, ast.Assign) and [ast.unparse(target) for target in one.targets] == [node.id]:
                return _literal(one.value, None)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return Source(ast.unparse(node))


def of_default(default: Any) -> ast.expr | None:
    """The annotation that an untyped argument with a plain default deserves."""
    return ast.Name(type(default).__name__) if isinstance(default, (bool, int, float, str, list, dict)) else None
