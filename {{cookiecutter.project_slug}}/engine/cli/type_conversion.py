"""The text of a flag, or a value of YAML or of a checkpoint -> a value of the annotated type."""

import operator
import re
from collections import Counter
from enum import Flag
from functools import reduce
from pathlib import Path
from typing import Any

from engine.cli.annotations import Annotation, Type, as_text, describe, plain

_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NONE = {"none": None, "null": None, "~": None}
_COLLECTIONS = {"tuple": tuple, "Tuple": tuple, "set": set, "Set": set, "frozenset": frozenset, "FrozenSet": frozenset}
# The most specific type is tried first, whatever the order in the union: `--devices 2` is an int, `0,1` a list.
_RANK = ("choice", "None", "bool", "int", "float", "list", "tuple", "dict", "dotted", "Path", "str", "?", "code", "...")
_GUESSED = tuple(Type(kind, "") for kind in ("None", "bool", "int", "float", "?"))  # without an annotation
COMPARISONS = {
    ">=": (operator.ge, "at least"),
    ">": (operator.gt, "more than"),
    "<=": (operator.le, "at most"),
    "<": (operator.lt, "less than"),
    "!=": (operator.ne, "other than"),
}


class PlainText(str):
    """A word of a command line, or a scalar that stands in YAML without quotes: the type of its flag is still open."""


class OutOfRange(Exception):
    """A number of the right type which the range of its flag excludes."""


def convert(value: Any, annotation: Annotation) -> Any:
    """A value of the annotated type; without an annotation, the plainest one that it can mean.

    value: PlainText, or what has a type already: a quoted text, a number, None, or a list or dict of all these.

    Raises:
        ValueError: it is no such value.
        OutOfRange: it is one, and excluded by `Annotated[..., ">= 0"]`.
    """
    types = annotation or _GUESSED
    kinds = {one.kind for one in types} - {"None"}
    for one in sorted(types, key=lambda one: _RANK.index(one.kind)):
        try:
            found = _of_text(value, one, kinds) if isinstance(value, PlainText) else _of_typed(value, one)
        except (ValueError, KeyError, StopIteration, RecursionError):
            continue
        check_range(found, one.ranges)
        return found
    if isinstance(value, (str, int, float)) and not isinstance(value, PlainText):  # `lr: "1e-3"`
        return convert(PlainText(as_text(value)), annotation)
    raise ValueError(f"{as_text(value)!r} is not {describe(annotation)}")


def check_range(value: Any, ranges: tuple[str, ...]) -> None:
    """Raises OutOfRange: a number fails a comparison such as ">= 0"; what has a range should be finite too."""
    for text in ranges if isinstance(value, (int, float)) and not isinstance(value, bool) else ():
        sign, _, limit = text.partition(" ")
        compare, words = COMPARISONS[sign]
        if not compare(value, float(limit)):  # NaN is not either
            raise OutOfRange(f"should be {words} {limit}")
        if value == float("inf"):
            raise OutOfRange("should be finite")


def _of_typed(value: Any, one: Type) -> Any:
    """A value that has a type already, as one of this type. Raises ValueError or StopIteration: it is of another."""
    kind = one.kind
    if kind == "choice":
        return next(each for each in one.arguments if type(plain(each)) is type(value) and plain(each) == value)
    if kind == "?":
        if isinstance(value, (list, dict)):
            return convert(value, (Type("list", "list"), Type("dict", "dict")))
        return value
    if kind in ("list", "tuple") and isinstance(value, (list, tuple)):
        return _of_items(value, one)
    if kind == "dict" and isinstance(value, dict):
        key_type, value_type = one.arguments if len(one.arguments) == 2 else ((), ())
        return {convert(key, key_type): convert(item, value_type) for key, item in value.items()}
    if kind == "float" and type(value) is int:
        return float(value)
    if kind == "Path" and isinstance(value, str):
        return Path(value).expanduser()
    if kind == {"NoneType": "None"}.get(type(value).__name__, type(value).__name__):
        return value
    raise ValueError(value)


