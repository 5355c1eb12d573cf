"""ShardedModelParallel: the strategy, and how it shards a network. Apart, for what it imports takes half a second."""

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torchmetrics import Metric

from engine.checkpointing import checkpoint_io
from engine.errors import UsageError
from engine.features.model_parallel import sharded_checkpoint
from engine.lightning_compat import set_data_parallel_size
from engine.training.name_patterns import find_network


class ShardedModelParallel(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy, with checkpoint folders that stay whole when a process is killed.

    tensor_parallel_size: devices that share a layer; the remaining factor of the devices is data parallelism.
    """

    def __init__(self, tensor_parallel_size: int = 1, **options: Any) -> None:
        super().__init__(tensor_parallel_size=tensor_parallel_size, **options)
        self.tensor_parallel_size = int(tensor_parallel_size)

    def setup_environment(self) -> None:
        """Builds the device mesh; the network is sharded in configure_model, after all callbacks are set up."""
        module: Any = self.lightning_module
        world_size, tensor_parallel_size = self.num_processes * self.num_nodes, self.tensor_parallel_size
        check_supported(module, world_size, tensor_parallel_size)
        set_data_parallel_size(self, world_size // tensor_parallel_size)
        super().setup_environment()
        for metric in module.modules():
            if isinstance(metric, Metric):  # the ranks of a tensor-parallel group see the same data: count it once
                metric.process_group = self.device_mesh["data_parallel"].get_group()
        if not is_overridden("configure_model", module):
            module.configure_model = partial(shard, module, self.device_mesh)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Saves under a temporary name, then renames: at every moment a folder whose name ends in .ckpt is whole."""
        path = Path(self.broadcast(filepath))
        part = path.with_name(path.name + ".part")
        if self.is_global_zero and part.exists():
            shutil.rmtree(part)
        self.barrier()
        try:
            super().save_checkpoint(checkpoint, part)
            if self.is_global_zero:
                with (part / "meta.pt").open("rb") as file:
                    os.fsync(file.fileno())
                checkpoint_io.replace(part, path)
        except (OSError, RuntimeError, CheckpointException) as error:
            raise checkpoint_io.cannot_save(path, error) from None
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads the shards of this rank, from a sharded checkpoint or from an ordinary file."""
        if (path := Path(self.broadcast(checkpoint_path))).is_dir():
            assert self.lightning_module is not None
            sharded_checkpoint.check_shards(path, self.global_rank, self.world_size)
            checkpoint_io.check_weights_fit(self.lightning_module, sharded_checkpoint.empty_weights(path))
        return super().load_checkpoint(path, weights_only=True)


def check_supported(model: Any, devices: int, tensor_parallel_size: int) -> None:
    """Checks, before the process group is initialized, that a model can be sharded.

    Raises:
        UsageError: the devices are not divisible, the network has no `parallelize`, or a callback averages the weights.
    """
    if devices % tensor_parallel_size:
        raise UsageError(f"--tensor_parallel_size {tensor_parallel_size} does not divide the {devices} devices")
    target: Any = find_network(model)
    trainer = model.trainer
    if tensor_parallel_size > 1 and not hasattr(target, "parallelize") and not is_overridden("configure_model", model):
        raise UsageError(f"--tensor_parallel_size: {type(target).__name__} has no method parallelize(self, mesh)")
    if trainer.state.fn == "fit" and any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):
        raise UsageError("--strategy model_parallel cannot average weights: leave --ema_decay and --swa_epoch out")


def shard(model: LightningModule, mesh: DeviceMesh) -> None:
    """Shards a model in place, unless it is sharded: by its `parallelize(mesh)`, and unless that calls `fully_shard`,
    block by block over the data-parallel devices.

    mesh: has the dimensions "data_parallel" and "tensor_parallel".
    """
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return
    target: Any = find_network(model)
    data_mesh = mesh["data_parallel"]
    if hasattr(target, "parallelize"):
        target.parallelize(mesh)
    is_sharded = any(isinstance(module, FSDPModule) for module in target.modules())
    if not is_sharded and (data_mesh.size() > 1 or mesh["tensor_parallel"].size() == 1):
        for block in _blocks(target):
            fully_shard(block, mesh=data_mesh)
        if target is not model:
            fully_shard(target, mesh=data_mesh)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The children that have parameters; ModuleList and Sequential are replaced by their own children."""
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield from _blocks(child)
        elif any(True for _ in child.parameters()):
            yield child
