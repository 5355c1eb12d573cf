"""Torch's losses and optimisers: their names and arguments, read from its source, so that help need not import it."""

import ast
import importlib.util
import re
from pathlib import Path

from engine.cli import discovery, inspection, signatures
from engine.cli.signatures import REQUIRED, Signature
from engine.errors import UsageError, nearest

# Ours to give, or a matter of speed alone.
_NOT_FLAGS = {
    "loss": {"input", "target", "weight", "pos_weight", "reduction", "reduce", "size_average"},
    "optimizer": {"params", "lr", "weight_decay", "foreach", "capturable", "differentiable", "fused"},
}


def signature(kind: str, name: str) -> Signature:
    """The arguments of a loss or an optimiser that are flags.

    kind: "loss" or "optimizer". name: as torch has it, or a dotted path to a function or class of one's own.

    Raises:
        UsageError: there is none of that name; the message says what there is.
    """
    if "." in name:
        own = inspection.from_object(discovery.find("model", name).load(), name)
        first = next(iter(own.parameters), "")
        inputs = {first} | ({next(iter([*own.parameters][1:]), "")} if kind == "loss" else set())
        parameters = {key: one for key, one in own.parameters.items() if key not in _NOT_FLAGS[kind] | inputs}
        return own._replace(parameters=parameters)
    known = _functions() if kind == "loss" else optimizers()
    if name not in known or (kind == "loss" and not _is_loss(name, known[name])):
        known = losses() if kind == "loss" else known
        raise UsageError(f"--{kind} {name}{nearest(name, known)}; there are: {', '.join(sorted(known))}")
    found = _signature(name, known[name])
    return found._replace(parameters={k: one for k, one in found.parameters.items() if k not in _NOT_FLAGS[kind]})


def losses() -> dict[str, str]:
    """The functions (output, target, ...) of torch.nn.functional that are losses, and their arguments as written."""
    return {name: arguments for name, arguments in _functions().items() if _is_loss(name, arguments)}


def _functions() -> dict[str, str]:
    source = (_torch() / "nn" / "functional.py").read_text(encoding="utf-8")
    return dict(re.findall(r"^def ([a-z]\w*)\(\s*([^()]*reduction: str[^()]*)\)\s*->", source, re.MULTILINE))


def _is_loss(name: str, arguments: str) -> bool:
    """Whether it can do with an output and a target."""
    return sum(one.default is REQUIRED for one in _signature(name, arguments).parameters.values()) == 2


def optimizers() -> dict[str, str]:
    """The classes of torch.optim, and their constructors' arguments as written."""
    found: dict[str, str] = {}
    for path in (_torch() / "optim").glob("*.py"):
        head = r"^class ([A-Z]\w*)\((?:Optimizer|Adam)\):.*?def __init__\(\s*self,(.*?)\)(?: -> None)?:(?: +#[^\n]*)?\n"
        found.update(re.findall(head, path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    return found


def _signature(name: str, arguments: str) -> Signature:
    tree = ast.parse(f"class {name}:\n    def __init__(self, {' '.join(re.sub('#.*', '', arguments).split())}): pass")
    found = signatures.from_source(tree.body[0], tree)  # type: ignore[arg-type]
    assert found is not None, name
    return found


def _torch() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise UsageError('torch is not installed here: pip install -e "."')
    return Path(spec.origin).parent
