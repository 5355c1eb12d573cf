"""The arguments of a class or function as its source states them: names, types, defaults and help."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from engine.cli import annotations
from engine.cli.annotations import Annotation
from engine.errors import UsageError

REQUIRED = type("Required", (), {"__repr__": lambda self: "required"})()
# Bases whose constructors need nothing: a class on them without an `__init__` has no arguments.
_OURS = ("MInterface", "LightningModule", "LightningDataModule")  # what decides which other flags there are
_BASES_WITHOUT_ARGUMENTS = {"Module", "Dataset", "IterableDataset", "object", "ABC", *_OURS}
# Flags of MInterface -> its attributes through which a method of a subclass takes notice of them.
_OPTIMIZER_FLAGS = {"lr": "lr", "optimizer": "optimizer_name", "weight_decay": "weight_decay", "lr_scale": "lr_scale"}
_OPTIMIZER_FLAGS |= {"no_decay_norm_bias": "no_decay_norm_bias", "schedule": "schedule"}
_LOSS_FLAGS = {"loss": "loss", "class_weights": "loss", "head_losses": "heads"}
_LOSS_FLAGS |= {"metrics": "metrics", "metric_thresholds": "metrics"}
# Arguments that ask a dataset for a split, and the values that mean one.
_SPLIT_ARGUMENTS = ("split", "mode", "phase", "partition", "image_set")
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_STEPS = {"training_step", "validation_step", "test_step"}
_PROPERTIES = {"property", "cached_property", "functools.cached_property"}
_HELP_LINE = re.compile(r"(\s*)(?::param\s+(?:[\w\[\], .|]+\s)?)?\*{0,2}(\w+)(?:\s*\([^)]*\))?\s*(?::\s+|：\s*)(\S.*)")
# Between `lr: learning rate.` and `width: of the hidden layers.` in one line.
_SENTENCES = re.compile(r"(?:(?<=\.)\s+|(?<=[。；])\s*)(?=[^\W\d]\w*(?::\s|：))")
# A function or class down to the end of its (constructor's) docstring.
_HEAD = re.compile(
    r"(?:class \w+(?:.*\n)*?    def __init__|def \w+)\((?:.*\n)*?.*\)(?: -> .*)?:(?: *#.*)?\n"
    r'(?:\s+r?"""(?:.|\n)*?"""\n)?'
)


class Expression(NamedTuple):
    """A default that only the code itself can work out, as it is written there: Python fills it in, not a flag."""

    text: str


class Parameter(NamedTuple):
    """One argument of `owner`. default: a plain value, REQUIRED or an Expression. docs: where its help stands."""

    name: str
    annotation: Annotation
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
    source: of a class with one of _SPLIT_ARGUMENTS, as text.
    base: "MInterface", "LightningModule" or "LightningDataModule", of whose subclass it is the constructor; else "".
    overrides: of a subclass of MInterface, the arguments of MInterface that it has or sets itself.
    ignored: of a subclass of MInterface, those of which its own methods take no notice; "schedule" for the schedule's.
    """

    owner: str
    parameters: dict[str, Parameter]
    attributes: dict[str, Any] | None = None
    accepts_any: bool = False
    base: str = ""
    overrides: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    source: str = ""

    @property
    def split_values(self) -> tuple[str, dict[str, str]] | None:
        """Of a dataset, the argument that asks for a split, and its value for "train", "val" and "test".

        The values are those that a Literal or a check (`assert mode in ("train", "val")`) lists, in the words of
        _SPLIT_WORDS; without one, those three words. None where no argument has such values.
        """
        for name in _SPLIT_ARGUMENTS:
            if (parameter := self.parameters.get(name)) is None:
                continue
            checked = re.search(rf"\b{name}(?: not)? in [\[({{]([^\])}}]*)", self.source)
            listed = re.findall(r"['\"](\w+)['\"]", checked[1]) if checked else []
            accepted = annotations.choices(parameter.annotation) or listed
            values = {split: one for split, words in _SPLIT_WORDS.items() for one in accepted if one.lower() in words}
            if "train" in values:
                return name, values
            said = {word for words in _SPLIT_WORDS.values() for word in words}
            if not accepted and (name == "split" or parameter.default is REQUIRED or parameter.default in said):
                return name, {split: split for split in _SPLIT_WORDS}
        return None

    def without(self, names: Any) -> "Signature":
        """The signature without some of the arguments."""
        return self._replace(parameters={name: one for name, one in self.parameters.items() if name not in names})


