"""The arguments of a class or function that must be imported to know them: by inspect, through its `**kwargs`."""

import ast
from collections.abc import Collection
from contextlib import suppress
from functools import reduce
from typing import Any

from engine.cli import annotations, signatures_from_source
from engine.cli.signatures_from_source import REQUIRED, Expression, Parameter, Signature, is_plain
from engine.errors import UsageError

_NO_ARGUMENTS = {f"{name}.__init__" for name in ("Module", "LightningModule", "LightningDataModule", "DataHooks")}


def from_object(target: Any, owner: str = "") -> Signature:
    """A signature by inspection; `**kwargs` are followed into the calls that they are handed to.

    What stands behind `**kwargs` has no default here: the functions on the way may have one of their own.
    """
    import inspect  # what defines `target` is imported already: the cost no longer shows

    owner = owner or target.__name__
    found, accepts_any = _parameters(target, inspect, set())
    docs = "\n".join(inspect.getdoc(one) or "" for one in (target, getattr(target, "__init__", None)))
    parameters = {}
    for name, parameter in found.items():
        default = REQUIRED if parameter.default is parameter.empty else parameter.default
        if not (default is REQUIRED or isinstance(default, Expression) or is_plain(default)):
            default = Expression(repr(default))
        annotation = () if parameter.annotation is parameter.empty else annotations.from_hint(parameter.annotation)
        parameters[name] = Parameter(name, annotation or annotations.of_default(default), default, docs, owner)
    mro = getattr(target, "__mro__", ())
    source = ""
    with suppress(OSError, TypeError):  # a function written in C, or in a notebook
        source = inspect.getsource(target)
    base = signatures_from_source.base_of({one.__name__ for one in mro})
    signature = Signature(owner, parameters, None, accepts_any, base, source=source)
    if signature.base != "MInterface":
        return signature
    # All that a subclass of MInterface hands on to it is among the parameters already.
    index = next(number for number, one in enumerate(mro) if one.__name__ == "MInterface")
    own = {name for one in mro[:index] if "__init__" in vars(one) for name in inspect.signature(one).parameters}
    definitions = [node for one in mro[:index] for node in _syntax(one, inspect).body]
    ignored = signatures_from_source.ignored_flags(definitions) - own
    overrides = frozenset(inspect.signature(mro[index]).parameters)
    return signature.without(ignored)._replace(overrides=overrides, ignored=ignored)


def _parameters(target: Any, inspect: Any, visited: set[Any]) -> tuple[dict[str, Any], bool]:
    """The parameters by name, those behind `**kwargs` included, and whether further keywords stay unknown."""
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    if function in visited or function is object.__init__ or function.__qualname__ in _NO_ARGUMENTS:
        return {}, False
    try:
        spec = _signature(function, inspect).parameters
    except (ValueError, TypeError):
        return {}, True  # built in, without a signature
    parameters = {name: one for name, one in spec.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    if inspect.isclass(target):
        parameters.pop(next(iter(spec)), None)
        by_place = [one for one in [*spec.values()][1:] if one.kind is one.POSITIONAL_ONLY and one.default is one.empty]
        if by_place and not visited:
            what = f"{target.__name__} takes {by_place[0].name} by its place, and a flag is given by its name"
            raise UsageError(f"{what}: take away the / in its arguments")
    kwargs = next((name for name, one in spec.items() if one.kind is one.VAR_KEYWORD), None)
    if kwargs is None:
        return parameters, False
    tree = _syntax(function, inspect)
    asked = signatures_from_source.keys_of(tree, kwargs)[0]
    callees = _calls_with(kwargs, tree, function, target)
    inner = [
        _behind(callee, num_bound, keywords, asked.keys(), inspect, visited | {function})
        for callee, num_bound, keywords in callees
    ]
    accepts_any = not inner or any(any_more for _, any_more in inner)
    for name, one in [(name, one) for found, _ in inner for name, one in found.items()]:
        required = one.default is one.empty and name not in asked and all(name in found for found, _ in inner)
        if not (required or isinstance(one.default, Expression)):
            one = one.replace(default=Expression(asked.get(name, repr(one.default))))
        parameters.setdefault(name, one)
    for name, default in asked.items():
        one = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=Expression(default))
        parameters.setdefault(name, one)
    return parameters, accepts_any


def _signature(function: Any, inspect: Any) -> Any:
    try:
        return inspect.signature(function, eval_str=True)
    except (NameError, AttributeError, TypeError, SyntaxError):  # a name for type checkers alone
        return inspect.signature(function)


def _syntax(target: Any, inspect: Any) -> ast.Module:
    """The syntax tree of a function or class; an empty one where it has no source, as in a notebook."""
    import textwrap

    try:
        return ast.parse(textwrap.dedent(inspect.getsource(target)))
    except (OSError, TypeError, SyntaxError):
        return ast.Module([], [])


def _behind(
    callee: Any, num_bound: int, keywords: set[str], asked: Collection[str], inspect: Any, visited: set[Any]
) -> tuple[dict[str, Any], bool]:
    """The parameters of a callee that are left for `**kwargs`: nothing fills them but what is asked of `**kwargs`."""
    if not callable(callee):
        return {}, True
    found, accepts_any = _parameters(callee, inspect, visited)
    bound = {*[*found][:num_bound], *keywords} - {*asked}
    return {name: one for name, one in found.items() if name not in bound}, accepts_any


def _calls_with(kwargs: str, tree: ast.AST, function: Any, target: Any) -> Any:
    """Each call that hands on `**kwargs`: (callee or None, number of positional arguments, keywords given)."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if keywords.get(None) != kwargs:
            continue
        callee = None
        if signatures_from_source.is_super(call.func):
            home = next((one for one in target.__mro__ if one.__dict__.get("__init__") is function), target)
            callee = target.__mro__[target.__mro__.index(home) + 1]
        elif isinstance(call.func, (ast.Name, ast.Attribute)):
            first, *rest = ast.unparse(call.func).split(".")
            cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
            with suppress(AttributeError, ValueError):  # such as a method, or what has no value yet
                known = cells[first].cell_contents if first in cells else function.__globals__.get(first)
                callee = reduce(getattr, rest, known)  # such as what is decorated
        num_bound = sum(not isinstance(one, ast.Starred) for one in call.args)
        yield callee, num_bound, {word for word in keywords if word}
