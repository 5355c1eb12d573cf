"""`--freeze`, `--unfreeze_epoch`: layers that are not trained, permanently or during the first epochs."""

import fnmatch
from typing import Annotated, Any

from pytorch_lightning import Callback, LightningModule, Trainer

from engine.errors import UsageError
from engine.lightning_compat import batch_norm_class
from engine.training.name_patterns import matching_parameters

_BatchNorm = batch_norm_class()


def callbacks(*, freeze: tuple[str, ...] = (), unfreeze_epoch: Annotated[int, ">= 0"] | None = None) -> list[Callback]:
    """The callback of the flags, or the one that checks a resumed run.

    freeze: submodules of the network (backbone) or patterns of parameter names (*.bias) that are not trained.
    unfreeze_epoch: train the frozen parameters too after this epoch (the first is 1).
    """
    if unfreeze_epoch is not None and not freeze:
        raise UsageError("--unfreeze_epoch needs --freeze")
    return [Freeze(freeze, unfreeze_epoch)] if freeze else [CheckFrozenParameters()]


class CheckFrozenParameters(Callback):
    """Refuses a checkpoint whose optimizer has other parameters, because other ones were frozen."""

    def __init__(self, patterns: tuple[str, ...] = (), unfreeze_epoch: int | None = None) -> None:
        self.patterns, self.unfreeze_epoch = patterns, unfreeze_epoch

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        flags = checkpoint.get("hyper_parameters", {})
        before = () if flags.get("unfreeze_epoch") is not None else tuple(flags.get("freeze") or ())
        now = () if self.unfreeze_epoch is not None else tuple(self.patterns)
        if trainer.state.fn == "fit" and sorted(before) != sorted(now):
            was = f"--freeze {' '.join(now) or '[]'}: the checkpoint was made with {' '.join(before) or '[]'}"
            reason = "and the parameters of its optimizer cannot change"
            raise UsageError(f"{was}, {reason}; --init_from begins a new run with its weights")


class Freeze(CheckFrozenParameters):
    """Freezes parameters, and the running statistics of batch norms among them.

    Permanently frozen parameters have requires_grad=False. Until `unfreeze_epoch`, gradients are set to None before
    each optimizer step instead, because DDP needs the set of trained parameters to stay the same.
    """

    changes_parameters = changes_step = True  # `plan` counts and times with it

    names: set[str] = set()  # of the frozen parameters

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self.names = {name for pattern in self.patterns for name in matching_parameters(module, pattern, "freeze")}
        if self.unfreeze_epoch is None:
            for name, parameter in module.named_parameters():
                if name in self.names:  # what its class has frozen stays so
                    parameter.requires_grad_(False)
            if not any(parameter.requires_grad for parameter in module.parameters()):
                raise UsageError(f"--freeze {' '.join(self.patterns)} leaves no parameter to train")
        elif stage == "fit" and trainer.is_global_zero and 0 < (last := trainer.max_epochs or 0) <= self.unfreeze_epoch:
            print(f"--unfreeze_epoch {self.unfreeze_epoch} has no effect: the run ends at epoch {last}")

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        for name, layer in module.named_modules():
            if isinstance(layer, _BatchNorm) and self._freezes(name, layer):
                layer.train(self._unfrozen(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # left out where a run is resumed within an epoch

    def _freezes(self, name: str, layer: Any) -> bool:
        if layer.affine:
            return f"{name}.weight" in self.names
        short = name.removeprefix("network.")
        return any(f"{short}.".startswith(f"{one}.") or fnmatch.fnmatchcase(short, one) for one in self.patterns)

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        if self.unfreeze_epoch is not None and not self._unfrozen(trainer):
            for name, parameter in module.named_parameters():
                if name in self.names:
                    parameter.grad = None

    def _unfrozen(self, trainer: Trainer) -> bool:
        return self.unfreeze_epoch is not None and trainer.current_epoch >= self.unfreeze_epoch
