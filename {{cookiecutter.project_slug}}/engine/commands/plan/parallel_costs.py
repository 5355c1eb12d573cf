"""The devices that `plan` assumes, and the costs of a step on several of them, from those on one."""

import math
import os
import re
from typing import Any, NamedTuple

import torch

from engine.commands.plan.step_costs import StepCosts
from engine.errors import UsageError

FREE = 0.1  # share of the memory that is left to the allocator, kernels and driver
_UNITS = {"": 1e9, "MB": 1e6, "GB": 1e9, "TB": 1e12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_BYTES = {"64": 8, "32": 4, "16": 2, "bf16": 2}


class ParallelSetup(NamedTuple):
    """A network trained in a precision, with a strategy ("ddp" or "fsdp"), on a number of devices."""

    step: StepCosts
    precision: str
    strategy: str
    num_devices: int

    def memory(self, batch_size: int) -> dict[str, float]:
        """Bytes on a device at the peak of a step over `batch_size` items, by their use.

        "ddp" keeps everything on each device, and on several its buckets are a copy of the gradients (PyTorch's DDP
        without gradient_as_bucket_view). "fsdp" shards weights, gradients and the optimizer state, and gathers one
        layer at a time, at most the largest: stage 3 of S. Rajbhandari et al., "ZeRO", 2020; Y. Zhao et al.,
        "PyTorch FSDP", 2023. Mixed precision keeps weights, gradients and state in 32 bits.
        """
        step, share = self.step, self.num_devices if self.strategy == "fsdp" else 1
        parts = {
            "weights": step.weights / share + step.buffers,
            "gradients": step.gradients / share,
            "optimizer_state": step.optimizer / share,
        }
        if share > 1:
            parts["gathered_layer"] = self.gathered(step.largest)
        elif self.num_devices > 1:
            parts["buckets"] = step.gradients
        if step.activations:
            fixed, each = step.activations
            parts |= {"activations": fixed + each * batch_size, "workspace": step.workspace * batch_size}
        return parts

    def gathered(self, parameters: int) -> float:
        """Bytes of gathered parameters, in the precision of the computation."""
        return parameters * _BYTES[self.precision.partition("-")[0]]

    def largest_batch(self, device_memory: float) -> int:
        """The largest batch that fits; 0 if not even one item does, or the activations are unknown."""
        if not self.step.activations or not (each := self.step.activations[1] + self.step.workspace) > 0:
            return 0
        return max(0, math.floor(((1 - FREE) * device_memory - sum(self.memory(0).values())) / each))

    def communication(self, num_batches: int) -> float:
        """Bytes that each of N devices sends in an optimiser step of `num_batches` batches.

        ddp: 2 (N - 1) / N of the gradients, a ring all-reduce (P. Patarasuk and X. Yuan, "Bandwidth optimal all-reduce
        algorithms for clusters of workstations", 2009). fsdp: (N - 1) / N of the weights for the forward and again for
        the backward pass, and of the gradients that are reduced and scattered: 3 (N - 1) / N (ZeRO, section 7), in the
        precision of the computation, as Lightning's FSDP sends them, and for each batch.
        """
        sent = 2.0 * self.step.gradients
        if self.strategy == "fsdp":
            sent = num_batches * self.gathered(2 * self.step.parameters + self.step.trainable)
        return sent * (self.num_devices - 1) / self.num_devices

    def step_seconds(self, batch_seconds: float, num_batches: int, link_gbps: float) -> tuple[float, float]:
        """Seconds of an optimiser step of `num_batches` batches: with full overlap of communication, and with none.

        Communication overlaps with the last backward pass in ddp (S. Li et al., "PyTorch Distributed", 2020), which is
        two thirds of a batch (twice the products of a forward pass), and with all passes in fsdp.
        """
        network = self.communication(num_batches) * 8 / (link_gbps * 1e9)
        hidden = batch_seconds * (num_batches if self.strategy == "fsdp" else 2 / 3)
        return num_batches * batch_seconds + max(0.0, network - hidden), num_batches * batch_seconds + network


def device_type(accelerator: str) -> str:
    """ "cuda" or "cpu": the device that --accelerator selects on this machine."""
    return "cuda" if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"


def num_devices(flag: Any, device: str) -> int:
    """The number of devices of a machine that --devices means: a number, a list of their numbers, or auto."""
    if flag in ("auto", -1):
        return max(torch.cuda.device_count(), 1) if device == "cuda" else 1
    return flag if isinstance(flag, int) else len(flag)


def strategy_of(flag: str) -> str:
    """The strategy that is counted for --strategy: ddp or fsdp.

    Raises: UsageError: it is another one.
    """
    if flag != "fsdp" and flag != "auto" and not flag.startswith("ddp"):
        raise UsageError(f"--strategy {flag}: plan knows ddp and fsdp")
    return "fsdp" if flag == "fsdp" else "ddp"


def precision_of(flag: str) -> str:
    """Lightning's full name of a precision: 32 is 32-true, bf16 is bf16-mixed.

    Raises: UsageError: it is another one.
    """
    bits, _, how = flag.partition("-")
    if bits not in _BYTES:
        raise UsageError(f"--precision {flag}: plan knows 32-true, bf16-mixed, bf16-true, 16-mixed, 16-true, 64-true")
    return f"{bits}-{how or ('mixed' if '16' in bits else 'true')}"


def local_memory(device: str) -> float:
    """Memory of the first GPU, or of this machine, in bytes; infinite where it is unknown (Windows)."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf


def memory_of(flag: str | None, device: str) -> float:
    """--device_memory in bytes, by default that of the device here.

    Raises: UsageError: it is no amount of memory, or is not given and unknown.
    """
    if flag is None:
        if (local := local_memory(device)) == math.inf:
            raise UsageError("the memory of this machine is unknown: give --device_memory, such as 16GB")
        return local
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", flag.strip(), re.IGNORECASE)
    if not match or match[2].upper() not in _UNITS or not float(match[1]):
        raise UsageError(f"--device_memory {flag}: write it as 80GB, 40GiB or 512MB")
    return float(match[1]) * _UNITS[match[2].upper()]
