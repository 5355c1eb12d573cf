"""Checks the dotted paths in a checkpoint or run folder before anything is imported; `--trust` skips it."""

import ast
import importlib
import os
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import FunctionType
from typing import Any

from engine.checkpointing.run_folder import FOLDER
from engine.cli.config_file import RawValue
from engine.cli.discovery import ROOT
from engine.errors import UsageError

# Packages whose modules may be imported to see what a name in them is; of others the source is read first.
_KNOWN = """torch torchvision torchaudio torchmetrics timm transformers diffusers monai segmentation_models_pytorch
pytorch_lightning lightning""".split()
_FACTORIES = ("timm.create_model", "timm.models.create_model", "segmentation_models_pytorch.create_model")
_NO_FUNCTIONS = ("engine", "main", "sweep", "ray_train", "tests")  # their functions do other things
_SEPARATORS = re.compile(r"[\s,'\"\[\]()]+")  # between the names of a list
_LOADS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")  # what timm reads a file by, as a pickle


def check(kept: dict[str, RawValue], ckpt_path: Path) -> None:
    """Whether each dotted path in a checkpoint or its run folder is of the kind that its flag takes.

    kept: its flags, less those that the person gave himself. Nothing is imported before its file was looked at.

    Raises: UsageError: one is something else, or lies where no code of this project's lies.
    """
    keys = {"model_name", "dataset", "loss", "head_losses", "optimizer", "metrics", "lr_scheduler"} & kept.keys()
    for flag, path in [(one, path) for one in sorted(keys) for path in _names(kept[one])]:
        key, path = flag, path.partition("(")[0] if flag == "metrics" else path  # without arguments
        if flag == "head_losses":  # HEAD=LOSS*WEIGHT
            key, path = "loss", path.partition("=")[2].partition("*")[0]
        if "." not in path:
            continue
        wrong = _reason_to_refuse(key, path, ckpt_path)
        if path.startswith("timm.") and key == "model_name" and (loads := kept.keys() & {*_LOADS}):
            wrong = wrong or f"it would load a file by {min(loads)}"
        if wrong:
            hint = f"type --{flag} {path!r} as well, or --trust, if you trust it"
            raise UsageError(f"{kept[flag].where or f'{ckpt_path}: '}{flag} {path!r} is refused: {wrong}; {hint}")


def _names(raw: RawValue) -> list[str]:
    return [*map(str, raw.value)] if isinstance(raw.value, (list, tuple)) else _SEPARATORS.split(raw.text)


def _reason_to_refuse(key: str, path: str, ckpt_path: Path) -> str:
    """Why a dotted path may not be imported, or ""."""
    *parents, name = path.split(".")
    module = ".".join(parents)
    if not all(part.isidentifier() and not part.startswith("__") for part in (*parents, name)):
        return "it is no dotted path"
    found, wrong = _locate(parents)
    if wrong:
        return wrong
    base = found[0].parents[1] if found[0].name.startswith("__init__.") else found[0].parent  # an entry of sys.path
    installed = base.name in ("site-packages", "dist-packages")
    if wrong := _misplaced(found, base, installed, ckpt_path):
        return wrong
    own_function = key in ("loss", "lr_scheduler") and base.resolve() == ROOT and parents[0] not in _NO_FUNCTIONS
    known = installed and parents[0] in _KNOWN
    if not known:
        classes, functions = _definitions(found[-1])
        if name not in classes | (functions if own_function else set()):
            return f"{found[-1]} defines no {'class or function' if own_function else 'class'} of that name"
    thing = getattr(importlib.import_module(module), name, None)
    if isinstance(thing, type):
        return "" if issubclass(thing, _bases(key)) else f"it is no {' or '.join(one.__name__ for one in _bases(key))}"
    if callable(thing) and (own_function or (known and _is_factory(key, path, thing))):
        return ""
    return "it is no class" if thing is not None else f"module {module} has no {name!r}"


def _locate(parents: list[str]) -> tuple[list[Path], str]:
    """The files that importing a module would run, package by package, found without running one; or why not."""
    if parents[0] in sys.stdlib_module_names:
        return [], "it is of Python's own library"
    found: list[Path] = []
    within: list[str] | None = None
    for number in range(1, len(parents) + 1):
        part = ".".join(parents[:number])
        spec = PathFinder.find_spec(part, within)
        if spec is None:
            return [], f"there is no module {part!r} (is its package installed?)"
        if not spec.has_location or spec.origin is None:
            return [], f"{part} is no package but a folder without __init__.py"
        within = list(spec.submodule_search_locations or ())
        found.append(Path(spec.origin).absolute())
    return found, ""


def _misplaced(found: list[Path], base: Path, installed: bool, ckpt_path: Path) -> str:
    """Why code is not taken from where it lies, or "": what came along with a run or with data is not the project's."""
    real, here, root = found[-1].resolve(), Path.cwd(), base.resolve()
    parts = {*found[-1].relative_to(base).parts, *(real.relative_to(ROOT) if real.is_relative_to(ROOT) else real).parts}
    if FOLDER in parts:
        return f"{found[-1]} lies among the runs"
    if not installed and real.is_relative_to(Path(os.__file__).resolve().parent):
        return "it is of Python's own library"
    if not installed and root not in (ROOT, here) and root.is_relative_to(here):
        return f"{found[-1]} lies below the working directory and not in the project"
    top = found[0].parent
    if top != base and top.name == "datasets" and not installed:
        return f"{found[-1]} lies among the data"
    if top != base and ckpt_path.resolve().is_relative_to(top.resolve()):
        return f"{found[-1]} came with the checkpoint"
    return ""


def _definitions(path: Path) -> tuple[set[str], set[str]]:
    """The classes and functions that stand in a file."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # such as a compiled one
        return set(), set()
    return ({node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)},
            {node.name for node in tree.body if isinstance(node, ast.FunctionDef)})  # fmt: skip


def _bases(key: str) -> tuple[type, ...]:
    from pytorch_lightning import LightningDataModule
    from torch import nn, optim
    from torch.utils.data import Dataset
    from torchmetrics import Metric

    bases = {"dataset": (Dataset, LightningDataModule), "optimizer": (optim.Optimizer,), "metrics": (Metric,)}
    return bases.get(key, (FunctionType,) if key == "lr_scheduler" else (nn.Module,))


def _is_factory(key: str, path: str, function: Any) -> bool:
    """Whether a function of a known package makes a network, or is a loss: of all others some load, fetch, compile."""
    home, name = str(getattr(function, "__module__", "")), path.rpartition(".")[2]
    if key == "loss":
        return home == "torch.nn.functional" or home.startswith("torchvision.ops.")
    package = next((one for one in ("torchvision", "timm") if path.startswith(f"{one}.models.")), "")
    if key != "model_name" or not home.startswith(f"{package}.models."):
        return key == "model_name" and path in _FACTORIES
    listed = importlib.import_module(f"{package}.models").list_models()
    return path in _FACTORIES or name in listed or f"quantized_{name}" in listed
