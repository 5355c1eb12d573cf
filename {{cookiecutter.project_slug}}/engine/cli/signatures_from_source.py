"""The arguments of a class or function as its source states them: names, types, defaults and help."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from engine.cli import type_conversion
from engine.errors import UsageError

REQUIRED = type("Required", (), {"__repr__": lambda self: "required"})()
# Bases whose constructors need nothing: a class on them without an `__init__` has no arguments.
_BASES_WITHOUT_ARGUMENTS = {"Module", "Dataset", "IterableDataset", "object", "MInterface", "LightningModule", "ABC"}
_PROPERTIES = {"property", "cached_property", "functools.cached_property"}
_HELP_LINE = re.compile(r"(\s*)(?::param\s+(?:[\w\[\], .|]+\s)?)?\*{0,2}(\w+)(?:\s*\([^)]*\))?\s*:\s+(\S.*)")

# A function or class down to the end of its (constructor's) docstring.
_HEAD = re.compile(
    r"(?:class \w+(?:.*\n)*?    def __init__|def \w+)\((?:.*\n)*?.*\)(?: -> .*)?:(?: *#.*)?\n"
    r'(?:\s+r?"""(?:.|\n)*?"""\n)?'
)


class Expression(NamedTuple):
    """A default that only the code itself can evaluate, as it is written there."""

    text: str


class Parameter(NamedTuple):
    """One argument of `owner`. default: a plain value, REQUIRED or an Expression. docs: where its help stands."""

    name: str
    annotation: ast.expr | None
    default: Any
    docs: str
    owner: str

    @property
    def help(self) -> str:
        """What the docstring of its owner says of it, or ""."""
        return _helps(self.docs).get(self.name, "")


class Signature(NamedTuple):
    """The arguments of `owner`.

    attributes: those of its instances, as values or Expressions; None where only an instance can tell.
    accepts_any: it has a `**kwargs` that takes any further keyword.
    overrides: of a subclass of MInterface, the arguments of MInterface that it has or sets itself.
    """

    owner: str
    parameters: dict[str, Parameter]
    attributes: dict[str, Any] | None = None
    accepts_any: bool = False
    overrides: set[str] | None = None

    def without(self, names: Any) -> "Signature":
        """The same without some of the arguments."""
        return self._replace(parameters={name: one for name, one in self.parameters.items() if name not in names})


@cache
def find_definition(path: Path, name: str) -> tuple[Any, ast.Module]:
    """A function or class of a file, less its body and further methods, and what its names may refer to.

    To parse the whole file would take several times as long.

    Raises:
        UsageError: the file does not define it.
    """
    text = path.read_text(encoding="utf-8")
    heads = (f"\ndef {name}(", f"\nclass {name}(", f"\nclass {name}:")
    start = next((at + 1 for head in heads if (at := text.find(head)) >= 0), None)
    if start is None or not (found := _HEAD.match(text, start)):
        raise UsageError(f"{path} should define {name} itself: its arguments are flags")
    definition = found[0] + " " * (8 if found[0].startswith("class") else 4) + "pass\n"
    above = text[: found.start()]
    constants = re.findall(r"^(?:\w+ = |class ).*(?:\n[ )\]}].*)*", above, re.MULTILINE)
    try:
        tree = ast.parse("\n".join([*constants, definition]), str(path))
    except SyntaxError:
        tree = ast.parse(above + definition, str(path))
    return tree.body[-1], tree


def from_source(node: Any, tree: ast.Module, keyword_only: bool = False) -> Signature | None:
    """The signature of a class or function; None where only the class itself can tell.

    That is so for an inherited `__init__`, for `*args` or `**kwargs`, and for a decorated class.
    keyword_only: only the arguments behind a `*` count, and the attributes do not.
    """
    function, docs, bases = node, ast.get_docstring(node, clean=False) or "", set[str]()
    if isinstance(node, ast.ClassDef):
        if node.decorator_list:
            return None
        bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        functions = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
        if not functions:
            overrides = set[str]() if "MInterface" in bases else None
            signature = Signature(node.name, {}, _attributes(node), overrides=overrides)
            return signature if bases <= _BASES_WITHOUT_ARGUMENTS else None
        function = functions[0]
        docs += "\n" + (ast.get_docstring(function, clean=False) or "")
    spec, is_system = function.args, bases == {"MInterface"}
    if spec.vararg or (spec.kwarg and not is_system):
        return None  # the `**kwargs` of a subclass of MInterface are MInterface's, which stand elsewhere already
    positional = spec.posonlyargs + spec.args
    defaults = [None] * (len(positional) - len(spec.defaults)) + spec.defaults
    pairs = [] if keyword_only else list(zip(positional, defaults, strict=True))[1:]
    pairs += zip(spec.kwonlyargs, spec.kw_defaults, strict=True)
    names = _names_of(tree)
    parameters = {}
    for argument, expression in pairs:
        default = REQUIRED if expression is None else _literal(names.get(getattr(expression, "id", ""), expression))
        if isinstance(default, Expression):
            default = Expression(ast.unparse(expression))
        annotation = _resolve(argument.annotation, names) or annotation_of(default)
        parameters[argument.arg] = Parameter(argument.arg, annotation, default, docs, node.name)
    known = not keyword_only and bases <= _BASES_WITHOUT_ARGUMENTS
    overrides = parameters.keys() | _super_keywords(function) if is_system else None
    return Signature(node.name, parameters, _attributes(node) if known else None, overrides=overrides)


def annotation_of(default: Any) -> ast.expr | None:
    """The annotation of an untyped argument with a plain default: the type of the default."""
    return ast.Name(type(default).__name__) if isinstance(default, (bool, int, float, str, list, dict)) else None


@cache
def _helps(docs: str) -> dict[str, str]:
    """Argument -> help, from Google's `Args:`, from plain `name: text` lines, and from `:param name: text`."""
    helps: dict[str, str] = {}
    name, indent = "", 0
    for line in docs.splitlines():
        found = _HELP_LINE.match(line)
        depth = len(line) - len(line.lstrip())
        if found and (not name or depth <= indent):
            name, indent = found[2], depth
            helps.setdefault(name, found[3].strip())
        elif name and line.strip() and depth > indent:
            helps[name] += " " + line.strip()
        else:
            name = ""
    return helps


