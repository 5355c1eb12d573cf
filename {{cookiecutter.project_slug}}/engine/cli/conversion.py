"""From the text of a flag to a value of the annotated type. Annotations are syntax trees: nothing is imported."""

import ast
import re
from pathlib import Path
from typing import Any

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NONE = {"none", "null"}
_LISTS = {"list", "List", "Sequence", "Iterable", "Collection", "tuple", "Tuple"}
_DICTS = {"dict", "Dict", "Mapping", "MutableMapping"}
_INEXPRESSIBLE = {"Callable", "Module", "Tensor", "Dataset", "type", "Type", "Generator", "Transform"}
# The most telling type is tried first, whatever the order in the union: `--devices 2` is an int, `0,1` a list.
_RANK = ("Literal", "None", "bool", "int", "float", "list", "dict", "Path", "str", "?")


def parse(text: str, aliases: dict[str, ast.expr] | None = None) -> ast.expr | None:
    """The syntax tree of an annotation, with names out of `aliases` filled in; None for no annotation."""
    try:
        tree = ast.parse(text, mode="eval").body if text else None
    except SyntaxError:
        return None
    if isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        tree = parse(tree.value)

    class Fill(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return (aliases or {}).get(node.id, node)

    return Fill().visit(tree) if tree is not None and aliases else tree


def convert(text: str, annotation: ast.expr | None) -> Any:
    """`text` as a value of the annotated type; without an annotation, the plainest value that it can mean.

    Raises:
        ValueError: the text is no such value.
    """
    if annotation is None:
        return _guess(text)
    options = members(annotation)
    for option in sorted(options, key=lambda option: _RANK.index(_kind(option))):
        try:
            return _convert(text, option, alone=len([one for one in options if _kind(one) != "None"]) == 1)
        except (ValueError, KeyError):
            continue
    raise ValueError(f"{text!r} is not {describe(annotation)}")


def members(annotation: ast.expr | None) -> list[ast.expr]:
    """The alternatives of a union, Optional or `X | Y`; otherwise the annotation alone."""
    if isinstance(annotation, ast.BinOp):
        return members(annotation.left) + members(annotation.right)
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return members(parse(annotation.value))
    if isinstance(annotation, ast.Subscript) and _name(annotation) == "Optional":
        return [*members(annotation.slice), ast.Constant(None)]
    if isinstance(annotation, ast.Subscript) and _name(annotation) == "Union":
        return [one for part in _arguments(annotation) for one in members(part)]
    if isinstance(annotation, ast.Subscript) and _name(annotation) in ("Annotated", "Final"):
        return members(_arguments(annotation)[0])
    return [] if annotation is None else [annotation]


def expressible(annotation: ast.expr | None) -> bool:
    """Whether a command line can express at least one value of the type, None aside."""
    kinds = [option for option in members(annotation) if _kind(option) != "None"]
    return not kinds or any(_name(option) not in _INEXPRESSIBLE for option in kinds)


def takes(annotation: ast.expr | None, kind: str) -> bool:
    """Whether one of the alternatives is of `kind`: "bool", "list", "Literal", "None" ..."""
    return any(_kind(option) == kind for option in members(annotation))


def choices(annotation: ast.expr | None) -> list[Any]:
    """The values that a Literal in the annotation lists."""
    return [choice for option in members(annotation) if _kind(option) == "Literal" for choice in _choices(option)]


def describe(annotation: ast.expr | None) -> str:
    """A type as a person would say it: `int`, `float or none`, `one of sum, mean`, `int,int,...`."""
    said = dict.fromkeys(_describe(option) for option in members(annotation))
    if len(said.keys() - {"none"}) > 1:
        said.pop("value", None)  # a type that only code can give
    return " or ".join(said) or "any value"


def _describe(option: ast.expr) -> str:
    kind = _kind(option)
    if kind == "Literal":
        return "one of " + ", ".join(str(choice) for choice in _choices(option))
    if kind == "list":
        items, many = _items(option)
        said = [describe(item) for item in items]
        if many and said[0].startswith("one of "):
            return "any of " + said[0].removeprefix("one of ")
        return f"{said[0]},{said[0]},..." if many else ",".join(said)
    return {"None": "none", "bool": "true/false", "dict": "{key: value}", "Path": "path", "?": "value"}.get(kind, kind)


def _convert(text: str, option: ast.expr, alone: bool) -> Any:
    kind, word = _kind(option), text.strip().lower()
    if kind == "None":
        return dict.fromkeys(_NONE)[word]
    if kind == "Literal":
        return {str(choice): choice for choice in _choices(option)}[text]
    if kind == "bool":
        return (_WORDS | ({"1": True, "0": False} if alone else {}))[word]
    if kind in ("int", "float"):
        return int(text) if kind == "int" else float(re.sub(r"\.(?=inf|nan)", "", word))  # YAML writes .inf
    if kind == "list":
        return _convert_list(text, option, alone)
    if kind == "dict":
        value = _yaml(text)
        if not isinstance(value, dict):
            raise ValueError(text)
        return value
    if kind == "Path":
        return Path(text).expanduser()
    return text if kind == "str" else _guess(text)


def _convert_list(text: str, option: ast.expr, alone: bool) -> Any:
    text = text.strip()
    bracketed = text[:1] + text[-1:] in ("[]", "()")
    if not (bracketed or alone or "," in text):
        raise ValueError(text)  # in `list[int] | int` a bare 2 is no list
    texts = _split(text[1:-1] if bracketed else text)
    items, many = _items(option)
    if not many and len(texts) != len(items):
        raise ValueError(text)
    values = [convert(one, items[0] if many else items[at]) for at, one in enumerate(texts)]
    return tuple(values) if _name(option) in ("tuple", "Tuple") else values


def _split(text: str) -> list[str]:
    """Parts between the commas that stand in no inner bracket; a trailing comma is allowed, as in `--devices 0,`."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[({") - (letter in "])}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    parts = [part.strip().strip("'\"") for part in parts]
    return parts[:-1] if parts[-1] == "" else parts


def _items(option: ast.expr) -> tuple[list[ast.expr | None], bool]:
    """The types of a list's items, and whether one type stands for any number of them."""
    if not isinstance(option, ast.Subscript):
        return [None], True
    items: list[ast.expr | None] = list(_arguments(option))
    if isinstance(items[-1], ast.Constant) and items[-1].value is Ellipsis:
        return items[:1], True
    return items, _name(option) not in ("tuple", "Tuple")


def _kind(option: ast.expr) -> str:
    name = _name(option)
    for kind, known in (("list", _LISTS), ("dict", _DICTS), ("Path", {"Path", "PurePath", "PathLike", "_PATH"})):
        if name in known:
            return kind
    return name if name in _RANK else "?"


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript):
        return _name(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Constant):
        return "None" if node.value is None else "?"
    return node.id if isinstance(node, ast.Name) else "?"


def _arguments(node: ast.Subscript) -> list[ast.expr]:
    return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]


def _choices(option: ast.expr) -> list[Any]:
    return [ast.literal_eval(choice) for choice in _arguments(option)] if isinstance(option, ast.Subscript) else []


def _guess(text: str) -> Any:
    if text.lower() in _NONE:
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return _yaml(text) if text[:1] in ("[", "{") else text


def _yaml(text: str) -> Any:
    import yaml  # only a dict or a nested list pays for it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(text) from None
