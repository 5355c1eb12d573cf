"""What `--help` shows: actions and names first; with a network and a dataset chosen, every flag in its group."""

import re
import textwrap
from typing import Any, NoReturn

from engine.cli import conversion
from engine.cli.signatures import REQUIRED, Signature, Source

_TITLES = {
    "run": "run",
    "dataset": "data: {owner}",
    "data": "data: loading",
    "network": "model: {owner}",
    "system": "optimisation",
    "loss": "loss: {owner}",
    "optimizer": "optimiser: {owner}",
    "schedule": "learning rate",
    "callbacks": "callbacks",
    "loggers": "loggers",
    "hardware": "hardware",
    "action": "{owner}",
    "trainer": "trainer",
}
# The Trainer's flags that most runs choose from; `--help_all` shows the others too.
_COMMON = [
    "accelerator",
    "devices",
    "strategy",
    "num_nodes",
    "precision",
    "max_steps",
    "max_time",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "limit_train_batches",
    "overfit_batches",
    "val_check_interval",
    "fast_dev_run",
    "profiler",
]
_INDENT = 30


_EXAMPLE = {"model_name": "lenet", "dataset": "digits"}  # that go together, while they are there


def overview(actions: dict[str, str], names: dict[str, list[str]], chosen: str, flags: dict[str, Any]) -> NoReturn:
    """Help where no names are given yet, then exit. flags: those of the action that is chosen."""
    print("usage: python main.py [ACTION] --model_name NAME --dataset NAME [--FLAG VALUE ...]\n\nactions:")
    for action, words in actions.items():
        _row(action, words)
    if flags:
        print(f"\n{chosen}:")
    for flag in flags.values():
        _row(f"--{flag.name}", _words(flag, {}))
    print("\nnames (a file of model/ or data/, or a dotted path such as torchvision.models.resnet18):")
    for name, there in names.items():
        _row(f"--{name}", "one of: " + (", ".join(there) or "nothing yet"))
    print("\nsettings:")
    _row("--config FILE", "a YAML file of flags, put in front of the others; may stand several times")
    _row("--print_config", "print all flags with their values as such a file")
    _row(
        "--ckpt_path WHICH",
        "last, best, version_N, a run folder or a file: go on from it, or measure it; it brings its flags",
    )
    _row("--help", "with --model_name and --dataset: all their flags; --help_all: the whole Trainer's too")
    both = all(_EXAMPLE[key] in there for key, there in names.items())
    some = _EXAMPLE if both else {key: there[0] for key, there in names.items() if there}
    print(f"\nfor example: python main.py {' '.join(f'--{key} {name}' for key, name in some.items())} --max_epochs 5")
    print(end="", flush=True)
    raise SystemExit(0)


def details(action: str, groups: dict[str, Signature], flags: dict[str, Any], everything: bool) -> NoReturn:
    """Help with a dataset, a network or both chosen, then exit. A shared flag stands with the first that asks."""
    print(f"usage: python main.py [{action}] --model_name NAME --dataset NAME [--FLAG VALUE ...]")
    knows = (groups["dataset"].knows or {}) if "dataset" in groups else {}
    shown: set[str] = set()
    for key, group in groups.items():
        rows = [flags[name] for name in group.parameters if name in flags and name not in shown]
        hidden = 0
        if key == "trainer" and not everything:
            hidden = len(rows)
            rows = [flag for name in _COMMON for flag in rows if flag.name == name]
            hidden -= len(rows)
        if rows:
            print(f"\n{_TITLES.get(key, key).format(owner=action if key == 'action' else group.owner)}:")
        for flag in rows:
            shown.add(flag.name)
            _row(f"--{flag.name}", _words(flag, knows))
        if hidden:
            print(f"  (and {hidden} more: --help_all)")
    print(end="", flush=True)
    raise SystemExit(0)


def _words(flag: Any, knows: dict[str, Any]) -> str:
    help = next((one.help for one in flag.asked if one.help), "")
    help = re.sub(r"``?([^`]*)``?", r"\1", re.sub(r":\w+:`~?([^`]*)`", r"\1", help))
    help = re.split(r"(?<=[^.]\.)\s|\s*Default: ", help)[0].rstrip(". ")
    if len(flag.defaults) > 1:
        default = "must be given: " + ", ".join(f"{one.owner} has {text}" for text, one in flag.defaults.items())
    elif flag.default is REQUIRED:
        default = "known from the data" if flag.name in knows else "required"
    else:
        default = f"default {_said(flag.default)}"
    return f"{help}{' ' if help else ''}({conversion.describe(flag.annotation)}; {default})"


def _said(default: Any) -> str:
    if isinstance(default, Source):
        return default.text
    return str(default).lower() if default is None or isinstance(default, bool) else str(default)


def _row(left: str, right: str) -> None:
    import shutil

    lines = textwrap.wrap(right, min(shutil.get_terminal_size().columns, 110) - _INDENT) or [""]
    head = f"  {left}".ljust(_INDENT)
    if len(head) > _INDENT:
        print(head.rstrip())
        head = " " * _INDENT
    print(head + lines[0])
    for line in lines[1:]:
        print(" " * _INDENT + line)
