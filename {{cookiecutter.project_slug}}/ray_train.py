#!/usr/bin/env python
"""Trains on a Ray cluster: python ray_train.py --num_ray_workers 2 -- --model_name my_net --dataset my_data ...

Behind `--` stand the flags of main.py. The workers are the processes of one run, as under torchrun. When one dies, or
its machine does, all are started again and go on from the newest checkpoint.
"""

import argparse
import logging
import os
import sys
import uuid
from typing import Any

import main as project
from engine.errors import UsageError

GRACE = 15  # seconds, after a worker raised something, in which Ray finds out whether another one had died before


class Worker:
    """A process of the run, on whichever machine Ray puts it."""

    def address(self) -> tuple[str, int]:
        """Where the others can find it: its machine, and a port that is free there."""
        import socket

        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def train(self, argv: list[str], folder: str, environment: dict[str, str]) -> Any:
        """Runs main.py in a folder; its exit status. A signal's is left to Ray, for which it is a death."""
        os.chdir(folder)
        os.environ |= environment
        try:
            project.main(argv)
        except SystemExit as ended:
            if isinstance(ended.code, int) and ended.code > 128:
                raise
            return ended.code
        return 0


def main(argv: list[str] | None = None) -> None:
    """Runs a command line. It raises what the user's own code raised, and SystemExit(2) on a mistake."""
    words = sys.argv[1:] if argv is None else argv
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        "ray_train.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--num_ray_workers", type=int, default=1, help="processes that train together (default: 1)")
    parser.add_argument("--num_cpus", type=int, default=1, help="of each: cores, and threads of torch (default: 1)")
    parser.add_argument("--num_gpus", type=int, choices=(0, 1), help="of each (default: 1 where the cluster has any)")
    parser.add_argument("--max_failures", type=int, default=3, help="deaths to start again after (default: 3)")
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS") or "local",
        help="a running cluster, auto for this machine's (default: RAY_ADDRESS, or one that ends with the run)",
    )
    chosen, own = parser.parse_args(words[:cut]), words[cut + 1 :]
    project.parse(own)  # its mistakes end here, before anything is started
    try:
        ray = join(chosen.address)
        raise SystemExit(supervise(ray, own, room(ray, chosen), chosen.max_failures))
    except UsageError as error:
        print(f"ray_train.py: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("ray_train.py: ended; add --ckpt_path last behind -- to go on", file=sys.stderr)
        raise SystemExit(130) from None


def join(address: str) -> Any:
    """Ray, connected to a cluster: `local` starts one, which only this machine can reach and which ends with it.

    Raises:
        UsageError: there is no Ray, or no such cluster.
    """
    how: dict[str, Any] = {}
    if address == "local":  # what Ray asks of its environment, it asks when it is imported
        how = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of what it will do one day
    try:
        import ray

        ray.init(address, logging_level=logging.WARNING, **how)
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UsageError('Ray is not installed: pip install -e ".[ray]"') from None
    except ConnectionError as error:
        raise UsageError(f"--address {address}: {str(error).splitlines()[0]}") from None
    return ray


def room(ray: Any, chosen: argparse.Namespace) -> list[dict[str, int]]:
    """What each worker asks of its machine.

    Raises:
        UsageError: this machine alone, which is all that there is, has less.
    """
    has, count = ray.cluster_resources(), chosen.num_ray_workers
    gpus = int("GPU" in has) if chosen.num_gpus is None else chosen.num_gpus
    each = {"CPU": chosen.num_cpus, "GPU": gpus}
    for kind, wanted in each.items():
        if wanted * count > has.get(kind, 0):
            told = f"{count} workers with {wanted} {kind} each: there are {has.get(kind, 0):g}"
            if chosen.address == "local":
                raise UsageError(f"{told}; take fewer, or the --address of a cluster")
            print(f"ray_train.py: {told}; waiting for more machines", file=sys.stderr)
    return [each] * count


def supervise(ray: Any, argv: list[str], needs: list[dict[str, int]], max_failures: int) -> Any:
    """Starts the workers, and all of them anew when one has died; main.py's exit status."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Place

    group, job, size = ray.util.placement_group(needs), f"ray-{uuid.uuid4().hex[:12]}", str(len(needs))
    for failures in range(max_failures + 1):
        workers = [
            ray.remote(Worker)
            .options(num_cpus=need["CPU"], num_gpus=need["GPU"], scheduling_strategy=Place(group, rank))
            .remote()
            for rank, need in enumerate(needs)
        ]
        try:
            host, port = ray.get(workers[0].address.remote())
            # What torchrun would say. Each worker counts as a machine: Ray shows it no GPU but its own.
            told = {"MASTER_ADDR": host, "MASTER_PORT": str(port), "WORLD_SIZE": size, "GROUP_WORLD_SIZE": size}
            told |= {"TORCHELASTIC_RUN_ID": job, "TORCHELASTIC_RESTART_COUNT": str(failures)}
            told |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
            told |= {} if needs[0]["GPU"] else {"CUDA_VISIBLE_DEVICES": ""}
            ranks = [told | {"RANK": str(rank), "GROUP_RANK": str(rank)} for rank in range(len(needs))]
            pairs = zip(workers, ranks, strict=True)
            return outcome(ray, [worker.train.remote(argv, os.getcwd(), rank) for worker, rank in pairs])
        except ray.exceptions.RayActorError as error:
            left = max_failures - failures
            print(f"ray_train.py: {error}\nray_train.py: a worker died; starts left: {left}", file=sys.stderr)
        finally:
            for worker in workers:
                ray.kill(worker)
    return 1


def outcome(ray: Any, running: list[Any]) -> Any:
    """Waits for the workers: their exit status, or the first exception of one.

    Raises:
        RayActorError: a worker died, and what others raised is that they missed it.
    """
    first: BaseException | None = None
    while running:
        ended, running = ray.wait(running, timeout=GRACE if first else None)
        if not ended:
            break  # the others wait for the one that raised
        try:
            if status := ray.get(ended[0]):
                first = first or SystemExit(status)
        except ray.exceptions.RayTaskError as error:
            first = first or error
    if first:
        raise first.with_traceback(None)  # where it was raised is in its message
    return 0


if __name__ == "__main__":
    main()
