"""SLURM and torchrun: ranks per node, the run folder of a restarted job, a job put back into the queue, the rendezvous.

No torch here before ranks meet.
"""

import math
import os
import re
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import Any

from engine.errors import UsageError

WARNING = getattr(signal, "SIGUSR1", 0)  # sbatch --signal=SIGUSR1@90: the job's time is nearly up
_store: Any = None  # of rank 0, which serves the others while the run lasts


def job_id(argv: list[str]) -> str:
    """The name of the file in the run folder that marks the job of SLURM or torchrun that began it, or "".

    It is the same when the job is started again. argv: of this run; the script of a job may start several.
    """
    command = f"{zlib.crc32(chr(0).join(argv).encode(errors='surrogatepass')):08x}"
    if number := slurm_job_id():
        return f"slurm-{number}-{command}"
    if (job := os.environ.get("TORCHELASTIC_RUN_ID")) is None:
        return ""
    if job == "none" and os.environ.get("GROUP_WORLD_SIZE") == "1":  # no --rdzv_id: the parent process is the agent
        import socket  # not needed for help

        job = f"{socket.gethostname()}-{os.getppid()}"
    return "-".join(["torchrun", re.sub(r"[^\w.-]", "_", job), command])


def restarted_run(root: Path, job_id: str) -> str | None:
    """The run folder that this job began before it was restarted, if that has a checkpoint.

    torchrun does not count restarts because a machine came or went, and each machine counts for itself: there, a run is
    resumed that has not ended, or has since torchrun was started, as where one rank fails while the others exit.
    """
    restarted = any(int(os.environ.get(f"{launcher}_RESTART_COUNT") or 0) for launcher in ("SLURM", "TORCHELASTIC"))
    by_slurm = job_id.startswith("slurm-")
    if not job_id or (by_slurm and not restarted):
        return None
    since = 0.0 if by_slurm else _parent_start()
    marks = root.glob(f"version_*/{job_id}")
    marks = (mark for mark in marks if mark.stat().st_mtime > since or mark.read_text("utf-8") != "ended")
    saved = [path.parent for path in marks if list(path.parent.glob("checkpoints/*.ckpt"))]
    return str(max(saved, key=lambda run: run.stat().st_mtime)) if saved else None


def _parent_start() -> float:
    """When the parent process, torchrun's, was started, as `time.time` tells it; infinite where there is no /proc."""
    stat = Path(f"/proc/{os.getppid()}/stat")
    if not stat.exists():
        return math.inf
    ticks = int(stat.read_text("utf-8").rpartition(")")[2].split()[19])  # since the machine was started
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def process_layout() -> dict[str, Any]:
    """`num_nodes` and `devices` for the Trainer as torchrun or srun started the processes; {} where neither did.

    Raises: UsageError: the SLURM job has tasks that srun did not start, or more of them on one node than on another.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local_size, world_size = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return {"num_nodes": world_size // local_size, "devices": local_size}
    tasks = int(os.environ.get("SLURM_NTASKS") or 0)
    if not tasks or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return {}
    if "SLURM_STEP_ID" not in os.environ:
        if tasks > 1:
            raise UsageError(f"SLURM gave this job {tasks} tasks and python was started once: srun python main.py ...")
        return {}
    tasks_per_node = os.environ.get("SLURM_STEP_TASKS_PER_NODE", str(tasks))  # such as 2(x3),1
    if not (even := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node)):
        raise UsageError(f"SLURM put {tasks_per_node} tasks on the nodes; give each as many, by --ntasks-per-node")
    nodes = even[2] or "1"
    # Lightning reads these two, which srun may leave at those of the whole job, or unset.
    os.environ |= {"SLURM_NTASKS_PER_NODE": even[1], "SLURM_NNODES": nodes}
    return {"num_nodes": int(nodes), "devices": int(even[1])}


def slurm_job_id() -> str:
    """The id of the SLURM job, or "". A task of an array keeps its id when it is started again."""
    array = "_".join(os.environ.get(f"SLURM_ARRAY_{key}_ID", "") for key in ("JOB", "TASK")).strip("_")
    return array or os.environ.get("SLURM_JOB_ID", "")


def requeue_if_due(signum: int) -> None:
    """Requeues a job that is warned or preempted; a job that a person cancels ends."""
    signal.signal(signum, signal.SIG_IGN)
    if signum == WARNING or _is_preempted():
        print(f"SLURM: {_scontrol('requeue', slurm_job_id()) or 'requeued'}", file=sys.stderr, flush=True)


def _is_preempted() -> bool:
    """Whether the job makes room for another one: it gets SIGTERM, as if cancelled, and would not come back."""
    fields = _scontrol("--oneliner", "show", "job", slurm_job_id()).split()
    return {"JobState=RUNNING", "Requeue=1"} <= {*fields} and "PreemptTime=None" not in fields


def _scontrol(*args: str) -> str:
    """The output of SLURM's `scontrol`, or the error of calling it."""
    import subprocess  # not needed for help

    try:
        done = subprocess.run(["scontrol", *args], capture_output=True, encoding="utf-8", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stdout + done.stderr).strip()


def rendezvous() -> None:
    """Has the ranks of torchrun initialize from a fresh TCPStore.

    torchrun keeps one store for all its restarts, in which a restarted rank may find a stale address: it is refused
    there, or waits for ever. Here each rank asks rank 0 under a fresh token, so that the answer, the port of a new
    store, is of this start.
    """
    global _store
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    import uuid

    from torch.distributed import TCPStore

    rank, size, host = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), os.environ["MASTER_ADDR"]
    agent_store, token = TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False), uuid.uuid4().hex
    if rank == 0:
        _store = TCPStore(host, 0, is_master=True, wait_for_workers=False, multi_tenant=True)
        port, waiting = str(_store.port), set(range(1, size))
        while waiting:
            for other in list(waiting):
                if agent_store.check([f"{token} {other}"]):
                    waiting.remove(other)
                elif agent_store.check([f"asks {other}"]):
                    agent_store.set(f"answer {agent_store.get(f'asks {other}').decode()}", f"{port} {token}")
            time.sleep(0.02)
    else:
        agent_store.set(f"asks {rank}", token)
        port, rank0_token = agent_store.get(f"answer {token}").decode().split()
        agent_store.set(f"{rank0_token} {rank}", "heard")
    os.environ |= {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}
