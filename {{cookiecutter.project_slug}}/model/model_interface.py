"""MInterface: any nn.Module -> loss, metrics, optimiser. One step, three hooks."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from pytorch_lightning import Callback
from torch import Tensor, nn

from engine.cli.settings import Settings
from engine.datamodule.ordered_loader import drop_padding
from engine.errors import UsageError
from engine.training import losses, lr_schedulers, optimizers
from engine.training import metrics as measures
from engine.training.hardware import to_channels_last
from engine.training.metric_logging import MetricLoggingModule


class MInterface(MetricLoggingModule):
    """Trains a network on batches `(*inputs, target)`, or dicts with a "target" beside the network's arguments.

    It logs `train_loss`, `val_loss`, `test_loss` and a metric that suits the loss (`train_acc` ...), each over a whole
    epoch and all processes, and `train_loss_step` every `log_every_n_steps`.

    A system of its own (GAN, VAE ...) is a subclass: `def __init__(self, latent_dim: int = 16, **kwargs)` hands
    `**kwargs` on to this class and overrides the steps that it needs.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        *,
        loss: str = "cross_entropy",
        class_weights: Literal["balanced"] | None = None,
        metrics: tuple[str, ...] | None = None,
        lr: float = 2e-3,
        optimizer: str = "Adam",
        weight_decay: float | None = None,
        no_decay_norm_bias: bool = False,
        lr_scale: tuple[str, ...] = (),
        options: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        """Keeps the settings.

        Args:
            network: what is trained; None in a subclass that has its own.
            loss: function of torch.nn.functional, (output, target) -> mean, or a dotted path to one of yours.
            class_weights: balanced weighs the loss of a class by one over its share of the training items.
            metrics: names of torchmetrics, such as acc, f1, auroc, mae, r2, psnr; none takes one that suits the loss.
            lr: learning rate.
            optimizer: class of torch.optim, or a dotted path.
            weight_decay: pull of the weights towards 0; none is the optimiser's own default.
            no_decay_norm_bias: biases and the gains of norms do not decay.
            lr_scale: factors of lr for parts of the network, such as backbone=0.1.
            options: further arguments of loss, optimizer and schedule, and what the data is ("data"), which their
                flags and the dataset give.
        """
        given = options or {}
        super().__init__(metrics, loss, given.get("data", {}))
        self.network = network
        self.channels_last = False  # the layout in which images go in
        self.last_output: Tensor | None = None  # for the last batch outside of training: what pictures are drawn of
        self.loss = losses.load(loss, given.get("loss", {}))
        kind = measures.kind(loss, given.get("data", {}))
        self.classifies = kind == "classes"  # the output is a logit for each class
        # The output is one logit for each question; what goes into binary_cross_entropy is a share already.
        self.answers_yes_or_no = kind == "questions" and loss != "binary_cross_entropy"
        self.loss_name, self.class_weights = loss, class_weights
        self.lr, self.lr_scale = lr, lr_scale
        self.weight_decay, self.no_decay_norm_bias = weight_decay, no_decay_norm_bias
        self.optimizer_name, self.optimizer_options = optimizer, given.get("optimizer", {})
        self.schedule = lr_schedulers.DEFAULTS | given.get("schedule", {})
        self.mix: Callable[..., Any] | None = None  # of the items of a training batch: Mixup, CutMix

    @classmethod
    def of(cls, settings: Settings, data: Any) -> "MInterface":
        """The network that a command line means, in its interface, with what the data knows (`num_classes` ...)."""
        arguments = dict(settings.arguments["network"])
        for name in settings.inferred:
            given = arguments.setdefault(name, known := data.attribute(name))
            if given is None:
                raise UsageError(f"{settings.network.name} needs --{name}: {settings.dataset.name} does not know it")
            if known is not None and known != given:
                raise UsageError(f"--{name} {given}: {settings.dataset.name} says that it is {known}")
        options = {key: settings.arguments[key] for key in ("loss", "optimizer", "schedule")} | {
            "data": data.target_info()
        }
        network, system = settings.network.load(), settings.arguments["system"]
        if isinstance(network, type) and issubclass(network, cls):
            takes = inspect.signature(network).parameters.values()
            own = any(one.kind is one.VAR_KEYWORD or one.name == "options" for one in takes)  # it hands them on
            model = network(**system | arguments | ({"options": options} if own else {}))
        else:
            model = cls(built := network(**arguments), **system, options=options)
            if not settings.ckpt_path and hasattr(built, "fetch_weights"):  # of others; a checkpoint has its own
                built.fetch_weights()
            monitor = settings.arguments["callbacks"].get("monitor", "val_loss")
            if monitor not in model.metrics:  # a system logs what it likes
                raise UsageError(f"--monitor {monitor}: there is no such metric; there are: {', '.join(model.metrics)}")
        model.save_hyperparameters(settings.flags)
        return model

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The network's output."""
        assert self.network is not None, "a subclass without a network has its own forward"
        if self.channels_last:
            inputs, named = (
                tuple(map(to_channels_last, inputs)),
                {name: to_channels_last(value) for name, value in named.items()},
            )
        return self.network(*inputs, **named)

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the name of each hook here, some 40 times a step; nn.Module would look among its parameters.
        if (value is None or isinstance(value, str)) and name in self.__dict__:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def step(self, batch: Any, stage: str) -> Tensor:
        """The loss of a batch; what is measured is gathered for the end of the epoch. stage: "train", "val", "test"."""
        inputs, target = self.unpack_batch(batch)
        output = self(**inputs) if isinstance(inputs, dict) else self(*inputs)
        if self.classifies and target.is_floating_point() and (target.shape != output.shape or target.dim() > 2):
            raise UsageError(f"the targets are numbers ({target.dtype}), not classes: --loss mse_loss, say")
        if not self.classifies and output.shape == (*target.shape, 1):
            output = output.squeeze(-1)  # one value for each item: (B, 1) -> (B,)
        if stage != "train":
            self.last_output = output.detach()
        loss = self.loss(output, target)
        if self.classifies and target.is_floating_point():
            target = target.argmax(dim=1)  # of mixed classes the one with the greatest share
        output = output.detach().contiguous()  # torchmetrics takes no images with the channels last
        measured = output.sigmoid() if self.answers_yes_or_no else output
        self.metrics[f"{stage}_loss"].add(loss.detach(), len(target))  # type: ignore[operator]
        self._metric_buffers[stage].add(
            measured.clone() if measured.is_cuda else measured, target
        )  # a graph writes over it
        return loss

    @staticmethod
    def unpack_batch(batch: Any) -> tuple[Any, Tensor]:
        """The network's arguments (a list, or a dict of named ones) and the target of a batch."""
        if isinstance(batch, dict):
            return {name: value for name, value in batch.items() if name != "target"}, batch["target"]
        return batch[:-1], batch[-1]

    def arguments(self, batch: Any) -> tuple[list[Any], dict[str, Any]]:
        """The network's arguments out of a batch: those by place, and those by name."""
        inputs, _ = self.unpack_batch(batch)
        return ([], inputs) if isinstance(inputs, dict) else (list(inputs), {})

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.step(self.mix(*batch) if self.mix else batch, "train")
        first = batch_idx % self.trainer.accumulate_grad_batches == 0  # of the batches that make a step
        if first and self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log_now({"train_loss_step": loss.item(), "lr": self.trainer.optimizers[0].param_groups[0]["lr"]})
        return loss

    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]  # asked at every step

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if (own := drop_padding(self.trainer.val_dataloaders, batch, batch_idx)) is not None:
            self.step(own, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        if (own := drop_padding(self.trainer.test_dataloaders, batch, batch_idx)) is not None:
            self.step(own, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, _ = self.unpack_batch(batch)
        return self(**inputs) if isinstance(inputs, dict) else self(*inputs)

    def pictures(self, batch: Any) -> dict[str, Any]:
        """What a system wants to be seen of itself, by name; `--pictures` asks with the first batch measured.

        Images (N, 1|3, H, W), drawn eight in a row, or a dict of such rows by the word that goes before each.
        """
        return {}

    def setup(self, stage: str) -> None:
        if self.class_weights and stage == "fit":
            if not self.classifies:
                has = f"--loss is {self.loss_name}" if type(self) is MInterface else f"{type(self).__name__} has none"
                raise UsageError(f"--class_weights goes with a loss over classes, and {has}")
            counts = self.trainer.datamodule.class_counts()  # type: ignore[attr-defined]
            weight = counts.sum() / (len(counts) * counts.clamp(min=1))
            self.loss = partial(self.loss, weight=weight.float().to(self.device))

    def configure_callbacks(self) -> list[Callback]:
        return [lr_schedulers.Plateau(self.schedule["lr_gamma"])] if self.schedule["lr_scheduler"] == "plateau" else []

    def configure_optimizers(self) -> Any:
        # A gradient scaler cannot clip under a fused step, and Lightning clips none under mixed precision.
        mixed = ("16-mixed", "bf16-mixed") if self.trainer.gradient_clip_val else ("16-mixed",)
        optimizer = optimizers.load(
            self.optimizer_name,
            self,
            self.lr,
            self.weight_decay,
            self.optimizer_options,
            fused=self.trainer.precision not in mixed,
            no_decay_norm_bias=self.no_decay_norm_bias,
            lr_scale=self.lr_scale,
        )
        total = epoch = math.inf
        if lr_schedulers.plans(self.schedule):  # asking for the steps begins to load
            total = self.trainer.estimated_stepping_batches
            self.trainer.fit_loop.setup_data()  # with --max_steps alone the line above does not need it
            batches = self.trainer.num_training_batches
            epoch = batches if batches == math.inf else math.ceil(batches / self.trainer.accumulate_grad_batches)
        scheduler = lr_schedulers.load(optimizer, total, epoch, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": scheduler} if scheduler else optimizer
