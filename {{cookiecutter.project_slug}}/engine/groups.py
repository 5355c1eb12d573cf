"""Who asks for flags: main.py, data, network, optimiser, callbacks, Trainer ... each by its signature."""

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from engine import annotations, discovery, inspection, library, signatures
from engine.discovery import UsageError
from engine.signatures import REQUIRED, Parameter, Signature

KINDS = ("loss", "optimizer")  # these bring flags of their own too
# These decide which item is in which part: changed, a checkpoint would be tested on what it was trained on.
PARTS = {"seed", "val_fraction", "test_fraction", "num_folds", "fold"}
# The Trainer's arguments that main.py fills.
_OURS = {"callbacks", "logger", "plugins", "use_distributed_sampler"}
_OURS |= {"enable_checkpointing", "enable_model_summary", "barebones"}  # they forbid what main.py gives
# The dataset's arguments that DInterface fills.
_FILLED = {"split", "train", "download", "root"}
# The system's argument that main.py fills.
_OPTIONS = "options"


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
        "machine": _read(discovery.ROOT / "engine" / "machine.py", "prepare"),
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
        for name, cut in (("split", PARTS - {"seed"}), ("train", {"test_fraction"})):
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


def flags_of(groups: dict[str, Signature]) -> dict[str, Flag]:
    """One flag a name, fed to all that ask for it; what no command line can say stays with its default."""
    flags: dict[str, Flag] = {}
    for group in groups.values():
        for one in group.parameters.values():
            if annotations.sayable(one.annotation):
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
    return signature or inspection.from_object(found.load(), found.name)
