"""The mode (min or max) of a monitored metric, from torchmetrics' `higher_is_better`. No torch here."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from engine.cli import config_file
from engine.cli.signatures_of_torch import source_of
from engine.errors import UsageError

# Short names of metrics; any other is a class of torchmetrics, in upper or lower case.
ALIASES = {
    "acc": "Accuracy",
    "f1": "F1Score",
    "iou": "JaccardIndex",
    "mae": "MeanAbsoluteError",
    "mse": "MeanSquaredError",
    "r2": "R2Score",
    "psnr": "PeakSignalNoiseRatio",
    "ssim": "StructuralSimilarityIndexMeasure",
}
_CLASS = r"(?m)^class (\w+)\(|^    higher_is_better\b[^=\n]*= (True|False)"


def mode_of(
    name: str, given: Literal["min", "max"] | None = None, metrics: Mapping[str, Any] = {}
) -> Literal["min", "max"]:
    """Whether less or more of a logged metric is better: what was `given`, or else what is known of it.

    metrics: the module's own metric objects, by full name.

    Raises:
        UsageError: neither the user nor torchmetrics says so.
    """
    mode = given or known_mode(name, metrics)
    if mode is None:
        hint = f"if it is spelt right, give --monitor {name} --monitor_mode min, or max"
        raise UsageError(f"{name}: torchmetrics does not say whether lower or higher is better; {hint}")
    return mode


def known_mode(name: str, metrics: Mapping[str, Any] = {}) -> Literal["min", "max"] | None:
    """The direction by `higher_is_better` of the metric object or of torchmetrics' class; "min" of a loss; or None.

    A metric that is not among `metrics` is known by its name less the stage: val_f1 and val/f1 are F1Score.
    """
    better = getattr(metrics[name], "higher_is_better", None) if name in metrics else None
    if isinstance(better, bool):
        return "max" if better else "min"
    stem = re.sub(r"^(best_)?(train|val|test)[_/]", "", name).lower()
    return "min" if stem.endswith("loss") else _torchmetrics().get(ALIASES.get(stem, stem).lower())


def file_name(monitor: str) -> str:
    """A metric as part of a file's name: val/loss would be a folder."""
    return re.sub(r"[^\w.-]", "_", monitor)


def given_mode(run: Path) -> Literal["min", "max"] | None:
    """The --monitor_mode of a run folder, None where none was given."""
    config = run / "config.yaml"
    flag = config_file.read(config, kept=True).get("monitor_mode") if config.is_file() else None
    return cast(Any, flag.text) if flag and flag.text in ("min", "max") else None


@cache
def _torchmetrics() -> dict[str, Literal["min", "max"]]:
    """The direction of each class of torchmetrics that has one, by lower-case name, read from the source.

    Of a classification, the classes for a task say it: MulticlassCohenKappa stands for CohenKappa too.
    """
    modes: dict[str, Literal["min", "max"]] = {}
    for path in sorted(source_of("torchmetrics", "").rglob("*.py")):
        owner = ""
        for found in re.finditer(_CLASS, path.read_text(encoding="utf-8")):
            owner = found[1] or owner
            if found[2]:
                names = {owner, re.sub("^(Binary|Multiclass|Multilabel)", "", owner)}
                modes |= {one.lower(): "max" if found[2] == "True" else "min" for one in names}
    return modes
