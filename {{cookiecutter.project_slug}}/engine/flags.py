"""The command line: signatures -> flags -> plain settings, checked before torch is imported."""

import argparse
import ast
import importlib.util
import os
import re
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from engine import annotations, config, discovery, help, library, limits, runs, signatures
from engine.config import Raw
from engine.discovery import UsageError
from engine.signatures import REQUIRED, Parameter, Signature, Source

_ACTIONS = {
    "fit": "train, keep the best and the last state, test the best (done where no action is named)",
    "validate": "measure a checkpoint on the validation part",
    "test": "measure a checkpoint on the test part",
    "predict": "write what a checkpoint says of the test part, or of a folder of images, to predictions.csv",
    "tune": "try learning rates or batch sizes; print and draw them, change nothing",
    "export": "write a checkpoint's network as network.pt2 or network.onnx, which runs without this project",
    "report": "put runs side by side: a table, curves, files for a spreadsheet and MATLAB",
}
# An action with a file of its own is gone when the file is deleted.
ACTIONS = {
    action: words
    for action, words in _ACTIONS.items()
    if action in ("fit", "validate", "test") or (discovery.ROOT / "engine" / f"{action}.py").is_file()
}
NAMES = {"model_name": "model", "dataset": "data"}  # flag -> folder
KINDS = ("loss", "optimizer")  # these bring flags of their own too
# The Trainer's arguments that main.py fills.
_OURS = {"callbacks", "logger", "plugins", "use_distributed_sampler"}
_OURS |= {"enable_checkpointing", "enable_model_summary", "barebones"}  # they forbid what main.py gives
# The dataset's arguments that DInterface fills.
_FILLED = {"split", "train", "download", "root"}
# The system's argument that main.py fills.
_OPTIONS = "options"
# These decide which item is in which part: changed, a checkpoint would be tested on what it was trained on.
_PARTS = {"seed", "val_fraction", "test_fraction", "num_folds", "fold"}


class Flag(NamedTuple):
    """One flag, and all that ask for it."""

    name: str
    asked: list[Parameter]

    @property
    def annotation(self) -> ast.expr | None:
        """The type, from the first that states one."""
        found = next((one.annotation for one in self.asked if one.annotation is not None), None)
        if found is not None and "None" in self.defaults and not annotations.takes(found, "None"):
            return ast.BinOp(found, ast.BitOr(), ast.Constant(None))  # `width: int = None`
        return found

    @property
    def defaults(self) -> dict[str, Parameter]:
        """The different defaults, as text."""
        return {repr(one.default): one for one in reversed(self.asked) if one.default is not REQUIRED}

    @property
    def default(self) -> Any:
        """What it is where nobody says; REQUIRED where that is nothing, or not the same for all that ask."""
        return next(iter(self.defaults.values())).default if len(self.defaults) == 1 else REQUIRED


