"""Set-up of the machine (threads, memory layout, precision) and the Trainer. The start line names what is on."""

import logging
import os
import warnings
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from pytorch_lightning.profilers import AdvancedProfiler, PassThroughProfiler, PyTorchProfiler, SimpleProfiler
from pytorch_lightning.strategies import StrategyRegistry
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from engine import lightning_compat
from engine.checkpointing.checkpoint_callbacks import SaveConfig
from engine.checkpointing.checkpoint_io import DurableCheckpointIO
from engine.cli.features_and_commands import load_features
from engine.cli.settings import Settings
from engine.cli.value_ranges import range_error
from engine.datamodule.seeding import SeedEachStep
from engine.errors import UsageError, nearest
from engine.launch import cluster_job
from engine.training import optimizers
from engine.training.metric_logging import MetricState
from engine.training.module_modes import evaluation_mode
from engine.training.training_check import TrainingCheck

_FLATTEN = ("fsdp", "deepspeed")  # so begin the names of strategies that shard flattened weights
_SHARD = (*_FLATTEN, "model_parallel")  # and of those that shard weights at all
# Flags of the Trainer that say what happens in a step.
_OF_A_STEP = "accelerator precision gradient_clip_val gradient_clip_algorithm benchmark deterministic".split()


class NoProfiler(PassThroughProfiler):
    """A profiler without overhead: Lightning enters its context some 80 times a step."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[Any]:  # type: ignore[override]
        """Measures nothing."""
        return self._nothing


def profiler(name: str | None, run_dir: Path, callbacks: list[Callback]) -> Any:
    """Lightning's profiler of that name, which writes to files in the run folder; only rank 0 profiles.

    callbacks: where one averages the weights, modules are not named: it copies the network, which their hooks prevent.
    name: simple (time of each hook), advanced (of each function), pytorch (of each operation; traces for a browser).
    """
    if name is None or rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return NoProfiler()
    if name == "xla":
        return name
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # warnings of torch's profiler
    warnings.filterwarnings("ignore", "Warning: Profiler clears events", module="torch")  # once a cycle
    names_modules = not any(isinstance(one, WeightAveraging) for one in callbacks)
    pytorch = partial(PyTorchProfiler, record_module_names=names_modules)
    kinds: dict[str, Any] = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": pytorch}
    return kinds[name](dirpath=run_dir, filename="profile")


def silence_warnings() -> None:
    """Silences messages of Lightning that repeat the start line or warn of what is done on purpose."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated", module="pytorch_lightning")  # Lightning's own call
    warnings.filterwarnings("ignore", ".*srun. command is available")  # on any machine with SLURM
    warnings.filterwarnings("ignore", ".*exists and is not empty")  # a resumed run
    warnings.filterwarnings("ignore", ".*using the WeightAveraging callback")  # checkpoints hold the averaged weights
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be")  # if without patience
    warnings.filterwarnings("ignore", ".*was not created with WeightAveraging")  # an average that begins there
    warnings.filterwarnings("ignore", ".*is smaller than the logging interval")  # epoch means are logged anyway
    warnings.filterwarnings("ignore", "You have overridden `.*` in `LightningModule` but have")  # for DInterface
    warnings.filterwarnings("ignore", "GPU available but not used")  # --accelerator cpu
    # Of DDP: Lightning wraps the network in a stream of its own; a convolution of one channel has no one stride.
    warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")


def configure(
    model: Any,
    data: Any,
    strategy: Any = None,
    *,
    num_threads: Annotated[int, ">= 1", "<= 1024"] | None = None,
    channels_last: bool = True,
    keep_memory: bool = True,
    matmul_precision: Literal["highest", "high", "medium"] = "high",
) -> list[str]:
    """Configures torch and the network's memory layout before the Trainer is built; returns the names of what is on.

    num_threads: number of CPU threads of torch; none leaves it to torch.
    channels_last: use the channels_last memory format for images, for faster convolutions, where that works.
    keep_memory: let malloc keep freed memory for the next step, instead of returning it to the system (Linux).
    matmul_precision: precision of float32 matrix products on a GPU: high is TF32, highest is full float32.
    """
    if num_threads:
        torch.set_num_threads(num_threads)
    torch.set_float32_matmul_precision(matmul_precision)
    if not torch.cuda.is_available():
        lightning_compat.skip_driver_lookup()
        enabled = [f"threads {torch.get_num_threads()}"]
    else:
        enabled = [f"matmul precision {matmul_precision}"]
    if keep_memory and lightning_compat.keep_freed_memory():
        enabled.append("malloc keeps memory")
    if (train := data.split("train")) is not None and data.batched_fetch(train):
        enabled.append("whole batches from memory")
    elif data.reads_quickly:
        enabled.append("items are quick to read: try --num_workers 0")
    network = getattr(model, "network", None)
    channels_last = channels_last and hasattr(model, "channels_last")  # a LightningModule of one's own may not convert
    channels_last = channels_last and not str(strategy).startswith(_SHARD)
    if channels_last and network is not None and any(isinstance(layer, nn.Conv2d) for layer in network.modules()):
        sample = data.sample()
        if sample is not None and _try_channels_last(network, *model.arguments(sample)):
            model.channels_last = True
            enabled.append("channels last")
    return enabled


