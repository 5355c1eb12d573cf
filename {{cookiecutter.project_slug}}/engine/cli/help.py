"""What `--help` shows: actions and names first; with a network and a dataset chosen, every flag in its group."""

import re
import shutil
import textwrap
from typing import Any

from engine.cli import annotations, discovery, features_and_commands, flag_table, value_ranges
from engine.cli.discovery import FOLDERS
from engine.cli.flag_table import Flag, FlagTable
from engine.cli.signatures_from_source import REQUIRED, Expression

_TITLES = {
    "dataset": "data: {owner}",
    "data": "data: loading",
    "network": "model: {owner}",
    "system": "optimisation",
    "loss": "loss: {owner}",
    "optimizer": "optimiser: {owner}",
    "schedule": "learning rate",
}
# The Trainer's flags that most runs choose from; `--help_all` shows the others too.
_COMMON = (
    "accelerator devices strategy num_nodes precision max_steps max_time accumulate_grad_batches gradient_clip_val "
    "limit_train_batches overfit_batches val_check_interval fast_dev_run profiler"
).split()
_EXAMPLE = {"model_name": "lenet", "dataset": "digits"}  # that go together, while they are there
_INDENT = 30


def print_overview(action: str) -> None:
    """Prints the help where neither network nor dataset is given: actions, the flags of a command, names."""
    print(_usage("ACTION" if action == "fit" else action, action) + "\n\nactions:")
    for name, line in features_and_commands.actions().items():
        _row(name, line)
    if flags := flag_table.flags_of(flag_table.action_group(action)):
        print(f"\n{action}:")
    for flag in flags.values():
        _row(f"--{flag.name}", _flag_help(flag, {}, action))
    print("\nnames (a file of model/ or data/, or a dotted path such as torchvision.models.resnet18):")
    known = {key: discovery.names(folder) for key, folder in FOLDERS.items()}
    for key, names in known.items():
        _row(f"--{key}", "one of: " + (", ".join(names) or "nothing yet"))
    print("\nsettings:")
    _row("--config FILE", "a YAML file of flags, over which the command line wins; may be given several times")
    _row("--print_config", "print all flags with their values as such a file")
    text = "last or best of the newest run, version_N, a folder or file: what to go on from or evaluate, with its flags"
    _row("--ckpt_path WHICH", text)
    _row("--help", "with --model_name and --dataset: all of their flags; --help_all adds all of Lightning's Trainer")
    whole = all(_EXAMPLE[key] in names for key, names in known.items())
    example = _EXAMPLE if whole else {key: names[0] for key, names in known.items() if names}
    words = " ".join(f"--{key} {name}" for key, name in example.items())
    print(f"\nfor example: python main.py {words} --max_epochs 5")


def print_flags(table: FlagTable, everything: bool) -> None:
    """Prints the help where a dataset, a network or both are given. A shared flag stands in its first group."""
    print(_usage(table.action, table.action))
    from_data = (table.groups["dataset"].attributes or {}) if "dataset" in table.groups else {}
    remaining = dict(table.flags)
    for key, group in table.groups.items():
        flags = {name: remaining.pop(name) for name in group.parameters if name in remaining}
        shown = flags if key != "trainer" or everything else {name: flags[name] for name in _COMMON if name in flags}
        if shown:
            title = table.action if key == "action" else _TITLES.get(key, key).format(owner=group.owner)
            print(f"\n{title}:")
        for name, flag in shown.items():
            _row(f"--{name}", _flag_help(flag, from_data, table.action))
        if len(flags) > len(shown):
            print(f"  (and {len(flags) - len(shown)} more: --help_all)")


def _usage(shown: str, action: str) -> str:
    if action != "fit" and "ckpt_path" in features_and_commands.commands().get(action, ["ckpt_path"]):
        return f"usage: python main.py {action} --ckpt_path WHICH [--FLAG VALUE ...]"
    network = "[--model_name NAME]" if features_and_commands.placeholder_network(action) else "--model_name NAME"
    return f"usage: python main.py [{shown}] {network} --dataset NAME [--FLAG VALUE ...]"


def _flag_help(flag: Flag, from_data: dict[str, object], action: str) -> str:
    """The first sentence of its docstring, type and default. from_data: the attributes of the dataset."""
    text = next((one.help for one in flag.parameters if one.help), "")
    text = re.sub(r"``?([^`]*)``?", r"\1", re.sub(r":\w+:`~?([^`]*)`", r"\1", text))
    text = re.split(r"。|\.(?<=[^.]\.)\s", text.partition("Default: ")[0], maxsplit=1)[0].rstrip(". ")
    default = flag.default
    if differing := flag.differing_defaults:
        note = f"must be given: {differing}"
    elif flag.name == "model_name" and features_and_commands.placeholder_network(action):
        note = "may be left out"
    elif default is REQUIRED:
        note = "known from the data" if flag.name in from_data else "required"
    elif isinstance(default, Expression):
        note = f"default {default.text}"
    else:
        note = f"default {annotations.as_text(default)}"
    listed = value_ranges.choices(flag.name) if flag.parameters[0].owner == "Trainer" else ""
    return f"{text} ({listed or annotations.describe(flag.annotation)}; {note})".lstrip()


def _row(left: str, right: str) -> None:
    head = f"  {left}".ljust(_INDENT)
    if len(head) > _INDENT:
        print(head.rstrip())
        head = " " * _INDENT
    options: dict[str, Any] = {"initial_indent": head, "subsequent_indent": " " * _INDENT, "break_on_hyphens": False}
    print(textwrap.fill(right, min(110, shutil.get_terminal_size().columns), **options) or head)
