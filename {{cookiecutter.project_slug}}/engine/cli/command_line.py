"""The words of a command line: which flags they are, each with its text."""

import argparse
from typing import NoReturn

from engine.cli import conversion, discovery, signatures
from engine.cli.config_file import RawValue
from engine.cli.flags import KINDS, Flag
from engine.cli.signatures import Signature
from engine.errors import UsageError, nearest

NAMES = {"model_name": "model", "dataset": "data"}  # flag -> folder


class _Parser(argparse.ArgumentParser):
    """argparse for the splitting alone: every value stays text, and a mistake is raised instead of printed."""

    def __init__(self) -> None:
        super().__init__(allow_abbrev=False, add_help=False, argument_default=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def first_look(argv: list[str]) -> argparse.Namespace:
    """The few flags that decide which others there are."""
    parser = _Parser()
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--print_config", action="store_true", default=False)
    parser.add_argument("--trust", nargs="?", const="true", default=None)
    parser.add_argument("--no-trust", dest="trust", action="store_const", const="false")
    for name in ("ckpt_path", "init_from", "default_root_dir", *NAMES, *KINDS):
        parser.add_argument(f"--{name}", default=None)
    return parser.parse_known_args(_join_numbers(argv))[0]


def _join_numbers(argv: list[str]) -> list[str]:
    """`--lr -1e-3` as `--lr=-1e-3`: argparse takes a negative number with an exponent for a flag."""
    joined: list[str] = []
    for word in argv:
        if word[:1] == "-" and word[1:2].isdigit() and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def read(
    argv: list[str], flags: dict[str, Flag], groups: dict[str, Signature], chosen: dict[str, str]
) -> dict[str, RawValue]:
    """The flags that stand there. Raises UsageError: a word is none."""
    parser = _Parser()
    parser.add_argument("--config", action="append")
    parser.add_argument("--print_config", action="store_true")
    for name, flag in flags.items():
        if conversion.takes(flag.annotation, "list"):
            parser.add_argument(f"--{name}", nargs="+")
        elif conversion.takes(flag.annotation, "bool"):
            parser.add_argument(f"--{name}", nargs="?", const="true")
            parser.add_argument(f"--no-{name}", dest=name, action="store_const", const="false")
        else:
            parser.add_argument(f"--{name}")
    known, rest = parser.parse_known_args(_join_numbers(argv))
    texts = {key: text for key, text in vars(known).items() if key not in ("config", "print_config")}
    raws = {key: RawValue(text if isinstance(text, str) else _one_text(text)) for key, text in texts.items()}
    name = ""
    for word in rest:  # flags nobody of ours has: a typo, or for a class that takes any keyword
        if word.startswith("-") and not word.startswith("--"):
            raise UsageError(f"{word!r}: a flag begins with two dashes")
        if word.startswith("--"):
            name, _, text = word.lstrip("-").partition("=")
            raws[name] = RawValue(text or "true")
        elif name and raws[name].text == "true":
            raws[name] = RawValue(word)
        elif name and not any(group.open for group in groups.values()):
            raise UsageError(unknown(name, flags, groups, chosen))  # `--hiden_dims 3 4`: not the 4 is wrong
        else:
            raise UsageError(f"{word!r} is no flag" + (f"; did you mean --{word}?" if word in flags else ""))
    return raws


def _one_text(words: list[str]) -> str:
    return words[0] if len(words) == 1 else "[" + ", ".join(words) + "]"


def unknown(name: str, flags: dict[str, Flag], groups: dict[str, Signature], chosen: dict[str, str]) -> str:
    """What to say of a flag that nobody has, or not here."""
    for group in groups.values():
        if name in group.parameters and name not in flags:
            return f"--{name} of {group.owner} is of a type that a command line cannot give; set it in the code"
    for key, folder in NAMES.items():
        others = [other for other in discovery.names(folder) if other != chosen[key] and _has(folder, other, name)]
        if others:
            return f"--{name} is a flag of {', '.join(others)}, and --{key} is {chosen[key]}"
    if name == "root":
        return "--root is filled from --data_dir"
    return f"unknown flag --{name}{nearest(name, [*flags, 'help', 'help_all', 'config', 'print_config'])}"


def _has(folder: str, other: str, name: str) -> bool:
    if name not in (discovery.ROOT / folder / f"{other}.py").read_text(encoding="utf-8", errors="replace"):
        return False
    try:
        found = discovery.find(folder, other)
        signature = signatures.from_source(found.node, found.tree) if found.node and found.tree else None
    except (UsageError, SyntaxError):
        return False  # a broken neighbour file has no say here
    return signature is not None and name in signature.parameters