def cluster_environments() -> list[ClusterEnvironment]:
    """The cluster environment for the Trainer, where Lightning's own detection does not fit: in a SLURM job.

    With srun, Lightning would save and requeue within its signal handler, which hangs when ranks are out of step;
    LastCheckpoint does it instead. Without srun, the only process may launch others itself.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        cluster_job.rendezvous()
        return []
    if not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False) if "SLURM_STEP_ID" in os.environ else LightningEnvironment()]


def make_run_trainer(
    settings: Settings, model: Any, data: Any, run_dir: Path, *, callbacks: list[Callback], **options: Any
) -> Trainer:
    """The Trainer of a run. In front of its callbacks stand those without which it would not be resumed exactly.

    options: further arguments of the Trainer, beside its flags.
    """
    first: list[Callback] = [SaveConfig(settings, run_dir)] if settings.action == "fit" else []
    first += [SeedEachStep(settings.arguments["run"]["seed"]), MetricState(), TrainingCheck()]
    options |= settings.arguments["trainer"] | {"callbacks": [*first, *callbacks]}
    return make_trainer(model, data, run_dir, **options)


def make_trainer(model: Any, data: Any, run_dir: Path, *, max_epochs: int | None, **options: Any) -> Trainer:
    """Lightning's Trainer, without the hooks that cost time at every step and do nothing.

    options: further arguments of the Trainer.
    max_epochs: None for 10, or for no end where max_steps or max_time is given.

    Raises: UsageError: the Trainer refuses its arguments.
    """
    options = cluster_job.process_layout() | options
    plugins = options.pop("plugins", None) or []
    strategy = str(options.get("strategy", ""))
    on_cpu = options.get("accelerator") == "cpu" or not torch.cuda.is_available()
    flattens = strategy.startswith(_FLATTEN)
    if flattens and on_cpu:
        raise UsageError(f"--strategy {strategy} needs a GPU; --strategy model_parallel shards a network on a CPU too")
    if flattens and getattr(model, "optimizer_name", "") == "Muon":
        raise UsageError(f"--optimizer Muon: --strategy {strategy} has flat shards, no matrices: take model_parallel")
    options["profiler"] = profiler(options.get("profiler"), run_dir, options["callbacks"])
    if max_epochs is None:
        max_epochs = -1 if {"max_steps", "max_time"} & options.keys() else 10
    for unit, most in (("epochs", max_epochs), ("steps", options.get("max_steps", -1))):
        if 0 <= most < (least := options.get(f"min_{unit}") or 0):
            raise UsageError(f"--min_{unit} {least} is more than --max_{unit} {most}, at which the run ends")
    if (algorithm := options.get("gradient_clip_algorithm")) and not options.get("gradient_clip_val"):
        raise UsageError(f"--gradient_clip_algorithm {algorithm} needs --gradient_clip_val")
    try:
        trainer = Trainer(
            **options,
            max_epochs=max_epochs,
            plugins=[*plugins, DurableCheckpointIO(), *cluster_environments()],
            enable_model_summary=False,  # printed at the start in one line
            use_distributed_sampler=False,  # the loaders of DInterface know their rank
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ModuleNotFoundError) as error:
        known = ["auto", *sorted(StrategyRegistry.available_strategies())]
        if strategy and strategy not in known:
            usable = [one for one in known if not range_error("strategy", one, ["trainer"])]
            near = nearest(strategy, usable)
            raise UsageError(f"--strategy {strategy}{near}; there are: {', '.join(usable)}") from error
        raise UsageError(f"Lightning's Trainer: {str(error).splitlines()[0]}") from error
    if not data.set_names("val") or not is_overridden("validation_step", model):
        trainer.limit_val_batches = 0  # now: --fast_dev_run and --overfit_batches would set it anew
    optimizers.check_configured(model)
    trainer.fit_loop.epoch_loop = lightning_compat.lean_epoch_loop(trainer)
    lightning_compat.count_epochs(trainer)
    lightning_compat.skip_unused_hooks(trainer, model)
    lightning_compat.cache_step_parameters()
    lightning_compat.call_hooks_directly(trainer)
    return trainer


def make_trial_trainer(settings: Settings, model: Any, data: Any, callback: Callback, **options: Any) -> Trainer:
    """A Trainer of one device for a few training steps, of which nothing is kept, as a run with these flags takes them.

    options: further arguments of the Trainer.
    """
    configure(model, data, **settings.arguments["hardware"])
    features = load_features(Path(), model, data, settings.arguments)
    callbacks = [callback, *(one for one in features if getattr(one, "changes_step", False))]
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    given = {key: value for key, value in settings.arguments["trainer"].items() if key in _OF_A_STEP}
    options |= {"devices": 1, "callbacks": callbacks}
    trainer = make_trainer(model, data, Path(), **given | off | options)
    trainer.limit_val_batches = 0
    return trainer


def _try_channels_last(network: nn.Module, args: list[Any], kwargs: dict[str, Any]) -> bool:
    """Converts the weights to channels_last where the output on `args` and `kwargs` stays the same; whether it did.

    A network that calls `view` on its feature maps fails; one that calls `reshape` or `flatten` does not.
    """
    before, after = list[Tensor](), list[Tensor]()  # torch.testing would import sympy, a tenth of a start
    with suppress(Exception), torch.no_grad(), evaluation_mode(network):  # a mistake of its own is raised in training
        apply_to_collection(network(*args, **kwargs), Tensor, before.append)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        args, kwargs = apply_to_collection((args, kwargs), Tensor, to_channels_last)
        apply_to_collection(network(*args, **kwargs), Tensor, after.append)
        pairs = zip(before, after, strict=True)
        if before and all(one.equal(other) or one.allclose(other, 1e-3, 1e-3) for one, other in pairs):
            return True
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return False


def to_channels_last(value: Any) -> Any:
    """An image batch (B, C, H, W) in the channels_last memory format; anything else unchanged."""
    if isinstance(value, Tensor) and value.dim() == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value
