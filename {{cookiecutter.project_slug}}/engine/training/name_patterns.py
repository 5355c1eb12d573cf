"""Patterns of names in flags: the parameters and the submodules of a network that they mean."""

import fnmatch

from torch import nn

from engine.errors import UsageError


def matching_parameters(module: nn.Module, pattern: str, flag: str) -> list[str]:
    """The names of the parameters that match: a submodule of the network (`backbone`) or wildcards (`*.bias`).

    Raises: UsageError: there is none; the message names the submodules.
    """
    short = {key.removeprefix("network."): key for key, _ in module.named_parameters()}
    found = [key for name, key in short.items() if fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")]
    if not found:
        submodules = ", ".join(dict.fromkeys(name.partition(".")[0] for name in short))
        raise UsageError(f"--{flag} {pattern}: no parameter has such a name; the network has {submodules}")
    return found


def find_network(module: nn.Module) -> nn.Module:
    """The network of a LightningModule: the module itself where it is none of ours, or has several."""
    network: nn.Module | None = getattr(module, "network", None)
    return module if network is None else network  # not `or`: a network may have a length, of 0


def matching_modules(module: nn.Module, pattern: str, flag: str) -> list[nn.Module]:
    """The submodules of the network whose name matches: the name itself (`blocks`) or wildcards (`blocks.*`).

    Of a ModuleList or ModuleDict, which computes nothing itself, those in it; of nested ones the outermost.

    Raises: UsageError: there is none; the message names the submodules.
    """
    named = {name: one for name, one in find_network(module).named_modules() if name}
    found, in_lists = list[str](), set[str]()
    for name, one in named.items():  # the outer ones first
        matches = name in in_lists or fnmatch.fnmatchcase(name, pattern)
        if not matches or any(name.startswith(f"{outer}.") for outer in found):
            continue
        if isinstance(one, (nn.ModuleList, nn.ModuleDict)):
            in_lists |= {f"{name}.{key}" for key, _ in one.named_children()}
        else:
            found.append(name)
    if not found:
        names = ", ".join(name for name in named if name.count(".") < 2)
        raise UsageError(f"--{flag} {pattern}: no layer has such a name; the network has {names}")
    return [named[name] for name in found]