@cache
def find_definition(path: Path, name: str) -> tuple[Any, ast.Module]:
    """A function or class of a file, less its body and further methods, and what its names may refer to.

    To parse the whole file would take several times as long.

    Raises: UsageError: the file does not define it.
    """
    text = path.read_text(encoding="utf-8")
    heads = (f"\ndef {name}(", f"\nclass {name}(", f"\nclass {name}:")
    start = next((at + 1 for head in heads if (at := text.find(head)) >= 0), None)
    if start is None or not (found := _HEAD.match(text, start)):
        raise UsageError(f"{path} should define {name} itself: its arguments are flags")
    definition = found[0] + " " * (8 if found[0].startswith("class") else 4) + "pass\n"
    above = text[: found.start()]
    constants = re.findall(r"\n(\w+ = .*(?:\n[ )\]}].*)*)", f"\n{above}")
    both = "\n".join([*constants, definition])
    constants = [one for one in constants if both.count(one.partition(" ")[0]) > 1]  # in use
    try:
        tree = ast.parse("\n".join([*constants, definition]), str(path))
    except SyntaxError:
        tree = ast.parse(above + definition, str(path))
    return tree.body[-1], tree


def from_source(node: Any, tree: ast.Module, keyword_only: bool = False) -> Signature | None:
    """The signature of a class or function; None where only the class itself can tell.

    That is so for an inherited `__init__`, a base class of one's own, `*args` or `**kwargs`, and a decorated class.
    keyword_only: only the arguments behind a `*` count, and the attributes do not.
    """
    function, docs, bases = node, ast.get_docstring(node, clean=False) or "", set[str]()
    if isinstance(node, ast.ClassDef):
        bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        functions = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
        if node.decorator_list or node.keywords or len(functions) > 1:
            return None
        if not (keyword_only or base_of(bases) or bases <= _BASES_WITHOUT_ARGUMENTS):
            return None  # it may descend from a LightningModule
        if not functions:
            signature = Signature(node.name, {}, _attributes(node), base=base_of(bases), ignored=ignored_flags([node]))
            behind_if = any(getattr(one, "name", getattr(one, "id", "")) == "__init__" for one in ast.walk(node))
            return None if behind_if or not bases <= _BASES_WITHOUT_ARGUMENTS else signature
        function = functions[0]
        docs += "\n" + (ast.get_docstring(function, clean=False) or "")
    spec, is_system = function.args, bases == {"MInterface"}
    open_ended = spec.vararg or spec.posonlyargs or (spec.kwarg and not is_system)
    if open_ended or (function.decorator_list and not keyword_only):
        return None  # the `**kwargs` of a subclass of MInterface are MInterface's, which stand elsewhere already
    positional = spec.args
    defaults = [None] * (len(positional) - len(spec.defaults)) + spec.defaults
    pairs = [] if keyword_only else list(zip(positional, defaults, strict=True))[1:]
    pairs += zip(spec.kwonlyargs, spec.kw_defaults, strict=True)
    names = _names_of(tree) if any(isinstance(one, (ast.Assign, ast.AnnAssign)) for one in tree.body) else {}
    parameters = {}
    for argument, expression in pairs:
        default = REQUIRED if expression is None else _literal(names.get(getattr(expression, "id", ""), expression))
        annotation = annotations.from_syntax(argument.annotation, names) or annotations.of_default(default)
        may_change = isinstance(expression, ast.Name) and isinstance(default, (list, dict, set))  # before it is used
        if may_change or isinstance(default, Expression):
            default = Expression(ast.unparse(expression))
        parameters[argument.arg] = Parameter(argument.arg, annotation, default, docs, node.name)
    known = not keyword_only and bases <= _BASES_WITHOUT_ARGUMENTS
    text = ast.unparse(node) if parameters.keys() & {*_SPLIT_ARGUMENTS} else ""  # costs more than all else here
    signature = Signature(node.name, parameters, _attributes(node) if known else None, base=base_of(bases), source=text)
    if not is_system:
        return signature
    asked, filled = keys_of(function, spec.kwarg.arg) if spec.kwarg else ({}, set[str]())
    for name, default in asked.items():
        parameters.setdefault(name, Parameter(name, (), Expression(default), docs, node.name))
    calls = (one for one in ast.walk(function) if isinstance(one, ast.Call) and is_super(one.func))
    filled |= {word.arg for call in calls for word in call.keywords if word.arg}
    overrides = frozenset(parameters.keys() | filled)
    return signature._replace(overrides=overrides, ignored=ignored_flags([node]))


def base_of(names: set[str]) -> str:
    """Which of the base classes that Signature tells apart is among some names."""
    return next((one for one in _OURS if one in names), "")


