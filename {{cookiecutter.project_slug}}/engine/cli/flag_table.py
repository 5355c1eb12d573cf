"""The flags of a command line: whose arguments they are (main.py, data, network, optimiser, Trainer ...), in groups."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from engine.cli import annotations, discovery, signatures_from_import, signatures_of_torch
from engine.cli.annotations import Annotation
from engine.cli.discovery import FOLDERS, ROOT, ClassReference
from engine.cli.features_and_commands import commands, features, sources
from engine.cli.signatures_from_source import REQUIRED, Expression, Parameter, Signature, find_definition, from_source
from engine.errors import UsageError, nearest

TORCH_GROUPS = ("loss", "optimizer")  # flags of MInterface whose values bring flags of their own
# They decide which item is in which split: changed, a checkpoint would be tested on what it was trained on.
SPLIT_FLAGS = {"seed", "val_fraction", "test_fraction", "stratify"}
# The Trainer's arguments that main.py fills, and those that forbid what it fills.
_TRAINER_NOT_FLAGS = {"callbacks", "logger", "plugins", "use_distributed_sampler"}
_TRAINER_NOT_FLAGS |= {"enable_checkpointing", "enable_model_summary", "barebones"}
# Others than the Trainer's. Under torch.inference_mode, torch.enable_grad would have no effect.
TRAINER_DEFAULTS = {"inference_mode": False}
_DATASET_NOT_FLAGS = {"split", "train", "download"}  # filled by DInterface, as is a "root" without a default
# Flags that an argument of a network or a dataset may share, as they mean the same there.
_SHARED = {"seed", "max_epochs", "log_every_n_steps", "batch_size", "num_workers", "data_dir", "val_fraction"}
_SHARED |= {"test_fraction", "stratify", "lr", "weight_decay", "warmup_steps", "warmup_epochs"}
_SHARED_OF_SYSTEM = {"monitor", "max_steps"}  # a LightningModule may ask for them too, for its schedule
_WORDS = ("config", "print_config", "help", "help_all")
# What a flag is called elsewhere -> here.
_OTHER_NAMES = {
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs", "max_epoch"), "max_epochs"),
    **dict.fromkeys(("learning_rate", "base_lr"), "lr"),
    **dict.fromkeys(("gpus", "gpu", "num_gpus", "num_devices", "num_processes"), "devices"),
    **dict.fromkeys(("device", "cuda"), "accelerator"),
    **dict.fromkeys(("model", "network", "net", "arch"), "model_name"),
    **dict.fromkeys(("resume", "resume_from", "resume_from_checkpoint", "checkpoint", "ckpt"), "ckpt_path"),
    **dict.fromkeys(("amp", "fp16", "bf16", "half"), "precision"),
    **dict.fromkeys(("wd", "decay"), "weight_decay"),
    **dict.fromkeys(("early_stopping", "early_stop"), "patience"),
    **dict.fromkeys(("workers", "num_worker"), "num_workers"),
    **dict.fromkeys(("optim", "opt"), "optimizer"),
    **dict.fromkeys(("scheduler", "lr_schedule", "sched"), "lr_scheduler"),
    **dict.fromkeys(("root", "data_root", "data_path"), "data_dir"),
    **dict.fromkeys(("bs", "batch"), "batch_size"),
    **dict.fromkeys(("criterion", "loss_fn"), "loss"),
}


class Flag(NamedTuple):
    """One flag, and the arguments of that name, which all get its value."""

    name: str
    parameters: list[Parameter]

    @property
    def annotation(self) -> Annotation:
        """The type, from the first argument that has one."""
        found = next((one.annotation for one in self.parameters if one.annotation), ())
        if found and "None" in self.defaults and not annotations.accepts(found, "None"):
            return (*found, annotations.NONE)  # `width: int = None`
        return found

    @property
    def defaults(self) -> dict[str, Parameter]:
        """The different defaults, as text."""
        given = [one for one in reversed(self.parameters) if one.default is not REQUIRED]
        return {one.default.text if isinstance(one.default, Expression) else repr(one.default): one for one in given}

    @property
    def default(self) -> Any:
        """The default; REQUIRED where there is none, or several different ones."""
        return next(iter(self.defaults.values())).default if len(self.defaults) == 1 else REQUIRED

    @property
    def differing_defaults(self) -> str:
        """`LeNet has 8, Digits has 16`, or "" where all arguments agree."""
        texts = (f"{one.owner} has {text}" for text, one in self.defaults.items())
        return ", ".join(texts) if len(self.defaults) > 1 else ""


class FlagTable(NamedTuple):
    """All flags of one command line.

    names: the values of "model_name", "dataset", "loss" and "optimizer", as far as they are given.
    classes: "model_name" and "dataset" -> the class.
    groups: what the flags are arguments of, in the order of the help; settings.Settings lists the keys.
    flags: by name. An argument of a type that no command line can express stays with its default.
    ignored: flags that the network takes no notice of, with the reason.
    """

    action: str
    names: dict[str, str]
    classes: dict[str, ClassReference]
    groups: dict[str, Signature]
    flags: dict[str, Flag]
    ignored: dict[str, str]

    def known(self, name: str) -> bool:
        """Whether it is a flag, or some `**kwargs` takes it."""
        return name in self.flags or any(group.accepts_any for group in self.groups.values())

    def unknown_flag(self, name: str) -> UsageError:
        """The error for a flag that nobody has, or not here: whose it is, or which one may be meant."""
        if name in self.ignored:
            return UsageError(f"--{name} would have no effect: {self.ignored[name]}")
        for group in self.groups.values():
            if name in group.parameters and name not in self.flags:
                text = "is of a type that a command line cannot give; set it in the code"
                return UsageError(f"--{name} of {group.owner} {text}")
        for key, folder in FOLDERS.items():
            others = [one for one in discovery.names(folder) if one != self.names[key] and _has(folder, one, name)]
            if others:
                return UsageError(f"--{name} is a flag of {', '.join(others)}, and --{key} is {self.names[key]}")
        if _OTHER_NAMES.get(name) in self.flags:
            return UsageError(f"unknown flag --{name}; it is called --{_OTHER_NAMES[name]} here")
        return UsageError(f"unknown flag --{name}{nearest(name, {*self.flags, *_WORDS} - {name})}")


def collect(
    action: str, names: dict[str, str], classes: dict[str, ClassReference], used: Collection[str] = ()
) -> FlagTable:
    """The flags of an action with a network, a dataset, a loss and an optimiser.

    used: those that are given: where the source does not tell the type of one, its class is imported.

    Raises: UsageError: an argument of the network or of the dataset has the name of a flag that means something else.
    """
    groups: dict[str, Signature] = {"run": _read(ROOT / "main.py", "run")}
    groups["data"] = data = _read(ROOT / "data/data_interface.py", "DInterface")
    groups["system"] = _read(ROOT / "model/model_interface.py", "MInterface").without({"component_kwargs"})
    ignored = dict[str, str]()
    if "dataset" in classes:
        dataset, not_flags = _signature(classes["dataset"], used), _DATASET_NOT_FLAGS
        filled = {"data_dir"} & dataset.parameters.keys()  # DInterface only hands it on: the dataset's default counts
        if "root" in dataset.parameters:
            if dataset.parameters["root"].default in (REQUIRED, None):
                not_flags = not_flags | {"root"}
            else:
                filled |= {"data_dir"}
                ignored["data_dir"] = f"{dataset.owner} takes its folder by --root"
        argument, values = dataset.split_values or ("", {})
        if argument:
            filled |= SPLIT_FLAGS - {"seed"} if "val" in values else {"test_fraction"}  # the dataset has its own splits
            not_flags = not_flags | {argument}
            ignored[argument] = f"{dataset.owner} is built with it once a split: {', '.join(values.values())}"
        elif "train" in dataset.parameters:
            filled |= {"test_fraction"}
        if dataset.base == "LightningDataModule":  # its constructor is called once
            filled, not_flags = data.parameters.keys() - {"seed"}, set[str]()
            ignored |= dict.fromkeys(filled - dataset.parameters.keys(), f"{dataset.owner} loads its data itself")
        groups |= {"dataset": dataset.without(not_flags), "data": data.without(filled)}
    groups["schedule"] = _read(ROOT / "engine/training/lr_schedulers.py", "lr_factor")
    if "model_name" in classes:
        network = _with_types_of(groups["system"], _signature(classes["model_name"], used))
        network = network.without({"component_kwargs"})  # MInterface's own, of other flags
        groups["network"], names_ignored = network, {*network.ignored}
        if network.base == "LightningModule":
            names_ignored = {"schedule", *groups["system"].parameters}
        if "schedule" in names_ignored:
            names_ignored |= groups.pop("schedule").parameters.keys()
        reason = f"{network.owner} trains by methods of its own, which do not use it"
        ignored |= dict.fromkeys(names_ignored - network.parameters.keys(), reason)
        groups["system"] = groups["system"].without(network.overrides | names_ignored)
    groups |= {
        "callbacks": _read(ROOT / "main.py", "load_callbacks"),
        "loggers": _read(ROOT / "engine/logging/loggers.py", "build"),
        "hardware": _read(ROOT / "engine/training/trainer_setup.py", "configure"),
        **{name: _read(sources("features")[name], "callbacks") for name in features()},
        **action_group(action),
    }
    trainer = _read(signatures_of_torch.source_of("pytorch_lightning", "trainer/trainer.py"), "Trainer")
    trainer = trainer.without(_TRAINER_NOT_FLAGS | groups["run"].parameters.keys())
    ours = {name: trainer.parameters[name]._replace(default=value) for name, value in TRAINER_DEFAULTS.items()}
    groups["trainer"] = trainer._replace(parameters=trainer.parameters | ours)
    for kind in TORCH_GROUPS:
        if kind in groups["system"].parameters:
            name = names.get(kind) or groups["system"].parameters[kind].default
            groups[kind] = _prefix_clashes(kind, signatures_of_torch.signature(kind, name), groups)
    order = ["run", "dataset", "data", "network", "system", *TORCH_GROUPS]
    groups = {key: groups[key] for key in dict.fromkeys([*order, *groups]) if key in groups}
    _refuse_clashes(groups)
    flags = flags_of(groups)
    ignored = {key: why for key, why in ignored.items() if key not in flags}
    return FlagTable(action, names, classes, groups, flags, ignored)


def action_group(action: str) -> dict[str, Signature]:
    """The signature of a command, as the group "action"; {} for fit, validate and test."""
    return {"action": _read(sources("commands")[action], "run")} if action in commands() else {}


def flags_of(groups: dict[str, Signature]) -> dict[str, Flag]:
    """One flag for each name, with all the arguments that it feeds."""
    flags: dict[str, Flag] = {}
    for group in groups.values():
        for one in group.parameters.values():
            if annotations.expressible(one.annotation):
                flags.setdefault(one.name, Flag(one.name, [])).parameters.append(one)
    return flags


def _refuse_clashes(groups: dict[str, Signature]) -> None:
    """Raises UsageError: an argument of the network or the dataset is called like a flag that means something else."""
    taken = dict.fromkeys(_WORDS, "main.py")
    with_flags = (one for one, needs in commands().items() if needs != ["argv"])  # others read their words themselves
    taken |= {name: f"the command {one}" for one in with_flags for name in action_group(one)["action"].parameters}
    for key, group in groups.items():
        if key not in ("dataset", "network", "action", *TORCH_GROUPS):
            owner = f"engine/features/{key}" if key in features() else "the Trainer" if key == "trainer" else "main.py"
            taken |= dict.fromkeys(group.parameters.keys() - _SHARED, owner)
    for key in ("network", "dataset"):
        shared = _SHARED_OF_SYSTEM if key in groups and groups[key].base else set[str]()
        for name in groups[key].parameters if key in groups else ():
            if name in taken and name not in shared:
                what = f"the argument {name} of {groups[key].owner} has the name of a flag of {taken[name]}"
                raise UsageError(f"--{name}: {what}: rename it, or write a class around it")


def _prefix_clashes(kind: str, signature: Signature, groups: dict[str, Signature]) -> Signature:
    """The signature; an argument that the network, or a group with another default, has too is `optimizer_NAME`."""
    renamed = {}
    for name, one in signature.parameters.items():
        others = {key: group.parameters[name] for key, group in groups.items() if name in group.parameters}
        differ = "network" in others or any(other.default != one.default for other in others.values())
        flag = f"{kind}_{name}" if differ else name
        renamed[flag] = one._replace(name=flag)
    return signature._replace(parameters=renamed)


def _read(path: Path, name: str) -> Signature:
    """The arguments behind the `*`; main.py fills those before it."""
    signature = from_source(*find_definition(path, name), keyword_only=True)
    assert signature is not None, f"{name} in {path} should name its arguments itself"
    return signature


def _signature(reference: ClassReference, used: Collection[str]) -> Signature:
    """The arguments of a class: from its source, as far as that tells them, or else from the class itself."""
    signature = from_source(reference.node, reference.tree) if reference.tree else None
    given = [signature.parameters[name] for name in used if signature and name in signature.parameters]
    untyped = any(isinstance(one.default, Expression) and not one.annotation for one in given)  # a set or a list?
    kinds = [each.kind for one in given for each in annotations.inner(one.annotation)]
    if signature is None or untyped or "?" in kinds:
        return signatures_from_import.from_object(reference.load(), reference.name)
    return signature


def _with_types_of(system: Signature, network: Signature) -> Signature:
    """The arguments of a subclass of MInterface, with the types that MInterface gives to those of the same name."""
    typed = {
        name: one._replace(annotation=system.parameters[name].annotation)
        for name, one in network.parameters.items()
        if name in system.parameters and network.overrides and not one.annotation
    }
    return network._replace(parameters=network.parameters | typed)


def _has(folder: str, other: str, name: str) -> bool:
    """Whether another network or dataset has an argument of that name. What cannot be parsed has none."""
    as_argument = rf"\b{name}\s*[:=,)#'\"]"  # a name in quotes may be a key of `**kwargs`
    if not re.search(as_argument, (ROOT / folder / f"{other}.py").read_text(encoding="utf-8", errors="replace")):
        return False
    try:
        reference = discovery.find(folder, other)
        signature = from_source(reference.node, reference.tree) if reference.tree else None
    except (UsageError, SyntaxError):
        return False
    return signature is not None and name in signature.parameters
