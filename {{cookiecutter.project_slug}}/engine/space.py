"""The space of flags that sweep.py searches; goes with it."""

from pathlib import Path
from typing import Any

from engine.errors import UsageError

Space = dict[str, dict[str, Any]]  # flag -> {"choices": [...]} or {"low", "high", "log", "step"}


def read(path: Path) -> Space:
    """The space in a YAML file; numbers may be written as 1e-4.

    Raises:
        UsageError: there is no such file, or a line is neither a list of choices nor a range.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or not found:
        raise UsageError(f"{path} should hold lines like `lr: {{low: 1e-4, high: 1e-1, log: true}}`")
    return {str(name): _range(one, f"{path}: {name}") for name, one in found.items()}


def _range(one: Any, where: str) -> dict[str, Any]:
    if isinstance(one, list) and one:
        return {"choices": [str(value) if isinstance(value, (list, dict)) else value for value in one]}
    if not isinstance(one, dict) or not {"low", "high"} <= one.keys() <= {"low", "high", "log", "step"}:
        raise UsageError(f"{where} should be a list of choices or {{low, high}} with log or step: not {one}")
    try:  # YAML takes 1e-4 for text
        numbers = {key: float(one[key]) if isinstance(one[key], str) else one[key] for key in one if key != "log"}
        if not numbers["low"] <= numbers["high"] or (one.get("log") and (numbers["low"] <= 0 or "step" in one)):
            raise ValueError
    except (TypeError, ValueError):
        raise UsageError(f"{where}: {one} is no range (low <= high; above 0 and without step for log)") from None
    return numbers | {"log": bool(one.get("log"))}


def first(one: dict[str, Any]) -> Any:
    """Some value of a range or of choices."""
    return one["choices"][0] if "choices" in one else one["low"]


def said(values: dict[str, Any]) -> list[str]:
    """Values as words of a command line."""
    texts = {name: str(value).lower() if isinstance(value, bool | None) else value for name, value in values.items()}
    return [f"--{name}={text}" for name, text in texts.items()]


def drawn(trial: Any, space: Space) -> dict[str, Any]:
    """The values that a trial is to try."""
    values = {}
    for name, one in space.items():
        if "choices" in one:
            values[name] = trial.suggest_categorical(name, one["choices"])
        elif isinstance(one["low"], int) and isinstance(one["high"], int):
            values[name] = trial.suggest_int(name, one["low"], one["high"], log=one["log"], step=one.get("step", 1))
        else:
            values[name] = trial.suggest_float(name, one["low"], one["high"], log=one["log"], step=one.get("step"))
    return values
