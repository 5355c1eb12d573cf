"""A job that SLURM or torchrun starts again finds the run that it had begun. No torch here."""

import os
import re
import socket
from pathlib import Path


def mark() -> str:
    """A file in the run folder that says whose it is, or "". Its name is the same when the job is started again."""
    array = "_".join(os.environ.get(f"SLURM_ARRAY_{part}_ID", "") for part in ("JOB", "TASK")).strip("_")
    if number := array or os.environ.get("SLURM_JOB_ID"):
        return f"slurm-{number}"
    if (job := os.environ.get("TORCHELASTIC_RUN_ID")) is None:
        return ""
    if job == "none":  # torchrun was given no --rdzv_id: one machine, and its agent is the parent of all ranks
        job = f"{socket.gethostname()}-{os.getppid()}"
    return "torchrun-" + re.sub(r"[^\w.-]", "_", job)


def begun(root: Path) -> str | None:
    """The run folder that this job began before it was started again, if it has saved anything there."""
    slurm, torchrun = (int(os.environ.get(f"{who}_RESTART_COUNT") or 0) for who in ("SLURM", "TORCHELASTIC"))
    marks = [*root.glob(f"version_*/{mark()}")] if mark() else []
    if not (slurm or torchrun):
        for old in marks if os.environ.get("RANK") == "0" else []:  # of another job by the same name
            old.unlink(missing_ok=True)
        return None
    saved = [path.parent for path in marks if list(path.parent.glob("checkpoints/*.ckpt"))]
    return str(max(saved, key=lambda run: run.stat().st_mtime)) if saved else None


def requeue() -> str:
    """Puts the SLURM job that this process belongs to back into the queue; what it says."""
    import subprocess

    job = mark().removeprefix("slurm-")
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    return done.stderr.strip() or "requeued"
