"""What makes a run quick on the machine found. The start line names what is on, and a flag turns it off."""

import ctypes
import logging
import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
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

from engine import jobs
from engine.discovery import UsageError

_served: Any = None  # what the processes of torchrun meet in
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # as glibc's malloc.h numbers them
_EACH_STEP = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end"),
)


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


def hush() -> None:
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
    if not torch.cuda.is_available():  # Lightning, when imported, has every optimiser step search for a driver
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
        done = [f"threads {torch.get_num_threads()}"]
    else:
        done = [f"matmul precision {matmul_precision}"]
    if keep_memory and _keep_memory():
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
        _served = jobs.meet() or _served
        return []
    if not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False) if "SLURM_STEP_ID" in os.environ else LightningEnvironment()]


def trainer(module: LightningModule, **arguments: Any) -> Trainer:
    """Lightning's Trainer, less what costs time at every step and does nothing.

    Raises:
        UsageError: it finds its arguments wrong.
    """
    strategy = str(arguments.get("strategy", ""))
    on_cpu = arguments.get("accelerator") == "cpu" or not torch.cuda.is_available()
    if strategy.startswith(("fsdp", "deepspeed")) and on_cpu:
        raise UsageError(f"--strategy {strategy} needs a GPU; --strategy model_parallel shares a network on a CPU too")
    try:
        made = Trainer(**arguments)
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise UsageError(f"Lightning's Trainer: {str(error).splitlines()[0]}") from error
    # Several processes pass a word round at every step, and need not: LastCheckpoint hears of signals.
    assert callable(made.fit_loop.epoch_loop._broadcast_sigterm_tensor)  # there is no public way
    made.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    # Six hooks of every callback are called at each step, but not those that are None.
    for one, base in [*((callback, Callback) for callback in made.callbacks), (module, LightningModule)]:  # type: ignore[attr-defined]
        for name in _EACH_STEP:
            if getattr(getattr(one, name), "__func__", None) is getattr(base, name):
                object.__setattr__(one, name, None)
    return made


def _keep_memory() -> bool:
    """Has malloc keep what a step frees for the next one, instead of giving it to the system and asking again.

    Returns whether it could: on Linux, with glibc.
    """
    try:
        malloc = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    wanted = {_MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**29, _TOP_PAD: 2**26}
    return all(malloc(option, size) for option, size in wanted.items())


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
            after = network(*map(laid_out, args), **{name: laid_out(one) for name, one in named.items()})
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
        return True
    except Exception:  # its own mistakes are raised when it is trained
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return False
    finally:
        network.train(was_training)


def laid_out(value: Any) -> Any:
    """Images (B, C, H, W) with the channels last in memory; anything else as it is."""
    if isinstance(value, Tensor) and value.dim() == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value
