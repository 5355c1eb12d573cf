"""What makes a run quick on the machine found. The start line names what is on, and a flag turns it off."""

import ctypes
import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.profilers import (
    AdvancedProfiler,
    PassThroughProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn

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


def prepare(
    model: Any, data: Any, num_threads: int | None, channels_last: bool, keep_memory: bool, matmul_precision: str
) -> list[str]:
    """Sets what can be set before the Trainer is made, each where it is asked for and can be done; what is on."""
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
    if channels_last and any(isinstance(layer, nn.Conv2d) for layer in network.modules()):
        sample = data.sample()
        if sample is not None and _channels_last(network, *model.arguments(sample)):
            model.channels_last = True
            done.append("channels last")
    return done


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


def hush_ranks(trainer: Trainer) -> None:
    """Spares several processes the word that Lightning passes round at every step: LastCheckpoint hears of signals."""
    assert callable(trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor)  # there is no public way
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def drop_empty_hooks(trainer: Trainer, module: LightningModule) -> None:
    """Spares the calls of what does nothing: at each step Lightning calls six hooks of every callback, but not None."""
    for one, base in [*((callback, Callback) for callback in trainer.callbacks), (module, LightningModule)]:  # type: ignore[attr-defined]
        for name in _EACH_STEP:
            if getattr(getattr(one, name), "__func__", None) is getattr(base, name):
                object.__setattr__(one, name, None)


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
