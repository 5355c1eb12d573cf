"""argv -> Settings, from top to bottom: words, classes, their signatures as flags, values. Without torch."""

import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from engine.cli import annotations, config_file, discovery, features_and_commands, flag_table, value_ranges
from engine.cli.config_file import RawValue
from engine.cli.credentials import HIDDEN, hide, hide_value
from engine.cli.discovery import FOLDERS
from engine.cli.flag_table import TORCH_GROUPS, FlagTable
from engine.cli.settings import Settings, ask_for_defaults, complete, refuse_changes
from engine.cli.type_conversion import OutOfRange, PlainText, convert
from engine.errors import UsageError, nearest, printable

_HELP = {"-h", "--help", "--help_all"}
_CLASS_FLAGS = (*FOLDERS, *TORCH_GROUPS)  # their values decide which other flags there are
_NONE = ("none", "null")
_RESUME_FLAGS = ("ckpt_path", "init_from", "default_root_dir", "trust")  # what a run goes on from


class Argument(NamedTuple):
    """A flag and the words behind it: `--dims 4 5` is ("dims", ["4", "5"]), `--norm` is ("norm", [])."""

    name: str
    words: list[str]


class Restored(NamedTuple):
    """What a checkpoint or a restarted job adds to a command line.

    ckpt_path: the file, None for a new run. flags: those of the run that wrote it. init_from: a file of first weights.
    job_id: the name of a file by which a cluster's job finds its run again. asked: a --ckpt_path was given.
    """

    ckpt_path: Path | None = None
    flags: dict[str, RawValue] = {}
    init_from: str | None = None
    job_id: str = ""
    asked: bool = False


def parse(
    argv: list[str], seeds: tuple[int, ...], restore: Callable[..., Restored], find_config: Callable[[str], Path] = Path
) -> Settings:
    """The settings of a command line. Help, `--print_config` and mistakes end here, with exit status 0 or 2.

    seeds: those that --seed_index counts. restore: finds what a run goes on from, and find_config: the file that
        --config means (engine.checkpointing.checkpoint_flags).
    """
    if "_ARGCOMPLETE" in os.environ:
        from engine.cli import completion

        completion.run()
    try:
        return _parse(argv, seeds, restore, find_config)
    except UsageError as error:
        stop(error.args[0])
    except SyntaxError as error:
        stop(*"".join(traceback.format_exception_only(error)).strip().splitlines())


def stop(*lines: str) -> NoReturn:
    """Ends the program with a message, of one line as a rule, on standard error and exit status 2."""
    print("main.py: error:", "\n".join(printable(hide(line)) for line in lines), file=sys.stderr)
    raise SystemExit(2)


def takes_no_checkpoint(action: str) -> bool:
    """Whether it is a command that begins with fresh weights, as training does."""
    return action in features_and_commands.commands() and "ckpt_path" not in features_and_commands.commands()[action]


