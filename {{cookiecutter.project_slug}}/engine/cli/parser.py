"""The command line: signatures -> flags -> plain settings, checked before torch is imported."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from engine.cli import command_line, config_file, conversion, discovery, help, plugins, validation
from engine.cli.command_line import NAMES
from engine.cli.config_file import RawValue
from engine.cli.flags import KINDS, Flag, flags_of, groups_of
from engine.cli.settings import Settings, complete, refuse_changes
from engine.errors import UsageError, nearest

RESTORING = ("ckpt_path", "init_from", "default_root_dir", "trust")  # the flags that say what a run goes on from


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


def parse(argv: list[str], seeds: tuple[int, ...], restore: Callable[..., Restored]) -> Settings:
    """What a command line means. Help, `--print_config` and mistakes end here, with exit status 0 or 2.

    seeds: those that --seed_index counts. restore: finds what a run goes on from (engine.checkpointing.resume).
    """
    if "_ARGCOMPLETE" in os.environ:
        from engine.cli import completion

        completion.run()
    try:
        return _parse(argv, seeds, restore)
    except UsageError as error:
        stop(error.args[0])
    except BrokenPipeError:  # `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except SyntaxError as error:
        import traceback

        stop("".join(traceback.format_exception_only(error)).strip())


def stop(message: str) -> NoReturn:
    """Ends the program with a message on standard error and exit status 2."""
    print(f"main.py: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _parse(argv: list[str], seeds: tuple[int, ...], restore: Callable[..., Restored]) -> Settings:
    action, argv = _action(argv)
    if plugins.commands().get(action) == ["argv"]:  # it reads its words itself
        plugins.load_command(action)(argv)
        raise SystemExit(0)
    asks_help = any(word in argv for word in ("-h", "--help", "--help_all"))
    first = command_line.first_look(argv)
    given = {key: raw for path in first.config for key, raw in config_file.read(Path(path)).items()}
    given |= {key: RawValue(text) for key in (*NAMES, *KINDS) if (text := getattr(first, key))}
    texts = {key: raw.text for key, raw in given.items()}
    restored = restore(action, argv, texts | {key: text for key in RESTORING if (text := getattr(first, key))})
    kept, ckpt_path = dict(restored.flags), restored.ckpt_path
    chosen = {key: raw.text for key, raw in (kept | given).items() if key in NAMES}
    for key in ("model_name", "dataset") if action == "fit" else ("model_name",):
        if key in kept and chosen[key] != kept[key].text:
            raise UsageError(
                f"--{key} {chosen[key]}: the checkpoint was made with {kept[key].text}, which cannot change"
            )
    if asks_help and not chosen:
        own = {key: group for key, group in groups_of({}, action).items() if key == "action"}
        there = {key: discovery.names(folder) for key, folder in NAMES.items()}
        help.overview(plugins.actions(), there, action, flags_of(own))
    if not (asks_help or restored.asked or action == "fit" or takes_no_checkpoint(action)):
        raise UsageError(f"{action} needs a checkpoint: --ckpt_path best, last, version_N, a folder or a file")
    if not asks_help:
        missing = [key for key in NAMES if key not in chosen]
        if missing:
            has = "; ".join(f"{NAMES[key]}/ has: {', '.join(discovery.names(NAMES[key]))}" for key in missing)
            typed = [word[2:].partition("=")[0] for word in argv if word.startswith("--")]
            near = [f"--{word}{nearest(word, missing)}" for word in typed if nearest(word, missing)]
            raise UsageError(f"--{' and --'.join(missing)} missing. {' '.join([*near, has])}. See --help")
    found = {key: discovery.find(NAMES[key], name) for key, name in chosen.items()}
    groups = groups_of(found, action, {key: raw.text for key, raw in (kept | given).items() if key in KINDS})
    flags = flags_of(groups)
    if asks_help:
        help.details(action, groups, flags, everything="--help_all" in argv)
    given |= command_line.read(argv, flags, groups, chosen)
    if restored.init_from:
        given["init_from"] = RawValue(restored.init_from)
    if "dataset" in kept and chosen["dataset"] != kept["dataset"].text:  # the other dataset's arguments stay behind
        kept = {key: raw for key, raw in kept.items() if key in flags.keys() - groups["dataset"].parameters.keys()}
    for key, raw in (kept | given).items():
        if key not in flags and not any(group.open for group in groups.values()):
            raise UsageError(f"{raw.where}{command_line.unknown(key, flags, groups, chosen)}")
    convert = partial(_value, flags=flags)
    if "seed_index" in given:
        _fill_seed(given, convert("seed_index", given["seed_index"]), seeds)
    before, now = ({key: convert(key, raw) for key, raw in part.items()} for part in (kept, given))
    refuse_changes(action, before, now, flags, groups)
    if action != "fit":  # where and how long it was trained does not bind what comes after
        before = {key: value for key, value in before.items() if key not in groups["trainer"].parameters}
    settings = complete(action, before | now, groups, flags, found, ckpt_path)
    if first.print_config:
        print(config_file.dump(settings.flags), end="")
        raise SystemExit(0)
    return settings._replace(job_id=restored.job_id)


def takes_no_checkpoint(action: str) -> bool:
    """Whether it is a command that begins with fresh weights, as training does."""
    return action in plugins.commands() and "ckpt_path" not in plugins.commands()[action]


def _action(argv: list[str]) -> tuple[str, list[str]]:
    if not argv or argv[0].startswith("-"):
        return "fit", argv
    if argv[0] not in (there := plugins.actions()):
        near = nearest(argv[0], there)
        raise UsageError(f"there is no action {argv[0]!r}{near}. There are: {', '.join(there)}")
    return argv[0], argv[1:]


def _value(name: str, raw: RawValue, flags: dict[str, Flag]) -> Any:
    annotation = flags[name].annotation if name in flags else None
    said = f"{raw.where}{name}" if raw.where else f"--{name}"
    try:
        value = conversion.convert(raw.text, annotation)
    except ValueError:
        choices = [str(one) for one in conversion.choices(annotation)]
        near = nearest(raw.text, choices) if choices else ""
        raise UsageError(f"{said} {raw.text!r} is not {conversion.describe(annotation)}{near}") from None
    if wrong := validation.wrong(name, value):
        raise UsageError(f"{said} {raw.text} {wrong}")
    return value


def _fill_seed(given: dict[str, RawValue], number: int | None, seeds: tuple[int, ...]) -> None:
    """Puts the seed of that number in place of its number. What stands on the command line wins over a file."""
    index, seed = given["seed_index"], given.get("seed")
    given["seed_index"] = index._replace(text="none")
    if number is None or (seed and index.where and not seed.where):
        return
    if seed and bool(seed.where) == bool(index.where):
        raise UsageError("--seed and --seed_index both say the seed: give one of them")
    if number > len(seeds):
        raise UsageError(f"--seed_index {number}: main.py lists {len(seeds)} seeds (SEEDS)")
    given["seed"] = RawValue(str(seeds[number - 1]), index.where)
