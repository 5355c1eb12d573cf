"""What a class asks for where its source alone cannot tell: found out from the class itself, once it is imported."""

import ast
from typing import Any

from engine.cli import conversion
from engine.cli.signatures import REQUIRED, Parameter, Signature, Source, helps_in, of_default


def from_object(thing: Any, owner: str = "") -> Signature:
    """A signature by inspection; `**kwargs` are followed into the calls that they are handed to."""
    import inspect  # with everything that defines `thing` imported already, its cost no longer shows

    owner = owner or thing.__name__
    found, further = _inspect(thing, inspect, set())
    docs = "\n".join(inspect.getdoc(one) or "" for one in (thing, getattr(thing, "__init__", None)) if one is not None)
    helps = helps_in(docs)
    parameters = {}
    for name, parameter in found.items():
        hint = parameter.annotation
        text = "" if hint is inspect.Parameter.empty else hint if isinstance(hint, str) else _spell(hint)
        default = REQUIRED if parameter.default is inspect.Parameter.empty else parameter.default
        if not _is_plain(default) and default is not REQUIRED:
            default = Source(repr(default))
        annotation = conversion.parse(text) or of_default(default)
        parameters[name] = Parameter(name, annotation, default, helps.get(name, ""), owner)
    # Followed into MInterface, the parameters hold all that it leaves open: nothing is left for the system's own group.
    base = next((one for one in getattr(thing, "__mro__", ()) if one.__name__ == "MInterface"), None)
    fixes = set(inspect.signature(base).parameters) if base else None
    return Signature(owner, parameters, None, further, fixes)


def _inspect(thing: Any, inspect: Any, seen: set[Any]) -> tuple[dict[str, Any], bool]:
    """The parameters of `thing` by name, those behind its `**kwargs` included, and whether some stay unknown."""
    function = thing.__init__ if inspect.isclass(thing) else thing
    function = inspect.unwrap(function)
    if function in seen or function is object.__init__ or function.__qualname__ == "Module.__init__":
        return {}, False
    try:
        spec = inspect.signature(function).parameters
    except (ValueError, TypeError):
        return {}, True  # built in, without a signature
    named = {name: one for name, one in spec.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    if inspect.isclass(thing):
        named.pop(next(iter(spec)), None)
    catch_all = next((name for name, one in spec.items() if one.kind is one.VAR_KEYWORD), None)
    if catch_all is None:
        return named, False
    further = True
    for callee, bound, taken in _calls_with(function, catch_all, thing, inspect):
        inner, further = _inspect(callee, inspect, seen | {function})
        rest = list(inner.items())[bound:]
        named |= {name: one for name, one in rest if name not in named and name not in taken}
    return named, further


def _calls_with(function: Any, catch_all: str, thing: Any, inspect: Any) -> Any:
    """Each call inside `function` that hands on `**catch_all`: (callee, positional arguments bound, keywords bound)."""
    import textwrap

    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        handed = [word for word in call.keywords if word.arg is None and ast.unparse(word.value) == catch_all]
        if not handed:
            continue
        taken = {word.arg for word in call.keywords}
        if ast.unparse(call.func) == "super().__init__":
            home = next((one for one in thing.__mro__ if one.__dict__.get("__init__") is function), thing)
            callee = thing.__mro__[thing.__mro__.index(home) + 1]
        else:
            callee = function.__globals__.get(ast.unparse(call.func))
        if callable(callee):
            yield callee, len(call.args), taken


def _spell(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(one) for one in value)
    return value is None or isinstance(value, (bool, int, float, str, dict))
