#!/usr/bin/env python
"""Trains on a Ray cluster: python ray_train.py --num_ray_workers 2 -- --model_name my_net --dataset my_data ...

Behind `--` stand the flags of main.py. The workers are the processes of one run, as under torchrun. When one dies, or
its machine does, all are restarted and resume from the newest checkpoint.
"""

import argparse
import logging
import os
import sys
import uuid
from typing import Any

import main as project
from engine.errors import UsageError

GRACE = 15  # seconds to wait, after a worker raised an error, for Ray to report that another one had died before


class Worker:
    """A process of the run, on whichever machine Ray puts it."""

    def address(self) -> tuple[str, int]:
        """MASTER_ADDR and MASTER_PORT: the IP address of its machine, and a free port there."""
        import socket

        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def train(self, argv: list[str], folder: str, environment: dict[str, str]) -> Any:
        """Runs main.py in a folder; its exit status. An exit by a signal ends the worker, which Ray sees as a death."""
        os.chdir(folder)
        os.environ |= environment
        try:
            project.main(argv)
        except SystemExit as exit:
            if isinstance(exit.code, int) and exit.code > 128:
                raise
            return exit.code
        return 0


def main(argv: list[str] | None = None) -> None:
    """Runs a command line. It raises what the user's own code raised, and SystemExit(2) on a mistake."""
    argv = sys.argv[1:] if argv is None else argv
    end = argv.index("--") if "--" in argv else len(argv)
    form = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser("ray_train.py", description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("--num_ray_workers", type=int, default=1, help="processes that train together (default: 1)")
    parser.add_argument("--num_cpus", type=int, default=1, help="cores and torch threads of each worker (default: 1)")
    text = "of each worker (default: 1 if the cluster has any)"
    parser.add_argument("--num_gpus", type=int, choices=(0, 1), help=text)
    parser.add_argument("--max_failures", type=int, default=3, help="restarts after a worker has died (default: 3)")
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS") or "local",
        help="of a running cluster; auto: of this machine (default: RAY_ADDRESS, or a new one)",
    )
    options, flags = parser.parse_args(argv[:end]), argv[end + 1 :]
    project.parse(flags)  # exits here if a flag is wrong
    try:
        ray = connect(options.address)
        raise SystemExit(run_workers(ray, flags, resources(ray, options), options.max_failures))
    except UsageError as error:
        print(f"ray_train.py: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("ray_train.py: interrupted; to resume, add --ckpt_path last behind --", file=sys.stderr)
        raise SystemExit(130) from None


def connect(address: str) -> Any:
    """The module ray, connected to a cluster; `local` starts one that only this machine can reach.

    Raises: UsageError: Ray is not installed, or there is no such cluster.
    """
    options: dict[str, Any] = {}
    if address == "local":  # Ray reads its environment when it is imported
        options = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about a future default
    try:
        import ray

        ray.init(address, logging_level=logging.WARNING, **options)
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UsageError('Ray is not installed: pip install -e ".[ray]"') from None
    except ConnectionError as error:
        raise UsageError(f"--address {address}: {str(error).splitlines()[0]}") from None
    return ray


def resources(ray: Any, options: argparse.Namespace) -> list[dict[str, int]]:
    """The CPUs and GPUs of each worker.

    Raises: UsageError: this machine has fewer, and there is no cluster.
    """
    available, count = ray.cluster_resources(), options.num_ray_workers
    gpus = int("GPU" in available) if options.num_gpus is None else options.num_gpus
    each = {"CPU": options.num_cpus, "GPU": gpus}
    for kind, wanted in each.items():
        if wanted * count > available.get(kind, 0):
            message = f"{count} workers with {wanted} {kind} each: there are {available.get(kind, 0):g}"
            if options.address == "local":
                raise UsageError(f"{message}; take fewer, or the --address of a cluster")
            print(f"ray_train.py: {message}; waiting for more machines", file=sys.stderr)
    return [each] * count


def run_workers(ray: Any, argv: list[str], bundles: list[dict[str, int]], max_failures: int) -> Any:
    """Starts the workers, and restarts all of them when one has died; main.py's exit status."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group, size = ray.util.placement_group(bundles), str(len(bundles))
    # The variables of torchrun. Each worker counts as a machine: Ray shows it no GPU but its own.
    common = {"WORLD_SIZE": size, "GROUP_WORLD_SIZE": size, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    common |= {"TORCHELASTIC_RUN_ID": f"ray-{uuid.uuid4().hex[:12]}"}
    common |= {} if bundles[0]["GPU"] else {"CUDA_VISIBLE_DEVICES": ""}
    for failures in range(max_failures + 1):
        workers = []
        for rank, bundle in enumerate(bundles):
            place = PlacementGroupSchedulingStrategy(group, rank)
            options = {"num_cpus": bundle["CPU"], "num_gpus": bundle["GPU"], "scheduling_strategy": place}
            workers.append(ray.remote(Worker).options(**options).remote())
        try:
            host, port = ray.get(workers[0].address.remote())
            common |= {"MASTER_ADDR": host, "MASTER_PORT": str(port), "TORCHELASTIC_RESTART_COUNT": str(failures)}
            ranks = [common | {"RANK": str(rank), "GROUP_RANK": str(rank)} for rank in range(len(workers))]
            pairs = zip(workers, ranks, strict=True)
            return wait(ray, [worker.train.remote(argv, os.getcwd(), variables) for worker, variables in pairs])
        except ray.exceptions.RayActorError as error:
            left = max_failures - failures
            print(f"ray_train.py: {error}\nray_train.py: a worker died; starts left: {left}", file=sys.stderr)
        finally:
            for worker in workers:
                ray.kill(worker)
    return 1


def wait(ray: Any, running: list[Any]) -> Any:
    """Waits for the workers: their exit status, or the first exception of one.

    Raises: RayActorError: a worker died; errors of the others are consequences.
    """
    error: BaseException | None = None
    while running:
        done, running = ray.wait(running, timeout=GRACE if error else None)
        if not done:
            break  # the others hang without the one that raised
        try:
            if status := ray.get(done[0]):
                error = error or SystemExit(status)
        except ray.exceptions.RayTaskError as raised:
            error = error or raised
    if error:
        raise error.with_traceback(None)  # its message contains the worker's traceback
    return 0


if __name__ == "__main__":
    main()
