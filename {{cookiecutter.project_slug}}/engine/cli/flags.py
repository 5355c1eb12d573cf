"""Who asks for flags: main.py, data, network, optimiser, callbacks, Trainer ... each by its signature."""

import ast
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

from engine.cli import conversion, discovery, inspection, plugins, signatures, torch_signatures
from engine.cli.signatures import REQUIRED, Parameter, Signature, parse_definition
from engine.errors import UsageError

KINDS = ("loss", "optimizer")  # these bring flags of their own too
# These decide which item is in which part: changed, a checkpoint would be tested on what it was trained on.
PARTS = {"seed", "val_fraction", "test_fraction", "num_folds", "fold"}
# The Trainer's arguments that main.py fills.
_OURS = {"callbacks", "logger", "plugins", "use_distributed_sampler"}
_OURS |= {"enable_checkpointing", "enable_model_summary", "barebones"}  # they forbid what main.py gives
# The dataset's arguments that DInterface fills.
_FILLED = {"split", "train", "download", "root"}
# The system's argument that main.py fills.
_OPTIONS = "component_kwargs"


class Flag(NamedTuple):
    """One flag, and all that ask for it."""

    name: str
    asked: list[Parameter]

    @property
    def annotation(self) -> ast.expr | None:
        """The type, from the first that states one."""
        found = next((one.annotation for one in self.asked if one.annotation is not None), None)
        if found is not None and "None" in self.defaults and not conversion.takes(found, "None"):
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


def groups_of(
    found: dict[str, discovery.ClassReference], action: str = "", kinds: dict[str, str] | None = None
) -> dict[str, Signature]:
    """All that asks for flags, in the order of the help. Where main.py names a Trainer argument, its default counts.

    kinds: the names of loss and optimiser, where they are given.
    """
    spec = importlib.util.find_spec("pytorch_lightning")
    if spec is None or spec.origin is None:
        raise UsageError('pytorch_lightning is not installed here: pip install -e "."')
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
        "schedule": _read(discovery.ROOT / "engine" / "training" / "lr_schedulers.py", "factor"),
        "callbacks": _read(main, "load_callbacks"),
        "loggers": _read(main, "load_loggers"),
        "hardware": _read(discovery.ROOT / "engine" / "training" / "hardware.py", "configure"),
        **{name: _read(plugins.source("features", name), "callbacks") for name in plugins.features()},
        "action": _read(plugins.source("commands", action), "run") if action in plugins.commands() else None,
        "trainer": _read(Path(spec.origin).parent / "trainer" / "trainer.py", "Trainer"),
    }
    if groups["dataset"]:
        own = groups["dataset"].parameters
        groups["dataset"] = groups["dataset"]._replace(parameters={k: v for k, v in own.items() if k not in _FILLED})
        if "data_dir" in own:  # it is only handed on to the dataset, whose default counts
            groups["data"].parameters.pop("data_dir")
        for name, cut in (("split", PARTS - {"seed"}), ("train", {"test_fraction"})):
            for fraction in cut if name in own else ():  # what the dataset comes with is not cut
                groups["data"].parameters.pop(fraction, None)
    if (system := groups["network"]) and system.fixes is not None:  # a system of its own takes what it does not set
        rest = {key: one for key, one in groups["system"].parameters.items() if key not in system.fixes}
        groups["system"] = groups["system"]._replace(parameters=rest)
    for kind in KINDS:
        if kind in groups["system"].parameters:
            name = (kinds or {}).get(kind) or groups["system"].parameters[kind].default
            groups[kind] = _apart(kind, torch_signatures.signature(kind, name), groups)
    groups["system"].parameters.pop(_OPTIONS, None)
    trainer = groups["trainer"]
    rest = {key: one for key, one in trainer.parameters.items() if key not in {*_OURS, *groups["run"].parameters}}
    groups["trainer"] = trainer._replace(parameters=rest)
    return {key: group for key, group in groups.items() if group is not None}


def flags_of(groups: dict[str, Signature]) -> dict[str, Flag]:
    """One flag a name, fed to all that ask for it; what no command line can say stays with its default."""
    flags: dict[str, Flag] = {}
    for group in groups.values():
        for one in group.parameters.values():
            if conversion.expressible(one.annotation):
                flags.setdefault(one.name, Flag(one.name, [])).asked.append(one)
    return flags


def _apart(kind: str, signature: Signature, groups: dict[str, Any]) -> Signature:
    """The same, where an argument that somebody else has too, with another default, is `optimizer_NAME`, say."""
    named = {}
    for name, one in signature.parameters.items():
        others = (group.parameters[name] for group in groups.values() if group and name in group.parameters)
        free = name if all(other.default == one.default for other in others) else f"{kind}_{name}"
        named[free] = one._replace(name=free)
    return signature._replace(parameters=named)


def _read(path: Path, name: str) -> Signature:
    tree = parse_definition(path, name)
    node: Any = next((node for node in tree.body if getattr(node, "name", "") == name), None)
    if node is None:
        raise UsageError(f"{path.relative_to(discovery.ROOT)} should define {name} itself: its arguments are flags")
    signature = signatures.from_source(node, tree, only_named=True)  # what stands before the `*` is main.py's to give
    assert signature is not None, f"{name} in {path} should name its arguments itself"
    return signature


def _signature(found: discovery.ClassReference) -> Signature:
    signature = signatures.from_source(found.node, found.tree) if found.node and found.tree else None
    return signature or inspection.from_object(found.load(), found.name)
