"""The SLURM job of this process: its id, and putting it back into the queue."""

import os
import signal
import sys

WARNING = getattr(signal, "SIGUSR1", 0)  # sbatch --signal=SIGUSR1@90: the job's time is nearly up


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