def _parse(
    argv: list[str], seeds: tuple[int, ...], restore: Callable[..., Restored], find_config: Callable[[str], Path]
) -> Settings:
    features_and_commands.features()  # a broken one is an error even where its flags are not read
    action, argv = _action(argv)
    if features_and_commands.commands().get(action) == ["argv"]:  # it parses its own flags
        features_and_commands.load_command(action)(argv)
        raise SystemExit(0)

    # Words -> flags and their texts: of config files, of the command line, of the run that wrote a checkpoint.
    arguments = _tokenize([word for word in argv if word not in _HELP])
    given: dict[str, RawValue] = {}
    for _, path in _texts_of(("config",), arguments):
        given |= config_file.read(find_config(path))
    given |= {key: RawValue(PlainText(text)) for key, text in _texts_of(_CLASS_FLAGS, arguments)}
    texts = {key: raw.text for key, raw in given.items()} | dict(_texts_of(_RESUME_FLAGS, arguments))
    restored = restore(action, argv, texts)

    # The names of network, dataset, loss and optimiser -> their classes -> their signatures -> flags.
    help_words = _HELP.intersection(argv)
    if (placeholder := features_and_commands.placeholder_network(action)) and not help_words:
        given.setdefault("model_name", RawValue(PlainText(placeholder)))
    names = {key: raw.text for key, raw in (restored.flags | given).items() if key in _CLASS_FLAGS}
    if help_words and not names.keys() & FOLDERS:
        _show_help(action, None, everything=False)
    if not help_words:
        _check_names(action, arguments, names, restored)
    classes = {key: discovery.find(folder, names[key]) for key, folder in FOLDERS.items() if key in names}
    used = {*restored.flags, *given, *(name for name, _ in arguments)}
    table = flag_table.collect(action, names, classes, used)
    if help_words:
        _show_help(action, table, everything="--help_all" in argv)

    # Texts -> values.
    kept = {key: raw for key, raw in restored.flags.items() if key not in table.ignored}
    if "dataset" in kept and names["dataset"] != kept["dataset"].text and not _is_gone("dataset", kept["dataset"].text):
        kept = {key: raw for key, raw in kept.items() if key in table.flags.keys() - table.groups["dataset"].parameters}
    if kept and "stratify" in table.flags:  # a run from before this flag was there
        kept = {"stratify": RawValue(False)} | kept
    kept, arguments = _without_gone_flags(kept, arguments, table)
    given |= _texts(arguments, table)
    if restored.init_from:
        given["init_from"] = RawValue(restored.init_from)
    kept = _given_by_the_run(kept, given, action)
    if "monitor" in given and "monitor" in kept and given["monitor"].text != kept["monitor"].text:
        kept = {key: raw for key, raw in kept.items() if key != "monitor_mode"}  # it is the other metric's
    for key, raw in given.items():
        if not table.known(key):
            raise UsageError(f"{raw.where}{table.unknown_flag(key)}")
    _fill_seed(given, table, seeds)
    now = {key: _value(key, raw, table) for key, raw in given.items()}
    before: dict[str, Any] = {}
    for key, raw in kept.items():
        with suppress(UsageError) if key in now else nullcontext():  # a run's --l1 -1, which an earlier version took
            before[key] = _value(key, raw, table)

    # Values -> Settings.
    refuse_changes(table, before, now)
    if action != "fit":  # where and how long it was trained does not bind what comes after
        double = {"precision"} if str(before.get("precision")).startswith("64") else set()  # every CPU has it
        bound = before.keys() - table.groups["trainer"].parameters.keys() | double
        before = {key: value for key, value in before.items() if key in bound}
    defaults = {key for key in before if kept[key].is_default and before[key] == now.get(key, before[key])}
    settings = complete(table, before | now, defaults, restored.ckpt_path, restored.job_id)
    if any(name == "print_config" for name, _ in arguments):
        print(config_file.dump(settings.flags), end="")
        raise SystemExit(0)
    return ask_for_defaults(settings, table)


def _given_by_the_run(kept: dict[str, RawValue], given: dict[str, RawValue], action: str) -> dict[str, RawValue]:
    """The flags of the run that wrote a checkpoint, less those that only a person gives.

    These are credentials, which no run keeps, and what the features list as NOT_KEPT: where copies go.

    Raises: UsageError: one of them is needed and not given.
    """
    asked = features_and_commands.listed("NOT_KEPT") if kept else set()
    beside = given["ckpt_path"].text if "ckpt_path" in given else ""
    for name, raw in kept.items():
        if name in given or (name in asked and (action != "fit" or raw.text in _NONE)):
            continue
        if HIDDEN in raw.text:
            raise UsageError(f"{raw.where}{name} {raw.text}: no run keeps credentials: give --{name} again")
        if name in asked and not beside.startswith(f"{raw.text.rstrip('/')}/"):  # the person has named the place
            line = f"give --{name} {shlex.quote(raw.text)} again, or --{name} none"
            raise UsageError(f"{raw.where}{name} is not taken from a run, as it may be a stranger's: {line}")
    dropped = set() if action == "fit" else asked
    dropped |= {name for name, raw in kept.items() if name in given and HIDDEN in raw.text}
    return {name: raw for name, raw in kept.items() if name not in dropped}


