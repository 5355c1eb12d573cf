"""Items a second of two processes over twice those of one, on the CPU, with one thread each: 1 is perfect.

Two runs that know nothing of each other show what the machine can do, and a loop by hand what torch's DDP can.

python benchmarks/ddp.py PROJECT [ROUNDS] [FLAGS OF MAIN.PY]
"""

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from step import keep_memory, run_project, timer
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from turns import arguments_of, in_turn, measure, over

BATCH, WARM, STEPS = 64, 20, 100
DEVICES = {"one": ["--devices", "1"], "two": ["--devices", "2", "--strategy", "ddp"]}


class Pictures(Dataset):
    """Noise: as many images (3, 32, 32) as both processes want, of which a thousand are in memory."""

    num_classes = 10

    def __init__(self) -> None:
        self.images = torch.rand(1000, 3, 32, 32)

    def __len__(self) -> int:
        return 2 * BATCH * (WARM + STEPS + 1)

    def __getitems__(self, indices):
        where = torch.as_tensor(indices)
        return self.images.index_select(0, where % 1000), where % 10


class Net(nn.Sequential):
    """Much to compute and little to pass round: 57,000 parameters."""

    def __init__(self, num_classes: int) -> None:
        first = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()]
        second = [nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*first, *second, nn.Linear(64, num_classes))


def once(devices: str, extra: list[str]) -> float:
    """Items a second of all processes together."""
    clock = timer(WARM)
    argv = "--model_name ddp.Net --dataset ddp.Pictures --max_epochs 1 --val_fraction 0 --test_fraction 0"
    argv += f" --batch_size {BATCH} --limit_train_batches {WARM + STEPS + 1}"
    run_project([*argv.split(), *DEVICES[devices], *extra], clock)
    return BATCH * int(DEVICES[devices][1]) * STEPS / (clock.ended - clock.began)


def by_hand(rank: int) -> None:
    """The same with torch's DDP and no Lightning."""
    torch.set_num_threads(1)
    keep_memory()
    torch.distributed.init_process_group("gloo", init_method=f"file://{os.getcwd()}/meet", rank=rank, world_size=2)
    layout = {"memory_format": torch.channels_last}
    data, model = Pictures(), nn.parallel.DistributedDataParallel(Net(10).to(**layout))
    optimizer, order = torch.optim.Adam(model.parameters(), fused=True), torch.randperm(len(data))[rank::2]
    for step, places in enumerate(order.split(BATCH)[: WARM + STEPS]):
        if step == WARM:
            began = time.perf_counter()
        images, targets = data.__getitems__(places.tolist())
        optimizer.zero_grad()
        cross_entropy(model(images.contiguous(**layout)), targets).backward()
        optimizer.step()
    if rank == 0:
        print("NUMBERS", 2 * BATCH * STEPS / (time.perf_counter() - began), flush=True)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def items_a_second(project: Path, devices: str, extra: list[str]) -> float:
    """The same, in processes of its own."""
    return measure("ddp.py", project, devices, *extra)[0]


def main() -> None:
    """The command line."""
    arguments, extra = arguments_of(__doc__)
    if arguments.once:
        devices, *extra = arguments.once
        if devices == "by_hand":
            torch.multiprocessing.spawn(by_hand, nprocs=2)
            return
        items = once(devices, extra)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print("NUMBERS", items)
        return
    names = [*DEVICES, "by_hand"]
    one, two, hand = (partial(items_a_second, arguments.project, devices, extra) for devices in names)

    def apart() -> float:
        with ThreadPoolExecutor() as pool:
            return sum(pool.map(lambda _: one(), range(2)))

    found = in_turn(arguments.rounds, {"one": one, "apart": apart, "by_hand": hand, "two": two})
    twice = [2 * value for value in found["one"]]
    speed = f"{statistics.median(found['one']):.0f} items a second"
    print(f"| {BATCH} items a process and step | median | range |\n| --- | --- | --- |")
    print(f"| two processes of a run over twice one ({speed}) | {over(found['two'], twice)} |")
    print(f"| two runs of a process each over twice one | {over(found['apart'], twice)} |")
    print(f"| two processes of a loop by hand over twice one | {over(found['by_hand'], twice)} |")
    print(f"| two processes of a run over those of the loop by hand | {over(found['two'], found['by_hand'])} |")


if __name__ == "__main__":
    main()
