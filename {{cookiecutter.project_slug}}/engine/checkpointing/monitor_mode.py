"""The monitored metric, and its mode (min or max) from torchmetrics' `higher_is_better`. No torch here."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from engine.checkpointing.run_folder import kept_flags
from engine.cli.signatures_of_torch import source_of
from engine.errors import UsageError

# Short names of metrics; any other is a class of torchmetrics, in upper or lower case.
ALIASES = {
    "acc": "Accuracy",
    "f1": "F1Score",
    "hit_rate": "HitRate",
    "iou": "JaccardIndex",
    "mae": "MeanAbsoluteError",
    "mse": "MeanSquaredError",
    "ndcg": "NormalizedDCG",
    "r2": "R2Score",
    "psnr": "PeakSignalNoiseRatio",
    "ssim": "StructuralSimilarityIndexMeasure",
}
Mode = Literal["min", "max"]
_CLASS = r"(?m)^class (\w+)\(|^    higher_is_better\b[^=\n]*= (True|False)"


class Monitored(NamedTuple):
    """The metric that says which checkpoint is best and when to stop early.

    mode: None where nobody knows it, which is an error once the module has logged the metric. of_training: it is one of
    the training, not of the validation. required: an error where it is not logged; else the latest epoch is the best.
    """

    name: str
    mode: Mode | None
    of_training: bool
    required: bool


def monitored(model: Any, data: Any, name: str, mode: Mode | None, required: bool) -> Monitored:
    """The metric that --monitor means; without a validation, the training's of that name.

    Raises: UsageError: nobody knows its mode, nor can a metric object that the validation logs.
    """
    from pytorch_lightning.utilities.model_helpers import is_overridden
    from torchmetrics import Metric

    required = required or name != "val_loss"  # by default, a system may log other names
    has_validation = data.set_names("val") and is_overridden("validation_step", model)
    name = name if has_validation else re.sub("^val(?=[_/])", "train", name)
    of_training = not has_validation or name.startswith("train")
    metrics = model.logged_metrics(data.set_names("val")) if hasattr(model, "logged_metrics") else {}
    mode = mode or known_mode(name, metrics)
    may_tell = not of_training and any(isinstance(one, Metric) for one in model.modules())
    return Monitored(name, mode if may_tell else mode_of(name, mode), of_training, required)


def mode_of(name: str, given: Mode | None = None) -> Mode:
    """Whether less or more of a logged metric is better: what was `given`, or else what is known of it.

    Raises: UsageError: neither the user nor torchmetrics says so.
    """
    mode = given or known_mode(name)
    if mode is None:
        hint = f"if it is spelt right, give --monitor {name} --monitor_mode min, or max"
        raise UsageError(f"{name}: torchmetrics does not say whether lower or higher is better; {hint}")
    return mode


def known_mode(name: str, metrics: Mapping[str, Any] = {}) -> Mode | None:
    """The direction by `higher_is_better` of the metric object or of torchmetrics' class; "min" of a loss; or None.

    metrics: the module's own metric objects, by full name. Any other is known by its name less the stage: val_f1 and
        val/f1 are F1Score, val/recall@10 is Recall.
    """
    better = getattr(metrics[name], "higher_is_better", None) if name in metrics else None
    if isinstance(better, bool):
        return "max" if better else "min"
    stem = re.sub(r"^(best_)?(train|val|test)[_/]|@\d+$", "", name).lower()
    return "min" if stem.endswith("loss") else _torchmetrics().get(ALIASES.get(stem, stem).lower())


def file_name(monitor: str) -> str:
    """A metric as part of a file's name: val/loss would be a folder."""
    return re.sub(r"[^\w.-]", "_", monitor)


def given_mode(run: Path) -> Mode | None:
    """The --monitor_mode of a run folder, None where none was given."""
    mode = kept_flags(run).get("monitor_mode")
    return cast(Mode, mode) if mode in ("min", "max") else None


@cache
def _torchmetrics() -> dict[str, Mode]:
    """The direction of each class of torchmetrics that has one, by lower-case name, read from the source.

    Of a classification, the classes for a task say it: MulticlassCohenKappa stands for CohenKappa too; of a ranking,
    RetrievalMRR for MRR.
    """
    modes: dict[str, Mode] = {}
    for path in sorted(source_of("torchmetrics", "").rglob("*.py")):
        owner = ""
        for found in re.finditer(_CLASS, path.read_text(encoding="utf-8")):
            owner = found[1] or owner
            if found[2]:
                names = {owner, re.sub("^(Binary|Multiclass|Multilabel|Retrieval)", "", owner)}
                modes |= {one.lower(): "max" if found[2] == "True" else "min" for one in names}
    return modes