def _action(argv: list[str]) -> tuple[str, list[str]]:
    if not argv or argv[0].startswith("-"):
        return "fit", argv
    if argv[0] not in (actions := features_and_commands.actions()):
        near = nearest(argv[0], actions) or "."
        raise UsageError(f"there is no action {argv[0]!r}{near} There are: {', '.join(actions)}")
    return argv[0], argv[1:]


def _show_help(action: str, table: FlagTable | None, everything: bool) -> NoReturn:
    from engine.cli import help

    help.print_flags(table, everything) if table else help.print_overview(action)
    print(end="", flush=True)
    raise SystemExit(0)


def _check_names(action: str, arguments: list[Argument], names: dict[str, str], restored: Restored) -> None:
    """Raises UsageError where network, dataset or checkpoint are missing, or are not those of the checkpoint."""
    for key in FOLDERS.keys() & restored.flags.keys():
        before, folder = restored.flags[key].text, FOLDERS[key]
        gone, bound = _is_gone(key, before), key == "model_name" or action == "fit"
        if gone and names[key] == before:
            there = ", ".join(discovery.names(folder))
            raise UsageError(f"{folder}/ has no {before!r} any more: give its new name by --{key}. It has: {there}")
        if gone:
            print(f"{folder}/ has no {before!r} any more: {names[key]} is taken for it", file=sys.stderr)
        elif bound and names[key] != before:
            raise UsageError(f"--{key} {names[key]}: the checkpoint was made with {before}, which cannot change")
    if not (restored.asked or restored.init_from or action == "fit" or takes_no_checkpoint(action)):
        which = "--ckpt_path best, last, version_N, a folder or a file; or weights alone: --init_from FILE"
        raise UsageError(f"{action} needs a checkpoint: {which}")
    if missing := [key for key in FOLDERS if key not in names]:
        known = "; ".join(f"{FOLDERS[key]}/ has: {', '.join(discovery.names(FOLDERS[key]))}" for key in missing)
        near = [f"--{name}{nearest(name, missing)}" for name, _ in arguments if nearest(name, missing)]
        raise UsageError(f"--{' and --'.join(missing)} missing. {' '.join([*near, known])}. See --help")


def _is_gone(key: str, name: str) -> bool:
    """Whether a network or dataset that a run kept was renamed or deleted since."""
    import importlib.util

    if "." in name:
        return importlib.util.find_spec(name.partition(".")[0]) is None
    return name not in discovery.names(FOLDERS[key])


def _without_gone_flags(
    kept: dict[str, RawValue], arguments: list[Argument], table: FlagTable
) -> tuple[dict[str, RawValue], list[Argument]]:
    """A run's flags without those that the project lost since, and the command line without a `--no-NAME` of them.

    Raises: UsageError: one of them was given to the run, and no `--no-NAME` now.
    """
    gone = {key: raw for key, raw in kept.items() if not table.known(key)}
    for key, raw in gone.items():
        if any(name == f"no-{key}" for name, _ in arguments):
            continue
        if not (raw.is_default or raw.value in (None, False, 0, "", [], {})):
            hint = f"bring back what has it, or add --no-{key} to go on without it"
            raise UsageError(f"{raw.where}{key} {raw.text}: the project has no such flag any more: {hint}")
        print(f"{raw.where}{key} is left out: the project has no such flag any more", file=sys.stderr)
    rest = [one for one in arguments if one.name.removeprefix("no-") not in gone or not one.name.startswith("no-")]
    return {key: raw for key, raw in kept.items() if key not in gone}, rest


def _tokenize(argv: list[str]) -> list[Argument]:
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


def _texts_of(names: tuple[str, ...], arguments: list[Argument]) -> list[tuple[str, str]]:
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


