#!/usr/bin/env python
"""Trains on a Ray cluster: python ray_train.py --num_ray_workers 2 -- --model_name my_net --dataset my_data ...

Behind `--` stand the flags of main.py. Every worker is a process of the same run, as under torchrun, and the first one
writes. When a worker or its machine dies, all are started again from the newest checkpoint.
"""

import argparse
import logging
import os
import sys
import uuid
from typing import Any

import main as project
from engine import flags

GRACE = 15  # seconds, after a worker failed, in which it shows whether another one had died


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
        """Runs main.py there; its exit status."""
        os.chdir(folder)
        os.environ |= environment
        try:
            project.main(argv)
        except SystemExit as ended:  # Ray would take it for a death
            return ended.code
        return 0


def main(argv: list[str] | None = None) -> None:
    """Runs a command line; SystemExit(2) on a mistake, and the user's own exception as it was raised."""
    words = sys.argv[1:] if argv is None else argv
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        "ray_train.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--num_ray_workers", type=int, default=1, help="processes that train together (default: 1)")
    parser.add_argument("--num_cpus", type=int, default=1, help="of each: cores, and threads of torch (default: 1)")
    parser.add_argument("--num_gpus", type=int, help="of each: 0 or 1 (default: 1 where the cluster has any)")
    parser.add_argument("--max_failures", type=int, default=3, help="deaths to start again after (default: 3)")
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS", "local"),
        help="a running cluster, auto for this machine's (default: RAY_ADDRESS, or one that ends with the run)",
    )
    chosen = parser.parse_args(words[:cut])
    flags.parse(words[cut + 1 :], project.SEEDS)  # its mistakes end here, before anything is started
    here: dict[str, Any] = {}
    if chosen.address == "local":  # nobody else is to reach it
        here = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of what it will do one day
    try:
        import ray
    except ModuleNotFoundError:
        parser.error('ray is not installed: pip install -e ".[ray]"')
    try:
        ray.init(chosen.address, logging_level=logging.WARNING, **here)
    except ConnectionError as error:
        parser.error(f"--address {chosen.address}: {str(error).splitlines()[0]}")
    has = ray.cluster_resources()
    gpus = chosen.num_gpus if chosen.num_gpus is not None else int("GPU" in has)
    each = {"CPU": chosen.num_cpus, "GPU": gpus}
    for kind, count in each.items():
        if here and count * chosen.num_ray_workers > has.get(kind, 0):
            wanted = f"{chosen.num_ray_workers} workers with {count} {kind} each"
            parser.error(f"{wanted}: this machine has {has.get(kind, 0):g}; take fewer, or the --address of a cluster")
    try:
        raise SystemExit(supervise(ray, words[cut + 1 :], [each] * chosen.num_ray_workers, chosen.max_failures))
    except KeyboardInterrupt:
        print("ray_train.py: ended; add --ckpt_path last behind -- to go on", file=sys.stderr)
        raise SystemExit(130) from None


def supervise(ray: Any, argv: list[str], needs: list[dict[str, int]], max_failures: int) -> Any:
    """Starts the workers, and all of them anew when one has died; main.py's exit status.

    needs: what each worker asks of its machine.
    """
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group, job = ray.util.placement_group(needs), f"ray-{uuid.uuid4().hex[:12]}"
    for failures in range(max_failures + 1):
        workers = [
            ray.remote(Worker)
            .options(
                num_cpus=need["CPU"],
                num_gpus=need["GPU"],
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, rank),
            )
            .remote()
            for rank, need in enumerate(needs)
        ]
        try:
            host, port = ray.get(workers[0].address.remote())
            size = str(len(workers))
            # What torchrun would say. Each worker counts as a machine: Ray shows it no GPU but its own.
            told = {"MASTER_ADDR": host, "MASTER_PORT": str(port), "WORLD_SIZE": size, "GROUP_WORLD_SIZE": size}
            told |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
            told |= {"TORCHELASTIC_RUN_ID": job, "TORCHELASTIC_RESTART_COUNT": str(failures)}
            return outcome(
                ray,
                [
                    worker.train.remote(argv, os.getcwd(), told | {"RANK": str(rank), "GROUP_RANK": str(rank)})
                    for rank, worker in enumerate(workers)
                ],
            )
        except ray.exceptions.RayActorError as error:
            left = max_failures - failures
            print(f"ray_train.py: {error}\nray_train.py: a worker died; {left} starts left", file=sys.stderr)
            if not left:
                return 1
        finally:
            for worker in workers:
                ray.kill(worker)


def outcome(ray: Any, running: list[Any]) -> Any:
    """Waits for the workers: their exit status, or the first exception.

    Raises:
        RayActorError: a worker died, and the exceptions of others, which missed it, mean nothing.
    """
    first: BaseException | None = None
    while running:
        ended, running = ray.wait(running, timeout=GRACE if first else None)
        if not ended:
            break  # the others wait for the one that failed
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
