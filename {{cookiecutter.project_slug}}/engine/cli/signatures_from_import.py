"""The arguments of a class or function that must be imported to know them: by inspect, through its `**kwargs`."""

import ast
from typing import Any

from engine.cli import type_conversion
from engine.cli.signatures_from_source import REQUIRED, Expression, Parameter, Signature, annotation_of


def from_object(target: Any, owner: str = "") -> Signature:
    """A signature by inspection; `**kwargs` are followed into the calls that they are handed to."""
    import inspect  # what defines `target` is imported already: the cost no longer shows

    owner = owner or target.__name__
    found, accepts_any = _parameters(target, inspect, set())
    docs = "\n".join(inspect.getdoc(one) or "" for one in (target, getattr(target, "__init__", None)))
    parameters = {}
    for name, parameter in found.items():
        default = REQUIRED if parameter.default is parameter.empty else parameter.default
        if default is not REQUIRED and not _is_plain(default):
            default = Expression(repr(default))
        hint = "" if parameter.annotation is parameter.empty else parameter.annotation
        if not isinstance(hint, str):
            hint = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
        annotation = type_conversion.parse(hint) or annotation_of(default)
        parameters[name] = Parameter(name, annotation, default, docs, owner)
    # All that a subclass of MInterface hands on to it is among the parameters already.
    base = next((one for one in getattr(target, "__mro__", ()) if one.__name__ == "MInterface"), None)
    overrides = set(inspect.signature(base).parameters) if base else None
    return Signature(owner, parameters, None, accepts_any, overrides)


def _parameters(target: Any, inspect: Any, visited: set[Any]) -> tuple[dict[str, Any], bool]:
    """The parameters by name, those behind `**kwargs` included, and whether further keywords stay unknown."""
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    if function in visited or function is object.__init__ or function.__qualname__ == "Module.__init__":
        return {}, False
    try:
        spec = inspect.signature(function).parameters
    except (ValueError, TypeError):
        return {}, True  # built in, without a signature
    parameters = {name: one for name, one in spec.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    if inspect.isclass(target):
        parameters.pop(next(iter(spec)), None)
    kwargs = next((name for name, one in spec.items() if one.kind is one.VAR_KEYWORD), None)
    if kwargs is None:
        return parameters, False
    accepts_any = True
    for callee, num_bound, keywords in _calls_with(kwargs, function, target, inspect):
        inner, accepts_any = _parameters(callee, inspect, visited | {function})
        parameters |= {
            name: one for name, one in [*inner.items()][num_bound:] if name not in parameters and name not in keywords
        }
    return parameters, accepts_any


def _calls_with(kwargs: str, function: Any, target: Any, inspect: Any) -> Any:
    """Each call in `function` that hands on `**kwargs`: (callee, number of positional arguments, keywords given)."""
    import textwrap

    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if keywords.get(None) != kwargs:
            continue
        if ast.unparse(call.func) == "super().__init__":
            home = next((one for one in target.__mro__ if one.__dict__.get("__init__") is function), target)
            callee = target.__mro__[target.__mro__.index(home) + 1]
        else:
            callee = function.__globals__.get(ast.unparse(call.func))
        if callable(callee):
            yield callee, len(call.args), keywords


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, dict))