def _texts(arguments: list[Argument], table: FlagTable) -> dict[str, RawValue]:
    """The text of each flag on the command line, whose type allows `--dims 4 5`, `--norm` and `--no-norm`."""
    raws = {}
    for name, words in arguments:
        if name == "print_config" and words:
            raise UsageError(f"--print_config takes no value: {words[0]!r}")
        if name in ("config", "print_config"):
            name, is_list, is_bool = "", False, name == "print_config"
        elif name not in table.flags and (positive := name.removeprefix("no-")) in table.flags and not words:
            annotation = table.flags[positive].annotation
            if annotation and not annotations.accepts(annotation, "bool", "choice", "?"):
                off = "[]" if annotations.accepts(annotation, "list", "tuple") else "none"
                raise UsageError(f"--{name}: --{positive} is not turned on or off: give it a value, such as {off}")
            name, words, is_list, is_bool = positive, ["false"], False, True
        else:
            annotation = table.flags[name].annotation if name in table.flags else ()
            is_list = annotations.accepts(annotation, "list", "tuple")
            is_bool = annotations.accepts(annotation, "bool") or name not in table.flags
        if name and not table.known(name):
            raise table.unknown_flag(name)  # `--hiden_dims 3 4`: not the 4 is wrong
        if not words and (is_list or not is_bool):
            raise UsageError(f"--{name}: expected {'at least ' if is_list else ''}one argument")
        if words and words[0][:1] in ("[", "(") and words[-1][-1:] in ("]", ")"):
            words = [" ".join(words)]  # `[1, 2]` without quotes around it
        if len(words) > 1 and not is_list:
            hint = f"; did you mean --{words[1]}?" if words[1] in table.flags else ""
            raise UsageError(f"{words[1]!r} is no flag{hint}")
        if name:
            several = [PlainText(word) for word in words]
            raws[name] = RawValue(several if len(words) > 1 else PlainText(words[0] if words else "true"))
    return raws


def _value(name: str, raw: RawValue, table: FlagTable) -> Any:
    """A flag's value. Raises UsageError: what is given is none of its type, or out of its range."""
    flag = table.flags.get(name)
    annotation, default = (flag.annotation, flag.default) if flag else ((), None)
    if not isinstance(raw.value, PlainText) and repr(raw.value) == repr(annotations.plain(default)):
        return default
    label = f"{raw.where}{name}" if raw.where else f"--{name}"
    try:
        value = convert(raw.value, annotation)
    except ValueError:
        if raw.text == annotations.as_text(default):
            return default  # whatever its annotation says: `width: int = 0.5`
        near, kind = nearest(raw.text, annotations.choices(annotation)), annotations.describe(annotation)
        raise UsageError(f"{label} {hide_value(name, raw.text)!r} is not {kind}{near}") from None
    except OutOfRange as error:
        raise UsageError(f"{label} {raw.text} {error}") from None
    owners = [key for key, group in table.groups.items() if name in group.parameters]
    if wrong := value_ranges.range_error(name, value, owners, default):
        raise UsageError(f"{label} {hide_value(name, raw.text)} {wrong}")
    given, known = annotations.plain(value), annotations.plain(default)
    is_default = repr(given) == repr(known) or (given == known and raw.text == annotations.as_text(default))
    return default if is_default else value  # the tuple of a `Sequence`, the 1 of `rate: float = 1`


def _fill_seed(given: dict[str, RawValue], table: FlagTable, seeds: tuple[int, ...]) -> None:
    """Sets --seed from --seed_index. What stands on the command line wins over a file."""
    if "seed_index" not in given:
        return
    index, seed = given["seed_index"], given.get("seed")
    number = _value("seed_index", index, table)
    given["seed_index"] = index._replace(value=None)
    if number is None or (seed and index.where and not seed.where):
        return
    if seed and bool(seed.where) == bool(index.where):
        raise UsageError("--seed and --seed_index both set the seed: give one of them")
    if number > len(seeds):
        raise UsageError(f"--seed_index {number}: main.py lists {len(seeds)} seeds (SEEDS)")
    given["seed"] = RawValue(seeds[number - 1], index.where)
