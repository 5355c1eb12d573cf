"""Torch's losses and optimisers, read from its source: help need not import it. And ranges that no annotation says."""

import ast
import re
from pathlib import Path
from typing import Any

from engine.cli import discovery, signatures_from_import, signatures_from_source
from engine.cli.signatures_from_source import REQUIRED, Signature
from engine.cli.type_conversion import OutOfRange, check_range
from engine.errors import UsageError, nearest, simplify

# Filled by the engine, flags of MInterface, or a matter of speed alone.
_NOT_FLAGS = {
    "loss": {"input", "target", "weight", "pos_weight", "reduction", "reduce", "size_average"},
    "optimizer": {"params", "lr", "weight_decay", "foreach", "capturable", "differentiable", "fused"},
}
# Of the Trainer and of dropout too. Flags of this project say theirs themselves: `Annotated[float, ">= 0"]`.
_RANGES: dict[str, dict[tuple[str, ...], str]] = {
    "trainer": {
        (">= -1",): "num_sanity_val_steps",
        (">= -1", "!= 0"): "max_steps",
        ("> 0",): "limit_train_batches limit_predict_batches val_check_interval",
        (">= 0",): "gradient_clip_val overfit_batches limit_val_batches limit_test_batches fast_dev_run "
        "min_epochs min_steps reload_dataloaders_every_n_epochs",
        (">= 1",): "log_every_n_steps accumulate_grad_batches num_nodes check_val_every_n_epoch",
    },
    "optimizer": {
        (">= 0",): "momentum eps lr_decay initial_accumulator_value dampening",
        (">= 0", "< 1"): "betas",
        (">= 0", "<= 1"): "rho alpha",
    },
    "loss": {(">= 0", "<= 1"): "label_smoothing", ("> 0",): "delta eps", (">= 0",): "beta"},
    "network": {(">= 0", "<= 1"): "dropout"},
}
_CHOICES = {
    "accelerator": "auto cpu gpu cuda mps tpu",
    "deterministic": "true false warn none",
    "profiler": "simple advanced pytorch xla none",
    "gradient_clip_algorithm": "norm value none",
    "precision": "64 64-true 32 32-true 16 16-true 16-mixed bf16 bf16-true bf16-mixed transformer-engine "
    "transformer-engine-float16 none",
}


def signature(kind: str, name: str) -> Signature:
    """The arguments of a loss or an optimiser that are flags.

    kind: "loss" or "optimizer". name: as torch has it, or a dotted path to a function or class of one's own.

    Raises: UsageError: there is none of that name; the message says what there is.
    """
    if "." in name:
        target = discovery.find("model", name).load()
        own = signatures_from_import.from_object(target, name)
        # Output and target of a loss function, none of a loss class; the parameters of an optimiser.
        inputs = [*own.parameters][: 1 if kind == "optimizer" else 0 if isinstance(target, type) else 2]
        return own.without(_NOT_FLAGS[kind].union(inputs))
    if (kind, name) == ("optimizer", "Muon"):
        muon = signatures_from_source.find_definition(discovery.ROOT / "engine/training/muon.py", "Muon")
        both = signatures_from_source.from_source(*muon, keyword_only=True)
        assert both is not None
        return both.without(_NOT_FLAGS[kind])
    found = (_losses if kind == "loss" else _optimizers)(name) if name.isidentifier() else {}
    if name not in found:
        known = sorted(_losses() if kind == "loss" else _optimizers())
        raise UsageError(f"--{kind} {name}{nearest(name, known)}; there are: {', '.join(known)}")
    return found[name].without(_NOT_FLAGS[kind])


def _losses(name: str = "") -> dict[str, Signature]:
    """The functions (output, target, ...) of torch.nn.functional that are losses: all, or the one of that name."""
    source = source_of("torch", "nn/functional.py").read_text(encoding="utf-8")
    pattern = rf"\ndef ({name or '[a-z][a-z0-9_]*'})\(\s*([^()]*reduction: str[^()]*)\)\s*->"
    found = {key: _parse(key, arguments) for key, arguments in re.findall(pattern, source)}
    return {key: one for key, one in found.items() if sum(p.default is REQUIRED for p in one.parameters.values()) == 2}


def _optimizers(name: str = "") -> dict[str, Signature]:
    """The classes of torch.optim: all, or the one of that name, which is looked for in the file of its name."""
    head = r"^class ([A-Z]\w*)\((?:Optimizer|Adam)\):.*?def __init__\(\s*self,(.*?)\)(?: -> None)?:(?: +#[^\n]*)?\n"
    found: dict[str, Signature] = {}
    for path in source_of("torch", "optim").glob("*.py"):
        if not name or simplify(path.stem) == simplify(name):
            heads = re.findall(head, path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
            found |= {key: _parse(key, arguments) for key, arguments in heads}
    return found


def _parse(name: str, arguments: str) -> Signature:
    tree = ast.parse(f"class {name}:\n    def __init__(self, {' '.join(re.sub('#.*', '', arguments).split())}): pass")
    found = signatures_from_source.from_source(tree.body[0], tree)
    assert found is not None, name
    return found


def source_of(package: str, path: str) -> Path:
    """A file or folder of a package, which is not imported. Raises UsageError: it is not installed."""
    import importlib.util

    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UsageError(f'{package} is not installed here: pip install -e "."')
    return Path(spec.origin).parent / path


def range_error(name: str, value: Any, groups: list[str], default: Any = None) -> str:
    """What is wrong with the value of a flag, or "". groups: those that it is an argument of."""
    if not isinstance(default, float) or not 0 <= default <= 1:  # a network may count its dropout in per cent
        groups = [one for one in groups if one != "network"]
    for group in _RANGES.keys() & {*groups}:
        ranges = [limits for limits, names in _RANGES[group].items() if name in names.split()]
        try:
            for limits in ranges:
                for number in value if isinstance(value, (list, tuple)) else [value]:
                    check_range(number, limits)
        except OutOfRange as error:
            return str(error)
    return _trainer_error(name, value) if "trainer" in groups else ""


def choices(name: str) -> str:
    """What a flag of the Trainer takes, for help, "" where there is no list."""
    return f"one of {', '.join(_CHOICES[name].split())}" if name in _CHOICES else ""


def _trainer_error(name: str, value: Any) -> str:
    if name.startswith("limit_") and isinstance(value, float) and value > 1:
        return "should be a share up to 1.0, or a whole number of batches"
    if name in _CHOICES and str(value).lower() not in _CHOICES[name].split():
        return f"is not {choices(name)}"
    if name == "max_time" and isinstance(value, str) and not re.fullmatch(r"(?=.*[1-9])\d+:\d\d:\d\d:\d\d", value):
        return "should be DD:HH:MM:SS and more than 0, such as 00:12:00:00"
    numbers = value if isinstance(value, list) else [value]
    if name == "devices" and value not in ("auto", -1) and (
        value in (0, []) or any(type(one) is not int or one < 0 for one in numbers)):  # fmt: skip
        return "should be a number of devices, their numbers, or auto"
    if name == "strategy" and re.search("spawn|fork|notebook", str(value)):  # Lightning's ways to run in a notebook
        return "would lose what its processes measure; ddp starts processes too, and keeps it"
    return ""
