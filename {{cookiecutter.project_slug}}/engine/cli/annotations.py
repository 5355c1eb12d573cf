"""The type of a flag, from the annotation of its argument, as source, of which nothing is imported, or as an object."""

import ast
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

# The kind of a type by its name. Of any other name the source does not tell what it is: an Enum, an alias, a class.
_KINDS = {
    **{kind: kind for kind in ("None", "bool", "int", "float", "str")},
    **dict.fromkeys(("list", "List", "Sequence", "Iterable", "Collection"), "list"),
    **dict.fromkeys(("tuple", "Tuple", "set", "Set", "frozenset", "FrozenSet"), "list"),
    **dict.fromkeys(("dict", "Dict", "Mapping", "MutableMapping"), "dict"),
    **dict.fromkeys(("Path", "PurePath", "PathLike", "_PATH"), "Path"),
    "DottedPath": "dotted",
    **dict.fromkeys(("Callable", "Module", "Tensor", "Dataset", "type", "Type", "Generator", "Transform"), "code"),
}
_RANGE = re.compile(r"(?:[<>]=?|!=) -?\d[\d.e-]*")
_SHOWN = {"None": "none", "bool": "true/false", "dict": "{key: value}", "Path": "path", "dotted": "package.name"}


class Type(NamedTuple):
    """One member of a union.

    kind: "choice" (Literal or Enum), "None", "bool", "int", "float", "list", "tuple" (of a fixed length), "dict",
        "Path", "dotted" (a dotted path), "str", "?" (only its import can tell) or "code" (no text can give it).
    name: as written.
    arguments: the annotations of its items; the values of a choice.
    ranges: comparisons such as ">= 0", from `Annotated[float, ">= 0"]`.
    """

    kind: str
    name: str
    arguments: tuple[Any, ...] = ()
    ranges: tuple[str, ...] = ()


Annotation = tuple[Type, ...]  # a union; () for none

NONE = Type("None", "None")