class Settings(NamedTuple):
    """A command line, understood.

    flags: the value of every flag, plain, as config.yaml keeps it.
    arguments: the same by who gets them: "run", "dataset", "data", "network", "system", "loss", "optimizer",
        "schedule", "callbacks", "loggers", "trainer", "action" (where it has a file of its own), and each file of
        engine/ that brings callbacks.
    asks: arguments of the network that nobody gave and the dataset knows.
    ckpt_path: the file that --ckpt_path means.
    """

    action: str
    flags: dict[str, Any]
    arguments: dict[str, dict[str, Any]]
    dataset: discovery.Found
    network: discovery.Found
    asks: list[str]
    ckpt_path: Path | None


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
    first = _first_look(argv)
    given = {key: raw for path in first.config for key, raw in config.read(Path(path)).items()}
    for key in ("ckpt_path", "default_root_dir"):
        if getattr(first, key) is None and key in given:
            setattr(first, key, given[key].text)
    kept, ckpt_path, root = {}, None, runs.folder(first.default_root_dir)
    if action == "fit" and not first.ckpt_path:
        first.ckpt_path = runs.requeued(root)
    if first.ckpt_path and action == "tune":
        raise UsageError("tune begins with fresh weights and takes no --ckpt_path")
    if first.ckpt_path and first.ckpt_path.lower() not in ("none", "null"):
        ckpt_path = runs.find(first.ckpt_path, root, resume=action == "fit")
        kept = _kept_with(ckpt_path)
    given |= {key: Raw(text) for key in NAMES if (text := getattr(first, key))}
    chosen = {key: raw.text for key, raw in (kept | given).items() if key in NAMES}
    for key in ("model_name", "dataset") if action == "fit" else ("model_name",):
        if key in kept and chosen[key] != kept[key].text:
            raise UsageError(
                f"--{key} {chosen[key]}: the checkpoint was made with {kept[key].text}, which cannot change"
            )
    if asks_help and not chosen:
        help.overview(ACTIONS, {key: discovery.names(folder) for key, folder in NAMES.items()})
    if not (asks_help or first.ckpt_path or action in ("fit", "tune")):
        raise UsageError(f"{action} needs a checkpoint: --ckpt_path best, last, version_N, a folder or a file")
    if not asks_help:
        missing = [key for key in NAMES if key not in chosen]
        if missing:
            has = "; ".join(f"{NAMES[key]}/ has: {', '.join(discovery.names(NAMES[key]))}" for key in missing)
            typed = [word[2:].partition("=")[0] for word in argv if word.startswith("--")]
            near = [f"--{word}{discovery.nearest(word, missing)}" for word in typed if discovery.nearest(word, missing)]
            raise UsageError(f"--{' and --'.join(missing)} missing. {' '.join([*near, has])}. See --help")
    found = {key: discovery.find(NAMES[key], name) for key, name in chosen.items()}
    given |= {key: Raw(text) for key in KINDS if (text := getattr(first, key))}
    groups = groups_of(found, action, {key: raw.text for key, raw in (kept | given).items() if key in KINDS})
    flags = flags_of(groups)
    if asks_help:
        help.details(action, groups, flags, everything="--help_all" in argv)
    given |= _command_line(argv, flags, groups, chosen)
    if "dataset" in kept and chosen["dataset"] != kept["dataset"].text:  # the other dataset's arguments stay behind
        kept = {key: raw for key, raw in kept.items() if key in flags.keys() - groups["dataset"].parameters.keys()}
    if ckpt_path and "init_from" in given:
        raise UsageError("--init_from begins a new run and --ckpt_path goes on with one: give one of them")
    if "init_from" in given and (name := given["init_from"].text).lower() not in ("none", "null"):
        found_weights = runs.find(name, root, resume=False, flag="init_from")
        given["init_from"] = given["init_from"]._replace(text=str(found_weights))
    for key, raw in (kept | given).items():
        if key not in flags and not any(group.open for group in groups.values()):
            raise UsageError(f"{raw.where}{_unknown(key, flags, groups, chosen)}")
    convert = partial(_value, flags=flags)
    if "seed_index" in given:
        _fill_seed(given, convert("seed_index", given["seed_index"]), seeds)
    before, now = ({key: convert(key, raw) for key, raw in part.items()} for part in (kept, given))
    _refuse_changes(action, before, now, flags, groups)
    if action != "fit":  # where and how long it was trained does not bind what comes after
        before = {key: value for key, value in before.items() if key not in groups["trainer"].parameters}
    settings = _settings(action, before | now, groups, flags, found, ckpt_path)
    if first.print_config:
        print(config.dump(settings.flags), end="")
        raise SystemExit(0)
    return settings


def _action(argv: list[str]) -> tuple[str, list[str]]:
    if not argv or argv[0].startswith("-"):
        return "fit", argv
    if argv[0] not in ACTIONS:
        near = discovery.nearest(argv[0], ACTIONS)
        raise UsageError(f"there is no action {argv[0]!r}{near}. There are: {', '.join(ACTIONS)}")
    return argv[0], argv[1:]


