"""The command line: signatures -> flags -> plain settings, checked before torch is imported."""

import importlib.util
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from engine import annotations, command_line, config, discovery, help, jobs, limits, runs, trust
from engine.command_line import NAMES
from engine.config import Raw
from engine.discovery import UsageError
from engine.groups import KINDS, Flag, flags_of, groups_of
from engine.settings import Settings, complete, refuse_changes

_FRESH = ("tune", "plan")  # actions that begin with fresh weights, as training does


def parse(argv: list[str], seeds: tuple[int, ...] = ()) -> Settings:
    """What a command line means. Help, `--print_config` and mistakes end here, with exit status 0 or 2.

    seeds: those that --seed_index counts.
    """
    if "_ARGCOMPLETE" in os.environ:
        from engine import completion

        completion.run()
    try:
        return _parse(argv, seeds)
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


def _parse(argv: list[str], seeds: tuple[int, ...]) -> Settings:
    action, argv = _action(argv)
    if discovery.defines(action, "main"):  # an action that needs no Trainer does it all itself
        importlib.import_module(f"engine.{action}").main(argv)
        raise SystemExit(0)
    asks_help = any(word in argv for word in ("-h", "--help", "--help_all"))
    first = command_line.first_look(argv)
    given = {key: raw for path in first.config for key, raw in config.read(Path(path)).items()}
    for key in ("ckpt_path", "default_root_dir", "trust"):
        if getattr(first, key) is None and key in given:
            setattr(first, key, given[key].text)
    kept, ckpt_path, root = {}, None, runs.folder(first.default_root_dir)
    mark = jobs.mark(argv) if action == "fit" else ""
    begun = jobs.begun(root, mark)
    first.ckpt_path = begun or first.ckpt_path
    if first.ckpt_path and action in _FRESH:
        raise UsageError(f"{action} begins with fresh weights and takes no --ckpt_path")
    if first.ckpt_path and first.ckpt_path.lower() not in ("none", "null"):
        ckpt_path = runs.find(first.ckpt_path, root, resume=action == "fit")
        kept = _kept_with(ckpt_path)
        kept.pop("trust", None)  # only who is at the command line says so
    given |= {key: Raw(text) for key in NAMES if (text := getattr(first, key))}
    chosen = {key: raw.text for key, raw in (kept | given).items() if key in NAMES}
    for key in ("model_name", "dataset") if action == "fit" else ("model_name",):
        if key in kept and chosen[key] != kept[key].text:
            raise UsageError(
                f"--{key} {chosen[key]}: the checkpoint was made with {kept[key].text}, which cannot change"
            )
    if asks_help and not chosen:
        own = {key: group for key, group in groups_of({}, action).items() if key == "action"}
        there = {key: discovery.names(folder) for key, folder in NAMES.items()}
        help.overview(discovery.actions(), there, action, flags_of(own))
    if not (asks_help or first.ckpt_path or action in ("fit", *_FRESH)):
        raise UsageError(f"{action} needs a checkpoint: --ckpt_path best, last, version_N, a folder or a file")
    if not asks_help:
        missing = [key for key in NAMES if key not in chosen]
        if missing:
            has = "; ".join(f"{NAMES[key]}/ has: {', '.join(discovery.names(NAMES[key]))}" for key in missing)
            typed = [word[2:].partition("=")[0] for word in argv if word.startswith("--")]
            near = [f"--{word}{discovery.nearest(word, missing)}" for word in typed if discovery.nearest(word, missing)]
            raise UsageError(f"--{' and --'.join(missing)} missing. {' '.join([*near, has])}. See --help")
    given |= {key: Raw(text) for key in KINDS if (text := getattr(first, key))}
    if ckpt_path and (first.trust or "").lower() not in ("true", "yes", "on", "1"):
        trust.check({key: raw for key, raw in kept.items() if key not in given}, ckpt_path)
    found = {key: discovery.find(NAMES[key], name) for key, name in chosen.items()}
    groups = groups_of(found, action, {key: raw.text for key, raw in (kept | given).items() if key in KINDS})
    flags = flags_of(groups)
    if asks_help:
        help.details(action, groups, flags, everything="--help_all" in argv)
    given |= command_line.read(argv, flags, groups, chosen)
    if "dataset" in kept and chosen["dataset"] != kept["dataset"].text:  # the other dataset's arguments stay behind
        kept = {key: raw for key, raw in kept.items() if key in flags.keys() - groups["dataset"].parameters.keys()}
    if ckpt_path and "init_from" in given and not begun:
        raise UsageError("--init_from begins a new run and --ckpt_path goes on with one: give one of them")
    if "init_from" in given and (name := given["init_from"].text).lower() not in ("none", "null"):
        found_weights = runs.find(name, root, resume=False, flag="init_from")
        given["init_from"] = given["init_from"]._replace(text=str(found_weights))
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
        print(config.dump(settings.flags), end="")
        raise SystemExit(0)
    return settings._replace(mark=mark)


def _action(argv: list[str]) -> tuple[str, list[str]]:
    if not argv or argv[0].startswith("-"):
        return "fit", argv
    if argv[0] not in (there := discovery.actions()):
        near = discovery.nearest(argv[0], there)
        raise UsageError(f"there is no action {argv[0]!r}{near}. There are: {', '.join(there)}")
    return argv[0], argv[1:]


def _kept_with(ckpt_path: Path) -> dict[str, Raw]:
    """The flags of the run that wrote a checkpoint: from its run folder, or else from the checkpoint itself."""
    if run := runs.run_of(ckpt_path):
        return config.read(run / "config.yaml", kept=True)
    from engine import checkpoints  # a checkpoint that was moved can only be asked with torch

    return {key: Raw(_as_text(value), f"{ckpt_path}: ") for key, value in checkpoints.flags_of(ckpt_path).items()}


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_as_text, value)) + "]"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _value(name: str, raw: Raw, flags: dict[str, Flag]) -> Any:
    annotation = flags[name].annotation if name in flags else None
    said = f"{raw.where}{name}" if raw.where else f"--{name}"
    try:
        value = annotations.convert(raw.text, annotation)
    except ValueError:
        choices = [str(one) for one in annotations.choices(annotation)]
        near = discovery.nearest(raw.text, choices) if choices else ""
        raise UsageError(f"{said} {raw.text!r} is not {annotations.describe(annotation)}{near}") from None
    if wrong := limits.wrong(name, value):
        raise UsageError(f"{said} {raw.text} {wrong}")
    return value


def _fill_seed(given: dict[str, Raw], number: int | None, seeds: tuple[int, ...]) -> None:
    """Puts the seed of that number in place of its number. What stands on the command line wins over a file."""
    index, seed = given["seed_index"], given.get("seed")
    given["seed_index"] = index._replace(text="none")
    if number is None or (seed and index.where and not seed.where):
        return
    if seed and bool(seed.where) == bool(index.where):
        raise UsageError("--seed and --seed_index both say the seed: give one of them")
    if number > len(seeds):
        raise UsageError(f"--seed_index {number}: main.py lists {len(seeds)} seeds (SEEDS)")
    given["seed"] = Raw(str(seeds[number - 1]), index.where)
