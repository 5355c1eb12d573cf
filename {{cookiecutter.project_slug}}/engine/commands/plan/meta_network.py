"""A network without its weights: as large as a run would have it, of tensors that take no memory; goes with plan.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from torch import Tensor, nn

from engine.cli import plugins
from engine.cli.settings import Settings
from engine.errors import UsageError


def build(settings: Settings, data: Any, build_model: Callable[..., Any]) -> Any:
    """The network in its interface, ready to be trained, as large as a run would have it."""
    quiet = settings._replace(ckpt_path=Path())  # as beside a checkpoint, no weights of others are fetched
    try:
        model = build_model(quiet, data)
    except (RuntimeError, NotImplementedError) as error:
        if "meta tensor" not in str(error):
            raise
        name, said = settings.network.name, str(error).partition("\n")[0]
        raise UsageError(
            f"plan builds {name} on the meta device, where tensors have no values, and {name} asks for some ({said}): "
            "take Python's numbers or numpy's there"
        ) from error
    constant(model)
    convolves = any(isinstance(layer, nn.Conv2d) for layer in model.modules())
    model.channels_last = convolves and settings.arguments["hardware"]["channels_last"]
    silent: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    model.trainer = Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **silent)
    for one in plugins.load_features(Path(), model, data, settings.arguments):
        if getattr(one, "changes_parameters", False):
            one.setup(model.trainer, model, "fit")
    for metric in model.metrics.values():  # they read values, and hold little
        metric.update = metric.add = lambda *args, **named: None  # type: ignore[assignment]
    return model.train()


def constant(model: Any) -> None:
    """Has the rate stay as it is: other schedules ask how long training lasts."""
    model.schedule |= {"lr_scheduler": "constant", "warmup_steps": 0, "warmup_epochs": 0.0}


def place(model: nn.Module, kind: str) -> None:
    """Puts fake tensors of a device in place of those of the meta device; what was shared stays shared."""
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        for name, one in [*module._parameters.items(), *module._buffers.items(), *vars(module).items()]:
            if isinstance(one, Tensor):
                if id(one) not in made:
                    fake = torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device=kind)
                    learns = isinstance(one, nn.Parameter)
                    made[id(one)] = one, nn.Parameter(fake, one.requires_grad) if learns else fake
                setattr(module, name, made[id(one)][1])


def precision(name: str, kind: str) -> Any:
    """What Lightning does to networks, batches and the pass."""
    if name.endswith("mixed"):
        return MixedPrecision(name, kind)  # type: ignore[arg-type]
    return HalfPrecision(name) if "16" in name else DoublePrecision() if "64" in name else Precision()  # type: ignore[arg-type]
