"""`--strategy model_parallel`: weights and optimizer states sharded over several devices (FSDP2, tensor parallelism).

A network may define `parallelize(self, mesh)`; otherwise each of its blocks is sharded by `fully_shard`.
"""

from pathlib import Path
from typing import Annotated, Any

from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.strategies import ModelParallelStrategy, StrategyRegistry

from engine.errors import UsageError


def callbacks(*, tensor_parallel_size: Annotated[int, ">= 1"] = 1) -> list[LambdaCallback]:
    """tensor_parallel_size: number of devices that split each layer, by the network's parallelize(mesh), and see the
    same batch (--strategy model_parallel)."""
    options: dict[str, Any] = {"override": True, "tensor_parallel_size": tensor_parallel_size}
    StrategyRegistry.register("model_parallel", _strategy, "shards the network over the devices", **options)

    def check(trainer: Any, module: Any, stage: str) -> None:
        if stage == "fit" and not isinstance(trainer.strategy, ModelParallelStrategy):
            raise UsageError("--tensor_parallel_size goes with --strategy model_parallel")

    return [LambdaCallback(setup=check)] if tensor_parallel_size != 1 else []


def load_checkpoint_folder(path: Path) -> dict[str, Any]:
    """A sharded checkpoint as the one that a single process would have written, on the CPU."""
    from engine.features.model_parallel import sharded_checkpoint

    return sharded_checkpoint.load(path)


def _strategy(**options: Any) -> ModelParallelStrategy:
    from engine.features.model_parallel.strategy import ShardedModelParallel  # which nobody else needs to import

    return ShardedModelParallel(**options)
