"""The text of a flag -> a value of the annotated type. Annotations are syntax trees: nothing is imported."""

import ast
import re
from pathlib import Path
from typing import Any, NamedTuple

_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NONE = {"none": None, "null": None}
# The kind of a type by its name; any other is "?", which only code can give.
_KINDS = {
    **{kind: kind for kind in ("Literal", "None", "bool", "int", "float", "str")},
    **dict.fromkeys(("list", "List", "Sequence", "Iterable", "Collection", "tuple", "Tuple"), "list"),
    **dict.fromkeys(("dict", "Dict", "Mapping", "MutableMapping"), "dict"),
    **dict.fromkeys(("Path", "PurePath", "PathLike", "_PATH"), "Path"),
}
# The most specific type is tried first, whatever the order in the union: `--devices 2` is an int, `0,1` a list.
_RANK = ("Literal", "None", "bool", "int", "float", "list", "dict", "Path", "str", "?")
_INEXPRESSIBLE = {"Callable", "Module", "Tensor", "Dataset", "type", "Type", "Generator", "Transform"}


class _Type(NamedTuple):
    """One member of a union: its kind (of `_RANK`), its name, and what stands in its brackets."""

    kind: str
    name: str
    arguments: list[ast.expr]


_GUESSED = [_Type(kind, "", []) for kind in ("None", "bool", "int", "float", "?")]  # without an annotation


def parse(text: str) -> ast.expr | None:
    """The syntax tree of an annotation; None where it is empty or no expression."""
    try:
        return ast.parse(text, mode="eval").body if text else None
    except SyntaxError:
        return None


def convert(text: str, annotation: ast.expr | None) -> Any:
    """`text` as a value of the annotated type; without an annotation, the plainest value that it can mean.

    Raises:
        ValueError: the text is no such value.
    """
    types = _members(annotation) or _GUESSED
    alone = sum(one.kind != "None" for one in types) == 1
    for one in sorted(types, key=lambda one: _RANK.index(one.kind)):
        try:
            return _convert(text, one, alone)
        except (ValueError, KeyError):
            continue
    raise ValueError(f"{text!r} is not {describe(annotation)}")


def expressible(annotation: ast.expr | None) -> bool:
    """Whether a command line can express at least one value of the type, None aside."""
    types = [one for one in _members(annotation) if one.kind != "None"]
    return not types or any(one.name not in _INEXPRESSIBLE for one in types)


def accepts(annotation: ast.expr | None, kind: str) -> bool:
    """Whether one member of the union is of `kind`: "bool", "list", "Literal", "None" ..."""
    return any(one.kind == kind for one in _members(annotation))


def choices(annotation: ast.expr | None) -> list[Any]:
    """The values that a Literal in the annotation lists."""
    return [value for one in _members(annotation) if one.kind == "Literal" for value in _literals(one)]


def describe(annotation: ast.expr | None) -> str:
    """A type for help and errors: `int`, `float or none`, `one of sum, mean`, `int,int,...`."""
    texts = dict.fromkeys(map(_describe, _members(annotation)))
    if len(texts.keys() - {"none"}) > 1:
        texts.pop("value", None)  # a type that only code can give
    return " or ".join(texts) or "any value"


def _members(annotation: ast.expr | None) -> list[_Type]:
    """The members of a union, Optional or `X | Y`; of any other type itself; [] for no annotation."""
    if annotation is None:
        return []
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return _members(parse(annotation.value))
    if isinstance(annotation, ast.BinOp):
        return _members(annotation.left) + _members(annotation.right)
    arguments: list[ast.expr] = []
    if isinstance(annotation, ast.Subscript):
        inner, annotation = annotation.slice, annotation.value
        arguments = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    none = "None" if getattr(annotation, "value", "") is None else "?"
    name = str(getattr(annotation, "attr", getattr(annotation, "id", none)))  # `typing.Optional`, `Optional`
    if name in ("Optional", "Union", "Annotated", "Final"):
        types = [one for argument in arguments[: 1 if name == "Annotated" else None] for one in _members(argument)]
        return [*types, _Type("None", "None", [])] if name == "Optional" else types
    return [_Type(_KINDS.get(name, "?"), name, arguments)]


def _describe(one: _Type) -> str:
    if one.kind == "Literal":
        return "one of " + ", ".join(map(str, _literals(one)))
    if one.kind == "list":
        items, any_length = _items(one)
        texts = [describe(item) for item in items]
        if any_length and texts[0].startswith("one of "):
            return texts[0].replace("one of", "any of", 1)
        return f"{texts[0]},{texts[0]},..." if any_length else ",".join(texts)
    return {"None": "none", "bool": "true/false", "dict": "{key: value}", "Path": "path", "?": "value"}.get(
        one.kind, one.kind
    )


def _convert(text: str, one: _Type, alone: bool) -> Any:
    """`text` as a value of one type. alone: it is the only one, None aside, so that `1` can mean true and `2` a list.

    Raises:
        ValueError, KeyError: the text is no such value.
    """
    kind, word = one.kind, text.strip().lower()
    if kind == "None":
        return _NONE[word]
    if kind == "Literal":
        return {str(value): value for value in _literals(one)}[text]
    if kind == "bool":
        return (_BOOLS | ({"1": True, "0": False} if alone else {}))[word]
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(re.sub(r"\.(?=inf|nan)", "", word))  # YAML writes .inf
    if kind == "list":
        return _convert_list(text.strip(), one, alone)
    if kind == "dict":
        if not isinstance(value := _yaml(text), dict):
            raise ValueError(text)
        return value
    if kind == "Path":
        return Path(text).expanduser()
    if kind == "?" and one.name:  # of a type that only code can give: a text or a number may do too
        return convert(text, None)
    return _yaml(text) if kind == "?" and text[:1] in ("[", "{") else text


def _convert_list(text: str, one: _Type, alone: bool) -> Any:
    bracketed = text[:1] + text[-1:] in ("[]", "()")
    if not (bracketed or alone or "," in text):
        raise ValueError(text)  # in `list[int] | int` a bare 2 is no list
    texts = _split(text[1:-1] if bracketed else text)
    items, any_length = _items(one)
    if any_length:
        items *= len(texts)
    values = [convert(part, item) for part, item in zip(texts, items, strict=True)]
    return tuple(values) if one.name in ("tuple", "Tuple") else values


def _split(text: str) -> list[str]:
    """The texts between the commas that stand in no inner bracket; a trailing comma is allowed: `--devices 0,`."""
    texts, depth = [""], 0
    for letter in text:
        depth += (letter in "[({") - (letter in "])}")
        if letter == "," and not depth:
            texts.append("")
        else:
            texts[-1] += letter
    texts = [part.strip().strip("'\"") for part in texts]
    return texts[:-1] if texts[-1] == "" else texts


def _items(one: _Type) -> tuple[list[ast.expr | None], bool]:
    """The types of a list's items, and whether one type stands for any number of them."""
    items: list[ast.expr | None] = [*one.arguments] or [None]
    if getattr(items[-1], "value", None) is Ellipsis:
        return items[:1], True
    return items, not one.arguments or one.name not in ("tuple", "Tuple")


def _literals(one: _Type) -> list[Any]:
    return [ast.literal_eval(value) for value in one.arguments]


def _yaml(text: str) -> Any:
    import yaml  # only a dict or a nested list pays for it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(text) from None
