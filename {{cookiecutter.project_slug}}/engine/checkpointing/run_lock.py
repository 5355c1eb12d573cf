"""The lock of a run: two processes never train it at the same time. No torch here."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from engine.errors import UsageError

_held = set[Path]()  # by this process


def acquire(run: Path, job_id: str) -> None:
    """Claims a run for this process until `release`; a claim of a process that has died does not count.

    It is a file beside the run folder, `.version_3.lock`: host, process, when that started, and the cluster's job. A
    job that its cluster starts again, perhaps on another host, takes over from itself.

    Raises:
        UsageError: another process trains the run, or may do so on another host.
    """
    path = run.with_name(f".{run.name}.lock")
    deadline = time.monotonic() + 30
    while True:
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(f"{socket.gethostname()}\n{os.getpid()}\n{_start_time(os.getpid())}\n{job_id}")
            _held.add(path)
            return
        except FileExistsError:
            same_job = bool(job_id) and _read(path)[3] == job_id
        where = holder(run)
        if not where or (same_job and " on " in where):
            path.unlink(missing_ok=True)
        elif same_job and time.monotonic() < deadline:
            time.sleep(0.2)  # the old process of a job that starts again is about to end
        else:
            hint = f"; if that has died, delete {path}" if " on " in where else ""
            raise UsageError(f"{run} is being trained by {where}: wait for its end, or stop it{hint}")


def holder(run: Path) -> str:
    """The other process that trains a run, as `process 12`, or `process 12 on HOST`; "" for none."""
    host, pid, started, _ = _read(run.with_name(f".{run.name}.lock"))
    here = host == socket.gethostname()
    if not pid or (here and (pid == str(os.getpid()) or _start_time(int(pid)) != started)):
        return ""
    return f"process {pid}" if here else f"process {pid} on {host}"


def _read(path: Path) -> list[str]:
    """Host, process, its start and the job of a claim; empty texts where there is none."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [*text.split("\n"), "", "", ""][:4]


def release() -> None:
    """Gives up what this process has claimed."""
    while _held:
        with suppress(OSError):  # a claim that cannot be deleted ends with this process
            _held.pop().unlink()


def _start_time(pid: int) -> str:
    """When a process of this host started; "" where it is dead, "alive" where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists() or os.name != "posix":
            return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"
