"""Config files: YAML read as a list of flags, and written back from the settings. Nothing in a file is executed."""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from engine.cli.annotations import as_text
from engine.cli.type_conversion import PlainText, convert, from_yaml_node
from engine.errors import UsageError

_MOST_BYTES = 2**20  # of a config file
_VARIABLE = r"\$\{(\w+)\}"
_DEFAULTS = "# these were not given: they are defaults"  # in a run's config.yaml, above them


class RawValue(NamedTuple):
    """What is given for a flag, before its type is known.

    value: PlainText of a command line or a config file, or a value of YAML's types. where: "" for the command line,
    "FILE:LINE: " for a config file. is_default: nobody gave it, a run kept it.
    """

    value: Any
    where: str = ""
    is_default: bool = False

    @property
    def text(self) -> str:
        """The value as it is typed on a command line."""
        return as_text(self.value)


def read(path: Path, kept: bool = False) -> dict[str, RawValue]:
    """The flags in a YAML file, with the line they stand on.

    `${VAR}` is filled in from the environment, but not in single quotes. The type of a flag says what `1e-3`, `none` or
    `007` is; what stands in quotes is a text. Keys that begin with a dot are no flags: they hold `&anchors`.

    kept: the file came with a run, perhaps somebody else's: `${VAR}` stays as it is, and numbers are numbers.

    Raises: UsageError: there is no such file, it is no mapping of flags, or a variable is not set.
    """
    import yaml  # only a run with a config file pays for it

    name = str(path) if kept else f"--config {path}"
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        root = yaml.compose(data, Loader=yaml.SafeLoader) if len(data) <= _MOST_BYTES else None  # UTF-16 as well
        own, seen = {id(key) for key, _ in root.value} if isinstance(root, yaml.MappingNode) else set[int](), set[str]()
        if own:
            yaml.SafeLoader("").flatten_mapping(root)  # `<<: *defaults`
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # not in UTF-8, for example, or nested too deep
        raise UsageError(f"{name} is no YAML: {' '.join(str(error).split())}") from None
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{name} is too large for a list of flags")
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"{name} should hold lines like `lr: 0.01`, one for each flag")
    lines = data.split(b"\n")
    first_default = lines.index(_DEFAULTS.encode()) if kept and _DEFAULTS.encode() in lines else len(lines)
    flags: dict[str, RawValue] = {}
    for key, value in root.value:
        where = f"{path}:{key.start_mark.line + 1}: "
        if not isinstance(key, yaml.ScalarNode):
            raise UsageError(f"{where}a line should begin with the name of a flag")
        if key.value in seen:
            raise UsageError(f"{where}{key.value} is given a second time")
        seen |= {key.value} if id(key) in own else set()
        if key.value.startswith("."):
            continue
        nodes = {id(node): node for node in _nodes(value, where)}.values()
        if any(":python/" in node.tag or node.tag.startswith("!") for node in nodes):
            raise UsageError(f"{where}{key.value} asks for a Python object, which a config file cannot hold")
        for node in nodes if not kept else ():
            if isinstance(node.value, str) and node.style != "'":
                if unset := [name for name in re.findall(_VARIABLE, node.value) if name not in os.environ]:
                    raise UsageError(f"{where}the environment has no variable {unset[0]}")
                node.value = re.sub(_VARIABLE, lambda match: os.environ[match[1]], node.value)
        try:
            found = from_yaml_node(value, kept)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UsageError(f"{where}{key.value}: {' '.join(str(error).split())}") from None
        flags[key.value] = RawValue(found, where, key.start_mark.line > first_default)
    return flags


def dump(flags: dict[str, Any], defaults: Collection[str] = ()) -> str:
    """The flags as YAML, to be read again with `--config`. defaults: those that nobody gave; they stand last."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text_node(dumper: Any, text: str) -> Any:
        plain = re.fullmatch(r"[^\W\d][\w./-]*", text) and convert(PlainText(text), ()) == text
        quote = '"' if re.search("[\x85\u2028\u2029]", text) else "'"  # which YAML takes for ends of lines
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else quote)

    def write(part: dict[str, Any]) -> str:
        return yaml.dump(part, None, Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120)

    Dumper.add_representer(str, text_node)
    Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True))
    last = {name: value for name, value in flags.items() if name in defaults}
    first = {name: value for name, value in flags.items() if name not in last}
    return (write(first) if first else "") + (f"{_DEFAULTS}\n{write(last)}" if last else "")


def _nodes(node: Any, where: str) -> list[Any]:
    """A node and all below it. Raises UsageError: they are too many, as an alias may stand for many or for itself."""
    nodes = [node]
    for one in nodes:  # grows
        if not isinstance(one.value, str):
            nodes += [below for item in one.value for below in (item if isinstance(item, tuple) else (item,))]
        if len(nodes) > _MOST_BYTES:
            raise UsageError(f"{where}this value is too large for a flag")
    return nodes
