"""Torch's losses and optimisers: their names and arguments, read from its source, so that help need not import it."""

import ast
import re
from pathlib import Path

from engine.cli import discovery, signatures_from_import, signatures_from_source
from engine.cli.signatures_from_source import REQUIRED, Signature
from engine.errors import UsageError, nearest, simplify

# Filled by the engine, flags of MInterface, or a matter of speed alone.
_NOT_FLAGS = {
    "loss": {"input", "target", "weight", "pos_weight", "reduction", "reduce", "size_average"},
    "optimizer": {"params", "lr", "weight_decay", "foreach", "capturable", "differentiable", "fused"},
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