def _attributes(node: ast.ClassDef) -> dict[str, Any]:
    """Attributes set in a class body, as `self.name = ...` anywhere in it, or by a property."""
    attributes: dict[str, Any] = {}
    for one in ast.walk(node):
        if isinstance(one, (ast.Assign, ast.AnnAssign)):
            for target, value in _assignments(one):
                if isinstance(target, ast.Attribute) and getattr(target.value, "id", "") == "self":
                    attributes[target.attr] = Expression(target.attr)
                elif isinstance(target, ast.Name) and one in node.body and value is not None:
                    attributes[target.id] = _literal(value)
        elif isinstance(one, ast.FunctionDef) and _PROPERTIES & set(map(ast.unparse, one.decorator_list)):
            attributes[one.name] = Expression(one.name)
    return attributes


def _assignments(node: ast.Assign | ast.AnnAssign) -> list[tuple[ast.expr, ast.expr | None]]:
    """Targets and values, `a, b = 1, 2` taken apart."""
    if isinstance(node, ast.AnnAssign):
        return [(node.target, node.value)]
    pairs: list[tuple[ast.expr, ast.expr | None]] = []
    for target in node.targets:
        if isinstance(target, ast.Tuple):
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value] * len(target.elts)
            pairs += zip(target.elts, values, strict=False)
        else:
            pairs.append((target, node.value))
    return pairs


def _super_keywords(function: ast.FunctionDef) -> set[str]:
    """Keywords that `super().__init__(...)` is given by name."""
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    supers = [call for call in calls if ast.unparse(call.func) == "super().__init__"]
    return {word.arg for call in supers for word in call.keywords if word.arg}


def _names_of(tree: ast.Module) -> dict[str, ast.expr]:
    """What a file's own names stand for; a class of it (an Enum, a dataclass) is a `type`, which only code can give."""
    names: dict[str, ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names[node.name] = ast.Name("type")
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names[node.targets[0].id] = node.value
    return names


def _resolve(annotation: ast.expr | None, names: dict[str, ast.expr]) -> ast.expr | None:
    """An annotation with the file's own names filled in."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = type_conversion.parse(annotation.value)
    return _Fill(names).visit(annotation) if annotation is not None and names else annotation


class _Fill(ast.NodeTransformer):
    def __init__(self, names: dict[str, ast.expr]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.names.get(node.id, node)


def _literal(node: ast.expr) -> Any:
    """The plain value of an expression, or the Expression."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return Expression(ast.unparse(node))