def from_syntax(node: ast.expr | None, names: Mapping[str, ast.expr] = {}) -> Annotation:
    """The type of an annotation in a syntax tree. names: the values of the file's own names."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return from_text(node.value, names)
    if isinstance(node, ast.BinOp):
        return from_syntax(node.left, names) + from_syntax(node.right, names)
    inner: list[ast.expr] = []
    if isinstance(node, ast.Subscript):
        inner, node = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice], node.value
    if isinstance(node, ast.Name) and node.id in names:
        return from_syntax(names[node.id], {key: one for key, one in names.items() if key != node.id})
    name = getattr(node, "attr", getattr(node, "id", ""))  # `typing.Optional`, `Optional`
    if name == "Literal":
        try:
            return (Type("choice", name, tuple(map(ast.literal_eval, inner))),)
        except ValueError:
            return (Type("?", name),)  # it names an Enum or another alias
    if name == "Annotated" and inner:
        ranges = [one.value for one in inner[1:] if isinstance(one, ast.Constant)]
        return _with_ranges(from_syntax(inner[0], names), ranges)
    if node is None or name:
        return _of_name(name, [from_syntax(one, names) for one in inner])
    if not isinstance(node, ast.Constant):  # NewType("Width", int)
        return (Type("?", ast.unparse(node)),)
    return (NONE,) if node.value is None else (Type("...", "..."),)


def from_text(text: str, names: Mapping[str, ast.expr] = {}) -> Annotation:
    """The type of an annotation in quotes; () where it is no expression."""
    try:
        return from_syntax(ast.parse(text, mode="eval").body, names)
    except (SyntaxError, ValueError):
        return ()


def from_hint(hint: Any) -> Annotation:
    """The type of an annotation that is an object."""
    import enum  # what defines `hint` is imported already: the cost no longer shows
    import typing

    if isinstance(hint, str):
        return from_text(hint)
    if hint is None or hint is type(None):
        return (NONE,)
    arguments = typing.get_args(hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return (Type("choice", hint.__name__, tuple(hint)),)
    if typing.get_origin(hint) is typing.Literal:
        return (Type("choice", "Literal", arguments),)
    if hasattr(hint, "__metadata__"):
        return _with_ranges(from_hint(hint.__origin__), hint.__metadata__)
    for alias in ("__supertype__", "__value__"):  # a NewType, a `type` statement
        if hasattr(hint, alias):
            return from_hint(getattr(hint, alias))
    name = "..." if hint is ... else getattr(typing.get_origin(hint) or hint, "__name__", str(hint))
    found = _of_name(name, [from_hint(one) for one in arguments if not isinstance(one, list)])
    return tuple(one._replace(kind="code") if one.kind == "?" else one for one in found)


def of_default(value: Any) -> Annotation:
    """The annotation of an argument without one, from its default: `rate=1` may be 0.5 as well."""
    name = type(value).__name__
    if name == "Expression" and (made := re.match(r"(list|tuple|set|frozenset)\(", value.text)):
        return (Type("list", made[1], ((),)),)
    if name in ("list", "tuple", "set"):  # not an Expression, which is a tuple too
        items = dict.fromkeys(one for item in value for one in of_default(item))
        return (Type("list", name, ((*items, NONE) if items and None in value else tuple(items),)),)
    types = {"bool": ("bool",), "int": ("int", "float"), "float": ("float",), "str": ("str",), "dict": ("dict",)}
    return tuple(Type(one, one) for one in types.get(name, ()))


def _of_name(name: str, arguments: list[Annotation]) -> Annotation:
    """A type by its name and what stands in its brackets."""
    if name in ("", "Any", "object"):
        return ()
    if name in ("Optional", "Union", "UnionType", "Final"):
        types = tuple(one for argument in arguments for one in argument)
        return (*types, NONE) if name == "Optional" else types
    kind = _KINDS.get(name, name if name == "..." else "?")
    if kind == "list" and name.lower() == "tuple" and arguments and arguments[-1] != (Type("...", "..."),):
        kind = "tuple"
    return (Type(kind, name, tuple(arguments[:1] if kind == "list" else arguments)),)


def _with_ranges(annotation: Annotation, ranges: Any) -> Annotation:
    texts = tuple(one for one in ranges if isinstance(one, str) and _RANGE.fullmatch(one))
    return tuple(one._replace(ranges=texts) for one in annotation)


def inner(annotation: Annotation) -> list[Type]:
    """Its members, and those of their items."""
    items = [item for one in annotation if one.kind in ("list", "tuple", "dict") for item in one.arguments]
    return [*annotation, *(each for item in items for each in inner(item))]


def expressible(annotation: Annotation) -> bool:
    """Whether a command line can express at least one value of the type, None aside."""
    types = [one for one in annotation if one.kind != "None"]
    return not types or any(one.kind != "code" for one in types)


def accepts(annotation: Annotation, *kinds: str) -> bool:
    """Whether one member of the union is of one of the kinds."""
    return any(one.kind in kinds for one in annotation)


def choices(annotation: Annotation) -> list[str]:
    """The values that a Literal or an Enum lists, as text."""
    return [as_text(value) for one in annotation if one.kind == "choice" for value in one.arguments]


def describe(annotation: Annotation) -> str:
    """A type for help and errors: `int`, `float >= 0 and < 1 or none`, `one of sum, mean`, `int,int,...`."""
    known = [one for one in annotation if one.kind != "code" or not expressible(annotation)]
    listed = "one of " + ", ".join(choices(annotation))
    said = dict.fromkeys(listed if one.kind == "choice" else _describe(one) for one in known)
    return " or ".join(said) or "any value"


def _describe(one: Type) -> str:
    if one.kind == "list":
        item = describe(one.arguments[0] if one.arguments else ())
        if item.startswith("one of "):
            return item.replace("one of", "any of", 1)
        return f"a list of {item}" if re.search("[ ,]", item) else f"{item},{item},..."
    if one.kind == "tuple":
        return ",".join(map(describe, one.arguments))
    return f"{_SHOWN.get(one.kind, one.name)} {' and '.join(one.ranges)}".rstrip()


def plain(value: Any) -> Any:
    """Numbers, text, lists and dicts of them: what YAML and a checkpoint can hold without code.

    A path is its text, a member of an Enum its name, a set a list. Anything else stays as it is.
    """
    if isinstance(value, dict):
        return {key if isinstance(key, tuple) else plain(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(one) for one in (sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value)]
    if hasattr(type(value), "__members__"):
        return value.name
    return str(value) if isinstance(value, (PurePath, str)) else value


def as_text(value: Any) -> str:
    """A value as it is typed on a command line."""
    value = plain(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(as_text, value)) + "]"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