class _Parser(argparse.ArgumentParser):
    """argparse for the splitting alone: every value stays text, and a mistake is raised instead of printed."""

    def __init__(self) -> None:
        super().__init__(allow_abbrev=False, add_help=False, argument_default=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def _first_look(argv: list[str]) -> argparse.Namespace:
    """The few flags that decide which others there are."""
    parser = _Parser()
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--print_config", action="store_true", default=False)
    for name in ("ckpt_path", "default_root_dir", *NAMES, *KINDS):
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


def _kept_with(ckpt_path: Path) -> dict[str, Raw]:
    """The flags of the run that wrote a checkpoint: from its run folder, or else from the checkpoint itself."""
    if run := runs.run_of(ckpt_path):
        return config.read(run / "config.yaml")
    from engine import checkpoints  # a checkpoint that was moved can only be asked with torch

    return {key: Raw(_as_text(value), f"{ckpt_path}: ") for key, value in checkpoints.flags_of(ckpt_path).items()}


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_as_text, value)) + "]"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def groups_of(
    found: dict[str, discovery.Found], action: str = "", kinds: dict[str, str] | None = None
) -> dict[str, Signature]:
    """All that asks for flags, in the order of the help. Where main.py names a Trainer argument, its default counts.

    kinds: the names of loss and optimiser, where they are given.
    """
    spec = importlib.util.find_spec("pytorch_lightning")
    if spec is None or spec.origin is None:
        raise UsageError('pytorch_lightning is not installed here: pip install -e "."')
    own = discovery.ROOT / "engine" / f"{action}.py"
    main, data, model = (
        discovery.ROOT / path for path in ("main.py", "data/data_interface.py", "model/model_interface.py")
    )
    groups: dict[str, Any] = {
        "run": _read(main, "run"),
        "dataset": _signature(found["dataset"]) if "dataset" in found else None,
        "data": _read(data, "DInterface"),
        "network": _signature(found["model_name"]) if "model_name" in found else None,
        "system": _read(model, "MInterface"),
        "loss": None,
        "optimizer": None,
        "schedule": _read(discovery.ROOT / "engine" / "schedulers.py", "factor"),
        "callbacks": _read(main, "load_callbacks"),
        "loggers": _read(main, "load_loggers"),
        **{name: _read(discovery.ROOT / "engine" / f"{name}.py", "callbacks") for name in discovery.features()},
        "action": _read(own, "run")
        if action and (own := discovery.ROOT / "engine" / f"{action}.py").is_file()
        else None,
        "trainer": _read(Path(spec.origin).parent / "trainer" / "trainer.py", "Trainer"),
    }
    if groups["dataset"]:
        own = groups["dataset"].parameters
        groups["dataset"] = groups["dataset"]._replace(parameters={k: v for k, v in own.items() if k not in _FILLED})
        if "data_dir" in own:  # it is only handed on to the dataset, whose default counts
            groups["data"].parameters.pop("data_dir")
        for name, cut in (("split", _PARTS - {"seed"}), ("train", {"test_fraction"})):
            for fraction in cut if name in own else ():  # what the dataset comes with is not cut
                groups["data"].parameters.pop(fraction, None)
    if (system := groups["network"]) and system.fixes is not None:  # a system of its own takes what it does not set
        rest = {key: one for key, one in groups["system"].parameters.items() if key not in system.fixes}
        groups["system"] = groups["system"]._replace(parameters=rest)
    for kind in KINDS:
        if kind in groups["system"].parameters:
            name = (kinds or {}).get(kind) or groups["system"].parameters[kind].default
            groups[kind] = _apart(kind, library.signature(kind, name), groups)
    groups["system"].parameters.pop(_OPTIONS, None)
    trainer = groups["trainer"]
    rest = {key: one for key, one in trainer.parameters.items() if key not in {*_OURS, *groups["run"].parameters}}
    groups["trainer"] = trainer._replace(parameters=rest)
    return {key: group for key, group in groups.items() if group is not None}


def _apart(kind: str, signature: Signature, groups: dict[str, Any]) -> Signature:
    """The same, where an argument that somebody else has too, with another default, is `optimizer_NAME`, say."""
    named = {}
    for name, one in signature.parameters.items():
        others = (group.parameters[name] for group in groups.values() if group and name in group.parameters)
        free = name if all(other.default == one.default for other in others) else f"{kind}_{name}"
        named[free] = one._replace(name=free)
    return signature._replace(parameters=named)