def _of_text(text: str, one: Type, kinds: set[str]) -> Any:
    """Text as a value of one type. kinds: those of the union, None aside; alone, `1` can mean true and `2` a list.

    Raises: ValueError, KeyError: the text is no such value.
    """
    kind, word, alone = one.kind, text.strip().lower(), len(kinds) < 2
    if kind == "None":
        return _NONE[word]
    if kind == "choice":
        return _choose(text, one.arguments)
    if kind == "bool":
        return (_BOOLS | ({"1": True, "0": False} if alone else {}))[word]
    if kind in ("int", "float") and "str" in kinds and re.match(r"[+-]?0\d", word):
        raise ValueError(text)  # the 001 of `int | str` is a name
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(re.sub(r"\.(?=inf|nan)", "", word))  # YAML writes .inf
    if kind in ("list", "tuple"):
        text = text.strip()
        items = _split(text)
        if bracketed := len(items) == 1 and text[:1] + text[-1:] in ("[]", "()"):
            items = _split(text[1:-1])
        if not (bracketed or alone or "," in text):
            raise ValueError(text)  # in `list[int] | int` a bare 2 is no list
        return _of_items(items, one)
    if kind == "dict":
        return _of_typed(_read_yaml(text), one)
    if kind == "Path":
        return Path(text).expanduser()
    if kind == "str" or (kind == "dotted" and re.fullmatch(r"\w+(\.\w+)+", text)):
        return str(text)
    if kind == "?" and one.name:  # what it is, only code can tell: a number or a text may do too
        return convert(text, ())
    if kind == "?":
        if text[:1] + text[-1:] == "()":
            return convert(text, (Type("list", "list"),))  # not a tuple, which config.yaml would bring back as a list
        return convert(_read_yaml(text), ()) if text[:1] in ("[", "{") else str(text)
    raise ValueError(text)


def _choose(text: str, values: tuple[Any, ...]) -> Any:
    """The one of a Literal's values, or of an Enum's members, that a text means: `gelu`, `1e-3`, `true`, `X|Y`."""
    if "|" in text and all(isinstance(one, Flag) for one in values):
        return reduce(operator.or_, (_choose(part, values) for part in text.split("|")))
    values = tuple(sorted(values, key=lambda one: isinstance(one, str)))  # of 1 and "1", the text stands in quotes
    for value in values:
        if found := getattr(type(value), "__members__", {}).get(text):  # an alias of an Enum's member too
            return found
        if text in (as_text(value), str(value), str(getattr(value, "value", value))):
            return value
    for value in values:
        kind = {"NoneType": "None"}.get(type(value).__name__, type(value).__name__)
        try:
            if kind != "str" and _of_text(text, Type(kind, kind), {"choice", kind}) == value:
                return value
        except (ValueError, KeyError):
            continue
    raise ValueError(text)


def _of_items(items: Any, one: Type) -> Any:
    types = one.arguments if one.kind == "tuple" else (one.arguments or ((),)) * len(items)
    values = [convert(item, annotation) for item, annotation in zip(items, types, strict=True)]
    return _COLLECTIONS.get(one.name, list)(values)


def _split(text: str) -> list[str]:
    """The items between the commas that stand in no quotes and no inner bracket; what is quoted is a text.

    A trailing comma is allowed: `--devices 0,`.
    """
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote or (letter in "'\"" and not parts[-1].strip()):
            quote = letter if not quote else "" if letter == quote else quote
        else:
            depth += (letter in "[({") - (letter in "])}")
        if letter == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    parts = [part.strip() for part in parts]
    if parts[-1] == "":
        parts.pop()
    return [part[1:-1] if re.fullmatch(r"'.*'|\".*\"", part, re.DOTALL) else PlainText(part) for part in parts]


def from_yaml_node(node: Any, typed: bool) -> Any:
    """The value of a YAML node. typed: unquoted scalars have YAML's own types; otherwise they are PlainText.

    Raises: ValueError: a key is a list or a dict, or is there twice.
    """
    import yaml  # only what holds YAML pays for it

    if node is None:
        return None
    if isinstance(node, yaml.SequenceNode):
        return [from_yaml_node(item, typed) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        if not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
            raise ValueError("a key should be a text or a number")
        keys = Counter(key.value for key, _ in node.value)
        if twice := [key for key, count in keys.items() if count > 1]:
            raise ValueError(f"{twice[0]!r} is given a second time")
        yaml.SafeLoader("").flatten_mapping(node)  # `<<: *defaults`
        node.value = [*{key.value: (key, value) for key, value in node.value}.values()]
        return {from_yaml_node(key, typed): from_yaml_node(value, typed) for key, value in node.value}
    if node.style is not None:  # quoted
        return node.value
    if typed:
        is_plain = node.tag.rpartition(":")[2] in ("null", "bool", "int", "float")
        return yaml.SafeLoader("").construct_object(node) if is_plain else node.value
    return None if node.tag.endswith(":null") else PlainText(node.value)


def _read_yaml(text: str) -> Any:
    import yaml

    try:
        return from_yaml_node(yaml.compose(text, Loader=yaml.SafeLoader), typed=False)
    except yaml.YAMLError:
        raise ValueError(text) from None
