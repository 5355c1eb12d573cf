"""MInterface: any nn.Module -> loss, metrics, optimiser. One step, three hooks."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from pytorch_lightning import Callback
from torch import Tensor, nn

from engine.cli.settings import Settings
from engine.datamodule.resumable_loader import drop_padding
from engine.errors import UsageError
from engine.lightning_compat import cache_signature
from engine.training import losses, lr_schedulers, optimizers
from engine.training.hardware import to_channels_last
from engine.training.metric_logging import MetricLoggingModule
from engine.training.metrics import task_of


class MInterface(MetricLoggingModule):
    """Trains a network on batches `(*inputs, target)`, or dicts with a "target" beside the network's arguments.

    It logs `train_loss`, `val_loss`, `test_loss` and a metric that suits the loss (`train_acc` ...), each over a whole
    epoch and all processes, and `train_loss_step` every `log_every_n_steps`.

    A GAN, a VAE or another training procedure is a subclass: `def __init__(self, latent_dim: int = 16, **kwargs)`
    passes `**kwargs` to this class and overrides the steps that it needs.
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
        component_kwargs: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        """Keeps the settings.

        Args:
            network: the module to train; None in a subclass that has its own forward.
            loss: function of torch.nn.functional, (output, target) -> mean, or a dotted path to one of yours.
            class_weights: balanced weighs the loss of a class by one over its share of the training items.
            metrics: names of torchmetrics, such as acc, f1, auroc, mae, r2, psnr; none takes one that suits the loss.
            lr: learning rate.
            optimizer: class of torch.optim, or a dotted path.
            weight_decay: pull of the weights towards 0; none is the optimiser's own default.
            no_decay_norm_bias: biases and the gains of norms do not decay.
            lr_scale: factors of lr for parts of the network, such as backbone=0.1.
            component_kwargs: further arguments of the "loss", the "optimizer" and the "schedule", from their flags, and
                the "target_info" of the data.
        """
        given = component_kwargs or {}
        target_info = given.get("target_info", {})
        super().__init__(metrics, loss, target_info)
        self.network = network
        self.channels_last = False  # the memory format of input images
        self.last_output: Tensor | None = None  # of the latest validation or test batch
        self.loss = losses.build(loss, given.get("loss", {}))
        task = task_of(loss, target_info)
        self.is_multiclass = task == "multiclass"  # the output is a logit for each class
        # The output is a logit for each binary label; binary_cross_entropy itself takes probabilities.
        self.has_binary_logits = task in ("binary", "multilabel") and loss != "binary_cross_entropy"
        self.loss_name, self.class_weights = loss, class_weights
        self.lr, self.lr_scale = lr, lr_scale
        self.weight_decay, self.no_decay_norm_bias = weight_decay, no_decay_norm_bias
        self.optimizer_name, self.optimizer_options = optimizer, given.get("optimizer", {})
        self.schedule = lr_schedulers.DEFAULTS | given.get("schedule", {})
        self.batch_transform: Callable[..., Any] | None = None  # of training batches: MixUp, CutMix

    @classmethod
    def from_settings(cls, settings: Settings, data: Any) -> "MInterface":
        """The network of a command line; the dataset's attributes (`num_classes` ...) fill its missing arguments."""
        arguments = dict(settings.arguments["network"])
        for name in settings.inferred:
            given = arguments.setdefault(name, known := data.attribute(name))
            if given is None:
                raise UsageError(f"{settings.network.name} needs --{name}: {settings.dataset.name} does not know it")
            if known is not None and known != given:
                raise UsageError(f"--{name} {given}: {settings.dataset.name} says that it is {known}")
        kwargs: dict[str, Any] = {key: settings.arguments[key] for key in ("loss", "optimizer", "schedule")}
        kwargs["target_info"] = data.target_info()
        network_class, system = settings.network.load(), settings.arguments["system"]
        if isinstance(network_class, type) and issubclass(network_class, cls):
            parameters = inspect.signature(network_class).parameters.values()
            if any(one.kind is one.VAR_KEYWORD or one.name == "component_kwargs" for one in parameters):
                arguments["component_kwargs"] = kwargs
            model = network_class(**system | arguments)
        else:
            model = cls(network := network_class(**arguments), **system, component_kwargs=kwargs)
            if not settings.ckpt_path and hasattr(network, "fetch_weights"):  # pretrained; a checkpoint has its own
                network.fetch_weights()
            monitor = settings.arguments["callbacks"].get("monitor", "val_loss")
            if monitor not in model.metrics:  # a subclass may log others
                raise UsageError(f"--monitor {monitor}: there is no such metric; there are: {', '.join(model.metrics)}")
        model.save_hyperparameters(settings.flags)
        if not model.is_multiclass:
            model.set_unit(data.attribute("inverse_transform"))
        return model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output."""
        assert self.network is not None, "a subclass without a network has its own forward"
        if self.channels_last:
            args = tuple(map(to_channels_last, args))
            kwargs = {name: to_channels_last(value) for name, value in kwargs.items()}
        return self.network(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the name of each hook here, some 40 times a step; nn.Module would look among its parameters.
        if (value is None or isinstance(value, str)) and name in self.__dict__:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def step(self, batch: Any, stage: str) -> Tensor:
        """The loss of a batch, (); updates the metrics of the stage. stage: "train", "val" or "test"."""
        target = self.unpack_batch(batch)[1]
        args, kwargs = self.arguments(batch)
        output = self(*args, **kwargs)
        if self.is_multiclass and target.is_floating_point() and (target.shape != output.shape or target.dim() > 2):
            raise UsageError(f"the targets are numbers ({target.dtype}), not classes: --loss mse_loss, say")
        if not self.is_multiclass and output.shape == (*target.shape, 1):
            output = output.squeeze(-1)  # (B, 1) -> (B,)
        if stage != "train":
            self.last_output = output.detach()
        loss = self.loss(output, target)
        if self.is_multiclass and target.is_floating_point():
            target = target.argmax(dim=1)  # soft targets (B, C) -> (B,)
        output = output.detach().contiguous()  # torchmetrics takes no channels_last images
        predictions = output.sigmoid() if self.has_binary_logits else output
        predictions = predictions.clone() if predictions.is_cuda else predictions  # a CUDA graph reuses the memory
        self.metrics[f"{stage}_loss"].add(loss.detach(), len(target))  # type: ignore[operator]
        self._metric_buffers[stage].add(predictions, target)
        return loss

    @staticmethod
    def unpack_batch(batch: Any) -> tuple[Any, Tensor]:
        """The network's arguments (a sequence, or a dict by name) and the target of a batch."""
        if isinstance(batch, dict):
            return {name: value for name, value in batch.items() if name != "target"}, batch["target"]
        return batch[:-1], batch[-1]

    def arguments(self, batch: Any) -> tuple[list[Any], dict[str, Any]]:
        """The positional and the keyword arguments of `forward` for a batch."""
        inputs, _ = self.unpack_batch(batch)
        return ([], inputs) if isinstance(inputs, dict) else (list(inputs), {})

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.step(self.batch_transform(*batch) if self.batch_transform else batch, "train")
        first = batch_idx % self.trainer.accumulate_grad_batches == 0  # of the batches of an optimizer step
        if first and self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log_now({"train_loss_step": loss.item(), "lr": self.trainer.optimizers[0].param_groups[0]["lr"]})
        return loss

    cache_signature(training_step)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if (batch := drop_padding(self.trainer.val_dataloaders, batch, batch_idx)) is not None:
            self.step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        if (batch := drop_padding(self.trainer.test_dataloaders, batch, batch_idx)) is not None:
            self.step(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        args, kwargs = self.arguments(batch)
        return self(*args, **kwargs)

    def sample_images(self, batch: Any) -> dict[str, Any]:
        """Images to save after each validation, by file name, from its first batch.

        Each is (N, 1|3, H, W), drawn eight in a row, or a dict of labelled rows of such images.
        """
        return {}

    def setup(self, stage: str) -> None:
        if self.class_weights and stage == "fit":
            if not self.is_multiclass:
                loss = f"--loss is {self.loss_name}" if type(self) is MInterface else f"{type(self).__name__} has none"
                raise UsageError(f"--class_weights goes with a loss over classes, and {loss}")
            counts = self.trainer.datamodule.class_counts()  # type: ignore[attr-defined]
            weight = counts.sum() / (len(counts) * counts.clamp(min=1))
            self.loss = partial(self.loss, weight=weight.float().to(self.device))

    def configure_callbacks(self) -> list[Callback]:
        if self.schedule["lr_scheduler"] != "plateau":
            return []
        return [lr_schedulers.ReduceOnPlateau(self.schedule["lr_gamma"])]

    def configure_optimizers(self) -> Any:
        # Neither a gradient scaler nor Lightning's clipping under mixed precision works with a fused step.
        unfused = ("16-mixed", "bf16-mixed") if self.trainer.gradient_clip_val else ("16-mixed",)
        optimizer = optimizers.build(
            self.optimizer_name,
            self,
            self.lr,
            self.weight_decay,
            self.optimizer_options,
            fused=self.trainer.precision not in unfused,
            no_decay_norm_bias=self.no_decay_norm_bias,
            lr_scale=self.lr_scale,
        )
        epoch: float = math.inf
        if lr_schedulers.needs_length(self.schedule):
            self.trainer.fit_loop.setup_data()
            epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
            epoch = epoch if epoch == math.inf else math.ceil(epoch)
        ends = self.trainer.max_epochs, self.trainer.max_steps
        scheduler = lr_schedulers.build(optimizer, epoch, *ends, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": scheduler} if scheduler else optimizer
