"""From the values that were given to the settings of a run: what is missing, what a checkpoint has already fixed."""

from pathlib import Path
from typing import Any, NamedTuple

from engine.cli import conversion, discovery
from engine.cli.flags import KINDS, PARTS, Flag
from engine.cli.signatures import REQUIRED, Signature, Source
from engine.errors import UsageError


class Settings(NamedTuple):
    """A command line, understood.

    flags: the value of every flag, plain, as config.yaml keeps it.
    arguments: the same by who gets them: "run", "dataset", "data", "network", "system", "loss", "optimizer",
        "schedule", "callbacks", "loggers", "trainer", "action" (where it has a file of its own), and each file of
        engine/ that brings callbacks.
    inferred: arguments of the network that nobody gave and the dataset has as attributes.
    ckpt_path: the file that --ckpt_path means.
    job_id: the name of a file by which a job of SLURM or torchrun, started again, finds its run.
    """

    action: str
    flags: dict[str, Any]
    arguments: dict[str, dict[str, Any]]
    dataset: discovery.ClassReference
    network: discovery.ClassReference
    inferred: list[str]
    ckpt_path: Path | None
    job_id: str = ""


def complete(
    action: str,
    values: dict[str, Any],
    groups: dict[str, Signature],
    flags: dict[str, Flag],
    found: dict[str, discovery.ClassReference],
    ckpt_path: Path | None,
) -> Settings:
    """The settings: defaults filled in, and each value handed to all that ask for it.

    Raises:
        UsageError: a value is missing, or the dataset says that it is another one.
    """
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
    kept = {key: _plain(value) for key, value in values.items() if key not in silent | {"ckpt_path", "trust"}}
    return Settings(action, kept, arguments, found["dataset"], found["model_name"], asks, ckpt_path)


def refuse_changes(
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
            if PARTS & groups["data"].parameters.keys() > {"seed"}
            else set()
        )
        fixed |= dict.fromkeys(PARTS | cuts, "the parts its data was cut into")
    for name, what in fixed.items():
        if name in before and name in now and before[name] != now[name]:
            raise UsageError(
                f"--{name} {now[name]}: the checkpoint was made with {before[name]}, and {what} cannot change"
            )


def _known(name: str, dataset: Signature) -> bool:
    if dataset.knows is None or name in dataset.knows:
        return True
    return name == "num_classes" and "classes" in dataset.knows  # torchvision's datasets list their classes


def _missing(flag: Flag) -> str:
    kind = conversion.describe(flag.annotation)
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
