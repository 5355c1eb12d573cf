"""How SLURM or torchrun started this process: ranks per node, and the run folder that a restarted job resumes.

No torch here.
"""

import math
import os
import re
import time
import zlib
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.launch.slurm import slurm_job_id


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
