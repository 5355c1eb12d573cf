"""`--strategy model_parallel`: a network too large for one device, its weights and its optimiser cut up among several.

A network says how by `def parallelize(self, mesh)`; of one that does not, each block is cut up by itself (FSDP2).
"""

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.strategies import ModelParallelStrategy, StrategyRegistry
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


def callbacks(folder: Any, model: Any, data: Any, *, tensor_parallel_size: int = 1) -> list[Callback]:
    """tensor_parallel_size: devices that share each layer, as the network's parallelize(mesh) says; these see the same
    batch (--strategy model_parallel)."""
    options = {"tensor_parallel_size": tensor_parallel_size}
    StrategyRegistry.register(
        "model_parallel", ShardedModelParallel, ShardedModelParallel.__doc__, override=True, **options
    )
    return [_Asked()] if tensor_parallel_size != 1 else []


def load_checkpoint_folder(path: Path) -> dict[str, Any]:
    """A sharded checkpoint as the one that a single process would have written, on the CPU."""
    return sharded_checkpoint.load(path)


class _Asked(Callback):
    """Says so where nobody listens."""

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage == "fit" and not isinstance(trainer.strategy, ShardedModelParallel):
            raise UsageError("--tensor_parallel_size goes with --strategy model_parallel")


class ShardedModelParallel(ModelParallelStrategy):
    """Lightning's, with checkpoints that a kill cannot break: folders in which each process writes its own part.

    tensor_parallel_size: devices a layer; the rest of them goes to data parallelism.
    """

    def __init__(self, tensor_parallel_size: int = 1, **options: Any) -> None:
        super().__init__(tensor_parallel_size=tensor_parallel_size, **options)
        self.tensor_parallel_size = int(tensor_parallel_size)

    def setup_environment(self) -> None:
        """Lays the processes out; the network is cut up once all callbacks are set up."""
        module: Any = self.lightning_module
        processes, each = self.num_processes * self.num_nodes, self.tensor_parallel_size
        refuse(module, processes, each)
        set_data_parallel_size(self, processes // each)
        super().setup_environment()
        for one in module.modules():
            if isinstance(one, Metric):  # what several processes see of the same data counts once
                one.process_group = self.device_mesh["data_parallel"].get_group()
        if not is_overridden("configure_model", module):  # a system may do it in its own way
            module.configure_model = partial(spread, module, self.device_mesh)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Saves beside the target; at every moment a folder whose name ends in .ckpt is whole."""
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
        """Loads each process's own part of a folder, or of a file."""
        if (path := Path(self.broadcast(checkpoint_path))).is_dir():
            assert self.lightning_module is not None
            checkpoint_io.check_weights_fit(self.lightning_module, sharded_checkpoint.shapes(path))
        return super().load_checkpoint(path, weights_only=True)


def refuse(model: Any, devices: int, each: int) -> None:
    """Looks whether a network can be shared, before the processes meet.

    each: devices that share a layer.

    Raises:
        UsageError: it cannot, for want of `parallelize` or devices, or beside an average of the weights.
    """
    if each < 1 or devices % each:
        raise UsageError(f"--tensor_parallel_size {each} does not divide the {devices} devices that there are")
    target, trainer = _target(model), model.trainer
    if each > 1 and not hasattr(target, "parallelize") and not is_overridden("configure_model", model):
        raise UsageError(f"--tensor_parallel_size: {type(target).__name__} has no parallelize(self, mesh) to say how")
    if trainer.state.fn == "fit" and any(isinstance(one, WeightAveraging) for one in trainer.callbacks):
        raise UsageError(
            "--strategy model_parallel keeps no average of the weights: leave --ema_decay and --swa_epoch out"
        )


def spread(model: LightningModule, mesh: DeviceMesh) -> None:
    """Cuts a model's weights up, once, in place: by the network's `parallelize(mesh)`, and over the data-parallel
    devices block by block where that has not done so.

    mesh: has the dimensions "data_parallel" and "tensor_parallel".
    """
    if any(isinstance(one, DTensor) for one in model.parameters()):
        return
    target, data = _target(model), mesh["data_parallel"]
    if hasattr(target, "parallelize"):
        target.parallelize(mesh)
    done = any(isinstance(one, FSDPModule) for one in target.modules())
    if not done and (data.size() > 1 or mesh["tensor_parallel"].size() == 1):
        for block in _blocks(target):
            fully_shard(block, mesh=data)
        if target is not model:
            fully_shard(target, mesh=data)


def _target(model: Any) -> Any:
    """What is cut up: the network, or of a system that has several the system."""
    return model if getattr(model, "network", None) is None else model.network


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The children that have weights; of a list or a sequence of layers, its own."""
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield from _blocks(child)
        elif any(True for _ in child.parameters()):
            yield child
