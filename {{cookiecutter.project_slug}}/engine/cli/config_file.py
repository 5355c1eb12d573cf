"""Config files: YAML read as a list of flags, and written back from the settings. Nothing in a file is executed."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import UsageError

_MOST_BYTES = 2**20  # of a config file


class RawValue(NamedTuple):
    """The text given for a flag, and where it stands: "" for the command line, "FILE:LINE: " for a config file."""

    text: str
    where: str = ""


def read(path: Path, kept: bool = False) -> dict[str, RawValue]:
    """The flags in a YAML file, as text with the line they stand on. `${VAR}` is filled in from the environment.

    kept: the file came with a run, perhaps somebody else's: `${VAR}` stays as it is.

    Raises:
        UsageError: there is no such file, it is no mapping of flags, or a variable is not set.
    """
    import yaml  # only a run with a config file pays for it

    name = str(path) if kept else f"--config {path}"
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        root = yaml.compose(data.decode(), Loader=yaml.SafeLoader) if len(data) <= _MOST_BYTES else None
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{name} is no YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UsageError(f"{name} is nested too deep") from None
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{name} is too large for a list of flags")
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"{name} should hold lines like `lr: 0.01`, one for each flag")
    flags: dict[str, RawValue] = {}
    for key, value in root.value:
        where = f"{path}:{key.start_mark.line + 1}: "
        if not isinstance(key, yaml.ScalarNode):
            raise UsageError(f"{where}a line should begin with the name of a flag")
        if key.value in flags:
            raise UsageError(f"{where}{key.value} stands here a second time")
        if any(":python/" in node.tag for node in _nodes(value, where)):
            raise UsageError(f"{where}{key.value} asks for a Python object, which a config file cannot hold")
        try:
            text = _text(value)
        except (yaml.YAMLError, ValueError) as error:
            raise UsageError(f"{where}{key.value}: {' '.join(str(error).split())}") from None
        flags[key.value] = RawValue(text if kept else _fill_in(text, where), where)
    return flags


def dump(flags: dict[str, Any]) -> str:
    """The flags as YAML, to be read again with `--config`."""
    import yaml

    return yaml.safe_dump(flags, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def _text(node: Any) -> str:
    """What stands in the file, letter by letter: YAML's own ideas of `1e-3` or `00:12:00:00` do not come in."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        return node.value if node.value or node.style else "none"
    if isinstance(node, yaml.SequenceNode):
        return "[" + ", ".join(_text(item) for item in node.value) + "]"
    return yaml.safe_dump(yaml.SafeLoader("").construct_document(node), default_flow_style=True, width=10**6).strip()


def _nodes(node: Any, where: str) -> list[Any]:
    """A node and all below it. Raises UsageError: they are too many, as an alias may stand for many or for itself."""
    nodes = [node]
    for one in nodes:  # grows
        if not isinstance(one.value, str):
            nodes += [below for item in one.value for below in (item if isinstance(item, tuple) else (item,))]
        if len(nodes) > _MOST_BYTES:
            raise UsageError(f"{where}this is too much for a flag")
    return nodes


def _fill_in(text: str, where: str) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise UsageError(f"{where}the environment has no variable {match[1]}")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", value, text)
