"""The flags of a command line: whose arguments they are (main.py, data, network, optimiser, Trainer ...), in groups."""

import ast
import re
from pathlib import Path
from typing import Any, NamedTuple

from engine.cli import discovery, signatures_from_import, signatures_of_torch, type_conversion
from engine.cli.discovery import FOLDERS, ROOT, ClassReference
from engine.cli.features_and_commands import commands, features, source
from engine.cli.signatures_from_source import REQUIRED, Parameter, Signature, find_definition, from_source
from engine.errors import UsageError, nearest

TORCH_GROUPS = ("loss", "optimizer")  # flags of MInterface whose values bring flags of their own
# They decide which item is in which split: changed, a checkpoint would be tested on what it was trained on.
SPLIT_FLAGS = {"seed", "val_fraction", "test_fraction", "stratify", "num_folds", "fold"}
# The Trainer's arguments that main.py fills, and those that forbid what it fills.
_TRAINER_NOT_FLAGS = {"callbacks", "logger", "plugins", "use_distributed_sampler"}
_TRAINER_NOT_FLAGS |= {"enable_checkpointing", "enable_model_summary", "barebones"}
_DATASET_NOT_FLAGS = {"split", "train", "download", "root"}  # filled by DInterface


class Flag(NamedTuple):
    """One flag, and the arguments of that name, which all get its value."""

    name: str
    parameters: list[Parameter]

    @property
    def annotation(self) -> ast.expr | None:
        """The type, from the first argument that has one."""
        found = next((one.annotation for one in self.parameters if one.annotation is not None), None)
        if found is not None and "None" in self.defaults and not type_conversion.accepts(found, "None"):
            return ast.BinOp(found, ast.BitOr(), ast.Constant(None))  # `width: int = None`
        return found

    @property
    def defaults(self) -> dict[str, Parameter]:
        """The different defaults, as text."""
        return {repr(one.default): one for one in reversed(self.parameters) if one.default is not REQUIRED}

    @property
    def default(self) -> Any:
        """The default; REQUIRED where there is none, or several different ones."""
        return next(iter(self.defaults.values())).default if len(self.defaults) == 1 else REQUIRED

    @property
    def differing_defaults(self) -> str:
        """`LeNet has 8, Digits has 16`, or "" where all arguments agree."""
        texts = (f"{one.owner} has {text}" for text, one in self.defaults.items())
        return ", ".join(texts) if len(self.defaults) > 1 else ""


class FlagGroups(NamedTuple):
    """All flags of one command line.

    names: the values of "model_name", "dataset", "loss" and "optimizer", as far as they are given.
    classes: "model_name" and "dataset" -> the class.
    groups: what the flags are arguments of, in the order of the help; settings.Settings lists the keys.
    flags: by name. An argument of a type that no command line can express stays with its default.
    """

    action: str
    names: dict[str, str]
    classes: dict[str, ClassReference]
    groups: dict[str, Signature]
    flags: dict[str, Flag]

    def known(self, name: str) -> bool:
        """Whether it is a flag, or some `**kwargs` takes it."""
        return name in self.flags or any(group.accepts_any for group in self.groups.values())

    def unknown_flag(self, name: str) -> UsageError:
        """The error for a flag that nobody has, or not here: whose it is, or which one may be meant."""
        for group in self.groups.values():
            if name in group.parameters and name not in self.flags:
                text = "is of a type that a command line cannot give; set it in the code"
                return UsageError(f"--{name} of {group.owner} {text}")
        for key, folder in FOLDERS.items():
            others = [one for one in discovery.names(folder) if one != self.names[key] and _has(folder, one, name)]
            if others:
                return UsageError(f"--{name} is a flag of {', '.join(others)}, and --{key} is {self.names[key]}")
        if name == "root":
            return UsageError("--root is filled from --data_dir")
        known = [*self.flags, "help", "help_all", "config", "print_config"]
        return UsageError(f"unknown flag --{name}{nearest(name, known)}")