def ignored_flags(classes: list[Any]) -> frozenset[str]:
    """The arguments of MInterface of which the methods of a subclass (and its own bases) take no notice."""
    methods = {one.name for node in classes for one in node.body if isinstance(one, ast.FunctionDef)}
    attributes = [one for node in classes for one in ast.walk(node) if isinstance(one, ast.Attribute)]
    own = {one.attr for one in attributes if ast.unparse(one.value) == "self"}
    handed_on = {one.attr for one in attributes if ast.unparse(one.value) in ("super()", "MInterface")}
    ignored = set[str]()
    if "configure_optimizers" in methods - handed_on:
        ignored |= {flag for flag, attribute in _OPTIMIZER_FLAGS.items() if attribute not in own}
    # MInterface.step takes the loss and the metrics; it is called by MInterface's three steps.
    if "step" in methods - handed_on or (methods - handed_on >= _STEPS and "step" not in own):
        ignored |= {flag for flag, attribute in _LOSS_FLAGS.items() if attribute not in own}
    return frozenset(ignored)


def keys_of(function: ast.AST, kwargs: str) -> tuple[dict[str, str], set[str]]:
    """What a function does with its `**kwargs` itself.

    Returns:
        The keys that it asks for, by `pop`, `get`, `setdefault` or `[...]`, with their defaults as text; those it sets.
    """
    asked: dict[str, str] = {}
    filled: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and ast.unparse(node.func).partition(".")[0] == kwargs:
            filled |= {word.arg for word in node.keywords if word.arg}  # kwargs.update(lr=0.1)
            keys, default = node.args[:1], node.args[1:2]
        elif isinstance(node, ast.Call) and node.args and getattr(node.args[0], "id", "") == kwargs:
            keys, default = node.args[1:2], node.args[2:3]  # torchvision's _ovewrite_named_param(kwargs, "groups", 32)
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == kwargs:
            keys, default = [node.slice], []
        else:
            continue
        for key in (one.value for one in keys if isinstance(one, ast.Constant) and isinstance(one.value, str)):
            if isinstance(getattr(node, "ctx", None), ast.Store):
                filled.add(key)
            else:
                asked[key] = ast.unparse(default[0]) if default else "worked out"
    return asked, filled


@cache
def _helps(docs: str) -> dict[str, str]:
    """Argument -> help, from Google's `Args:`, lines or sentences `name: text`, and `:param name: text`."""
    helps: dict[str, str] = {}
    name, indent = "", 0
    for line in docs.splitlines():
        depth = len(line) - len(line.lstrip())
        for text in _SENTENCES.split(line):
            found = _HELP_LINE.match(text)
            if found and (not name or depth <= indent):
                name, indent = found[2], depth
                helps.setdefault(name, found[3].strip())
            elif name and text.strip() and depth > indent:
                helps[name] += " " + text.strip()
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


def is_super(function: ast.expr) -> bool:
    """Whether it is `super().__init__` or `super(Net, self).__init__`."""
    return isinstance(function, ast.Attribute) and function.attr == "__init__" and (
        isinstance(function.value, ast.Call) and getattr(function.value.func, "id", "") == "super")  # fmt: skip


def _names_of(tree: ast.Module) -> dict[str, ast.expr]:
    """What a file's own names stand for, of those that nothing else in the file sets again."""
    stored = []
    for one in ast.walk(tree):
        if isinstance(one, ast.alias):
            stored.append(one.asname or one.name)
        elif isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store):
            stored.append(one.id)
    names: dict[str, ast.expr] = {}
    for node in tree.body if "*" not in stored else ():  # `from settings import *` may set any
        targets = getattr(node, "targets", None) or [getattr(node, "target", getattr(node, "name", None))]
        target, value = targets[0], getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.expr) and stored.count(target.id) == 1:
            names[target.id] = value
    return names


def _literal(node: ast.expr) -> Any:
    """The plain value of an expression, or the Expression."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError):  # `{[]: 1}` cannot even be built
        return Expression(ast.unparse(node))
    return value if is_plain(value) else Expression(ast.unparse(node))


def is_plain(value: Any) -> bool:
    """Whether YAML and a checkpoint can hold it as it is."""
    if isinstance(value, dict):
        return all(map(is_plain, [*value, *value.values()])) and not any(isinstance(key, tuple) for key in value)
    return all(map(is_plain, value)) if isinstance(value, (list, tuple, set)) else (
        value is None or type(value) in (bool, int, float, str))  # fmt: skip
