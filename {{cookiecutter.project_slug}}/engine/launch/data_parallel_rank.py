"""The data-parallel rank of a process: which share of the items it sees."""

from typing import Any, NamedTuple


class DataParallelRank(NamedTuple):
    """The number of a process among those that see data of their own, how many these are, and their process group."""

    rank: int
    size: int
    group: Any = None  # all


def data_parallel_rank(trainer: Any) -> DataParallelRank:
    """The data-parallel rank of this process; tensor-parallel ranks see the same data and share one."""
    if (mesh := getattr(trainer.lightning_module, "device_mesh", None)) is None:
        return DataParallelRank(trainer.global_rank, trainer.world_size)
    data = mesh["data_parallel"]
    return DataParallelRank(data.get_local_rank(), data.size(), data.get_group())
