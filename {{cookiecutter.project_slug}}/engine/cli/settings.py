"""Values of flags -> the Settings of a run: defaults, what the dataset knows, what a checkpoint has fixed."""

from pathlib import Path
from typing import Any, NamedTuple

from engine.cli import annotations, features_and_commands
from engine.cli.credentials import hide_value
from engine.cli.discovery import ClassReference
from engine.cli.flag_table import SPLIT_FLAGS, TORCH_GROUPS, TRAINER_DEFAULTS, Flag, FlagTable
from engine.cli.signatures_from_source import REQUIRED, Expression, Signature, is_plain
from engine.errors import UsageError


class Settings(NamedTuple):
    """A parsed command line.

    flags: the value of every flag, plain and without credentials, as config.yaml keeps it.
    arguments: the values by what they are arguments of: "run", "dataset", "data", "network", "system", "loss",
        "optimizer", "schedule", "callbacks", "loggers", "hardware", each feature, "action" (a command) and "trainer".
    inferred: required arguments of the network, which come from the dataset's attributes where no flag gives them.
    ckpt_path: the file that --ckpt_path means.
    defaults: the flags that nobody gave, neither now nor when the run began.
    job_id: the name of a file by which a job of SLURM or torchrun, started again, finds its run.
    """

    action: str
    flags: dict[str, Any]
    arguments: dict[str, dict[str, Any]]
    dataset: ClassReference
    network: ClassReference
    inferred: list[str]
    ckpt_path: Path | None
    job_id: str = ""
    defaults: frozenset[str] = frozenset()


def complete(
    table: FlagTable, given: dict[str, Any], defaults: set[str], ckpt_path: Path | None, job_id: str
) -> Settings:
    """The settings: given values and defaults, each handed to all arguments of its name.

    Network, loss, optimiser and MInterface get what was given and what they require: Python fills in the rest.

    defaults: those of `given` that only a run kept, which had them by default.

    Raises: UsageError: a value is missing, or differs from the dataset's attribute.
    """
    network, dataset = table.groups["network"], table.groups["dataset"]
    inferred = [name for name, one in network.parameters.items() if one.default is REQUIRED]
    values, missing, loss = dict(given), list[str](), table.groups.get("loss")
    for name, flag in table.flags.items():
        from_data = name in inferred and _may_have(dataset, name)
        if from_data and name not in dataset.parameters:
            attribute = (dataset.attributes or {}).get(name, Expression(name))
            if name in given and not isinstance(attribute, Expression) and attribute != given[name]:
                raise UsageError(f"--{name} {given[name]}: {dataset.owner} says that it is {attribute}")
        elif name not in given and flag.default is not REQUIRED:
            values[name] = flag.default
        from_batch = loss is not None and len(flag.parameters) == 1 and name in loss.parameters
        unknown = any(one.default is REQUIRED for one in flag.parameters) and isinstance(values.get(name), Expression)
        if (name not in values or unknown) and not (from_data or from_batch):
            missing.append(_missing(flag))
    if missing:
        raise UsageError("; ".join(missing))
    for one in (*dataset.parameters.values(), *network.parameters.values()):
        if one.default is REQUIRED and one.name not in table.flags and not _may_have(dataset, one.name):
            raise UsageError(f"{one.owner} needs {one.name}, which a command line cannot give: give it a default")
    values = {name: value for name, value in values.items() if not isinstance(value, Expression)}
    arguments: dict[str, dict[str, Any]] = {kind: {} for kind in ("system", "schedule", "data", *TORCH_GROUPS)}
    for key, group in table.groups.items():
        taken = [name for name in values if name in group.parameters or (group.accepts_any and name not in table.flags)]
        if key in ("network", "system", *TORCH_GROUPS):
            taken = [name for name in taken if name in given or group.parameters[name].default is REQUIRED]
        arguments[key] = {name.removeprefix(f"{key}_") if key in TORCH_GROUPS else name: values[name] for name in taken}
    # A Trainer argument that nobody gave is left to the Trainer.
    unset = table.groups["trainer"].parameters.keys() - given.keys() - TRAINER_DEFAULTS.keys()
    arguments["trainer"] = {name: value for name, value in arguments["trainer"].items() if name not in unset}
    said = (name for name in values if name not in unset | {"ckpt_path", "trust"})
    flags = {name: hide_value(name, annotations.plain(values[name])) for name in said}
    classes = table.classes["dataset"], table.classes["model_name"]
    default_names = frozenset(defaults | (flags.keys() - given.keys()))
    return Settings(table.action, flags, arguments, *classes, inferred, ckpt_path, job_id, default_names)


def ask_for_defaults(settings: Settings, table: FlagTable) -> Settings:
    """The settings with the defaults that only the code of network and dataset can work out, for config.yaml."""
    import inspect  # a run follows, which imports the classes anyway

    found: dict[str, Any] = {}
    for key, reference in (("network", settings.network), ("dataset", settings.dataset)):
        names = [one.name for one in table.groups[key].parameters.values() if isinstance(one.default, Expression)]
        if names := [name for name in names if name in table.flags and name not in settings.flags]:
            actual = inspect.signature(reference.load()).parameters
            found |= {name: annotations.plain(actual[name].default) for name in names if name in actual}
    found = {name: hide_value(name, value) for name, value in found.items() if is_plain(value)}
    return settings._replace(flags=settings.flags | found, defaults=settings.defaults | found.keys())


def refuse_changes(table: FlagTable, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises UsageError where a flag differs from the checkpoint's and what it sets cannot change any more."""
    if not before:
        return
    groups, fit = table.groups, table.action == "fit"
    built_from = groups["network"].parameters.values()  # less what names a file, which may have moved
    fixed = {one.name: "its network" for one in built_from if not annotations.accepts(one.annotation, "Path")}
    for key in ("system", "schedule", *TORCH_GROUPS) if fit else ():
        fixed |= dict.fromkeys(groups[key].parameters if key in groups else (), "its optimiser's state")
    if fit or before.get("dataset") == now.get("dataset", before.get("dataset")):
        of_splits = SPLIT_FLAGS | features_and_commands.listed("SPLIT_FLAGS")
        if (SPLIT_FLAGS - {"seed"}) & groups["data"].parameters.keys():  # not the dataset's own splits
            of_splits |= groups["dataset"].parameters.keys() - {"data_dir", "cache_dir"}
        fixed |= dict.fromkeys(of_splits, "the splits of its data")
    for name, what in fixed.items():
        if name in before and name in now and before[name] != now[name]:
            was = f"the checkpoint was made with {before[name]}"
            hint = "; --init_from in place of --ckpt_path begins anew with its weights" if fit else ""
            raise UsageError(f"--{name} {now[name]}: {was}, and {what} cannot change{hint}")


def _may_have(dataset: Signature, name: str) -> bool:
    """Whether instances of the dataset have an attribute, as far as the source can tell."""
    attributes = dataset.attributes
    # torchvision's datasets list their classes
    return attributes is None or name in attributes or (name == "num_classes" and "classes" in attributes)


def _missing(flag: Flag) -> str:
    kind, first = annotations.describe(flag.annotation), flag.parameters[0]
    if differing := flag.differing_defaults:
        return f"--{flag.name} ({kind}) must be given, for its defaults differ: {differing}"
    return f"{first.owner} needs --{flag.name} ({kind})" + (f": {first.help}" if first.help else "")