def collect(action: str, names: dict[str, str], classes: dict[str, ClassReference]) -> FlagGroups:
    """The flags of an action with a network, a dataset, a loss and an optimiser."""
    groups: dict[str, Signature] = {"run": _read(ROOT / "main.py", "run")}
    groups["data"] = data = _read(ROOT / "data/data_interface.py", "DInterface")
    groups["system"] = _read(ROOT / "model/model_interface.py", "MInterface").without({"component_kwargs"})
    if "dataset" in classes:
        dataset = _signature(classes["dataset"])
        filled = {"data_dir"} & dataset.parameters.keys()  # DInterface only hands it on: the dataset's default counts
        if "split" in dataset.parameters:
            filled |= SPLIT_FLAGS - {"seed"}  # the dataset has its own splits
        elif "train" in dataset.parameters:
            filled |= {"test_fraction"}
        groups |= {"dataset": dataset.without(_DATASET_NOT_FLAGS), "data": data.without(filled)}
    if "model_name" in classes:
        groups["network"] = _signature(classes["model_name"])
        groups["system"] = groups["system"].without(groups["network"].overrides or ())
    groups |= {
        "schedule": _read(ROOT / "engine/training/lr_schedulers.py", "factor"),
        "callbacks": _read(ROOT / "main.py", "load_callbacks"),
        "loggers": _read(ROOT / "main.py", "load_loggers"),
        "hardware": _read(ROOT / "engine/training/hardware.py", "configure"),
        **{name: _read(source("features", name), "callbacks") for name in features()},
        **action_group(action),
    }
    trainer = _read(signatures_of_torch.source_of("pytorch_lightning", "trainer/trainer.py"), "Trainer")
    groups["trainer"] = trainer.without(_TRAINER_NOT_FLAGS | groups["run"].parameters.keys())
    for kind in TORCH_GROUPS:
        if kind in groups["system"].parameters:
            name = names.get(kind) or groups["system"].parameters[kind].default
            groups[kind] = _prefix_clashes(kind, signatures_of_torch.signature(kind, name), groups)
    order = ["run", "dataset", "data", "network", "system", *TORCH_GROUPS]
    groups = {key: groups[key] for key in dict.fromkeys([*order, *groups]) if key in groups}
    return FlagGroups(action, names, classes, groups, flags_of(groups))


def action_group(action: str) -> dict[str, Signature]:
    """The signature of a command, as the group "action"; {} for fit, validate and test."""
    return {"action": _read(source("commands", action), "run")} if action in commands() else {}


def flags_of(groups: dict[str, Signature]) -> dict[str, Flag]:
    """One flag for each name, with all the arguments that it feeds."""
    flags: dict[str, Flag] = {}
    for group in groups.values():
        for one in group.parameters.values():
            if type_conversion.expressible(one.annotation):
                flags.setdefault(one.name, Flag(one.name, [])).parameters.append(one)
    return flags


def _prefix_clashes(kind: str, signature: Signature, groups: dict[str, Signature]) -> Signature:
    """The same, with an argument that another group has with another default renamed to `optimizer_NAME`, say."""
    renamed = {}
    for name, one in signature.parameters.items():
        others = [group.parameters[name] for group in groups.values() if name in group.parameters]
        flag = name if all(other.default == one.default for other in others) else f"{kind}_{name}"
        renamed[flag] = one._replace(name=flag)
    return signature._replace(parameters=renamed)


def _read(path: Path, name: str) -> Signature:
    """The arguments behind the `*`; main.py fills those before it."""
    signature = from_source(*find_definition(path, name), keyword_only=True)
    assert signature is not None, f"{name} in {path} should name its arguments itself"
    return signature


def _signature(reference: ClassReference) -> Signature:
    source = from_source(reference.node, reference.tree) if reference.tree else None
    return source or signatures_from_import.from_object(reference.load(), reference.name)


def _has(folder: str, other: str, name: str) -> bool:
    """Whether another network or dataset has an argument of that name. What cannot be parsed has none."""
    if not re.search(rf"\b{name}\b", (ROOT / folder / f"{other}.py").read_text(encoding="utf-8", errors="replace")):
        return False
    try:
        reference = discovery.find(folder, other)
        signature = from_source(reference.node, reference.tree) if reference.tree else None
    except (UsageError, SyntaxError):
        return False
    return signature is not None and name in signature.parameters