@cache
def _parse_file(path: Path, name: str) -> ast.Module:
    """What a file defines by a name, and what stands above it: reading on to the end would cost as much again."""
    text = path.read_text(encoding="utf-8")
    begins = re.search(rf"^(?:def|class) {name}\b", text, re.MULTILINE)
    after = re.compile(r"^(?=[^\s)\]])|^    (?:def (?!__init__)|@(?!.*\n    def __init__))", re.MULTILINE)  # or methods
    ends = after.search(text, begins.end() if begins else 0)
    return ast.parse(text[: ends.start()] if ends else text, str(path))


def _read(path: Path, name: str) -> Signature:
    tree = _parse_file(path, name)
    node: Any = next(node for node in tree.body if getattr(node, "name", "") == name)
    signature = signatures.from_source(node, tree, only_named=True)  # what stands before the `*` is main.py's to give
    assert signature is not None, f"{name} in {path} should name its arguments itself"
    return signature


def _signature(found: discovery.Found) -> Signature:
    signature = signatures.from_source(found.node, found.tree) if found.node and found.tree else None
    return signature or signatures.from_object(found.load(), found.name)


def flags_of(groups: dict[str, Signature]) -> dict[str, Flag]:
    """One flag a name, fed to all that ask for it; what no command line can say stays with its default."""
    flags: dict[str, Flag] = {}
    for group in groups.values():
        for one in group.parameters.values():
            if annotations.sayable(one.annotation):
                flags.setdefault(one.name, Flag(one.name, [])).asked.append(one)
    return flags


def _command_line(
    argv: list[str], flags: dict[str, Flag], groups: dict[str, Signature], chosen: dict[str, str]
) -> dict[str, Raw]:
    parser = _Parser()
    parser.add_argument("--config", action="append")
    parser.add_argument("--print_config", action="store_true")
    for name, flag in flags.items():
        if annotations.takes(flag.annotation, "list"):
            parser.add_argument(f"--{name}", nargs="+")
        elif annotations.takes(flag.annotation, "bool"):
            parser.add_argument(f"--{name}", nargs="?", const="true")
            parser.add_argument(f"--no-{name}", dest=name, action="store_const", const="false")
        else:
            parser.add_argument(f"--{name}")
    known, rest = parser.parse_known_args(_join_numbers(argv))
    texts = {key: text for key, text in vars(known).items() if key not in ("config", "print_config")}
    raws = {key: Raw(text if isinstance(text, str) else _one_text(text)) for key, text in texts.items()}
    name = ""
    for word in rest:  # flags nobody of ours has: a typo, or for a class that takes any keyword
        if word.startswith("-") and not word.startswith("--"):
            raise UsageError(f"{word!r}: a flag begins with two dashes")
        if word.startswith("--"):
            name, _, text = word.lstrip("-").partition("=")
            raws[name] = Raw(text or "true")
        elif name and raws[name].text == "true":
            raws[name] = Raw(word)
        elif name and not any(group.open for group in groups.values()):
            raise UsageError(_unknown(name, flags, groups, chosen))  # `--hiden_dims 3 4`: not the 4 is wrong
        else:
            raise UsageError(f"{word!r} is no flag" + (f"; did you mean --{word}?" if word in flags else ""))
    return raws


def _one_text(words: list[str]) -> str:
    return words[0] if len(words) == 1 else "[" + ", ".join(words) + "]"


def _unknown(name: str, flags: dict[str, Flag], groups: dict[str, Signature], chosen: dict[str, str]) -> str:
    for group in groups.values():
        if name in group.parameters and name not in flags:
            return f"--{name} of {group.owner} is of a type that a command line cannot give; set it in the code"
    for key, folder in NAMES.items():
        others = [other for other in discovery.names(folder) if other != chosen[key] and _has(folder, other, name)]
        if others:
            return f"--{name} is a flag of {', '.join(others)}, and --{key} is {chosen[key]}"
    if name == "root":
        return "--root is filled from --data_dir"
    return f"unknown flag --{name}{discovery.nearest(name, [*flags, 'help', 'help_all', 'config', 'print_config'])}"


def _has(folder: str, other: str, name: str) -> bool:
    try:
        found = discovery.find(folder, other)
        signature = signatures.from_source(found.node, found.tree) if found.node and found.tree else None
    except (UsageError, SyntaxError):
        return False  # a broken neighbour file has no say here
    return signature is not None and name in signature.parameters


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


