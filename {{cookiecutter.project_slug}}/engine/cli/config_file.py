"""Config files: YAML read as a list of flags, and written back from the settings. Nothing in a file is executed."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import UsageError


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

    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path} is no YAML: {' '.join(str(error).split())}") from None
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"--config {path} should hold lines like `lr: 0.01`, one for each flag")
    flags: dict[str, RawValue] = {}
    for key, value in root.value:
        where = f"{path}:{key.start_mark.line + 1}: "
        if key.value in flags:
            raise UsageError(f"{where}{key.value} stands here a second time")
        if any(":python/" in node.tag for node in (value, *_inner(value))):
            raise UsageError(f"{where}{key.value} asks for a Python object, which a config file cannot hold")
        text = _text(value)
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


def _inner(node: Any) -> list[Any]:
    """All nodes below one."""
    if isinstance(node.value, str):
        return []
    below = [one for item in node.value for one in (item if isinstance(item, tuple) else (item,))]
    return below + [one for item in below for one in _inner(item)]


def _fill_in(text: str, where: str) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise UsageError(f"{where}the environment has no variable {match[1]}")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", value, text)
