"""The words of a command line -> the text of each flag. Types are not known here yet."""

import re
from typing import NamedTuple

from engine.errors import UsageError


class Argument(NamedTuple):
    """A flag and the words behind it: `--dims 4 5` is ("dims", ["4", "5"]), `--norm` is ("norm", [])."""

    name: str
    words: list[str]


def tokenize(argv: list[str]) -> list[Argument]:
    """The flags in the order of the command line.

    Raises:
        UsageError: a word belongs to no flag, is a flag without a name, or begins with a single dash and is no number.
    """
    arguments: list[Argument] = []
    for word in argv:
        if word.startswith("--"):
            name, equals, text = word[2:].partition("=")
            if not name:
                raise UsageError(f"{word!r} is no flag")
            arguments.append(Argument(name, [text] if equals else []))
        elif re.match(r"-[^\W\d]", word) and word.lower() not in ("-inf", "-nan"):  # `-1e-3` and `-` are values
            raise UsageError(f"{word!r}: a flag begins with two dashes")
        elif not arguments:
            raise UsageError(f"{word!r} is no flag")
        else:
            arguments[-1].words.append(word)
    return arguments


def texts_of(names: tuple[str, ...], arguments: list[Argument]) -> list[tuple[str, str]]:
    """Those flags of `names` that are given, with their texts, in the order of `names`; `--trust` alone is `true`.

    Raises: UsageError: a flag other than `--trust` stands without a value, or with an empty one.
    """
    texts = []
    for name, words in arguments:
        if name in names:
            if name != "trust" and not (words and words[0]):  # such as `--ckpt_path=$RUN` of a shell without RUN
                raise UsageError(f"--{name}: expected one argument")
            texts.append((name, words[0] if words else "true"))
        elif name == "no-trust" and "trust" in names:
            texts.append(("trust", "false"))
    return sorted(texts, key=lambda pair: names.index(pair[0]))
