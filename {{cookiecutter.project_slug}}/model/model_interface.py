"""MInterface: a LightningModule around any nn.Module, with loss, metrics, optimizer and schedule."""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule
from torch import Tensor, nn

from engine.cli.settings import Settings
from engine.datamodule.item_fields import TARGET_NAMES, Fields, ItemFields
from engine.errors import UsageError
from engine.training import losses, lr_schedulers, optimizers
from engine.training import metrics as metric_classes
from engine.training.metric_logging import STAGES, MetricLoggingModule, saved_metrics
from engine.training.metrics import IGNORE_INDEX
from engine.training.module_modes import training_mode
from engine.training.output_spec import MISSING, OutputSpec, build_heads, infer_task, main_output
from engine.training.trainer_setup import to_channels_last
from engine.training.training_check import NO_GRADIENT

_OWN_STEPS = ("step", "training_step", "predict_step")


class MInterface(MetricLoggingModule):
    """Trains a network on batches `(*inputs, target)`, or dicts with the network's arguments and a target by name.

    Formats: see ItemFields and OutputSpec. A network that takes the target too, in a parameter
    `targets` or `labels`, returns its own loss, or a dict of losses, each of which is logged.

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
        task: Literal["multiclass", "binary", "multilabel", "regression", "other"] | None = None,
        class_dim: Literal[1, -1] | None = None,
        head_losses: tuple[str, ...] = (),
        class_weights: Literal["balanced"] | None = None,
        metrics: tuple[str, ...] | None = None,
        metric_thresholds: Annotated[int, ">= 2"] | None = None,
        lr: Annotated[float, ">= 0"] = 2e-3,
        optimizer: str = "Adam",
        weight_decay: Annotated[float, ">= 0"] | None = None,
        no_decay_norm_bias: bool = False,
        lr_scale: tuple[str, ...] = (),
        component_kwargs: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        """Builds loss, metrics and output spec; the optimizer comes in configure_optimizers.

        network: the module to train; None in a subclass that has its own forward.
        loss: function of torch.nn.functional, (output, target) -> mean, or a dotted path to a function or class.
        task: what the outputs are: a logit per class (multiclass), one for yes or no (binary), several such
            (multilabel), numbers (regression), or anything else (other); none takes what the loss says, and with a loss
            of your own the targets.
        class_dim: dimension of the classes in an output; none infers it from the shapes of the first batch.
        head_losses: HEAD=LOSS or HEAD=LOSS*WEIGHT per output, for a network whose outputs and targets are dicts; none
            takes cross_entropy for whole numbers and mse_loss for others.
        class_weights: balanced weights the loss of each class by 1 / its share of the training items.
        metrics: names of torchmetrics, such as acc, f1, auroc, mae, r2, psnr, or dotted paths to metrics of your own,
            with arguments in brackets: 'FBetaScore(beta=2.0)'; none takes one that suits the loss.
        metric_thresholds: bins for auroc and the like, such as 200; none is exact, from all outputs of an epoch.
        lr: learning rate.
        optimizer: class of torch.optim, or a dotted path.
        weight_decay: weight decay of the optimiser; none takes the optimiser's own default.
        no_decay_norm_bias: no weight decay for biases and normalisation layers.
        lr_scale: factors of lr for parts of the network, such as backbone=0.1.
        component_kwargs: further arguments of the "loss", the "optimizer" and the "schedule", from their flags, and the
            "target_info" of the data, with the names of its "classes".
        """
        given = component_kwargs or {}
        ignore_index = given.get("loss", {}).get("ignore_index", IGNORE_INDEX)
        target_info = given.get("target_info", {}) | ({"task": task} if task else {})
        target_info |= {"ignore_index": ignore_index, "thresholds": metric_thresholds}
        built = build_heads(head_losses, loss, target_info, class_dim)
        super().__init__(() if built else metrics, loss, target_info)
        self.heads, self.head_metrics = built, dict[tuple[str, str], list[Any]]()
        self.head_losses = nn.ModuleList(one.loss for one in built.values() if isinstance(one.loss, nn.Module))
        for name, head in built.items():
            info = {key: target_info[key] for key in ("ignore_index", "thresholds")}
            info |= target_info.get("heads", {}).get(name, {})
            classes = target_info.get("classes")
            info["classes"] = classes.get(name) if isinstance(classes, Mapping) else None
            by_class = metric_classes.logged_classes(metrics, info)
            self._classes |= {f"{name}_{key}": one for key, one in by_class.items()}
            for stage in STAGES:
                found = metric_classes.build(metrics, head.loss_name, info)
                self.metrics.update({f"{stage}_{name}_{key}": metric for key, metric in found.items()})
                self.head_metrics[stage, name] = [found[key] for key in found if key != "loss"]
        self.notes: list[str] = []  # what is guessed of the data, or has no effect, for the start line
        with_bins = (hasattr(one, "thresholds") for one in self.metrics.values())
        if metric_thresholds and not any([*with_bins, *map(metric_classes.is_own, metrics or ())]):
            self.notes.append("--metric_thresholds has no effect: none of the metrics has bins")
        self.network = network
        forward = network.forward if network is not None else None
        self.item_fields = ItemFields(forward if type(self).forward is MInterface.forward else self.forward)
        if built and not head_losses:
            self.notes.append(f"heads {' '.join(f'{name}={one.loss_name}' for name, one in built.items())}")
        self._is_repeated, self._last_batch = False, -1
        self._returns_loss = self._is_unmeasured = self._is_trained = False
        self._num_missing: Any = 0  # answers of yes or no, until this is said
        self._output_checked = False  # against the loss and the targets, in the first step of training
        self._takes_gradients = False  # in evaluation too
        self.channels_last = False  # the memory format of input images
        self.last_output: Tensor | None = None  # of the latest validation or test batch
        self.loss = losses.build(loss, given.get("loss", {}))
        self.loss_options = given.get("loss", {})
        self.own_loss = "." in losses.functional_name(loss)
        self.num_loss_inputs, self.loss_from_batch = losses.batch_arguments(self.loss) if self.own_loss else (2, {})
        self.item_fields.used = {*self.loss_from_batch}
        are_logits = losses.functional_name(loss) != "binary_cross_entropy"
        self.output_spec = OutputSpec(infer_task(loss, target_info), class_dim, are_logits)
        self.num_classes: int | None = target_info.get("num_classes")
        self.is_multiclass = self.output_spec.task == "multiclass"  # the output is a logit for each class
        self.has_binary_logits = self.output_spec.task in ("binary", "multilabel") and self.output_spec.are_logits
        self.has_own_step = any(getattr(type(self), name) is not getattr(MInterface, name) for name in _OWN_STEPS)
        self.asked_task = task
        self.asked_metrics = metrics
        self.loss_name, self.class_weights, self.ignore_index = loss, class_weights, ignore_index
        self.lr, self.lr_scale = lr, lr_scale
        self.weight_decay, self.no_decay_norm_bias = weight_decay, no_decay_norm_bias
        self.optimizer_name, self.optimizer_options = optimizer, given.get("optimizer", {})
        self.schedule = lr_schedulers.DEFAULTS | given.get("schedule", {})
        self.notes += lr_schedulers.check(self.schedule)
        self.batch_transform: Callable[..., Any] | None = None  # of training batches: MixUp, CutMix

    @property
    def predicts(self) -> OutputSpec:
        """The OutputSpec for predict; of a system with a step of its own nothing, unless it says its task."""
        meant = self.is_multiclass or self.has_binary_logits
        return self.output_spec if meant and (self.asked_task or not self.has_own_step) else OutputSpec("other")

    @classmethod
    def from_settings(cls, settings: Settings, data: Any) -> LightningModule:
        """The network of a command line; the dataset's attributes (`num_classes` ...) fill its missing arguments.

        A plain LightningModule is left as it is.
        """
        arguments = dict(settings.arguments["network"])
        for name in settings.inferred:
            given = arguments.setdefault(name, known := data.attribute(name))
            if given is None:
                raise UsageError(f"{settings.network.name} needs --{name}: {settings.dataset.name} does not know it")
            if known is not None and known != given:
                raise UsageError(f"--{name} {given}: {settings.dataset.name} says that it is {known}")
        network_class, system = settings.network.load(), settings.arguments["system"]
        bases = network_class.__mro__ if isinstance(network_class, type) else ()
        build = partial(_build, network_class, settings)
        if LightningModule in bases and cls not in bases:
            own: LightningModule = build(**arguments)
            own.save_hyperparameters(settings.flags)
            return own
        kwargs: dict[str, Any] = {key: settings.arguments[key] for key in ("loss", "optimizer", "schedule")}
        data.sample()  # before the first weights are drawn: it seeds
        if "." in (loss := system.get("loss", "")):
            kwargs["loss"] = losses.arguments_from_data(loss, kwargs["loss"], data.attribute)
        kwargs["target_info"] = data.target_info() | {"classes": data.attribute("classes")}
        if cls in bases:
            parameters = inspect.signature(network_class).parameters.values()
            if any(one.kind is one.VAR_KEYWORD or one.name == "component_kwargs" for one in parameters):
                arguments["component_kwargs"] = kwargs
            model = build(**system | arguments)
        else:
            network = build(**arguments)
            data.item_fields = ItemFields(network.forward)
            model = cls(network, **system, component_kwargs=kwargs)
            if not settings.ckpt_path and hasattr(network, "fetch_weights"):  # pretrained; a checkpoint has its own
                network.fetch_weights()
            if model.is_multiclass and model.num_classes == 1:
                raise UsageError(f"{settings.dataset.name} has one class, or a number for its target: --loss mse_loss")
            monitor = settings.arguments["callbacks"].get("monitor", "val_loss")
            names = model.logged_metrics(data.set_names("val"))
            logged = [name for name in names if not name.startswith("test_")]
            if monitor not in logged:  # a subclass may log others
                raise UsageError(f"--monitor {monitor}: there is no such metric; there are: {', '.join(logged)}")
        data.item_fields = model.item_fields
        if (sample := data.sample()) is not None and not model.has_own_step:
            model.notes += [note for note in [model.item_fields.split(sample).note] if note]
            exact = model.stage_metrics("train")
            model.notes += metric_classes.memory_notes(exact, len(data.split("train") or ()), data.target_info())
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
        if isinstance(value, str | int | None) and name in self.__dict__:  # nn.Module would look among its parameters
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def step(self, batch: Any, stage: str) -> Tensor:
        """The loss of a batch, (); updates the metrics of the stage. stage: "train", "val" or "test"."""
        fields = self.batch_fields(batch)

        def compute() -> tuple[Any, Any]:
            output = self(*fields.args, **fields.kwargs, **fields.to_forward)
            return (None, output) if self.heads else self._compare(output, fields, batch)

        parts, output = self._with_gradients(compute)
        if self.heads:
            parts, output = self._compare_heads(output, fields.target, stage), None
        if (loss := losses.total(parts)) is None:
            raise UsageError(f"--loss {self.loss_name} gives {_describe(parts)}: return the mean (), or a dict of such")
        target = fields.target
        if stage == "train" and self._is_repeated:
            return loss
        weight = self._mean_weight(target) if isinstance(target, Tensor) else fields.num_items()
        if stage != "train":
            self.last_output = None if output is None else output.detach()
        self.metrics[f"{stage}_loss"].add(loss.detach(), weight)  # type: ignore[operator]
        for name, part in parts.items() if isinstance(parts, Mapping) else ():
            if name != "loss" and part.dim() == 0:
                self._part_metric(f"{stage}_{name}").add(part.detach(), weight)
        if output is not None:
            if self.is_multiclass and target.is_floating_point():
                target = target.argmax(dim=1)  # soft targets (B, C) -> (B,)
            target = self.output_spec.known_answers(target)
            if self.own_loss and self.has_binary_logits and self._num_missing is not None:
                self._num_missing = self._num_missing + (target == MISSING).sum()
            output = output.detach().contiguous()  # torchmetrics takes no channels_last images
            predictions = output.sigmoid() if self.has_binary_logits else output
            predictions = predictions.clone() if predictions.is_cuda else predictions  # a CUDA graph reuses the memory
            self._metric_buffers[stage].add(predictions, target)
        return loss

    def _with_gradients(self, compute: Callable[[], Any]) -> Any:
        """What `compute` returns; where it takes gradients, as of a potential, it gets some in evaluation too."""
        if not self._takes_gradients:
            try:
                return compute()
            except RuntimeError as error:
                if torch.is_grad_enabled() or NO_GRADIENT not in str(error):
                    raise
            self._takes_gradients = True
        with torch.enable_grad():
            return compute()

    def _mean_weight(self, target: Tensor) -> float | Tensor:
        """The weight of a batch in the mean of the loss over an epoch."""
        if not (self.is_multiclass or (self._returns_loss and not target.is_floating_point())):
            return len(target) * ((target >= 0).float().mean() if self.own_loss and self.has_binary_logits else 1.0)
        weight = losses.mean_weight(target, self.ignore_index, getattr(self.loss, "weight", None))
        of_items = self.own_loss and not hasattr(self.loss, "ignore_index")
        if of_items and target.dim() > 2 and not target.is_floating_point():
            return weight * len(target) / max(1, target.numel())  # a mean over items, such as Dice's, of any size
        return weight

    def _compare(self, output: Any, fields: Fields, batch: Any) -> tuple[Any, Tensor | None]:
        """The loss of an output, or its parts by name; and the output aligned with the target, None where it cannot be.

        Raises: UsageError: the loss does not go with the output or with the items.
        """
        answer, target = main_output(output), fields.target
        if not self.own_loss and (fields.to_forward or target is None):  # the network may return its own loss
            parts = output[0] if isinstance(output, tuple) and output else output  # (loss, logits)
            if fields.to_forward and losses.total(parts) is None and not isinstance(answer, Tensor):
                with training_mode(self):  # a detector in evaluation returns boxes instead
                    parts = self(*fields.args, **fields.kwargs, **fields.to_forward)
            if losses.total(parts) is not None:
                return parts, self._beside_own_loss(answer, target)
            if isinstance(parts, Mapping) and parts.get("loss") is not None:
                what = f"the `loss` that the network returns is {_describe(parts['loss'])}"
                raise UsageError(f"{what}: return the mean, a tensor ()")
        comparable = isinstance(answer, Tensor) and isinstance(target, Tensor)
        if not self.own_loss:
            if not comparable:
                here = f"here they are {_describe(output)} and {_describe(target)}"
                needs = "tensors as output and target" if target is not None else "a target, and an item has none"
                raise UsageError(f"--loss {self.loss_name} needs {needs}; {here}: --loss my_losses.mine takes anything")
            unaligned, answer = answer, self.output_spec.align_with_target(answer, target)
            if not self._output_checked:
                self._output_checked = self.training
                losses.check_targets(self.loss_name, self.asked_task, target)
                problems = [
                    losses.activation_problem(self.loss_name, answer),
                    losses.unused_outputs(self.loss_name, output, unaligned),
                ]
                for problem in filter(None, problems if self.trainer.is_global_zero else ()):
                    print(problem, flush=True)
            measured = self._not_aligned(answer, target) if answer.is_complex() else answer
            return self.loss(answer, losses.checked_target(self.loss_name, target)), measured
        comparable = comparable and self.output_spec.task != "other"
        aligned = self.output_spec.align_with_target(answer, target) if comparable else None
        given = aligned if comparable and not self.is_multiclass and answer is output else output
        further = self._loss_arguments(batch)
        parts = self.loss(*(given, target)[: self.num_loss_inputs], **further)
        if aligned is None or not self._fits(aligned, target):
            return parts, self._not_aligned(answer, target)
        bools = [name for name, one in further.items() if isinstance(one, Tensor) and one.dtype is torch.bool]
        if masks := [name for name in bools if target.dim() > 1 and further[name].shape == target.shape]:
            why = f"the loss takes {masks[0]}, and metrics would count what it hides"
            return parts, self._not_aligned(aligned, target, why)
        return parts, aligned

    def _fits(self, output: Tensor, target: Tensor) -> bool:
        """Whether metrics can measure an aligned output against a target."""
        if not self.output_spec.matches(output, target, self.num_classes):
            return False
        known = self.training and self._output_checked
        if known or not self.is_multiclass or self.num_classes or target.is_floating_point():
            return True
        self._output_checked |= self.training
        return bool((target < output.shape[1]).all())  # else they are no logits of a class each: ordinal regression

    def _compare_heads(self, output: Any, target: Any, stage: str) -> dict[str, Tensor]:
        """The loss of each head, and their weighted sum as `loss`; updates the metrics of the heads."""
        if missing := [name for name in self.heads if not (isinstance(output, Mapping) and name in output)]:
            gives = ", ".join(output) if isinstance(output, Mapping) else _describe(output)
            raise UsageError(f"--head_losses: the network gives no {missing[0]!r}, but {gives}")
        parts: dict[str, Tensor] = {}
        for name, head in self.heads.items():
            aligned = head.spec.align_with_target(output[name], target[name])
            parts[f"{name}_loss"] = head.loss(aligned, losses.checked_target(head.loss_name, target[name]))
            shown = head.spec.probabilities(aligned.detach()) if head.spec.task != "multiclass" else aligned.detach()
            for metric in self.head_metrics[stage, name]:
                metric_classes.update(metric, shown, head.spec.known_answers(target[name]))
        weighted = [head.weight * parts[f"{name}_loss"] for name, head in self.heads.items()]
        return parts | {"loss": torch.stack(weighted).sum()}

    def _loss_arguments(self, batch: Any) -> dict[str, Any]:
        """The entries of a batch that a custom loss takes beside output and target."""
        entries = batch if isinstance(batch, Mapping) else {}
        if missing := [name for name, required in self.loss_from_batch.items() if required and name not in entries]:
            has = ", ".join(entries) or "no names: let the dataset give dicts"
            raise UsageError(f"--loss {self.loss_name} needs {', '.join(missing)} of the batch, which has {has}")
        return {name: entries[name] for name in self.loss_from_batch if name in entries}

    def _beside_own_loss(self, answer: Any, target: Any) -> Tensor | None:
        """What metrics get where the network returns its own loss: logits (B, C), or what --task says.

        Never logits of tokens, which the network may have shifted.

        Raises: UsageError: a flag is given that has no effect on the network's own loss.
        """
        self._returns_loss, spec, why = True, self.output_spec, "the network returns its own loss"
        of_loss = self.loss_name != "cross_entropy" and not self.asked_task  # with which it may say the task
        given = {"loss": of_loss, "class_weights": self.class_weights} | self.loss_options
        if self.training and (ignored := [name for name, value in given.items() if value and name != "ignore_index"]):
            raise UsageError(f"--{ignored[0]}: {why}; what its outputs are, --task says")
        tensors = isinstance(answer, Tensor) and isinstance(target, Tensor) and spec.task != "other"
        if tensors and (self.asked_task or not target.is_floating_point()):
            aligned = spec.align_with_target(answer, target)
            if self._fits(aligned, target):
                is_row = aligned.dim() == 2 or not self.is_multiclass
                return aligned if is_row else self._unmeasured(answer, target, why)
        return self._not_aligned(answer, target, why)

    def _not_aligned(self, output: Any, target: Any, why: str = "") -> Tensor | None:
        """What metrics get of an output that does not align with its target."""
        why = why or f"the network gives {_describe(output)}, and the target is {_describe(target)}"
        self.output_spec.task, self.is_multiclass, self.has_binary_logits = "other", False, False
        return self._unmeasured(output, target, why)

    def _unmeasured(self, output: Any, target: Any, why: str) -> Tensor | None:
        """What metrics get of an output that torchmetrics cannot compare with its target: one's own get it as it is.

        Raises: UsageError: some are torchmetrics', or one of the two is no tensor.
        """
        asked, tensors = self.asked_metrics or (), isinstance(output, Tensor) and isinstance(target, Tensor)
        if wrong := [name for name in asked if not (metric_classes.is_own(name) and tensors)]:
            takes = "; one of your own, my_metrics.Mine, takes any two tensors" if tensors else ""
            raise UsageError(f"--metrics {' '.join(wrong)}: {why}{takes}")
        if self.asked_metrics is None and not self._is_unmeasured and self.trainer.is_global_zero:
            print(f"no metric but the loss: {why}", flush=True)
        self._is_unmeasured = True
        return output if asked else None

    def guess_answer(self, output: Tensor, batch: Any) -> str:
        """Infers from a first batch of `predict`, where no training did: are there classes, and in which dimension.

        Returns: what is guessed, or "".
        Raises: UsageError: nothing says which dimension it is.
        """
        spec, target = self.output_spec, self.batch_fields(batch).target
        own = self.own_loss or {*self.item_fields.names} & {*TARGET_NAMES}
        known, fits = self.asked_task or self._is_trained or not own, True
        if self.heads or spec.task != "multiclass" or (known and (output.dim() == 2 or spec.class_dim)):
            return ""
        if isinstance(target, Tensor) and not target.is_floating_point():
            fits = self._fits(spec.align_with_target(output, target), target)
        elif output.dim() > 2:
            raise UsageError(f"an output {tuple(output.shape)}: --class_dim 1, or -1, says where its classes are")
        spec.task = "multiclass" if known or fits else "other"
        taken = "taken for logits of classes" if fits else "written as they are"
        return "" if known else f"the outputs are {taken}: --task says what they are"

    def batch_fields(self, batch: Any) -> Fields:
        """The inputs, the target and the rest of a batch."""
        if type(self).unpack_batch is MInterface.unpack_batch:
            return self.item_fields.split(batch)
        inputs, target = self.unpack_batch(batch)
        return Fields([], inputs, target) if isinstance(inputs, dict) else Fields(list(inputs), {}, target)

    def unpack_batch(self, batch: Any) -> tuple[Any, Any]:
        """The network's arguments (a sequence, or a dict by name) and the target of a batch, None where it has none."""
        fields = self.item_fields.split(batch)
        return fields.kwargs or fields.args, fields.target

    def arguments(self, batch: Any) -> tuple[list[Any], dict[str, Any]]:
        """The positional and the keyword arguments of `forward` for a batch, the target where it must be among them."""
        fields = self.batch_fields(batch)
        required = {name: one for name, one in fields.to_forward.items() if name in self.item_fields.required}
        return fields.args, fields.kwargs | required

    def num_items(self, batch: Any) -> int:
        """The number of items of a batch."""
        return self.batch_fields(batch).num_items()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        total = self.trainer.fit_loop.total_batch_idx
        self._is_repeated, self._last_batch = total == self._last_batch, total  # LBFGS evaluates a batch several times
        loss = self.step(self.batch_transform(batch) if self.batch_transform else batch, "train")
        first = batch_idx % self.trainer.accumulate_grad_batches == 0  # of the batches of an optimizer step
        if first and not self._is_repeated and self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log_now({"train_loss_step": loss.item()} | optimizers.current_lrs(self.trainer.optimizers[0]))
        return loss

    def on_train_epoch_end(self) -> None:
        if (missing := int(self._num_missing or 0)) and self.trainer.is_global_zero:
            print(f"{missing:,} answers are below 0 or NaN: metrics leave those out, as the loss has to", flush=True)
            self._num_missing = None
        super().on_train_epoch_end()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().backward(loss, *args, **kwargs)
        size, done = self.trainer.accumulate_grad_batches, self.trainer.fit_loop.batch_idx + 1
        if size > 1 and self.trainer.is_last_batch and (rest := done % size):
            for gradient in (one.grad for one in self.parameters() if one.grad is not None):
                gradient.mul_(size / rest)  # Lightning has divided by `size` what are only `rest` batches

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        args, kwargs = self.arguments(batch)
        return self._with_gradients(lambda: self(*args, **kwargs))

    def sample_images(self, batch: Any) -> dict[str, Any]:
        """Images to save after each validation, by file name, from its first batch.

        Each is (N, 1|3, H, W), drawn eight in a row, or a dict of labelled rows of such images.
        """
        return {}

    def setup(self, stage: str) -> None:
        if self.class_weights and stage != "predict" and not isinstance(self.loss, losses.ClassWeighted):
            if not self.is_multiclass:
                loss = f"--loss is {self.loss_name}" if type(self) is MInterface else f"{type(self).__name__} has none"
                raise UsageError(f"--class_weights goes with a loss over classes, and {loss}")
            if isinstance(self.loss, nn.Module):
                raise UsageError(f"--class_weights goes with a loss that is a function; {self.loss_name} is a class")
            counts = self.trainer.datamodule.class_counts()  # type: ignore[attr-defined]
            weight = counts.sum() / (len(counts) * counts.clamp(min=1))
            self.loss = losses.ClassWeighted(self.loss, weight.float())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["answer"] = {"task": self.output_spec.task, "class_dim": self.output_spec.class_dim}
        checkpoint["answer"]["takes_gradients"] = self._takes_gradients

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Lightning loads the weights before it converts the network, which rounds those of 64-true to 32 bits.
        self.trainer.precision_plugin.convert_module(self)
        self.restore_answer(checkpoint)
        for states in saved_metrics(checkpoint):
            for path, state in states.items():
                if path.startswith("metrics.") and state.keys() == {"total", "items"}:  # parts of the loss
                    self._part_metric(path.removeprefix("metrics."))
        super().on_load_checkpoint(checkpoint)

    def restore_answer(self, checkpoint: dict[str, Any]) -> None:
        """Restores the task and the class dimension that training found."""
        answer = checkpoint.get("answer", {})
        self._takes_gradients = answer.get("takes_gradients", False)
        self.output_spec.class_dim = self.output_spec.class_dim or answer.get("class_dim")
        self._is_trained = bool(answer)
        if answer.get("task") in ("other", "none"):  # its earlier name
            self.output_spec.task, self.is_multiclass, self.has_binary_logits = "other", False, False
            self._is_unmeasured = True

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


def _build(network_class: Callable[..., Any], settings: Settings, **arguments: Any) -> Any:
    """The network. Raises: UsageError: a file that one of its arguments names is not there."""
    try:
        return network_class(**arguments)
    except FileNotFoundError as error:
        flags = [name for name, value in settings.flags.items() if error.filename and str(value) == str(error.filename)]
        if not flags:
            raise
        what = f"--{flags[0]} {error.filename}: there is no such file"
        if settings.action != "fit":
            name = settings.network.name
            what += f", which {name} reads when it is built; what only training needs, on_fit_start of {name} may read"
        raise UsageError(what) from error


def _describe(value: Any) -> str:
    return f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