def _refuse_changes(
    action: str, before: dict[str, Any], now: dict[str, Any], flags: dict[str, Flag], groups: dict[str, Signature]
) -> None:
    """Beside a checkpoint a flag may change what was not built into it; the rest is refused by name."""
    other_data = before.get("dataset") != now.get("dataset", before.get("dataset"))
    fixed = dict.fromkeys(groups["network"].parameters, "its network")
    if action == "fit":
        for key in ("system", "schedule", *KINDS):
            fixed |= dict.fromkeys(groups[key].parameters if key in groups else (), "its optimiser's state")
    if action == "fit" or not other_data:
        cuts = (
            {*groups["dataset"].parameters} - {"data_dir"}
            if _PARTS & groups["data"].parameters.keys() > {"seed"}
            else set()
        )
        fixed |= dict.fromkeys(_PARTS | cuts, "the parts its data was cut into")
    for name, what in fixed.items():
        if name in before and name in now and before[name] != now[name]:
            raise UsageError(
                f"--{name} {now[name]}: the checkpoint was made with {before[name]}, and {what} cannot change"
            )


def _settings(
    action: str,
    values: dict[str, Any],
    groups: dict[str, Signature],
    flags: dict[str, Flag],
    found: dict[str, discovery.Found],
    ckpt_path: Path | None,
) -> Settings:
    network, dataset = groups["network"], groups["dataset"]
    asks = [name for name, one in network.parameters.items() if one.default is REQUIRED]
    given = dict(values)
    for name, flag in flags.items():
        if name in asks and _known(name, dataset) and name not in dataset.parameters:
            data_says = (dataset.knows or {}).get(name, Source(name))
            if name in values and not isinstance(data_says, Source) and data_says != values[name]:
                raise UsageError(f"--{name} {values[name]}: {dataset.owner} says that it is {data_says}")
        elif name not in values and flag.default is not REQUIRED:
            values[name] = flag.default
    missing = [
        flag for name, flag in flags.items() if name not in values and not (name in asks and _known(name, dataset))
    ]
    if missing:
        raise UsageError("; ".join(map(_missing, missing)))
    for one in (*dataset.parameters.values(), *network.parameters.values()):
        if one.default is REQUIRED and one.name not in flags and not _known(one.name, dataset):
            raise UsageError(f"{one.owner} needs {one.name}, which a command line cannot give: give it a default")
    values = {name: value for name, value in values.items() if not isinstance(value, Source)}
    arguments = {
        key: {
            name: value
            for name, value in values.items()
            if name in group.parameters or (group.open and name not in flags)
        }
        for key, group in groups.items()
    }
    # Of the Trainer's many flags only those that were given are kept; its own defaults stay its own.
    for kind in KINDS:
        arguments[kind] = {name.removeprefix(f"{kind}_"): value for name, value in arguments.get(kind, {}).items()}
    silent = groups["trainer"].parameters.keys() - given.keys()
    arguments["trainer"] = {key: value for key, value in arguments["trainer"].items() if key not in silent}
    kept = {key: _plain(value) for key, value in values.items() if key not in silent | {"ckpt_path"}}
    return Settings(action, kept, arguments, found["dataset"], found["model_name"], asks, ckpt_path)


def _known(name: str, dataset: Signature) -> bool:
    if dataset.knows is None or name in dataset.knows:
        return True
    return name == "num_classes" and "classes" in dataset.knows  # torchvision's datasets list their classes


def _missing(flag: Flag) -> str:
    kind = annotations.describe(flag.annotation)
    if len(flag.defaults) > 1:
        whose = ", ".join(f"{one.owner} has {text}" for text, one in flag.defaults.items())
        return f"--{flag.name} ({kind}) must be given, for its defaults differ: {whose}"
    return f"{flag.asked[0].owner} needs --{flag.name} ({kind})" + (
        f": {flag.asked[0].help}" if flag.asked[0].help else ""
    )


def _plain(value: Any) -> Any:
    """Numbers, text, lists and dicts only: what YAML and a checkpoint can hold without code."""
    if isinstance(value, Path):
        return str(value)
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
