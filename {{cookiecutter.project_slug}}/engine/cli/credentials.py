"""Credentials in flags and addresses: hidden in all that a run keeps and prints."""

import re
from collections.abc import Sequence
from typing import Any

HIDDEN = "<credentials>"
# Compiled where they are used: few command lines hold an address.
_FLAG = (
    r"(?i)(.*_)?(password|passwd|passphrase|secret|credentials?|(api|access|secret|private|auth)_?key)"
    r"|((.*_)?(api|access|auth|bearer|hf)_)?token"
)
# User and password in an address (or a path made of it, `s3:/...`), or what stands alone before a host of http.
_USER = r"(?i)(\w:/{1,2})[^/@\s:]*:(?!\d+/)[^@\s]*@|(https?:/{1,2})[^/@\s]+@"
_QUERY = r"(?i)(?<=[?&;])[^=&;\s]*(sig|token|key|secret|password|credential)[^=&;\s]*=[^&;\s]+"


def hide(text: str) -> str:
    """A text without the credentials in its addresses: `s3://key:secret@bucket`, `https://host/file?token=...`."""
    if ":/" not in text:
        return text
    return re.sub(_QUERY, HIDDEN, re.sub(_USER, lambda match: f"{match[1] or match[2]}{HIDDEN}@", text))


def hide_value(flag: str, value: Any) -> Any:
    """The value of a flag without credentials; a flag called password, api_key, token ... holds nothing else."""
    if isinstance(value, str):
        return HIDDEN if value and re.fullmatch(_FLAG, flag) else hide(value)
    if isinstance(value, dict):
        return {key: hide_value(str(key), one) for key, one in value.items()}
    return [hide_value(flag, one) for one in value] if isinstance(value, list) else value


def hide_argv(argv: Sequence[str]) -> list[str]:
    """The words of a command line without credentials."""
    words, flag = [], ""
    for word in argv:
        name, equals, text = word.partition("=")
        if word.startswith("--"):
            flag = name[2:]
            words.append(f"{name}={hide_value(flag, text)}" if equals else word)
        else:
            words.append(hide_value(flag, word))
    return words
