"""MInterface: any nn.Module -> loss, metrics, optimiser. One step, three hooks."""

import inspect
import math
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule
from torch import Tensor, nn
from torchmetrics import Metric

from engine import loggers, losses, metrics, optimizers, schedulers
from engine.checkpoints import misfits
from engine.discovery import UsageError
from engine.machine import laid_out

STAGES = ("train", "val", "test")


class MInterface(LightningModule):
    """Trains a network on batches `(*inputs, target)`, or dicts with a "target" beside the network's arguments.

    It logs `train_loss`, `val_loss`, `test_loss` and a metric that suits the loss (`train_acc` ...), each over a whole
    epoch and all processes, and `train_loss_step` every `log_every_n_steps`.

    What a step logs by `self.record` is written before the step's checkpoint, so that a resumed run repeats no row;
    what it logs by Lightning's `self.log` comes after.

    A system of its own (GAN, VAE ...) is a subclass: `def __init__(self, latent_dim: int = 16, **kwargs)` hands
    `**kwargs` on to this class and overrides the steps that it needs.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        *,
        loss: Literal[
            "cross_entropy", "nll_loss", "binary_cross_entropy_with_logits", "mse_loss", "l1_loss", "smooth_l1_loss"
        ] = "cross_entropy",
        lr: float = 2e-3,
        optimizer: Literal["Adam", "AdamW", "NAdam", "RAdam", "SGD", "RMSprop", "Adagrad"] = "Adam",
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        lr_scheduler: Literal["cosine", "linear", "constant", "plateau"] = "cosine",
        warmup_steps: int = 0,
    ) -> None:
        """Keeps the settings.

        Args:
            network: what is trained; None in a subclass that has its own.
            loss: function of torch.nn.functional, (output, target) -> mean.
            lr: learning rate.
            optimizer: class of torch.optim.
            weight_decay: pull of the weights towards 0.
            momentum: for SGD and RMSprop.
            lr_scheduler: the rate after the warm-up: down to 0 over the run, constant, or a tenth when val_loss stays.
            warmup_steps: optimiser steps (not epochs) over which the rate climbs to lr.
        """
        super().__init__()
        self.network = network
        self.channels_last = False  # the layout in which images go in
        self.latest: dict[str, float] = {}  # what was measured last, by name
        self.last_output: Tensor | None = None  # for the last batch outside of training: what pictures are drawn of
        self.loss = losses.load(loss)
        self.classifies = loss in ("cross_entropy", "nll_loss")  # the output is a logit for each class
        self.answers_yes_or_no = loss.startswith("binary")  # the output is one logit for each question
        self.lr, self.weight_decay, self.momentum = lr, weight_decay, momentum
        self.optimizer_name, self.lr_scheduler, self.warmup_steps = optimizer, lr_scheduler, warmup_steps
        self.metrics = nn.ModuleDict(
            {f"{stage}_{key}": m for stage in STAGES for key, m in metrics.for_loss(loss).items()}
        )

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The network's output."""
        assert self.network is not None, "a subclass without a network has its own forward"
        if self.channels_last:
            inputs, named = tuple(map(laid_out, inputs)), {name: laid_out(value) for name, value in named.items()}
        return self.network(*inputs, **named)

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the name of each hook here, some 40 times a step; nn.Module would look among its parameters.
        if (value is None or isinstance(value, str)) and name in self.__dict__:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def step(self, batch: Any, stage: str) -> Tensor:
        """The loss of a batch; what is measured is gathered for the end of the epoch. stage: "train", "val", "test"."""
        inputs, target = self.split(batch)
        output = self(**inputs) if isinstance(inputs, dict) else self(*inputs)
        if self.classifies and target.is_floating_point() and target.shape != output.shape:
            raise ValueError(f"the targets are numbers ({target.dtype}), not classes: --loss mse_loss, say")
        if not self.classifies and output.shape == (*target.shape, 1):
            output = output.squeeze(-1)  # one value for each item: (B, 1) -> (B,)
        if stage != "train":
            self.last_output = output.detach()
        loss = self.loss(output, target)
        measured = output.detach().sigmoid() if self.answers_yes_or_no else output.detach()
        for name, metric in self._of(stage).items():
            metric.update(*((loss.detach(), len(target)) if name == f"{stage}_loss" else (measured, target)))
        return loss

    def _of(self, stage: str) -> dict[str, Metric]:
        return {name: metric for name, metric in self.metrics.items() if name.startswith(stage)}  # type: ignore[misc]

    @staticmethod
    def split(batch: Any) -> tuple[Any, Tensor]:
        """The network's arguments (a list, or a dict of named ones) and the target of a batch."""
        if isinstance(batch, dict):
            return {name: value for name, value in batch.items() if name != "target"}, batch["target"]
        return batch[:-1], batch[-1]

    def arguments(self, batch: Any) -> tuple[list[Any], dict[str, Any]]:
        """The network's arguments out of a batch: those by place, and those by name."""
        inputs, _ = self.split(batch)
        return ([], inputs) if isinstance(inputs, dict) else (list(inputs), {})

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.step(batch, "train")
        first = batch_idx % self.trainer.accumulate_grad_batches == 0  # of the batches that make a step
        if first and self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.record({"train_loss_step": loss.item(), "lr": self.trainer.optimizers[0].param_groups[0]["lr"]})
        return loss

    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]  # asked at every step

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, _ = self.split(batch)
        return self(**inputs) if isinstance(inputs, dict) else self(*inputs)

    def on_train_epoch_end(self) -> None:
        self._log_epoch("train")

    def on_validation_epoch_end(self) -> None:
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        self._log_epoch("test")

    def record(self, values: dict[str, float]) -> None:
        """Writes values to every logger at once, before this step's checkpoint: a resumed run repeats no row."""
        for logger in self.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **values}, step=self.global_step)

    def _log_epoch(self, stage: str) -> None:
        found = {name: metric for name, metric in self._of(stage).items() if metric.update_called}
        values = {name: metric.compute() for name, metric in found.items()}
        for metric in found.values():
            metric.reset()
        self.log_dict(values, prog_bar=True, logger=False, sync_dist=True)
        if not self.trainer.sanity_checking:
            self.latest |= {name: value.item() for name, value in values.items()}
            self.record({name: self.latest[name] for name in values})

    def configure_callbacks(self) -> list[Callback]:
        return [schedulers.Plateau()] if self.lr_scheduler == "plateau" else []

    def configure_optimizers(self) -> Any:
        fused = self.trainer.precision != "16-mixed"  # whose gradient scaler cannot clip under a fused step
        named = (self.optimizer_name, self.parameters(), self.lr, self.weight_decay, self.momentum)
        optimizer = optimizers.load(*named, fused=fused)
        planned = self.warmup_steps or self.lr_scheduler in ("cosine", "linear")
        total = self.trainer.estimated_stepping_batches if planned else math.inf  # asking for it begins to load
        scheduler = schedulers.load(self.lr_scheduler, optimizer, total, self.warmup_steps)
        return {"optimizer": optimizer, "lr_scheduler": scheduler} if scheduler else optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        gathered = {name: metric for name, metric in self._of("").items() if metric.update_called}
        checkpoint["metrics"] = {name: metrics.state(metric, self._rows) for name, metric in gathered.items()}
        checkpoint["latest"] = self.latest
        checkpoint["rows"] = loggers.rows(self.loggers)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if wrong := misfits(self, checkpoint["state_dict"]):
            raise UsageError(f"the checkpoint does not fit this network: {'; '.join(wrong[:3])} ({len(wrong)} in all)")
        if self.trainer.state.fn == "fit":
            last = self.trainer.max_epochs
            if last is not None and 0 <= last <= checkpoint["epoch"]:
                raise UsageError(f"--max_epochs {last}: the checkpoint is of epoch {checkpoint['epoch'] + 1} already")
            self.latest = dict(checkpoint.get("latest", {}))
            loggers.rewind(self.loggers, checkpoint.get("rows", 0), checkpoint["global_step"])
        for name, state in checkpoint.get("metrics", {}).items():  # the means of an epoch that goes on
            if name in self.metrics:
                metrics.restore(self._of(name)[name], state, self.global_rank, self.trainer.world_size)

    def _rows(self, value: Tensor) -> Any:
        rows = [torch.empty_like(value) for _ in range(self.trainer.world_size)]
        if len(rows) == 1:
            return value[None]
        torch.distributed.all_gather(rows, value.contiguous())
        return torch.stack(rows)
