"""What makes a run quick on the machine found. The start line names what is on, and a flag turns it off."""

import logging
import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from pytorch_lightning.profilers import (
    AdvancedProfiler,
    PassThroughProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from engine.errors import UsageError
from engine.launch import job, torchrun
from engine.lightning_compat import (
    keep_freed_memory,
    skip_driver_lookup,
    skip_sigterm_broadcast,
    skip_unused_hooks,
)

_served: Any = None  # what the processes of torchrun meet in


class NoProfiler(PassThroughProfiler):
    """Lightning enters a profiler's context some 80 times a step; this one costs nothing."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[Any]:  # type: ignore[override]
        """Measures nothing."""
        return self._nothing


def profiler(name: str | None, folder: Path) -> Profiler | str:
    """Lightning's profiler of that name, which reports to files in the run folder; the first process alone measures.

    name: simple (time of each hook), advanced (of each function), pytorch (of each operation; traces for a browser).
    """
    if name is None or rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return NoProfiler()
    if name == "xla":
        return name
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's own profiler talks to itself
    warnings.filterwarnings("ignore", "Warning: Profiler clears events", module="torch")  # it reports each cycle
    kinds: dict[str, Any] = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    return kinds[name](dirpath=folder, filename="profile")


def silence() -> None:
    """Silences advertisements, what the start line says too, and what a resumed run does on purpose."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated", module="pytorch_lightning")  # Lightning's own call
    warnings.filterwarnings("ignore", ".*srun. command is available")  # so it is wherever SLURM is installed
    warnings.filterwarnings("ignore", ".*exists and is not empty")  # so it is when a run goes on
    warnings.filterwarnings("ignore", ".*using the WeightAveraging callback")  # a checkpoint holds the mean weights
    warnings.filterwarnings("ignore", ".*is smaller than the logging interval")  # its means are logged all the same


def prepare(
    model: Any,
    data: Any,
    strategy: Any = None,
    *,
    num_threads: int | None = None,
    channels_last: bool = True,
    keep_memory: bool = True,
    matmul_precision: Literal["highest", "high", "medium"] = "high",
) -> list[str]:
    """Sets what can be set before the Trainer is made, each where it is asked for and can be done; what is on.

    Args:
        num_threads: CPU threads of torch; none leaves it to torch.
        channels_last: lay images out with the channels last, which convolutions are quicker on, where a network can.
        keep_memory: let malloc keep what a step frees for the next one (Linux).
        matmul_precision: of float32 products on a GPU: high is TF32, highest is exact.
    """
    if num_threads:
        torch.set_num_threads(num_threads)
    torch.set_float32_matmul_precision(matmul_precision)
    if not torch.cuda.is_available():
        skip_driver_lookup()
        done = [f"threads {torch.get_num_threads()}"]
    else:
        done = [f"matmul precision {matmul_precision}"]
    if keep_memory and keep_freed_memory():
        done.append("malloc keeps memory")
    network = getattr(model, "network", None) or nn.Identity()
    channels_last = channels_last and strategy != "model_parallel"  # which cuts up no other layout than the usual
    if channels_last and any(isinstance(layer, nn.Conv2d) for layer in network.modules()):
        sample = data.sample()
        if sample is not None and _channels_last(network, *model.arguments(sample)):
            model.channels_last = True
            done.append("channels last")
    return done


def cluster() -> list[ClusterEnvironment]:
    """Who starts the processes, where Lightning's own answer is not ours: in a SLURM job.

    With srun, Lightning would save and requeue within its signal handler, which hangs as soon as ranks are not in step;
    LastCheckpoint does it. Without srun, the one process that there is may start others, as anywhere.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        global _served
        _served = torchrun.rendezvous() or _served
        return []
    if not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False) if "SLURM_STEP_ID" in os.environ else LightningEnvironment()]


def make_trainer(
    model: LightningModule, data: Any, run_dir: Path, *, max_epochs: int | None, plugins: list[Any], **options: Any
) -> Trainer:
    """Lightning's Trainer, without what costs time at every step and does nothing.

    options: of the Trainer. max_epochs: None for 10, or for no end where max_steps or max_time is given.

    Raises:
        UsageError: the Trainer finds its arguments wrong.
    """
    options = job.process_layout() | options
    strategy = str(options.get("strategy", ""))
    on_cpu = options.get("accelerator") == "cpu" or not torch.cuda.is_available()
    if strategy.startswith(("fsdp", "deepspeed")) and on_cpu:
        raise UsageError(f"--strategy {strategy} needs a GPU; --strategy model_parallel shares a network on a CPU too")
    options["profiler"] = profiler(options.get("profiler"), run_dir)
    if data.split("val") is None:
        options["limit_val_batches"] = 0
    if max_epochs is None:
        max_epochs = -1 if {"max_steps", "max_time"} & options.keys() else 10
    try:
        made = Trainer(
            **options,
            max_epochs=max_epochs,
            plugins=[*plugins, *cluster()],
            enable_model_summary=False,  # a line at the start of training says it
            use_distributed_sampler=False,  # the loaders of DInterface know their rank
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise UsageError(f"Lightning's Trainer: {str(error).splitlines()[0]}") from error
    skip_sigterm_broadcast(made)
    skip_unused_hooks(made, model)
    return made


def _channels_last(network: nn.Module, args: list[Any], named: dict[str, Any]) -> bool:
    """Lays the weights of a convolutional network out with the channels last, where its answer stays the same.

    A network that takes images apart with `view` cannot do so; with `reshape` or `flatten` it can.

    args, named: its arguments for a few items.
    Returns whether it was done.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            before = network(*args, **named)
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            after = network(
                *map(to_channels_last, args), **{name: to_channels_last(one) for name, one in named.items()}
            )
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
        return True
    except Exception:  # its own mistakes are raised when it is trained
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return False
    finally:
        network.train(was_training)


def to_channels_last(value: Any) -> Any:
    """Images (B, C, H, W) with the channels last in memory; anything else as it is."""
    if isinstance(value, Tensor) and value.dim() == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value
