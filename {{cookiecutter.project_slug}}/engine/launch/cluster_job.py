"""Jobs of SLURM and torchrun: where their processes are, and how a job that is started again finds its run.

No torch here, but where processes meet.
"""

import os
import re
import signal
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any, NoReturn

from engine.errors import UsageError

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
WARNING = getattr(signal, "SIGUSR1", 0)  # sbatch --signal=SIGUSR1@90: the job's time is nearly up


def _number() -> str:
    """The SLURM job's number, or "". That of an array's task stays the same when it is started again."""
    array = "_".join(os.environ.get(f"SLURM_ARRAY_{part}_ID", "") for part in ("JOB", "TASK")).strip("_")
    return array or os.environ.get("SLURM_JOB_ID", "")


def job_id(argv: list[str]) -> str:
    """A file in the run folder that says whose it is, or "". Its name is the same when the job is started again.

    argv: of this run; a job's script may well start several.
    """
    command = f"{zlib.crc32(chr(0).join(argv).encode()):08x}"
    if number := _number():
        return f"slurm-{number}-{command}"
    if (job := os.environ.get("TORCHELASTIC_RUN_ID")) is None:
        return ""
    if job == "none" and os.environ.get("GROUP_WORLD_SIZE") == "1":  # no --rdzv_id: the agent is the ranks' parent
        import socket  # help need not wait for it

        job = f"{socket.gethostname()}-{os.getppid()}"
    return "-".join(["torchrun", re.sub(r"[^\w.-]", "_", job), command])


def restarted_run(root: Path, job_id: str) -> str | None:
    """The run folder that this job began before it was started again, if it has saved anything there.

    torchrun does not count the restarts for which a machine came or went: there a run that has not ended goes on too.
    """
    again = any(int(os.environ.get(f"{who}_RESTART_COUNT") or 0) for who in ("SLURM", "TORCHELASTIC"))
    if not job_id or (job_id.startswith("slurm-") and not again):
        return None
    marks = [path for path in root.glob(f"version_*/{job_id}") if again or path.read_text("utf-8") != "ended"]
    saved = [path.parent for path in marks if list(path.parent.glob("checkpoints/*.ckpt"))]
    return str(max(saved, key=lambda run: run.stat().st_mtime)) if saved else None


def process_layout() -> dict[str, Any]:
    """The Trainer's `num_nodes` and `devices` as torchrun or srun has laid the processes out; {} where neither has.

    Raises:
        UsageError: SLURM expects processes that nobody has started, or more of them on one node than on another.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        each, all_ranks = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return {"num_nodes": all_ranks // each, "devices": each}
    tasks = int(os.environ.get("SLURM_NTASKS") or 0)
    if not tasks or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return {}
    if "SLURM_STEP_ID" not in os.environ:
        if tasks > 1:
            raise UsageError(f"SLURM gave this job {tasks} tasks and python was started once: srun python main.py ...")
        return {}
    to_channels_last = os.environ.get("SLURM_STEP_TASKS_PER_NODE", str(tasks))  # such as 2(x3),1
    if not (even := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", to_channels_last)):
        raise UsageError(f"SLURM put {to_channels_last} tasks on the nodes; give each as many, by --ntasks-per-node")
    nodes = even[2] or "1"
    # Lightning reads these, which are the job's, of which the step may be a part, or which --ntasks alone leaves out.
    os.environ |= {"SLURM_NTASKS_PER_NODE": even[1], "SLURM_NNODES": nodes}
    return {"num_nodes": int(nodes), "devices": int(even[1])}


def rendezvous() -> Any:
    """Gives the processes of torchrun a store of their own, in which they find each other; None where they need none.

    torchrun keeps one store for all its restarts, and so a process that is started again may find the address that
    another one had before: it is refused there, or waits for ever. Here each asks the first process by a word that
    nobody has used before, so that the answer, a new store's port, is of this start.

    Returns the store where it is served: as long as the first process keeps it.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    import uuid  # help need not wait for it

    from torch.distributed import TCPStore

    rank, size, host = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), os.environ["MASTER_ADDR"]
    kept, word, served = TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False), uuid.uuid4().hex, None
    if rank == 0:
        served = TCPStore(host, 0, is_master=True, wait_for_workers=False, multi_tenant=True)
        port, silent = str(served.port), set(range(1, size))
        while silent:
            for other in list(silent):
                if kept.check([f"{word} {other}"]):
                    silent.remove(other)
                elif kept.check([f"asks {other}"]):
                    kept.set(f"answer {kept.get(f'asks {other}').decode()}", f"{port} {word}")
            time.sleep(0.02)
    else:
        kept.set(f"asks {rank}", word)
        port, first = kept.get(f"answer {word}").decode().split()
        kept.set(f"{first} {rank}", "heard")
    os.environ |= {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}
    return served


def handle_early_signals() -> None:
    """A signal that comes while a job is only starting, with nothing to save yet, is heard too."""
    if _number() and threading.current_thread() is threading.main_thread():
        for number in (WARNING, signal.SIGTERM):
            signal.signal(number, lambda number, frame: exit_on_signal(number))


def exit_on_signal(number: int) -> NoReturn:
    """Ends the process for a signal: exit status 128 + number. A SLURM job that is to come back goes into the queue."""
    if _number() and number in (WARNING, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
        if number == WARNING or _gives_way():
            print(f"SLURM: {_scontrol('requeue', _number()) or 'requeued'}", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)


def _gives_way() -> bool:
    """Whether the job makes room for another: it gets SIGTERM, as if cancelled, and would not come back."""
    told = _scontrol("--oneliner", "show", "job", _number()).split()
    return {"JobState=RUNNING", "Requeue=1"} <= {*told} and "PreemptTime=None" not in told


def _scontrol(*words: str) -> str:
    """What SLURM answers."""
    import subprocess

    try:
        done = subprocess.run(["scontrol", *words], capture_output=True, encoding="utf-8", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stdout + done.stderr).strip()
